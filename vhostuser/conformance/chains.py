"""Chains by hand: every descriptor of a ring as a check wants it, in either layout.

Must not know: which statement is at stake.

How: a ring that a :class:`Driver <vhostuser.conformance.driver.Driver>` has made and started is filled here, without
the rules that its own driver keeps. Chains are laid side by side around the ring and are not looked after: who offers
more than the ring holds overwrites his own. What was used is read from the ring, in whatever order the device says.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostuser.conformance.violation import Violation, about
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.packed import PackedDescriptor, PackedDriverRing
from vhostuser.frontend.rings import DescriptorFlags, Used
from vhostuser.frontend.split import Descriptor, DriverRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vhostuser.conformance.devices import Job
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.memory import RecordedRam
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.packed import Position
    from vhostuser.frontend.rings import Buffer

NEXT, WRITE, INDIRECT = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT
AVAIL, USED = DescriptorFlags.AVAIL, DescriptorFlags.USED
NOWHERE = 0xDEAD_0000_0000
"""An address that is in no memory region."""


class Entry(NamedTuple):
    """A descriptor of a ring, or of an indirect table.

    Attributes:
        addr, length, flags: As they are written; a packed ring's get AVAIL and USED.
        next: In a split ring; None: the descriptor that comes next.
    """

    addr: int
    length: int
    flags: int = 0
    next: int | None = None


def linked(readable: Iterable[Buffer], writable: Iterable[Buffer] = ()) -> list[Entry]:
    """The descriptors of a chain of buffers."""
    entries = [*(Entry(*buffer, NEXT) for buffer in readable), *(Entry(*buffer, NEXT | WRITE) for buffer in writable)]
    entries[-1] = entries[-1]._replace(flags=entries[-1].flags & ~NEXT)
    return entries


def cut(buffers: Iterable[Buffer], sizes: Iterable[int]) -> list[Buffer]:
    """Buffers in pieces: of these sizes as long as there are any, none of them over the end of a buffer."""
    wanted = iter(sizes)
    pieces = []
    for address, length in buffers:
        end = address + length
        while address < end:
            size = min(next(wanted, length), end - address)
            pieces.append((address, size))
            address += size
    return pieces


def scattered(memory: RecordedRam, buffers: Sequence[Buffer]) -> list[Buffer]:
    """Copies of readable buffers, each of which lies before the one that it follows."""
    copies = []
    for address, length in reversed(buffers):
        copy = memory.alloc(length, 1)
        memory.write(copy, memory.read(address, length))
        copies.append((copy, length))
    return copies[::-1]


def write_across(memory: RecordedRam, address: int, data: bytes) -> None:
    """Write bytes that may go over the end of a memory region into one that it touches."""
    for region in memory.regions:
        begin = max(address, region.guest_phys_addr)
        end = min(address + len(data), region.guest_phys_addr + region.memory_size)
        if begin < end:
            memory.write(begin, data[begin - address : end - address])


class Chains(ABC):
    """A ring that is filled by hand.

    Args:
        probe: The check's.
        driver: Whose ring it is.
        ring: Made by the driver, and as it was then; started or not.
    """

    def __init__(self, probe: Probe, driver: Driver, ring: DriverRing | PackedDriverRing) -> None:
        self.probe = probe
        self.driver = driver
        self._queue = ring
        self._in_order = bool(driver.connection.features & DriverFeature.IN_ORDER)
        self._number = 0
        self.begin()

    @property
    def memory(self) -> RecordedRam:
        """The guest's memory."""
        return self.driver.memory

    # ---- what a layout does --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The ring is where a driver's begins: nothing is available."""
        self._out: list[tuple[int, int]] = []  # name and descriptors of each chain that was offered, oldest first

    @abstractmethod
    def offer(self, *entries: Entry, name: int | None = None) -> int:
        """Make a chain available, without a kick.

        Args:
            *entries: Its descriptors in the ring.
            name: In a packed ring, its buffer ID; None: one that no other chain has.

        Returns:
            What the device calls it when it is used.
        """

    @abstractmethod
    def prepare(self, *entries: Entry) -> Callable[[], None]:
        """Write a chain; what makes it available when it is called."""

    @property
    @abstractmethod
    def place(self) -> int:
        """Where the next chain goes, as the device tells it when it asks for a kick."""

    @abstractmethod
    def reap(self) -> list[Used]:
        """What was used since this was asked last. Raises Violation for what was never offered."""

    @abstractmethod
    def table(self, *entries: Entry, size: int = 0, at: int | None = None) -> Buffer:
        """Write an indirect table.

        Args:
            *entries: What it begins with.
            size: How many it has; the others are zeros.
            at: Where it is put.
        """

    def _place(self, table: bytes, size: int, at: int | None) -> Buffer:
        table = table.ljust(16 * size, b"\0")
        address = self.memory.alloc(len(table)) if at is None else at
        write_across(self.memory, address, table)
        return address, len(table)

    def _settle(self, name: int) -> list[tuple[int, int]]:
        """The chains that a used entry with this name stands for: with IN_ORDER, all up to it."""
        names = [other for other, _ in self._out]
        if name not in names:
            raise Violation(f"vring {self._queue.index}: used id {name} is no chain in flight")
        last = names.index(name)
        first = 0 if self._in_order else last
        done = self._out[first : last + 1]
        del self._out[first : last + 1]
        return done

    # ---- work ----------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Kick the ring."""
        self.driver.kick(self._queue)

    def job(self, number: int | None = None) -> Job:
        """A job for the device, not offered yet; those without a number of their own differ from each other."""
        self._number += 1
        return self.driver.device.job(self.memory, self._number if number is None else number)

    async def used(self, count: int = 1) -> list[Used]:
        """Wait for so many chains to be used, and no more."""
        done: list[Used] = []

        def enough() -> bool:
            done.extend(self.reap())
            return len(done) >= count

        await self.driver.until(enough)
        if len(done) != count:
            seconds = self.probe.patience.answer
            raise Violation(f"vring {self._queue.index}: {len(done)} chains were used in {seconds:g} s, not {count}")
        return done

    async def done(self, job: Job) -> None:
        """Wait for a job that was offered; what it sends has to come back before anything else, if anything does."""
        [used] = await self.used()
        job.done(used.written)
        if not (self.probe.offer.echo and job.sent):
            return
        frames: list[bytes] = []

        def back() -> bool:
            frames.extend(self.driver.received())
            return bool(frames)

        await self.driver.until(back)
        if frames != [job.sent]:
            came = ", ".join(_shown(frame) for frame in frames) or "nothing"
            raise Violation(f"{_shown(job.sent)} was sent, and {came} came back")

    async def served(self, count: int = 1) -> None:
        """Show that jobs are done, one after the other."""
        for _ in range(count):
            job = self.job()
            self.offer(*linked(job.readable, job.writable))
            self.kick()
            await self.done(job)

    async def given_back(self, what: str, *entries: Entry) -> None:
        """Show that a chain is given back and nothing is done for it, and that the ring goes on."""
        with about(what):
            self.offer(*entries)
            self.kick()
            [used] = await self.used()
            if used.written:
                raise Violation(f"came back with {used.written} bytes written")
            await self.served()

    async def ineffective(self, what: str, job: Job, *entries: Entry) -> None:
        """Show that a job is not done if these are its descriptors; the ring may break."""
        self.offer(*entries)
        self.kick()
        done: list[Used] = []

        def answered() -> bool:
            done.extend(self.reap())
            return bool(done) if job.writable else self.probe.offer.echo and bool(self.driver.received())

        if not await self.driver.until(answered, self.probe.patience.silence):
            return
        if not job.writable or done[0].written >= sum(length for _, length in job.writable):
            raise Violation(f"{what}: it was done all the same")

    async def left_alone(self) -> None:
        """Show that nothing of what is available is used."""
        self.kick()
        if await self.driver.until(lambda: bool(self.reap()), self.probe.patience.silence):
            raise Violation(f"vring {self._queue.index}: a chain was used that should have stayed")

    async def broken(self) -> int:
        """The ring has to be told broken; how often it was."""
        told = 0

        def signalled() -> bool:
            nonlocal told
            told = self.errors()
            return told > 0

        if not await self.driver.until(signalled):
            seconds = self.probe.patience.answer
            raise Violation(f"vring {self._queue.index} is broken, and err was not signalled in {seconds:g} s")
        return told

    def errors(self) -> int:
        """How often err was signalled since this was asked last."""
        return counted(self._queue.err_fd.fileno())

    def calls(self) -> int:
        """How often call was signalled since this was asked last."""
        return counted(self._queue.call_fd.fileno())

    async def start(self) -> None:
        """Start this ring, in which chains may be available by now, and the driver's others."""
        for ring in self.driver.rings.values():
            await self.driver.start(ring)

    async def heal(self, base: int | None = None) -> None:
        """Stop the ring and start it anew, where a fresh one begins or elsewhere."""
        await self.driver.stop(self._queue)
        self._queue.reset(base)
        self.begin()
        await self.driver.start(self._queue)


class SplitChains(Chains):
    """A split ring.

    Attributes:
        ring: It.
        head: The descriptor that the next chain begins with.
        last_used: How many used entries were reaped, as used.idx counts.
    """

    def __init__(self, probe: Probe, driver: Driver, ring: DriverRing) -> None:
        self.ring = ring
        super().__init__(probe, driver, ring)

    def begin(self) -> None:
        """As in the base class."""
        super().begin()
        self.head = 0
        self.last_used = self.ring.base & 0xFFFF

    def offer(self, *entries: Entry, name: int | None = None) -> int:
        """As in the base class; a chain's name is its first descriptor's index, the others stand before it."""
        assert name is None
        head = self.head
        self.prepare(*entries)()
        return head

    def prepare(self, *entries: Entry) -> Callable[[], None]:
        """As in the base class."""
        head, size = self.head, self.ring.size
        places = [(head - i) % size for i in range(len(entries) + 1)]
        for i, entry in enumerate(entries):
            following = places[i + 1] if entry.next is None else entry.next
            self.ring.set_descriptor(places[i], Descriptor(entry.addr, entry.length, entry.flags, following))
        self.head = places[-1]
        return partial(self.announce, head)

    @property
    def place(self) -> int:
        """As in the base class: avail.idx."""
        return self.ring.avail_idx

    def announce(self, head: int) -> None:
        """Make a head available."""
        self._out.append((head, 1))
        self.ring.set_avail(self.ring.avail_idx, head)
        self.ring.avail_idx += 1

    def reap(self) -> list[Used]:
        """As in the base class."""
        done: list[Used] = []
        for _ in range((self.ring.used_idx - self.last_used) & 0xFFFF):
            used = self.ring.used(self.last_used)
            chains = self._settle(used.head)
            self.last_used = (self.last_used + len(chains)) & 0xFFFF
            done += (Used(name, used.written) for name, _ in chains)
            if self.last_used == self.ring.used_idx:
                break
        return done

    def table(self, *entries: Entry, size: int = 0, at: int | None = None) -> Buffer:
        """As in the base class; the entries behind the first one stand in reverse order."""
        places = [0, *range(len(entries) - 1, 0, -1), 0]
        rows = {
            places[i]: Descriptor(*entry[:3], places[i + 1] if entry.next is None else entry.next)
            for i, entry in enumerate(entries)
        }
        return self._place(b"".join(rows[place].pack() for place in sorted(rows)), size, at)


class PackedChains(Chains):
    """A packed ring.

    Attributes:
        ring: It.
    """

    def __init__(self, probe: Probe, driver: Driver, ring: PackedDriverRing) -> None:
        self.ring = ring
        self._names = 0x100
        super().__init__(probe, driver, ring)

    def offer(self, *entries: Entry, name: int | None = None) -> int:
        """As in the base class."""
        name, slot, flags = self.lay(*entries, name=name)
        self.ring.set_flags(slot, flags)
        return name

    def prepare(self, *entries: Entry) -> Callable[[], None]:
        """As in the base class."""
        _, slot, flags = self.lay(*entries)
        return partial(self.ring.set_flags, slot, flags)

    @property
    def place(self) -> int:
        """As in the base class: a slot and its wrap counter."""
        return self.ring.next_avail.word

    def is_used(self, place: Position) -> bool:
        """Whether the descriptor at a place was used in its lap."""
        return self.ring.flags(place.offset) & (AVAIL | USED) == (AVAIL | USED if place.wrap else 0)

    def lay(self, *entries: Entry, name: int | None = None) -> tuple[int, int, int]:
        """Write a chain into the ring, but for what makes it available: the flags of its first slot.

        Returns:
            Its name, the slot, and these flags.
        """
        if name is None:
            self._names += 1
            name = self._names
        first = place = self.ring.next_avail
        flags = 0
        for i, entry in enumerate(entries):
            own = int(entry.flags) | (AVAIL if place.wrap else USED)
            body = PackedDescriptor(entry.addr, entry.length, name if i == len(entries) - 1 else name ^ 0x5555, own)
            if i:
                self.ring.set_descriptor(place.offset, body)
            else:
                flags = own
                self.memory.write(self.ring.desc_addr + 16 * place.offset, body.pack()[:14])
            place = place.after(1, self.ring.size)
        self.ring.next_avail = place
        self._out.append((name, len(entries)))
        return name, first.offset, flags

    def reap(self) -> list[Used]:
        """As in the base class."""
        done: list[Used] = []
        while self.ring.has_used:
            used = self.ring.descriptor(self.ring.next_used.offset)
            for name, span in self._settle(used.id):
                self.ring.next_used = self.ring.next_used.after(span, self.ring.size)
                done.append(Used(name, used.length if used.flags & WRITE else 0))
        return done

    def table(self, *entries: Entry, size: int = 0, at: int | None = None) -> Buffer:
        """As in the base class."""
        rows = (PackedDescriptor(entry.addr, entry.length, 0, entry.flags & ~NEXT) for entry in entries)
        return self._place(b"".join(row.pack() for row in rows), size, at)


async def by_hand(
    probe: Probe,
    virtio: int = 0,
    *,
    size: int = 64,
    base: int | None = None,
    told: int | None = None,
    start: bool = True,
    **memory: Any,
) -> Chains:
    """The ring for work of a driver all of whose rings run.

    Args:
        probe: The check's.
        virtio: Features besides those that the device needs, as far as they are offered.
        size: Descriptors of each ring.
        base: Where the rings begin; None: where fresh ones do.
        told: What SET_VRING_BASE tells instead.
        start: Whether the rings are started.
        **memory: As for :meth:`Probe.driver`.
    """
    driver = await probe.driver(virtio, start=False, **memory)
    for index in range(probe.device.rings):
        ring = driver.make_ring(index, size)
        ring.reset(base)
        if index != probe.device.ring:
            driver.post(ring)
        ring.base = ring.base if told is None else told
    chains = chains_of(probe, driver)
    if start:
        await chains.start()
    return chains


async def split_by_hand(probe: Probe, virtio: int = 0, **options: Any) -> SplitChains:
    """The same, where RING_PACKED is not negotiated."""
    chains = await by_hand(probe, virtio, **options)
    assert isinstance(chains, SplitChains)
    return chains


async def packed_by_hand(probe: Probe, virtio: int = 0, **options: Any) -> PackedChains:
    """The same with RING_PACKED, which has to be offered."""
    chains = await by_hand(probe, virtio | DriverFeature.RING_PACKED, **options)
    assert isinstance(chains, PackedChains)
    return chains


def chains_of(probe: Probe, driver: Driver, index: int | None = None) -> Chains:
    """A ring of a driver, in which nothing is available; by its index, or that for work."""
    ring = driver.work if index is None else driver.rings[index]
    if isinstance(ring, DriverRing):
        return SplitChains(probe, driver, ring)
    return PackedChains(probe, driver, ring)


def counted(fd: int) -> int:
    """What an eventfd has counted since this was asked last."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _shown(frame: bytes) -> str:
    return f"a frame of {len(frame)} bytes"

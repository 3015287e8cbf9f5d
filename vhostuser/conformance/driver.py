"""A driver at the back-end: its guest's memory, and its rings of either layout.

Must not know: which statement is at stake, what a chain is for.

How: the rings are those of the library's front-end, every field readable and writable; what is done here is what takes
messages, and what waits. That a chain was used is looked up, not learned from a call: calls have checks of their own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.violation import Violation
from vhostuser.errors import ProtocolError
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.iommu import IOVA_BASE
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import full_fence
from vhostuser.frontend.split import DriverRing
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import (
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddr,
    VringAddrFlags,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostuser.conformance.connection import Connection, Patience
    from vhostuser.conformance.devices import Device, Job
    from vhostuser.conformance.memory import RecordedRam
    from vhostuser.conformance.record import Record
    from vhostuser.frontend.memory import RamRegion
    from vhostuser.frontend.rings import Buffer, DriverQueue, Used

R = FrontendRequest
_LOOK = 0.001  # seconds between two looks
_POSTED = 16  # buffers on a ring that only receives


class Driver:
    """A driver.

    Args:
        connection: Negotiated.
        memory: The guest's.
        device: What is driven.
        record: Where kicks are written down.
        patience: How long is waited.

    Attributes:
        rings: Those that were made here, by index.
    """

    def __init__(
        self, connection: Connection, memory: RecordedRam, device: Device, record: Record, patience: Patience
    ) -> None:
        self.connection = connection
        self.memory = memory
        self.device = device
        self.rings: dict[int, DriverRing | PackedDriverRing] = {}
        self._record = record
        self._patience = patience
        self._jobs: dict[tuple[int, int], Job] = {}
        self._number = 0
        self._posted: dict[tuple[int, int], Buffer] = {}
        self._lent: list[Buffer] = []

    @property
    def work(self) -> DriverRing | PackedDriverRing:
        """The ring on which the device is given work."""
        return self.rings[self.device.ring]

    @property
    def packed(self) -> bool:
        """Whether rings are packed."""
        return bool(self.connection.features & DriverFeature.RING_PACKED)

    # ---- memory --------------------------------------------------------------------------------------------------

    def told(self, region: RamRegion) -> MemoryRegion:
        """A region in the kind of addresses that was negotiated; behind an IOMMU the memory's are IOVAs."""
        message = region.message()
        if self.connection.features & DriverFeature.ACCESS_PLATFORM:
            return replace(message, guest_phys_addr=message.guest_phys_addr - IOVA_BASE)
        if ProtocolFeature.GPA_ADDRESSES in self.connection.protocol:
            return replace(message, userspace_addr=message.guest_phys_addr)
        return message

    async def tell_memory(self) -> None:
        """Tell all of the memory."""
        table = MemoryTable(tuple(map(self.told, self.memory.regions)))
        await self.connection.accepted(R.SET_MEM_TABLE, table, self.memory.fds())

    def move(self, memory: RecordedRam) -> None:
        """Go on in other memory, which has the same content at the same places; it is not told yet."""
        self.memory = memory
        for ring in self.rings.values():
            ring.memory = memory

    async def add_region(self, region: RamRegion) -> None:
        """Tell one more region."""
        await self.connection.accepted(R.ADD_MEM_REG, SingleRegion(self.told(region)), [region.fd.fileno()])

    # ---- rings ---------------------------------------------------------------------------------------------------

    def make_ring(self, index: int, size: int = 64, region: int = 0) -> DriverRing | PackedDriverRing:
        """A ring in the layout that was negotiated, not told to anybody; it replaces the one with that index."""
        features = self.connection.features
        layout = PackedDriverRing if self.packed else DriverRing
        ring = layout(
            self.memory,
            index,
            size,
            event_idx=bool(features & DriverFeature.EVENT_IDX),
            in_order=bool(features & DriverFeature.IN_ORDER),
            region=region,
        )
        for word, fd in (("kick", ring.kick_fd), ("call", ring.call_fd), ("err", ring.err_fd)):
            self._record.name(fd.fileno(), f"{word} {index}")
        self.rings[index] = ring
        return ring

    def address(self, guest_phys_addr: int) -> int:
        """An address as rings are told it."""
        plain = self.connection.features & DriverFeature.ACCESS_PLATFORM
        if plain or ProtocolFeature.GPA_ADDRESSES in self.connection.protocol:
            return guest_phys_addr
        return self.memory.userspace_addr(guest_phys_addr)

    def vring_addr(self, ring: DriverQueue, log: int | None = None) -> VringAddr:
        """The payload of SET_VRING_ADDR, with the address for the dirty log if there is one."""
        return VringAddr(
            ring.index,
            VringAddrFlags(0) if log is None else VringAddrFlags.LOG,
            descriptor=self.address(ring.desc_addr),
            used=self.address(ring.used_addr),
            available=self.address(ring.avail_addr),
            log=log or 0,
        )

    def make_rings(self, size: int = 64) -> None:
        """Make and fill all rings of the device, not told to anybody."""
        for index in range(self.device.rings):
            self.post(self.make_ring(index, size))

    async def set_up(self, ring: DriverQueue, *, log: int | None = None, descriptors: bool = True) -> None:
        """Tell all of a ring but what starts it; without descriptors, its calls and errors are not wanted so."""
        ask, index = self.connection.accepted, ring.index
        await ask(R.SET_VRING_NUM, VringState(index, ring.size))
        await ask(R.SET_VRING_BASE, VringState(index, ring.base))
        await ask(R.SET_VRING_ADDR, self.vring_addr(ring, log))
        if not descriptors:
            return
        await ask(R.SET_VRING_ERR, VringFd(index), [ring.err_fd.fileno()])
        await ask(R.SET_VRING_CALL, VringFd(index), [ring.call_fd.fileno()])

    async def go(self, ring: DriverQueue) -> None:
        """Start a ring that is set up."""
        await self.connection.accepted(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()])

    async def start(self, ring: DriverQueue, *, enable: bool = True, log: int | None = None) -> None:
        """Tell a ring, start it, enable it if asked to, and kick it, as the specification has it."""
        await self.set_up(ring, log=log)
        await self.go(ring)
        if enable:
            await self.enable(ring)
        self.kick(ring)

    async def start_all(self, *, enable: bool = True, size: int = 64) -> None:
        """Make, fill and start all rings of the device."""
        self.make_rings(size)
        for ring in self.rings.values():
            await self.start(ring, enable=enable)

    async def stop_all(self) -> None:
        """Stop all rings."""
        for ring in self.rings.values():
            await self.stop(ring)

    def post(self, ring: DriverQueue) -> None:
        """Make the buffers available that a ring has from the beginning."""
        if length := self.device.buffers(ring.index):
            for _ in range(min(_POSTED, ring.size)):
                buffer = (self.memory.alloc(length), length)
                self._posted[ring.index, ring.add(writable=[buffer])] = buffer
                self._lent.append(buffer)

    async def enable(self, ring: DriverQueue, enable: bool = True) -> None:
        """Enable or disable a ring, where there is a request for it."""
        if self.connection.features & VhostFeature.PROTOCOL_FEATURES:
            await self.connection.accepted(R.SET_VRING_ENABLE, VringState(ring.index, int(enable)))

    async def stop(self, ring: DriverQueue, request: FrontendRequest = R.GET_VRING_BASE) -> int:
        """Stop a ring; its position, from which the next start goes on."""
        answer = await self.connection.accepted(request, VringState(ring.index, 0))
        state = answer.value
        if not isinstance(state, VringState) or state.index != ring.index:
            raise Violation(f"{request.name} of vring {ring.index}: came {answer.frame}")
        ring.base = state.num
        return state.num

    # ---- work ----------------------------------------------------------------------------------------------------

    def kick(self, ring: DriverQueue) -> None:
        """Kick a ring, whether the device wants to know or not."""
        full_fence()
        self._record.signalled(ring.kick_fd.fileno())
        with suppress(BlockingIOError):
            os.eventfd_write(ring.kick_fd.fileno(), 1)

    def kick_if_wanted(self, ring: DriverQueue) -> None:
        """Kick a ring if the device has asked for it, as a driver does that keeps the rules."""
        if ring.kick():
            self._record.signalled(ring.kick_fd.fileno())

    def give(
        self, ring: DriverRing | PackedDriverRing | None = None, *, region: int = 0, indirect: bool = False
    ) -> int:
        """Make a job available, without a kick; its head."""
        ring = ring or self.work
        self._number += 1
        job = self.device.job(self.memory, self._number, region)
        head = ring.add(job.readable, job.writable, indirect=indirect)
        self._lent += job.writable
        self._jobs[ring.index, head] = job
        return head

    def forget(self, head: int) -> None:
        """Expect nothing of a job of the ring for work: somebody else is said to have done it."""
        del self._jobs[self.device.ring, head]

    def writable(self) -> list[Buffer]:
        """All buffers that the device was ever given to write to."""
        return [*self._lent]

    def collect(self, ring: DriverQueue | None = None) -> list[Used]:
        """Take back what was used, and look at what the device made of its jobs."""
        ring = ring or self.work
        try:
            done = ring.reap()
        except ProtocolError as error:
            raise Violation(str(error)) from None
        for used in done:
            job = self._jobs.pop((ring.index, used.head), None)
            if job is not None:
                job.done(used.written)
        return done

    async def used(self, count: int, ring: DriverQueue | None = None) -> Sequence[Used]:
        """Wait for so many chains to be used."""
        ring = ring or self.work
        done: list[Used] = []

        def enough() -> bool:
            done.extend(self.collect(ring))
            return len(done) >= count

        if not await self.until(enough):
            how = f"{len(done)} of {count} chains were used"
            raise Violation(f"vring {ring.index}: {how} in {self._patience.answer:g} s")
        return done

    async def served(self, count: int = 1, ring: DriverRing | PackedDriverRing | None = None) -> None:
        """Show that a ring is worked on: jobs that are given to it now come back done."""
        ring = ring or self.work
        for _ in range(count):
            self.give(ring)
        self.kick(ring)
        await self.used(count, ring)

    async def left_alone(self, ring: DriverRing | PackedDriverRing | None = None, *, kick: bool = True) -> None:
        """Show that a ring is not worked on, kicked or not: nothing is used of what is available."""
        ring = ring or self.work
        if kick:
            self.kick(ring)
        if await self.until(lambda: ring.has_used, within=self._patience.silence):
            raise Violation(f"vring {ring.index} is worked on: chains were used that should have stayed")

    async def effective(self) -> None:
        """Show that the ring for work is enabled: what is sent on it comes back, or what is asked for is done."""
        if self.device.echo is None:
            await self.served()
            return
        frame = await self._sent()
        received: list[bytes] = []

        def back() -> bool:
            received.extend(self.received())
            return frame in received

        if not await self.until(back):
            raise Violation(f"vring {self.device.ring}: what was sent did not come back in {self._patience.answer:g} s")

    async def without_effect(self) -> None:
        """Show that the ring for work is disabled: what is sent on it is thrown away, or nothing is done."""
        if self.device.echo is None:
            self.give()
            await self.left_alone()
            return
        frame = await self._sent()
        if await self.until(lambda: frame in self.received(), within=self._patience.silence):
            raise Violation(f"vring {self.device.ring}: what was sent while it was disabled came back")

    async def _sent(self) -> bytes:
        head = self.give()
        frame = self._jobs[self.device.ring, head].sent
        self.kick(self.work)
        await self.used(1)
        return frame

    def received(self) -> list[bytes]:
        """What came back since this was asked last, without headers; the buffers are posted again."""
        assert self.device.echo is not None
        ring = self.rings[self.device.echo]
        # their heads are free again: all buffers are taken out before one is posted under another's head
        done = [(self._posted.pop((ring.index, used.head)), used.written) for used in self.collect(ring)]
        skipped = self.device.header_size
        frames = [self.memory.read(address, min(written, length))[skipped:] for (address, length), written in done]
        for buffer, _ in done:
            self._posted[ring.index, ring.add(writable=[buffer])] = buffer
        if frames:
            self.kick(ring)
        return frames

    async def until(self, true: Callable[[], bool], within: float | None = None) -> bool:
        """Wait until something is true, as long as for an answer unless told otherwise; whether it came true."""
        with trio.move_on_after(self._patience.answer if within is None else within):
            while not true():  # noqa: ASYNC110 - memory tells nobody
                await trio.sleep(_LOOK)
            return True
        return true()

    async def signalled(self, fd: int, what: str) -> None:
        """Wait until a descriptor that the back-end signals is readable, and take the signal."""
        with trio.move_on_after(self._patience.answer) as scope:
            await trio.lowlevel.wait_readable(fd)
        if scope.cancelled_caught:
            raise Violation(f"{what} was not signalled in {self._patience.answer:g} s")
        os.read(fd, 8)

    def look(self) -> None:
        """Enter into the record what the device has used, so that whoever plays it finds out if it does so again."""
        for ring in self.rings.values():
            if isinstance(ring, PackedDriverRing):
                self.memory.look(ring.desc_addr, 16 * ring.size)
            else:
                self.memory.look(ring.used_addr + 2, 2 + 8 * ring.size)

    def close(self) -> None:
        """Close the rings' descriptors."""
        for ring in self.rings.values():
            ring.close()

"""A driver's packed ring for tests: raw slots, and the rules of a well-behaved driver on top of them.

It is written apart from the front-end's, and answers to the names of ``frontend.split.DriverRing`` where a test runs
over both layouts. Numbers of chains count from the last reset.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vhostuser.fds import OwnedFd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import Used, full_fence

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
FRESH = 0x8000_8000
_SLOT = struct.Struct("<QIHH")

Buffer = tuple[int, int]


class Slot(NamedTuple):
    """A descriptor as it lies in the ring."""

    addr: int
    length: int
    id: int
    flags: int


class Place(NamedTuple):
    """A slot's number and the wrap counter of who has come there."""

    slot: int
    wrap: bool

    @property
    def packed(self) -> int:
        """As positions and event words have it."""
        return self.slot | self.wrap << 15


class Chain(NamedTuple):
    """A chain in flight: its id and how many slots it takes."""

    id: int
    span: int


class PackedDriver:
    """A packed ring as its driver runs it, with the three eventfds that belong to it.

    Attributes:
        base: the position that SET_VRING_BASE tells.
        next, last: where the next chain goes, and where the next used entry is expected.
        chains: what is in flight, in order.
    """

    def __init__(
        self,
        memory: GuestRam,
        index: int,
        size: int = 16,
        *,
        event_idx: bool = False,
        in_order: bool = False,
        region: int = 0,
    ) -> None:
        self.memory, self.index, self.size = memory, index, size
        self.event_idx, self.in_order = event_idx, in_order
        self.desc_addr = memory.alloc(16 * size, 16, region)
        self.avail_addr = memory.alloc(4, 4, region)
        self.used_addr = memory.alloc(4, 4, region)
        self.kick_fd, self.call_fd, self.err_fd = (
            OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(3)
        )
        self.reset()

    def reset(self, base: int = 0) -> None:
        """Begin anew at a position, whose two halves are equal; 0 is a fresh ring."""
        self.base = base
        at = base or FRESH
        self.next = self.last = Place(at & 0x7FFF, bool(at & 0x8000))
        for i in range(self.size):  # a lap behind all was used, and in this one as far as the position
            used = self.next.wrap if i < self.next.slot else not self.next.wrap
            self.write(i, Slot(0, 0, 0, (AVAIL | USED) * used))
        self.chains: list[Chain] = []
        self.places: list[Place] = []
        self.collected = 0
        self.kicked = 0
        self.ids = list(range(self.size))
        self.set_event(self.avail_addr, ENABLE)
        self.set_event(self.used_addr, ENABLE)

    def close(self) -> None:
        """Close the eventfds."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()

    # ---- raw -------------------------------------------------------------------------------------------------------

    def read(self, slot: int) -> Slot:
        """What a slot holds."""
        return Slot(*_SLOT.unpack(self.memory.read(self.desc_addr + 16 * slot, 16)))

    def write(self, slot: int, content: Slot) -> None:
        """Write a slot, its flags last."""
        address = self.desc_addr + 16 * slot
        self.memory.write(address, _SLOT.pack(*content)[:14])
        self.memory.store_u16(address + 14, content.flags)

    def event(self, address: int) -> tuple[int, int]:
        """An event word: flags, and position with wrap counter."""
        word = int.from_bytes(self.memory.read(address, 4), "little")
        return word >> 16, word & 0xFFFF

    def set_event(self, address: int, flags: int, place: int = 0) -> None:
        """Write an event word."""
        self.memory.store_u16(address, place)
        self.memory.store_u16(address + 2, flags)

    def ahead(self, place: Place, count: int) -> Place:
        """The place `count` slots behind another."""
        laps, slot = divmod(place.slot + count, self.size)
        return Place(slot, place.wrap ^ bool(laps % 2))

    def offer(self, *entries: tuple[int, int, int], name: int = 0) -> None:
        """Make raw descriptors (addr, len, flags) available as they are, the first one's flags last."""
        for i in reversed(range(len(entries))):
            addr, length, flags = entries[i]
            place = self.ahead(self.next, i)
            self.write(place.slot, Slot(addr, length, name, flags | (AVAIL if place.wrap else USED)))
        self.chains.append(Chain(name, len(entries)))
        self.places.append(self.next)
        self.next = self.ahead(self.next, len(entries))

    # ---- as a driver does ------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that no chain uses."""
        return self.size - sum(chain.span for chain in self.chains)

    def add(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = (), *, indirect: bool = False) -> int:
        """Make a chain of buffers available and return its id."""
        pieces = [(*buffer, 0) for buffer in readable] + [(*buffer, WRITE) for buffer in writable]
        name = self.next.slot if self.in_order else self.ids.pop(0)
        if indirect:
            pieces = [(*self.table(pieces), INDIRECT)]
        assert len(pieces) <= self.free
        last = pieces.pop()
        self.offer(*((addr, size, flags | NEXT) for addr, size, flags in pieces), last, name=name)
        return name

    def table(self, entries: Sequence[tuple[int, int, int]], at: int | None = None) -> Buffer:
        """Put raw entries (addr, len, flags) into guest memory, as an indirect table: a buffer."""
        address = self.memory.alloc(16 * len(entries)) if at is None else at
        content = b"".join(_SLOT.pack(addr, size, 0, flags) for addr, size, flags in entries)
        for i, byte in enumerate(content):  # a table may lie in two regions
            self.memory.write(address + i, bytes([byte]))
        return address, len(content)

    def kick(self, *, force: bool = False) -> bool:
        """Tell the device about new chains, unless it does not want to know; whether it was told."""
        full_fence()
        flags, place = self.event(self.used_addr)
        new = {place.packed for place in self.places[self.kicked :]}
        self.kicked = len(self.places)
        wanted = bool(new) and (place in new if self.event_idx and flags == DESC else flags != DISABLE)
        if wanted or force:
            os.eventfd_write(self.kick_fd.fileno(), 1)
        return wanted or force

    def _used(self) -> Iterator[tuple[Used, list[Chain], Place]]:
        """Used entries not collected yet: the entry, the chains that it stands for, and the place behind them."""
        place, chains = self.last, list(self.chains)
        while chains:
            slot = self.read(place.slot)
            if slot.flags & (AVAIL | USED) != (AVAIL | USED) * place.wrap:
                return
            batch = 1 + next(i for i, chain in enumerate(chains) if chain.id == slot.id)
            assert batch == 1 or self.in_order, f"id {slot.id} was used before its turn"
            place = self.ahead(place, sum(chain.span for chain in chains[:batch]))
            assert slot.flags & WRITE == WRITE * bool(slot.length)
            yield Used(slot.id, slot.length), chains[:batch], place
            del chains[:batch]

    def reap(self) -> list[Used]:
        """Collect what the device has used since the last time, chain by chain in order."""
        collected = []
        for used, chains, place in list(self._used()):
            collected += [Used(chain.id, 0) for chain in chains[:-1]] + [used]
            self.ids += [chain.id for chain in chains]
            del self.chains[: len(chains)]
            self.collected += len(chains)
            self.last = place
        return collected

    # ---- counted as a split ring's driver does ---------------------------------------------------------------------

    @property
    def avail_idx(self) -> int:
        """How many chains were made available."""
        return len(self.places)

    @property
    def used_idx(self) -> int:
        """How many chains were used."""
        return self.collected + sum(len(chains) for _, chains, _ in self._used())

    @property
    def used_event(self) -> int:
        """Where the driver's word stands; set to the number of a chain: those to come have one slot each."""
        return self.event(self.avail_addr)[1]

    @used_event.setter
    def used_event(self, number: int) -> None:
        if self.event_idx:
            known = len(self.places)
            place = self.places[number] if 0 <= number < known else self.ahead(self.next, number - known)
            self.set_event(self.avail_addr, DESC, place.packed)

    @property
    def avail_flags(self) -> int:
        """Whether no call is wanted, ever; without EVENT_IDX alone."""
        return self.event(self.avail_addr)[0]

    @avail_flags.setter
    def avail_flags(self, no_interrupt: int) -> None:
        if not self.event_idx:
            self.set_event(self.avail_addr, DISABLE if no_interrupt else ENABLE)

"""The device's side of both layouts, as plainly as the specification tells it, to try the driver's side against.

Where a device stands is one number that only grows: how many chains (split) or descriptors (packed) came before.
Offsets, wrap counters and sixteen-bit indices all follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.packed import Event, EventFlags, PackedDescriptor, PackedDriverRing
from vhostuser.frontend.rings import DescriptorFlags, DriverQueue, Used
from vhostuser.frontend.split import NO_NOTIFICATION, Descriptor, DriverRing

NEXT, WRITE, INDIRECT = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT
AVAIL, USED = DescriptorFlags.AVAIL, DescriptorFlags.USED


class Taken(NamedTuple):
    """A chain that the device took: its number, its buffers (addr, length, WRITE or 0), and how far it reaches."""

    head: int
    buffers: list[tuple[int, int, int]]
    reach: int


class SplitDevice:
    """The device of a split ring."""

    def __init__(self, ring: DriverRing) -> None:
        self.ring = ring
        self.taken = self.used = ring.base

    @property
    def has_available(self) -> bool:
        return self.ring.avail_idx != self.taken & 0xFFFF

    def take(self) -> Taken:
        assert self.has_available
        head = self.ring.avail(self.taken)
        self.taken += 1
        descriptor = self.ring.descriptor(head)
        if descriptor.flags == INDIRECT:
            table = self.ring.memory.read(descriptor.addr, descriptor.length)
            entries = [Descriptor.parse(table[at : at + 16]) for at in range(0, len(table), 16)]
            chain = _linked(entries[0], entries.__getitem__)
        else:
            chain = _linked(descriptor, self.ring.descriptor)
        return Taken(head, [(d.addr, d.length, d.flags & ~NEXT) for d in chain], 1)

    def use(self, *batch: Taken, written: int = 0) -> bool:
        """One used entry for a batch; more than one chain need IN_ORDER. Whether the driver wants a call for it."""
        before = self.used
        self.ring.set_used(before, Used(batch[-1].head, written))
        self.used += len(batch)
        self.ring.used_idx = self.used
        if self.ring.event_idx:
            return self.ring.used_event in {n & 0xFFFF for n in range(before, self.used)}
        return not self.ring.avail_flags & NO_NOTIFICATION

    def ask_for_kick(self, further: int = 0) -> None:
        """Want a kick when the chain so many further on than the next comes."""
        self.ring.used_flags = 0
        self.ring.avail_event = self.taken + further

    def ask_for_no_kicks(self) -> None:
        self.ring.used_flags = NO_NOTIFICATION
        self.ring.avail_event = self.taken - 1


def _linked(first: Descriptor, at: Callable[[int], Descriptor]) -> list[Descriptor]:
    chain = [first]
    while chain[-1].flags & NEXT:
        chain.append(at(chain[-1].next))
    return chain


class PackedDevice:
    """The device of a packed ring."""

    def __init__(self, ring: PackedDriverRing) -> None:
        self.ring = ring
        offset, wrap = ring.base & 0x7FFF, ring.base >> 15 & 1
        self.taken = self.used = offset if wrap else offset + ring.size

    def place(self, number: int) -> tuple[int, int]:
        """The offset and the wrap counter of a descriptor."""
        return number % self.ring.size, 1 - number // self.ring.size % 2

    @property
    def has_available(self) -> bool:
        offset, wrap = self.place(self.taken)
        flags = self.ring.flags(offset)
        return bool(flags & AVAIL) == bool(wrap) and bool(flags & USED) != bool(wrap)

    def take(self) -> Taken:
        chain: list[PackedDescriptor] = []
        while not chain or chain[-1].flags & NEXT:
            assert self.has_available
            chain.append(self.ring.descriptor(self.taken % self.ring.size))
            self.taken += 1
        head, reach = chain[-1].id, len(chain)
        if chain[0].flags & INDIRECT:
            assert reach == 1
            table = self.ring.memory.read(chain[0].addr, chain[0].length)
            chain = [PackedDescriptor.parse(table[at : at + 16]) for at in range(0, len(table), 16)]
        return Taken(head, [(d.addr, d.length, d.flags & ~(NEXT | AVAIL | USED)) for d in chain], reach)

    def use(self, *batch: Taken, written: int = 0) -> bool:
        """One used descriptor for a batch, as for the split ring."""
        before = self.used
        offset, wrap = self.place(before)
        flags = (AVAIL | USED if wrap else 0) | (WRITE if written else 0)
        self.ring.set_descriptor(offset, PackedDescriptor(0xBAD, written, batch[-1].head, flags))
        self.used += sum(taken.reach for taken in batch)
        position, event = self.ring.driver_event
        if event == EventFlags.DESC:
            return (position & 0x7FFF, position >> 15) in {self.place(n) for n in range(before, self.used)}
        return event == EventFlags.ENABLE

    def ask_for_kick(self, further: int = 0) -> None:
        """Want a kick when the descriptor so many further on than the next comes."""
        offset, wrap = self.place(self.taken + further)
        if self.ring.event_idx:
            self.ring.device_event = Event(offset | wrap << 15, EventFlags.DESC)
        else:
            self.ring.device_event = Event(0, EventFlags.ENABLE)

    def ask_for_no_kicks(self) -> None:
        self.ring.device_event = Event(0, EventFlags.DISABLE)


Device = SplitDevice | PackedDevice


def make_ring(
    memory: GuestRam, packed: bool, index: int = 0, size: int = 8, *, event_idx: bool = False, in_order: bool = False
) -> DriverQueue:
    """A driver's ring of either layout."""
    layout = PackedDriverRing if packed else DriverRing
    return layout(memory, index, size, event_idx=event_idx, in_order=in_order)


def device_of(ring: DriverQueue) -> Device:
    """The other side of a ring."""
    if isinstance(ring, PackedDriverRing):
        return PackedDevice(ring)
    assert isinstance(ring, DriverRing)
    return SplitDevice(ring)

"""A driver's side of a packed ring: descriptors that the driver makes available and the device overwrites when used.

Must not know: vhost-user messages, what the buffers hold; and nothing of the back-end's ring code.

How: :class:`PackedRing` is the shared memory as the virtio specification lays it out ("Packed Virtqueues"),
every field readable and writable, with no rule in it: what hostile tests need. :class:`PackedDriverRing` is
a well-behaved driver on top, most of it in :mod:`vhostuser.frontend.rings`.

There is one ring. Each side goes round it with a :class:`Position`: an offset, and a wrap counter that
turns over with each lap. A descriptor is available when its AVAIL bit equals the lap's wrap counter and its
USED bit does not, and used when both do. A chain takes consecutive descriptors, but only its first is
overwritten when it is used (with IN_ORDER, only the first of a whole batch); so the driver remembers how
many descriptors each buffer ID stands for, and skips them.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from vhostuser.frontend.rings import Buffer, Chain, DescriptorFlags, DriverQueue, Used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.frontend.memory import GuestRam

FRESH_BASE = 0x8000_8000
"""SET_VRING_BASE of a ring that was never used: both positions at offset 0, both wrap counters 1."""

_WRAP = 1 << 15
# > Buffer ID is included in the last descriptor in the list. (2.8.6) Who looks for it in another is found out.
_NO_ID = 0xFFFF
_DESCRIPTOR = struct.Struct("=QIHH")
_BODY = struct.Struct("=QIH")  # a descriptor but for its flags


class EventFlags(IntEnum):
    """When one side wants to be notified by the other."""

    ENABLE = 0
    """Always."""
    DISABLE = 1
    """Never."""
    DESC = 2
    """When the descriptor at a given position changes hands; EVENT_IDX only."""


class Event(NamedTuple):
    """An event suppression structure.

    Attributes:
        position: For DESC: the descriptor's offset, its wrap counter in bit 15.
        flags: :class:`EventFlags`.
    """

    position: int = 0
    flags: int = EventFlags.ENABLE


class PackedDescriptor(NamedTuple):
    """One entry of the ring, or of an indirect table."""

    addr: int
    length: int
    id: int = 0
    flags: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it from sixteen bytes."""
        return cls(*_DESCRIPTOR.unpack(data))

    def pack(self) -> bytes:
        """Its sixteen bytes; those of several, side by side, are an indirect table."""
        return _DESCRIPTOR.pack(*self)


class Position(NamedTuple):
    """A place on the way round the ring.

    Attributes:
        offset: Of the descriptor.
        wrap: The wrap counter, 1 in the first lap.
    """

    offset: int
    wrap: int

    @classmethod
    def of(cls, word: int) -> Position:
        """Read it from the sixteen bits of a ring's base or of an event."""
        return cls(word & ~_WRAP & 0xFFFF, word >> 15 & 1)

    @property
    def word(self) -> int:
        """Its sixteen bits."""
        return self.offset | self.wrap << 15

    def after(self, count: int, size: int) -> Position:
        """The place so many descriptors further on, at most once round."""
        offset = self.offset + count
        return Position(offset, self.wrap) if offset < size else Position(offset - size, self.wrap ^ 1)

    def distance(self, later: Position, size: int) -> int:
        """How many descriptors further on another place is, where two laps are as good as none."""
        return (later.offset - self.offset + size * (later.wrap ^ self.wrap)) % (2 * size)


class PackedRing:
    """The three parts of a packed ring in guest memory.

    Attributes:
        size: Number of descriptors.
        desc_addr: Guest-physical address of the ring.
        avail_addr, used_addr: Those of the driver's and of the device's event suppression structure, which stand
            where a split ring has its other parts.
    """

    def __init__(self, memory: GuestRam, size: int, region: int = 0) -> None:
        self.memory = memory
        self.size = size
        self.desc_addr = memory.alloc(16 * size, 16, region)
        self.avail_addr = memory.alloc(4, 4, region)
        self.used_addr = memory.alloc(4, 4, region)

    def flags(self, index: int) -> int:
        """Read a descriptor's flags."""
        return self.memory.load_u16(self.desc_addr + 16 * index + 14)

    def set_flags(self, index: int, flags: int) -> None:
        """Write a descriptor's flags, and thereby hand it over."""
        self.memory.store_u16(self.desc_addr + 16 * index + 14, flags)

    def descriptor(self, index: int) -> PackedDescriptor:
        """Read a descriptor, its flags first."""
        flags = self.flags(index)
        addr, length, buffer_id = _BODY.unpack(self.memory.read(self.desc_addr + 16 * index, _BODY.size))
        return PackedDescriptor(addr, length, buffer_id, flags)

    def set_descriptor(self, index: int, descriptor: PackedDescriptor) -> None:
        """Write a descriptor, its flags last."""
        *body, flags = descriptor
        self.memory.write(self.desc_addr + 16 * index, _BODY.pack(*body))
        self.set_flags(index, flags)

    @property
    def driver_event(self) -> Event:
        """When the driver wants a call."""
        return self._event(self.avail_addr)

    @driver_event.setter
    def driver_event(self, event: Event) -> None:
        self._set_event(self.avail_addr, event)

    @property
    def device_event(self) -> Event:
        """When the device wants a kick."""
        return self._event(self.used_addr)

    @device_event.setter
    def device_event(self, event: Event) -> None:
        self._set_event(self.used_addr, event)

    # The position counts only if the flags say so: it is written before them and read after them.

    def _event(self, addr: int) -> Event:
        flags = self.memory.load_u16(addr + 2)
        return Event(self.memory.load_u16(addr), flags)

    def _set_event(self, addr: int, event: Event) -> None:
        self.memory.store_u16(addr, event.position)
        self.memory.store_u16(addr + 2, event.flags)


class PackedDriverRing(PackedRing, DriverQueue):
    """A packed ring as its driver runs it.

    Its base has four parts: where the device takes the next chain (bits 0 to 14, wrap counter in 15), and where it
    writes the next used descriptor (bits 16 to 30 and 31). With nothing in flight, both are the same place.

    Args:
        memory: Where the ring is put.
        index: Its number in the device.
        size: Number of descriptors, 1 to 32768.
        event_idx: Whether EVENT_IDX was negotiated; may be changed while the ring is stopped.
        in_order: Whether IN_ORDER was negotiated.
        region: The memory region for the ring itself.

    Attributes:
        next_avail: Where the next chain goes.
        next_used: Where the device writes the next used descriptor.
    """

    FRESH = FRESH_BASE

    def __init__(
        self,
        memory: GuestRam,
        index: int,
        size: int = 256,
        *,
        event_idx: bool = False,
        in_order: bool = False,
        region: int = 0,
    ) -> None:
        PackedRing.__init__(self, memory, size, region)
        DriverQueue.__init__(self, index, event_idx, in_order)

    @property
    def free(self) -> int:
        """Descriptors that no chain uses."""
        return self._free

    @property
    def has_used(self) -> bool:
        """Whether there is something to collect."""
        return self.flags(self.next_used.offset) & _OWNER == _used(self.next_used.wrap)

    def reap(self) -> list[Used]:
        """Collect what was used; see :meth:`DriverQueue.reap`."""
        done: list[Used] = []
        while self.has_used:
            descriptor = self.descriptor(self.next_used.offset)
            # > Element Length is reserved for used descriptors without the VIRTQ_DESC_F_WRITE flag (2.8.4)
            done += self._finish(descriptor.id, descriptor.length if descriptor.flags & DescriptorFlags.WRITE else 0)
        return done

    def ask_for_call(self) -> None:
        """Tell the device to call when it uses the next chain."""
        self.driver_event = Event(self.next_used.word, EventFlags.DESC) if self.event_idx else Event()

    def ask_for_no_calls(self) -> None:
        """Tell the device that calls are of no use."""
        self.driver_event = Event(0, EventFlags.DISABLE)

    def _begin(self) -> None:
        self.next_avail = self.next_used = Position.of(self.base & 0xFFFF)
        self.driver_event = self.device_event = Event()
        self._free = self.size
        self._ids = list(range(self.size))  # handed out from above: who takes offsets for buffer IDs is found out
        self._unannounced = 0
        # As if everything before this place had been used in this lap, and the rest in the one before.
        offset, wrap = self.next_avail
        this_lap, last_lap = (PackedDescriptor(0, 0, flags=_used(w)).pack() for w in (wrap, wrap ^ 1))
        self.memory.write(self.desc_addr, this_lap * offset + last_lap * (self.size - offset))

    def _lend(self, buffers: Sequence[tuple[Buffer, int]], indirect: bool) -> tuple[int, Sequence[int]]:
        buffer_id = self._ids.pop()
        if indirect:
            # > The VIRTQ_DESC_F_WRITE flags bit is the only valid flag for descriptors in the indirect table. (2.8.7)
            table = b"".join(PackedDescriptor(*buffer, 0, flags).pack() for buffer, flags in buffers)
            buffers = [(self._write_indirect(buffer_id, table), DescriptorFlags.INDIRECT)]
        places = [self.next_avail.after(i, self.size) for i in range(len(buffers))]
        last = len(buffers) - 1
        # > The driver always makes the first descriptor in the list available after the rest of the list has been
        # > written out into the ring. (2.8.6)
        for i in reversed(range(len(buffers))):
            (addr, length), flags = buffers[i]
            flags |= _available(places[i].wrap) | (DescriptorFlags.NEXT if i < last else 0)
            descriptor = PackedDescriptor(addr, length, buffer_id if i == last else _NO_ID, flags)
            self.set_descriptor(places[i].offset, descriptor)
        self.next_avail = self.next_avail.after(len(buffers), self.size)
        self._free -= len(buffers)
        self._unannounced += len(buffers)
        return buffer_id, [place.offset for place in places]

    def _ask_device(self) -> bool:
        new, self._unannounced = self._unannounced, 0
        position, flags = self.device_event
        if flags == EventFlags.DESC and self.event_idx:
            # The last descriptor before next_avail is one step away from it.
            return 0 < Position.of(position).distance(self.next_avail, self.size) <= new
        return flags != EventFlags.DISABLE

    def _take_back(self, head: int, chain: Chain) -> None:
        self._ids.append(head)
        self._free += len(chain.descriptors)
        self.next_used = self.next_used.after(len(chain.descriptors), self.size)


_OWNER = int(DescriptorFlags.AVAIL | DescriptorFlags.USED)


def _available(wrap: int) -> int:
    """The two flags of a descriptor that was made available in a lap."""
    return int(DescriptorFlags.AVAIL if wrap else DescriptorFlags.USED)


def _used(wrap: int) -> int:
    """The two flags of a descriptor that was used in a lap."""
    return _OWNER if wrap else 0

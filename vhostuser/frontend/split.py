"""A driver's side of a split ring: it makes buffers available, kicks, and collects what was used.

Must not know: vhost-user messages, what the buffers hold; and nothing of the back-end's ring code.

How: :class:`SplitRing` is the shared memory as the virtio specification lays it out ("Split Virtqueues"),
every field readable and writable, with no rule in it: what hostile tests need. :class:`DriverRing` is a
well-behaved driver on top, most of it in :mod:`vhostuser.frontend.rings`.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

from vhostuser.errors import RemoteProtocolError
from vhostuser.frontend.rings import Buffer, Chain, DescriptorFlags, DriverQueue, Used, full_fence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.frontend.memory import GuestRam

__all__ = ["Buffer", "Descriptor", "DescriptorFlags", "DriverRing", "SplitRing", "Used", "full_fence"]

NO_NOTIFICATION = 1
"""The one flag of both rings: in ``avail.flags`` the driver wants no calls, in ``used.flags`` the device no kicks."""

_DESCRIPTOR = struct.Struct("=QIHH")
_USED = struct.Struct("=II")


class Descriptor(NamedTuple):
    """One entry of a descriptor table."""

    addr: int
    length: int
    flags: int = 0
    next: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it from sixteen bytes."""
        return cls(*_DESCRIPTOR.unpack(data))

    def pack(self) -> bytes:
        """Its sixteen bytes; those of several, side by side, are an indirect table."""
        return _DESCRIPTOR.pack(*self)


class SplitRing:
    """The three parts of a split ring in guest memory.

    Attributes:
        size: Number of descriptors.
        desc_addr, avail_addr, used_addr: Guest-physical addresses of the parts.
    """

    def __init__(self, memory: GuestRam, size: int, region: int = 0) -> None:
        self.memory = memory
        self.size = size
        self.desc_addr = memory.alloc(16 * size, 16, region)
        self.avail_addr = memory.alloc(6 + 2 * size, 2, region)
        self.used_addr = memory.alloc(6 + 8 * size, 4, region)

    def descriptor(self, index: int) -> Descriptor:
        """Read a descriptor."""
        return Descriptor.parse(self.memory.read(self.desc_addr + 16 * index, 16))

    def set_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Write a descriptor."""
        self.memory.write(self.desc_addr + 16 * index, descriptor.pack())

    def avail(self, slot: int) -> int:
        """Read an entry of the available ring; the slot wraps."""
        return self.memory.load_u16(self.avail_addr + 4 + 2 * (slot % self.size))

    def set_avail(self, slot: int, head: int) -> None:
        """Write an entry of the available ring; the slot wraps."""
        self.memory.store_u16(self.avail_addr + 4 + 2 * (slot % self.size), head)

    def used(self, slot: int) -> Used:
        """Read an entry of the used ring; the slot wraps."""
        return Used(*_USED.unpack(self.memory.read(self.used_addr + 4 + 8 * (slot % self.size), 8)))

    def set_used(self, slot: int, used: Used) -> None:
        """Write an entry of the used ring; the slot wraps."""
        self.memory.write(self.used_addr + 4 + 8 * (slot % self.size), _USED.pack(*used))

    @property
    def avail_flags(self) -> int:
        """The driver's flags."""
        return self.memory.load_u16(self.avail_addr)

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self.memory.store_u16(self.avail_addr, value)

    @property
    def avail_idx(self) -> int:
        """How many chains were ever made available, modulo 2^16."""
        return self.memory.load_u16(self.avail_addr + 2)

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self.memory.store_u16(self.avail_addr + 2, value)

    @property
    def used_event(self) -> int:
        """The driver wants a call when the device uses the chain with this number (EVENT_IDX)."""
        return self.memory.load_u16(self.avail_addr + 4 + 2 * self.size)

    @used_event.setter
    def used_event(self, value: int) -> None:
        self.memory.store_u16(self.avail_addr + 4 + 2 * self.size, value)

    @property
    def used_flags(self) -> int:
        """The device's flags."""
        return self.memory.load_u16(self.used_addr)

    @used_flags.setter
    def used_flags(self, value: int) -> None:
        self.memory.store_u16(self.used_addr, value)

    @property
    def used_idx(self) -> int:
        """How many chains were ever used, modulo 2^16."""
        return self.memory.load_u16(self.used_addr + 2)

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        self.memory.store_u16(self.used_addr + 2, value)

    @property
    def avail_event(self) -> int:
        """The device wants a kick when the driver makes the chain with this number available (EVENT_IDX)."""
        return self.memory.load_u16(self.used_addr + 4 + 8 * self.size)

    @avail_event.setter
    def avail_event(self, value: int) -> None:
        self.memory.store_u16(self.used_addr + 4 + 8 * self.size, value)


class DriverRing(SplitRing, DriverQueue):
    """A split ring as its driver runs it.

    Args:
        memory: Where the ring is put.
        index: Its number in the device.
        size: Number of descriptors, a power of two.
        event_idx: Whether EVENT_IDX was negotiated; may be changed while the ring is stopped.
        in_order: Whether IN_ORDER was negotiated.
        region: The memory region for the ring itself.
    """

    FRESH = 0

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
        SplitRing.__init__(self, memory, size, region)
        DriverQueue.__init__(self, index, event_idx, in_order)

    @property
    def free(self) -> int:
        """Descriptors that no chain uses."""
        return len(self._free)

    @property
    def has_used(self) -> bool:
        """Whether there is something to collect."""
        return self.used_idx != self._last_used

    def reap(self) -> list[Used]:
        """Collect what was used; see :meth:`DriverQueue.reap`."""
        count = (self.used_idx - self._last_used) & 0xFFFF
        if count > len(self._chains):
            raise RemoteProtocolError(f"vring {self.index}: {count} chains used, {len(self._chains)} in flight")
        done: list[Used] = []
        while len(done) < count:
            # The entry of a batch stands where its first chain's would, and used.idx counts all of it (2.7.9).
            done += self._finish(*self.used(self._last_used))
        if len(done) > count:
            raise RemoteProtocolError(
                f"vring {self.index}: used id {done[-1].head} ends a batch of which used_idx lacks {len(done) - count}"
            )
        return done

    def ask_for_call(self) -> None:
        """Tell the device to call when it uses the next chain."""
        if not self.event_idx:
            self.avail_flags = 0
        self.used_event = self._last_used

    def ask_for_no_calls(self) -> None:
        """Tell the device that calls are of no use."""
        if self.event_idx:
            self.used_event = self._last_used - 1  # as far away as can be
        else:
            self.avail_flags = NO_NOTIFICATION

    def _begin(self) -> None:
        self.avail_flags = self.used_flags = 0
        self.avail_idx = self.used_idx = self.used_event = self.avail_event = self.base
        self._last_used = self.base
        self._kicked_idx = self.base
        self._free = deque(range(self.size))

    def _lend(self, buffers: Sequence[tuple[Buffer, int]], indirect: bool) -> tuple[int, Sequence[int]]:
        indices = [self._free.popleft() for _ in range(1 if indirect else len(buffers))]
        head = indices[0]
        if indirect:
            table = b"".join(descriptor.pack() for descriptor in _linked(buffers, range(len(buffers))))
            self.set_descriptor(head, Descriptor(*self._write_indirect(head, table), DescriptorFlags.INDIRECT))
        else:
            for i, descriptor in zip(indices, _linked(buffers, indices), strict=True):
                self.set_descriptor(i, descriptor)
        self.set_avail(self.avail_idx, head)
        self.avail_idx += 1
        return head, indices

    def _ask_device(self) -> bool:
        new, old = self.avail_idx, self._kicked_idx
        self._kicked_idx = new
        if self.event_idx:
            return (new - self.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self.used_flags & NO_NOTIFICATION

    def _take_back(self, head: int, chain: Chain) -> None:
        if self.in_order:
            # > If VIRTIO_F_IN_ORDER has been negotiated, driver uses descriptors in ring order: starting from
            # > offset 0 in the table, and wrapping around at the end of the table. (2.7.5)
            self._free.extend(chain.descriptors)
        else:
            self._free.extendleft(reversed(chain.descriptors))
        self._last_used = (self._last_used + 1) & 0xFFFF


def _linked(buffers: Sequence[tuple[Buffer, int]], indices: Sequence[int]) -> list[Descriptor]:
    """Descriptors for a chain of buffers, each but the last pointing to the one after it."""
    chain = [
        Descriptor(addr, length, flags | DescriptorFlags.NEXT, following)
        for ((addr, length), flags), following in zip(buffers, [*indices[1:], 0], strict=True)
    ]
    last = chain[-1]
    chain[-1] = last._replace(flags=last.flags & ~DescriptorFlags.NEXT)
    return chain

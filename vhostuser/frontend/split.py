"""A driver's side of a split ring: it makes buffers available, kicks, and collects what was used.

Must not know: vhost-user messages, what the buffers hold; and nothing of the back-end's ring code. The two
sides are written apart, from the virtio specification ("Split Virtqueues"), so that one mistake cannot hide
in both.

How: :class:`SplitRing` is the shared memory, every field readable and writable, with no rule in it: what
hostile tests need. :class:`DriverRing` is a well-behaved driver on top.

Order of accesses. The driver must publish ``avail.idx`` after the entry it counts, and read ``used.idx``
before the entries it counts: x86 keeps stores in order among themselves, and loads too. What x86 does swap
is a store and a later load of another place, and there are two of these: ``avail.idx`` written, then the
device's wish to be kicked read; and ``used_event`` written, then ``used.idx`` read again. Those two have a
full fence between them.
"""

from __future__ import annotations

import os
import struct
import threading
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple, Self

import trio

from vhostuser.errors import RemoteProtocolError
from vhostuser.fds import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.frontend.memory import GuestRam

Buffer = tuple[int, int]
"""Guest-physical address and length in bytes."""

NO_NOTIFICATION = 1
"""The one flag of both rings: in ``avail.flags`` the driver wants no calls, in ``used.flags`` the device no kicks."""

_DESCRIPTOR = struct.Struct("=QIHH")
_USED = struct.Struct("=II")
_FENCE = threading.Lock()


class DescriptorFlags(IntFlag):
    """Flags of a descriptor."""

    NEXT = 1
    """The chain goes on at ``next``."""
    WRITE = 2
    """The device writes here; without it, it reads."""
    INDIRECT = 4
    """The buffer holds a table of descriptors."""


class Descriptor(NamedTuple):
    """One entry of a descriptor table."""

    addr: int
    length: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        """Its sixteen bytes."""
        return _DESCRIPTOR.pack(*self)


class Used(NamedTuple):
    """One entry of the used ring: a chain that the device has done with.

    Attributes:
        head: Its first descriptor.
        written: Bytes that the device wrote into it.
    """

    head: int
    written: int


def full_fence() -> None:
    """Let no load that follows overtake a store that precedes: a lock's atomic exchange is a full barrier on x86."""
    with _FENCE:
        pass


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
        return Descriptor(*_DESCRIPTOR.unpack(self.memory.read(self.desc_addr + 16 * index, 16)))

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


class _Chain(NamedTuple):
    descriptors: Sequence[int]
    writable: int


class DriverRing(SplitRing):
    """A ring as its driver runs it, with the three eventfds that belong to it.

    Args:
        memory: Where the ring is put.
        index: Its number in the device.
        size: Number of descriptors, a power of two.
        event_idx: Whether EVENT_IDX was negotiated; may be changed while the ring is stopped.
        region: The memory region for the ring itself.

    Attributes:
        base: Where the back-end begins, as told by SET_VRING_BASE.
        kick_fd, call_fd, err_fd: Non-blocking eventfds, as QEMU makes them.
    """

    def __init__(
        self, memory: GuestRam, index: int, size: int = 256, *, event_idx: bool = False, region: int = 0
    ) -> None:
        super().__init__(memory, size, region)
        self.index = index
        self.event_idx = event_idx
        self.kick_fd, self.call_fd, self.err_fd = (
            OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(3)
        )
        self._indirect_tables: dict[int, Buffer] = {}
        self.reset()

    def reset(self, base: int = 0) -> None:
        """Forget all chains and begin anew at a position, as after a device reset."""
        self.base = base
        self.avail_flags = self.used_flags = 0
        self.avail_idx = self.used_idx = self.used_event = self.avail_event = base
        self._last_used = base
        self._kicked_idx = base
        self._free = list(reversed(range(self.size)))
        self._chains: dict[int, _Chain] = {}

    @property
    def free(self) -> int:
        """Descriptors that no chain uses."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Chains that were made available and not collected yet."""
        return len(self._chains)

    def add(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = (), *, indirect: bool = False) -> int:
        """Make a chain of buffers available and return its head. The device learns of it by :meth:`kick`.

        Raises:
            ValueError: No buffers, or more than there are free descriptors.
        """
        buffers = [*((buffer, 0) for buffer in readable), *((buffer, DescriptorFlags.WRITE) for buffer in writable)]
        needed = 1 if indirect else len(buffers)
        if not buffers or needed > len(self._free):
            raise ValueError(f"a chain of {len(buffers)} buffers, {len(self._free)} descriptors are free")
        indices = [self._free.pop() for _ in range(needed)]
        head = indices[0]
        if indirect:
            table = _linked(buffers, range(len(buffers)))
            addr = self._indirect_table(head, 16 * len(table))
            self.memory.write(addr, b"".join(descriptor.pack() for descriptor in table))
            self.set_descriptor(head, Descriptor(addr, 16 * len(table), DescriptorFlags.INDIRECT))
        else:
            for i, descriptor in zip(indices, _linked(buffers, indices), strict=True):
                self.set_descriptor(i, descriptor)
        self._chains[head] = _Chain(indices, sum(length for _, length in writable))
        self.set_avail(self.avail_idx, head)
        self.avail_idx += 1
        return head

    def kick(self, *, force: bool = False) -> bool:
        """Tell the device about new chains, unless it does not want to know; return whether it was told."""
        full_fence()
        new, old = self.avail_idx, self._kicked_idx
        self._kicked_idx = new
        if self.event_idx:
            wanted = (new - self.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self.used_flags & NO_NOTIFICATION
        if wanted or force:
            try:
                os.eventfd_write(self.kick_fd.fileno(), 1)
            except BlockingIOError:
                return True  # the counter is full: a kick is pending anyway
        return wanted or force

    def reap(self) -> list[Used]:
        """Collect the chains that the device has used since the last time; their descriptors are free again.

        Raises:
            RemoteProtocolError: The back-end used what it was not given, or wrote more than there is room
                for.
        """
        count = (self.used_idx - self._last_used) & 0xFFFF
        if count > len(self._chains):
            raise RemoteProtocolError(f"vring {self.index}: {count} chains used, {len(self._chains)} in flight")
        return [self._collect() for _ in range(count)]

    def _collect(self) -> Used:
        used = self.used(self._last_used)
        chain = self._chains.pop(used.head, None)
        if chain is None:
            raise RemoteProtocolError(f"vring {self.index}: used id {used.head} is no chain in flight")
        self._free.extend(reversed(chain.descriptors))
        self._last_used = (self._last_used + 1) & 0xFFFF
        if used.written > chain.writable:
            raise RemoteProtocolError(
                f"vring {self.index}: {used.written} bytes written to a chain with {chain.writable} writable ones"
            )
        return used

    async def wait_used(self) -> None:
        """Wait until there is something to collect."""
        await trio.lowlevel.checkpoint()
        while self.used_idx == self._last_used:
            self.used_event = self._last_used
            full_fence()
            if self.used_idx != self._last_used:
                return
            await trio.lowlevel.wait_readable(self.call_fd.fileno())
            os.eventfd_read(self.call_fd.fileno())

    def close(self) -> None:
        """Close the eventfds; the memory stays the guest's."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _indirect_table(self, head: int, size: int) -> int:
        addr, room = self._indirect_tables.get(head, (0, 0))
        if size > room:
            addr = self.memory.alloc(size)
            self._indirect_tables[head] = (addr, size)
        return addr


def _linked(buffers: Sequence[tuple[Buffer, int]], indices: Sequence[int]) -> list[Descriptor]:
    """Descriptors for a chain of buffers, each but the last pointing to the one after it."""
    chain = [
        Descriptor(addr, length, flags | DescriptorFlags.NEXT, following)
        for ((addr, length), flags), following in zip(buffers, [*indices[1:], 0], strict=True)
    ]
    last = chain[-1]
    chain[-1] = last._replace(flags=last.flags & ~DescriptorFlags.NEXT)
    return chain

"""What a driver does alike with both ring layouts: lend chains of buffers, kick, wait, collect.

Must not know: vhost-user messages, what the buffers hold, how a layout lies in memory; and nothing of the
back-end's ring code. The two sides are written apart, from the virtio specification, so that one mistake
cannot hide in both.

How: :class:`DriverRing <vhostuser.frontend.split.DriverRing>` and :class:`PackedDriverRing
<vhostuser.frontend.packed.PackedDriverRing>` are the two layouts; each is its shared memory, every field
readable and writable, with this well-behaved driver on top.

Order of accesses. A driver must write what it makes available before the field that says so, and read the
field that says used before what was used: x86 keeps stores in order among themselves, and loads too. What
x86 does swap is a store and a later load of another place, and there are two of these: chains made
available, then the device's wish to be kicked read; and the driver's own wish to be called written, then
the used chains looked at again. Those two have a full fence between them.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from enum import IntFlag
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import trio

from vhostuser.errors import RemoteProtocolError
from vhostuser.fds import Closing, OwnedFd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.frontend.memory import GuestRam

Buffer = tuple[int, int]
"""Guest-physical address and length in bytes."""

_FENCE = threading.Lock()


class DescriptorFlags(IntFlag):
    """Flags of a descriptor."""

    NEXT = 1
    """The chain goes on: at ``next``, or in a packed ring with the descriptor after this one."""
    WRITE = 2
    """The device writes here; without it, it reads."""
    INDIRECT = 4
    """The buffer holds a table of descriptors."""
    AVAIL = 1 << 7
    """Packed rings: equals the driver's wrap counter once the descriptor is available."""
    USED = 1 << 15
    """Packed rings: equals the device's wrap counter once the descriptor is used, and not before."""


class Used(NamedTuple):
    """A chain that the device has done with.

    Attributes:
        head: What :meth:`DriverQueue.add` returned for it.
        written: Bytes that the device wrote into it.
    """

    head: int
    written: int


class Chain(NamedTuple):
    """A chain that was made available.

    Attributes:
        descriptors: The places that it takes in the ring.
        writable: Bytes that the device may write.
    """

    descriptors: Sequence[int]
    writable: int


def full_fence() -> None:
    """Let no load that follows overtake a store that precedes: a lock's atomic exchange is a full barrier on x86."""
    with _FENCE:
        pass


class DriverQueue(Closing, ABC):
    """A ring as its driver runs it, with the three eventfds that belong to it.

    Args:
        index: Its number in the device.
        event_idx: Whether EVENT_IDX was negotiated; may be changed while the ring is stopped.
        in_order: Whether IN_ORDER was negotiated; to be followed by :meth:`reset` when changed.

    Attributes:
        memory: Where the ring and the buffers are.
        size: Number of descriptors.
        desc_addr, avail_addr, used_addr: Guest-physical addresses of the three parts, named as in SET_VRING_ADDR.
        base: Where the back-end begins, as told by SET_VRING_BASE.
        kick_fd, call_fd, err_fd: Non-blocking eventfds, as QEMU makes them.
    """

    FRESH: ClassVar[int]
    """The base of a ring that was never used."""

    memory: GuestRam
    size: int
    desc_addr: int
    avail_addr: int
    used_addr: int

    def __init__(self, index: int, event_idx: bool, in_order: bool) -> None:
        self.index = index
        self.event_idx = event_idx
        self.in_order = in_order
        self.kick_fd, self.call_fd, self.err_fd = (
            OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(3)
        )
        self._indirect_tables: dict[int, Buffer] = {}
        self.reset()

    def reset(self, base: int | None = None) -> None:
        """Forget all chains and begin anew at a position, as after a device reset; without one, at the beginning."""
        self.base = self.FRESH if base is None else base
        self._chains: dict[int, Chain] = {}  # in the order in which they were made available
        self._begin()

    @property
    @abstractmethod
    def free(self) -> int:
        """Descriptors that no chain uses."""

    @property
    @abstractmethod
    def has_used(self) -> bool:
        """Whether there is something to collect."""

    @property
    def in_flight(self) -> int:
        """Chains that were made available and not collected yet."""
        return len(self._chains)

    def add(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = (), *, indirect: bool = False) -> int:
        """Make a chain of buffers available. The device learns of it by :meth:`kick`.

        Returns:
            The number that stands for the chain until it is collected: the index of its first descriptor in a
            split ring, its buffer ID in a packed one.

        Raises:
            ValueError: No buffers, or more than there are free descriptors.
        """
        buffers = [*((buffer, 0) for buffer in readable), *((buffer, DescriptorFlags.WRITE) for buffer in writable)]
        if not buffers or (1 if indirect else len(buffers)) > self.free:
            raise ValueError(f"a chain of {len(buffers)} buffers, {self.free} descriptors are free")
        head, descriptors = self._lend(buffers, indirect)
        self._chains[head] = Chain(descriptors, sum(length for _, length in writable))
        return head

    def kick(self, *, force: bool = False) -> bool:
        """Tell the device about new chains, unless it does not want to know; return whether it was told."""
        full_fence()
        wanted = self._ask_device()
        if wanted or force:
            try:
                os.eventfd_write(self.kick_fd.fileno(), 1)
            except BlockingIOError:
                return True  # the counter is full: a kick is pending anyway
        return wanted or force

    @abstractmethod
    def reap(self) -> list[Used]:
        """Collect the chains that the device has used since the last time; their descriptors are free again.

        With IN_ORDER one entry may stand for a batch of chains. > The skipped buffers (for which no used
        descriptor was written) are assumed to have been used (read or written) by the device completely.

        Raises:
            RemoteProtocolError: The back-end used what it was not given, or wrote more than there is room
                for.
        """

    @abstractmethod
    def ask_for_call(self) -> None:
        """Tell the device to call when it uses the next chain. It may have done so: look again, after a fence."""

    @abstractmethod
    def ask_for_no_calls(self) -> None:
        """Tell the device that calls are of no use. It may call all the same."""

    async def wait_used(self) -> None:
        """Wait until there is something to collect."""
        await trio.lowlevel.checkpoint()
        while not self.has_used:
            self.ask_for_call()
            full_fence()
            if self.has_used:
                return
            await trio.lowlevel.wait_readable(self.call_fd.fileno())
            os.eventfd_read(self.call_fd.fileno())

    async def wait_broken(self) -> None:
        """Wait until the back-end tells that the ring is broken: it goes on after it was stopped and started again."""
        await trio.lowlevel.wait_readable(self.err_fd.fileno())
        os.eventfd_read(self.err_fd.fileno())

    def close(self) -> None:
        """Close the eventfds; the memory stays the guest's."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()

    ####
    # What a layout adds
    ####

    @abstractmethod
    def _begin(self) -> None:
        """Put the ring into the state that belongs to ``base``, with nothing available."""

    @abstractmethod
    def _lend(self, buffers: Sequence[tuple[Buffer, int]], indirect: bool) -> tuple[int, Sequence[int]]:
        """Make buffers with their flags available; there is room. Returns the head and the descriptors taken."""

    @abstractmethod
    def _ask_device(self) -> bool:
        """Whether the device wants to know of what was made available since the last time this was asked."""

    @abstractmethod
    def _take_back(self, head: int, chain: Chain) -> None:
        """The next chain in the order of use was used: free what it took."""

    def _finish(self, head: int, written: int) -> list[Used]:
        """One used entry: the chains that it stands for."""
        chain = self._chains.get(head)
        if chain is None:
            raise RemoteProtocolError(f"vring {self.index}: used id {head} is no chain in flight")
        skipped = list(takewhile(head.__ne__, self._chains)) if self.in_order else []
        done = [*(Used(other, self._chains[other].writable) for other in skipped), Used(head, written)]
        for used in done:
            self._take_back(used.head, self._chains.pop(used.head))
        if written > chain.writable:
            raise RemoteProtocolError(
                f"vring {self.index}: {written} bytes written to a chain with {chain.writable} writable ones"
            )
        return done

    def _write_indirect(self, head: int, table: bytes) -> Buffer:
        """Put a table of descriptors into memory that belongs to a head and is used again with it."""
        addr, room = self._indirect_tables.get(head, (0, 0))
        if len(table) > room:
            addr = self.memory.alloc(len(table))
            self._indirect_tables[head] = (addr, len(table))
        self.memory.write(addr, table)
        return addr, len(table)

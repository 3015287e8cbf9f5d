"""What a front-end told of the dirty log: where it is, whether it is on, whom to signal.

Must not know messages, or how bits are set (``virtio.dirty``). Logging is on while LOG_ALL is acknowledged and there is
a log; either may come first, and the log outlasts a while without LOG_ALL. What changes, changes for each ring between
two of its turns, and the old log or descriptor is let go of after that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vhostuser.errors import PayloadError
from vhostuser.fds import OwnedFd
from vhostuser.virtio.dirty import DirtyLog
from vhostuser.virtio.layout import LOG_PAGE_SHIFT
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.ring import Ring
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import VringAddr, VringAddrFlags

_BYTE_SHIFT = LOG_PAGE_SHIFT + 3  # guest memory that one byte of the log stands for


class Logging:
    """The dirty log of one connection.

    Args:
        in_turns: has every ring that runs take over what :meth:`tell` says, between two turns.

    Attributes:
        log: the log, or None.
    """

    def __init__(self, in_turns: Callable[[], Awaitable[None]]) -> None:
        self.log: DirtyLog | None = None
        self._all = False
        self._notifier: OwnedFd | None = None
        self._retired: list[DirtyLog | OwnedFd] = []  # what some thread may still use
        self._in_turns = in_turns

    @property
    def active(self) -> DirtyLog | None:
        """The log, if it is on."""
        return self.log if self._all else None

    def tell(self, ring: Ring, addr: VringAddr, features: int) -> None:
        """Tell a ring where to log from now on; in its thread.

        A split ring's used ring is logged where the front-end says, except behind an IOMMU: what QEMU says then is the
        driver's address of it. For a packed ring it says where the device area is, though the descriptors are written
        too; both are logged where they are.
        """
        by_place = features & (VhostFeature.RING_PACKED | VhostFeature.ACCESS_PLATFORM)
        ring.set_log(
            self.active,
            bool(addr.flags & VringAddrFlags.LOG),
            None if by_place else addr.log,
            -1 if self._notifier is None else self._notifier.fileno(),
        )

    async def switch(self, on: bool) -> None:
        """Follow LOG_ALL."""
        if on != self._all:
            self._all = on
            await self._in_turns()

    async def use(self, log: DirtyLog | None) -> None:
        """Use another log, or none; the old one is unmapped."""
        old, self.log = self.log, log
        await self._retire(old)

    async def notify(self, fd: OwnedFd | None) -> None:
        """Signal another descriptor, or none; the old one is closed."""
        old, self._notifier = self._notifier, fd
        await self._retire(old)

    async def reset(self) -> None:
        """Forget the log and whom to signal."""
        await self.use(None)
        await self.notify(None)

    def close(self) -> None:
        """Release everything; no ring runs any more."""
        for thing in (self.log, self._notifier, *self._retired):
            if thing is not None:
                thing.close()

    async def _retire(self, old: DirtyLog | OwnedFd | None) -> None:
        if old is not None:
            self._retired.append(old)
        await self._in_turns()
        if old is not None:
            self._retired.remove(old)
            old.close()


def check_covers(mmap_size: int, memory: GuestMemory) -> None:
    """Judge whether a log of `mmap_size` bytes has a bit for each page of guest memory.

    Raises:
        PayloadError: it has not.
    """
    top = max((region.guest_phys_addr + region.memory_size for region in memory.mappings), default=0)
    needed = (top + (1 << _BYTE_SHIFT) - 1) >> _BYTE_SHIFT
    if mmap_size < needed:
        words = f"a log of {mmap_size:#x} bytes is too small, guest memory up to {top:#x} needs {needed:#x}"
        raise PayloadError(words, rule="VU-LOG-10")

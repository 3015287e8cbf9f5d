"""The inflight region of one connection: made for the front-end, or brought back by it.

Must not know what a region holds (``virtio``). A region changes only while all rings are stopped, so that no thread
reads the one that is unmapped.
"""

from __future__ import annotations

from vhostuser.errors import PayloadError
from vhostuser.fds import FdBundle, OwnedFd
from vhostuser.session.vrings import MAX_VRING_NUM
from vhostuser.virtio.inflight import Part, Region, create, part_size
from vhostuser.wire.messages import Inflight


class InflightRegion:
    """The region in use, if there is one.

    Args:
        num_rings: how many rings the device has.
    """

    def __init__(self, num_rings: int) -> None:
        self._num_rings = num_rings
        self._region: Region | None = None

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return self._region is not None

    def make(self, asked: Inflight, features: int) -> tuple[Inflight, FdBundle]:
        """Make a new region and use it from now on: what to tell the front-end, and the descriptor for it.

        Raises:
            PayloadError: it is for more or larger rings than there can be.
        """
        size = self._size("GET_INFLIGHT_FD", asked, features)
        told = Inflight(size, 0, asked.num_queues, asked.queue_size)
        with create(size) as fd:
            self._use(Region(fd.fileno(), 0, size, asked.num_queues, asked.queue_size))
            return told, FdBundle([fd.detach()])

    def take(self, told: Inflight, fd: OwnedFd, features: int) -> None:
        """Use a region that the front-end kept. The descriptor stays the caller's.

        Raises:
            PayloadError: it is for more or larger rings than there can be, or smaller than they need.
            FdError: it cannot be mapped.
        """
        size = self._size("SET_INFLIGHT_FD", told, features)
        if told.mmap_size < size:
            raise PayloadError(
                f"SET_INFLIGHT_FD: mmap_size {told.mmap_size:#x} is below the {size:#x} bytes of {told.num_queues} "
                f"vrings of {told.queue_size}",
                rule="VU-INFLIGHT-2",
            )
        self._use(Region(fd.fileno(), told.mmap_offset, told.mmap_size, told.num_queues, told.queue_size))

    def part(self, index: int, features: int) -> Part | None:
        """Where ring `index` records what it has in flight, or None: nowhere. Raises PayloadError."""
        return None if self._region is None else self._region.part(index, features)

    def close(self) -> None:
        """Unmap it."""
        if self._region is not None:
            self._region.close()
            self._region = None

    def _use(self, region: Region) -> None:
        self.close()
        self._region = region

    def _size(self, name: str, told: Inflight, features: int) -> int:
        if not 1 <= told.num_queues <= self._num_rings:
            words = f"{name}: num_queues {told.num_queues} is not in 1..{self._num_rings}"
            raise PayloadError(words, rule="VU-INFLIGHT-2")
        if not 1 <= told.queue_size <= MAX_VRING_NUM:
            words = f"{name}: queue_size {told.queue_size} is not in 1..{MAX_VRING_NUM}"
            raise PayloadError(words, rule="VU-INFLIGHT-2")
        return told.num_queues * part_size(features, told.queue_size)

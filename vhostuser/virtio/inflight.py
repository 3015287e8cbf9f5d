"""The memory that records requests in flight, and outlives the process (vhost-user, "Inflight I/O tracking").

Must not know messages, nor how a ring keeps its part up to date (``split_record``, ``packed_record``) and what a
starting ring makes of it (``recovery``).

A region is one file, mapped by both sides, that the front-end keeps. It has a part for each ring, one after another,
each at a multiple of 64 bytes: a header, and an entry for each descriptor::

    split    header 16 bytes, entry 16 bytes
    packed   header 32 bytes (its fields end at 31), entry 32 bytes

The front-end may write there whenever it likes, so nothing in it is believed: what a starting ring finds is copied,
checked and used from the copy, and what is only ours to know meanwhile (counters, lists) is kept here, never read back.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from vhostuser.errors import PayloadError
from vhostuser.fds import OwnedFd
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.memory import FileMapping

_ALIGNMENT = 64
_SPLIT = 16  # bytes of a header, and of an entry
_PACKED = 32
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Part(NamedTuple):
    """One ring's part of a region.

    Attributes:
        address: where it lies in this process.
        entries: how many descriptors it has room for.
    """

    address: int
    entries: int


def part_size(features: int, entries: int) -> int:
    """Bytes of one ring's part with so many entries, in the layout that the acknowledged `features` chose."""
    unit = _PACKED if features & VirtioFeature.RING_PACKED else _SPLIT
    return (unit + unit * entries + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


class Region(FileMapping):
    """A mapped region.

    Attributes:
        num_queues: how many rings it has parts for.
        queue_size: entries of each part.
    """

    range_rule = file_rule = "VU-INFLIGHT-2"

    def __init__(self, fd: int, mmap_offset: int, mmap_size: int, num_queues: int, queue_size: int) -> None:
        """Map a region. The descriptor stays the caller's. Raises as :class:`FileMapping` does."""
        self.num_queues = num_queues
        self.queue_size = queue_size
        if mmap_offset % _ALIGNMENT:
            words = f"inflight region: mmap_offset {mmap_offset:#x} is not a multiple of {_ALIGNMENT}"
            raise PayloadError(words, rule=self.range_rule)
        super().__init__(fd, mmap_size, mmap_offset)

    def part(self, index: int, features: int) -> Part | None:
        """The part of ring `index`, or None: the region has none for it.

        Raises:
            PayloadError: the region was made for a layout with smaller parts.
        """
        if index >= self.num_queues:
            return None
        size = part_size(features, self.queue_size)
        if (index + 1) * size > self.size:
            raise PayloadError(
                f"vring {index}: its part of the inflight region ends at {(index + 1) * size:#x}, "
                f"the region at {self.size:#x}",
                rule="VIO-INFLIGHT-6",
            )
        return Part(self.host_address + index * size, self.queue_size)

    def __repr__(self) -> str:
        return f"inflight region for {self.num_queues} vrings of {self.queue_size}"


def create(size: int) -> OwnedFd:
    """A new file of `size` zero bytes that nobody can shrink."""
    fd = OwnedFd(os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fileno(), size)
    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    return fd

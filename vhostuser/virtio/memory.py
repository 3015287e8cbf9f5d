"""Guest memory: mapped regions, and one immutable table of them.

Must not know which message brought a region, nor which ring reads it.

A :class:`Mapping` is one region mapped from a descriptor after every check that can be made: kind of file, sizes,
wraps, file length, page and huge-page alignment; whatever else comes in a peer's file is a :class:`FileMapping`. A
:class:`GuestMemory` is a snapshot of all regions, sorted by guest-physical address. It never changes: a new table is a
new object, which may share regions with the old one. Each queue group adopts it between two turns; what the old one
alone had is unmapped when all have. (The ancestor, vhost-net, does the same with RCU.)

:meth:`GuestMemory.translate` has three answers. A number of iovecs: a range may span neighbouring regions, and each
piece is one iovec. ``FAULT``: some byte of it is nowhere. ``MISS``: nowhere *yet*, ask the front-end and try again
(an IOMMU's table; a table of plain memory regions is complete and never says so).

A file may shrink under its mapping; ``guard`` keeps the process alive then, and :func:`pages_vanished` tells a ring.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
from array import array
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import cython

from vhostuser.errors import FdError, MemoryAccessError, PayloadError

if TYPE_CHECKING:
    from vhostuser.virtio.view import View

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.guard import guard, unguard, vanished
    from vhostuser.virtio.layout import FAULT, FULL
    from vhostuser.virtio.primitives import store_u64

_PAGE = mmap.PAGESIZE
_LIMIT = 1 << 64
_HUGETLBFS_MAGIC = 0x958458F6
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _page_size(fd: int) -> int:
    """The size of the pages that back a file: a huge page's on hugetlbfs, where mappings must be aligned to it."""
    words = (ctypes.c_long * 32)()  # struct statfs: f_type, f_bsize, ...
    if _libc.fstatfs(fd, words) == 0 and words[0] == _HUGETLBFS_MAGIC:
        return words[1]
    return _PAGE


class GuardedRange:
    """Addresses of this process that lead into a peer's file, and are guarded until they are unmapped."""

    _start = _length = 0

    def guard(self, start: int, length: int, page: int) -> None:
        """Guard and own a mapping from now on: where it begins, its bytes, and those of a page behind it.

        Raises:
            FdError: there are too many; it is unmapped.
        """
        self._start, self._length = start, length
        if guard(start, length, page) < 0:
            self.close()
            raise FdError(f"{self}: this process guards as many mappings of peers' files as it can")

    @property
    def extent(self) -> tuple[int, int]:
        """Where the mapping begins, and its length; whole pages around the bytes that were asked for."""
        return self._start, self._length

    @property
    def mapped(self) -> bool:
        """Whether it is still there."""
        return self._start != 0

    def close(self) -> None:
        """Unmap. Nothing may read or write it any more."""
        if self._start:
            unguard(self._start)
            _libc.munmap(self._start, self._length)
            self._start = 0


class FileMapping(GuardedRange):
    """Part of a peer's file, mapped shared, readable and writable.

    Attributes:
        size: bytes.
        origin: the file's device and inode, and where in it they begin.
        host_address: where the first of them lies in this process.
        page_size: bytes of the pages behind them.
        range_rule, file_rule: the statements that bytes which cannot be mapped, and a file, break.
    """

    range_rule = "VU-MEM-3"
    file_rule = "VU-MEM-4"

    def __init__(self, fd: int, size: int, mmap_offset: int) -> None:
        """Map `size` bytes from `mmap_offset` on. The descriptor stays the caller's.

        Raises:
            PayloadError: no bytes, a wrap past 2^64, or a range past the end of the file.
            FdError: not a regular file (memfd, hugetlbfs, shared memory) open for reading and writing, or not mappable.
        """
        self.size = size
        if size == 0:
            raise PayloadError(f"{self}: its size is 0", rule=self.range_rule)
        self._check_range("mmap_offset", mmap_offset)
        self._check_file(fd, mmap_offset)
        self.page_size = page = _page_size(fd)
        begin = mmap_offset & ~(page - 1)
        length = (mmap_offset + size - begin + page - 1) & ~(page - 1)
        flags = mmap.MAP_SHARED | _MAP_NORESERVE
        start = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, begin)
        if start == _MAP_FAILED or start is None:
            raise FdError(f"{self}: cannot be mapped: {os.strerror(ctypes.get_errno())}")
        self.host_address = start + mmap_offset - begin
        self.guard(start, length, page)

    def _check_range(self, name: str, first: int) -> None:
        if first + self.size > _LIMIT:
            words = f"{self}: {name} {first:#x} + size {self.size:#x} wraps past 2^64"
            raise PayloadError(words, rule=self.range_rule)

    def _check_file(self, fd: int, mmap_offset: int) -> None:
        status = os.fstat(fd)
        self.origin = status.st_dev, status.st_ino, mmap_offset
        if not stat.S_ISREG(status.st_mode):
            words = f"{self}: its descriptor is no regular file (mode {stat.filemode(status.st_mode)})"
            raise FdError(words, rule=self.file_rule)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise FdError(f"{self}: its descriptor is not open for reading and writing", rule=self.file_rule)
        if mmap_offset + self.size > status.st_size:
            raise PayloadError(
                f"{self}: mmap_offset {mmap_offset:#x} + size ends at {mmap_offset + self.size:#x}, "
                f"past the end of the file at {status.st_size:#x}",
                rule=self.range_rule,
            )

    def __repr__(self) -> str:
        return f"a file's {self.size:#x} bytes"


class Mapping(FileMapping):
    """One memory region.

    Attributes:
        guest_phys_addr, memory_size, userspace_addr: as in the message; bytes.
        claims: how often the front-end has added it, and not removed it.
    """

    def __init__(self, fd: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, mmap_offset: int) -> None:
        """Map a region. Raises as :class:`FileMapping` does, and PayloadError if its addresses wrap past 2^64."""
        self.guest_phys_addr = guest_phys_addr
        self.size = self.memory_size = memory_size
        self.userspace_addr = userspace_addr
        self.claims = 1
        self._check_range("guest_phys_addr", guest_phys_addr)
        self._check_range("userspace_addr", userspace_addr)
        super().__init__(fd, memory_size, mmap_offset)

    def __repr__(self) -> str:
        return f"memory region {self.guest_phys_addr:#x}+{self.memory_size:#x}"


def _check_overlap(mappings: tuple[Mapping, ...], name: str) -> None:
    ordered = sorted(mappings, key=lambda mapping: int(getattr(mapping, name)))
    for lower, upper in pairwise(ordered):
        if getattr(lower, name) + lower.memory_size > getattr(upper, name):
            raise PayloadError(f"{upper!r} overlaps {lower!r} in {name}", rule="VU-MEM-7")


class GuestMemory:
    """An immutable table of regions, sorted by guest-physical address; owns its mappings.

    Attributes:
        mappings: the regions.
        absent: what :meth:`translate` says of an address in no region, ``FAULT`` or ``MISS``.
    """

    def __init__(self, mappings: Iterable[Mapping] = (), absent: cython.int = FAULT) -> None:
        """Take over `mappings`.

        Raises:
            PayloadError: two regions overlap, in guest-physical or in front-end addresses.
        """
        ordered = tuple(sorted(mappings, key=lambda mapping: mapping.guest_phys_addr))
        _check_overlap(ordered, "guest_phys_addr")
        _check_overlap(ordered, "userspace_addr")
        self.mappings = ordered
        self.absent = absent
        self.count = len(ordered)
        self.rows = array(
            "Q",
            [n for m in ordered for n in (m.guest_phys_addr, m.memory_size, m.host_address)] or [0, 0, 0],
        )
        self._find_by([(mapping.host_address, mapping.guest_phys_addr) for mapping in ordered])

    def _find_by(self, pairs: list[tuple[int, int]]) -> None:
        """Find guest-physical addresses by these: where each range begins in this process, and in guest memory."""
        self.hosts = array("Q", [n for pair in sorted(pairs) for n in pair] or [0, 0])
        self.host_count = len(pairs)

    def viewed(self, views: Iterable[View]) -> GuestMemory:
        """This table, which finds what lies in views as well."""
        table = GuestMemory(self.mappings, self.absent)
        by_view = [(at, self.guest_phys_addr(host)) for view in views for at, host in view.rows()]
        table._find_by([*zip(self.hosts[::2], self.hosts[1::2], strict=True), *by_view])
        return table

    def close(self, *others: GuestMemory) -> None:
        """Unmap every region, but for those that one of the `others` has too."""
        kept = {mapping for other in others for mapping in other.mappings}
        for mapping in self.mappings:
            if mapping not in kept:
                mapping.close()

    def find(self, address: cython.ulonglong, hint: cython.int) -> cython.int:
        """The row that holds `address`, or -1; `hint` is a row to try first."""
        low: cython.int = 0
        high: cython.int = self.count
        middle: cython.int
        if 0 <= hint < high:
            middle = hint
        elif high:
            middle = 0
        else:
            return -1
        while low < high:
            if address < self.rows[3 * middle]:
                high = middle
            elif address - self.rows[3 * middle] >= self.rows[3 * middle + 1]:
                low = middle + 1
            else:
                return middle
            middle = (low + high) >> 1
        return -1

    def translate(
        self, address: cython.ulonglong, length: cython.ulonglong, iov: cython.ulonglong, room: cython.int
    ) -> cython.int:
        """Write the iovecs of a guest-physical range to address `iov`, at most `room` of them.

        `length` is at least 1. Returns their number, ``FAULT``, ``MISS`` or ``FULL``.
        """
        row: cython.int = 0
        pieces: cython.int = 0
        offset: cython.ulonglong
        piece: cython.ulonglong
        following: cython.ulonglong
        while True:
            row = self.find(address, row)
            if row < 0:
                return self.absent
            if pieces == room:
                return FULL
            offset = address - self.rows[3 * row]
            piece = self.rows[3 * row + 1] - offset
            if piece > length:
                piece = length
            store_u64(iov + 16 * pieces, self.rows[3 * row + 2] + offset)
            store_u64(iov + 16 * pieces + 8, piece)
            pieces += 1
            length -= piece
            if length == 0:
                return pieces
            following = self.rows[3 * row] + self.rows[3 * row + 1]
            if following < address:  # this region ends with the address space, and 2^64 does not wrap to 0
                return FAULT
            address = following
            row += 1

    def hole(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.ulonglong:
        """The first address of a range that is in no row; the range's first if all of it is."""
        row: cython.int = 0
        at: cython.ulonglong = address
        size: cython.ulonglong
        while True:
            row = self.find(at, row)
            if row < 0:
                return at
            size = self.rows[3 * row] + self.rows[3 * row + 1] - at
            if size >= length:
                return address
            at += size
            length -= size
            row += 1

    def contiguous(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.ulonglong:
        """Where a guest-physical range lies in this process if one region holds all of it, else 0."""
        row: cython.int = self.find(address, 0)
        offset: cython.ulonglong
        if row < 0:
            return 0
        offset = address - self.rows[3 * row]
        if length > self.rows[3 * row + 1] - offset:
            return 0
        return self.rows[3 * row + 2] + offset

    def guest_phys_addr(self, host: cython.ulonglong) -> cython.ulonglong:
        """The guest-physical address of a byte that lies at `host` in this process, in a region or in a view of some.

        It is the region's by which the byte was reached: a file may be mapped as two of them.
        """
        low: cython.int = 0
        high: cython.int = self.host_count
        middle: cython.int
        while high - low > 1:
            middle = (low + high) >> 1
            if host < self.hosts[2 * middle]:
                high = middle
            else:
                low = middle
        return self.hosts[2 * low + 1] + (host - self.hosts[2 * low])

    def ring_address(self, userspace_addr: int, length: int, name: str) -> int:
        """Where part of a ring, given by a front-end address, lies in this process.

        Raises:
            MemoryAccessError: no single region holds all `length` bytes.
        """
        for mapping in self.mappings:
            offset = userspace_addr - mapping.userspace_addr
            if 0 <= offset < mapping.memory_size and length <= mapping.memory_size - offset:
                return int(mapping.host_address + offset)
        raise MemoryAccessError(
            f"{name} at {userspace_addr:#x}: its {length} bytes lie in no memory region ({len(self.mappings)} known)",
            rule="VU-RING-21",
        )

    def pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        """The (host address, size) pairs of a guest-physical range; none for an empty one.

        Raises:
            MemoryAccessError: some byte of it is not guest memory.
        """
        if length == 0:
            return []
        room = self.count + 1
        iov = array("Q", bytes(16 * room))
        found = self.translate(address, length, iov.buffer_info()[0], room)
        if found < 0:
            raise MemoryAccessError(f"guest_phys_addr {address:#x}: its {length} bytes are not all guest memory")
        return [(iov[2 * i], iov[2 * i + 1]) for i in range(found)]

    def read(self, address: int, length: int) -> bytes:
        """A copy of a guest-physical range. Call it in the thread of the ring that needs it.

        Raises:
            MemoryAccessError: some byte of it is not guest memory, or vanished.
        """
        before = vanished()
        data = gather(self.pieces(address, length), length)
        if vanished() != before:
            raise MemoryAccessError(f"guest_phys_addr {address:#x}: {length} bytes vanished while being read")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` to a guest-physical address. Call it in the thread of the ring that needs it.

        Raises:
            MemoryAccessError: some byte of the range is not guest memory, or vanished.
        """
        before = vanished()
        done = 0
        for at, size in self.pieces(address, len(data)):
            ctypes.memmove(at, data[done : done + size], size)
            done += size
        if vanished() != before:
            raise MemoryAccessError(f"guest_phys_addr {address:#x}: {len(data)} bytes vanished while being written")


def table_of(rows: array[int], absent: int) -> GuestMemory:
    """A table of ranges that lie in other tables' regions: first address, bytes and host address of each, sorted."""
    table = GuestMemory((), absent)
    if rows:
        table.rows = rows
        table.count = len(rows) // 3
    return table


def address_of(buffer: mmap.mmap) -> int:
    """Where a writable mapping of our own lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def gather(pieces: Iterable[tuple[int, int]], limit: int) -> bytes:
    """A copy of the first `limit` bytes at some (host address, size) pairs; without the GIL, since a page may block."""
    copies = []
    for at, length in pieces:
        size = min(length, limit)
        limit -= size
        copy = ctypes.create_string_buffer(size)
        ctypes.memmove(copy, at, size)  # unlike ctypes.string_at
        copies.append(copy.raw)
    return b"".join(copies)


def pages_vanished() -> cython.ulonglong:
    """How many pages of guest memory have vanished under the calling thread."""
    return vanished()

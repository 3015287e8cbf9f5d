"""Which pages of guest memory this process wrote, as the kernel saw it: the witness against which a dirty log is held.

Must not know what was written, or what was logged.

Our own mapping of guest memory is write-protected, in a way that lets a write pass and only notes it (userfaultfd with
UFFD_FEATURE_WP_ASYNC, Linux 6.7). Asking the page map for what was written (PAGEMAP_SCAN) protects it again. The page
table that remembers is ours: what the guest or another back-end writes through theirs does not show, what the kernel
writes for us (``readv``) does. What a ring writes to its own areas by a ``view`` of them does not: that is another
mapping.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator

from vhostuser.virtio.memory import Mapping

_libc = ctypes.CDLL(None, use_errno=True)
_USERFAULTFD = {"x86_64": 323}.get(os.uname().machine, 282)
_UFFD_API = 0xAA
_WP_HUGETLBFS_SHMEM, _WP_UNPOPULATED, _WP_ASYNC = 1 << 12, 1 << 13, 1 << 15
_REGISTER_MODE_WP, _WRITEPROTECT_MODE_WP = 2, 1
_SCAN_WP_MATCHING, _SCAN_CHECK_WPASYNC = 1, 2
_PAGE_IS_WRITTEN = 2
_RANGES = 1024  # that one scan tells


def _request(kind: int, number: int, size: int) -> int:
    """The number of an ioctl that reads and writes a structure of so many bytes."""
    return 3 << 30 | size << 16 | kind << 8 | number


_UFFDIO_API = _request(_UFFD_API, 0x3F, 24)
_UFFDIO_REGISTER = _request(_UFFD_API, 0x00, 32)
_UFFDIO_WRITEPROTECT = _request(_UFFD_API, 0x06, 24)
_PAGEMAP_SCAN = _request(ord("f"), 16, 96)


class WriteWatch:
    """The witness. It watches the mappings that :meth:`follow` was told last."""

    def __init__(self) -> None:
        """Set it up. Raises OSError where the kernel has no such thing, or does not let us."""
        self._uffd = _libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        self._mappings: list[Mapping] = []
        try:
            features = _WP_HUGETLBFS_SHMEM | _WP_UNPOPULATED | _WP_ASYNC
            try:
                self._control(_UFFDIO_API, "3Q", _UFFD_API, features, 0)
            except OSError as error:
                raise OSError(error.errno, "userfaultfd lacks asynchronous write protection (Linux 6.7)") from None
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._uffd)
            raise

    def close(self) -> None:
        """End watching."""
        os.close(self._pagemap)
        os.close(self._uffd)

    def follow(self, mappings: Iterable[Mapping]) -> None:
        """Watch these mappings from now on, and no others.

        Raises:
            OSError: the kernel cannot do that for a file, or somebody has a userfaultfd on it. The others are watched.
        """
        known, self._mappings = self._mappings, []
        failure: OSError | None = None
        for mapping in mappings:
            try:
                if not any(mapping is old for old in known):
                    self._protect(*mapping.extent)
                self._mappings.append(mapping)
            except OSError as error:
                failure = OSError(error.errno, f"{mapping}: {error.strerror}")
        if failure is not None:
            raise failure

    def written(self) -> Iterator[tuple[Mapping, int, int]]:
        """What was written since the last look: mapping, and first and last guest-physical address of each range."""
        for mapping in self._mappings:
            for start, end in self._scan(*mapping.extent):
                first = max(start - mapping.host_address, 0)
                last = min(end - mapping.host_address, mapping.memory_size) - 1
                yield mapping, mapping.guest_phys_addr + first, mapping.guest_phys_addr + last

    def _protect(self, start: int, length: int) -> None:
        self._control(_UFFDIO_REGISTER, "4Q", start, length, _REGISTER_MODE_WP, 0)
        self._control(_UFFDIO_WRITEPROTECT, "3Q", start, length, _WRITEPROTECT_MODE_WP)

    def _scan(self, start: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        regions = (ctypes.c_uint64 * (3 * _RANGES))()
        end = start + length
        while start < end:
            # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
            # category_mask, category_anyof_mask, return_mask
            flags = _SCAN_WP_MATCHING | _SCAN_CHECK_WPASYNC
            vector = ctypes.addressof(regions)
            wanted = 0, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN
            scan = bytearray(struct.pack("12Q", 96, flags, start, end, 0, vector, _RANGES, *wanted))
            try:
                count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, scan)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
                break  # some of it vanished, and what stands there instead is not watched
            found += [(regions[3 * i], regions[3 * i + 1]) for i in range(count)]
            start = struct.unpack_from("5Q", scan)[4]
        return found

    def _control(self, request: int, layout: str, *values: int) -> None:
        fcntl.ioctl(self._uffd, request, bytearray(struct.pack(layout, *values)))

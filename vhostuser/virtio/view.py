"""Pages of guest memory that are mapped once more, side by side.

Must not know what is in them.

Behind an IOMMU the pages of a ring's area follow each other for the driver and lie anywhere in guest memory, while the
packet path finds an area by one address. So addresses are reserved, and the mappings of the pages are doubled into
them, one behind the other: ``mremap`` of no bytes of a shared mapping makes a second one of the same pages, and takes
no descriptor. Parts of huge pages cannot be mapped so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from itertools import pairwise

from vhostuser.errors import FdError, MemoryAccessError
from vhostuser.virtio.memory import GuardedRange, gather

#: The (host address, bytes) pairs of a range, in its order.
Pieces = tuple[tuple[int, int], ...]

_PAGE = mmap.PAGESIZE
_PROT_NONE, _MAP_NORESERVE, _MREMAP_MAYMOVE, _MREMAP_FIXED = 0, 0x4000, 1, 2
_MAP_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]


class View(GuardedRange):
    """A range of guest memory in one piece.

    Attributes:
        pieces: where it lies otherwise.
        address: where it begins here.
    """

    def __init__(self, pieces: Pieces) -> None:
        """Map it. Call it in the thread of the ring that needs it: a page may block.

        Raises:
            MemoryAccessError: the pieces do not begin and end where pages do, or cannot be mapped.
        """
        self.pieces = pieces
        for (at, size), (following, _) in pairwise(pieces):
            if (at + size) % _PAGE or following % _PAGE:
                raise _failure("they are not whole")
        pages = [range(at & -_PAGE, at + size, _PAGE) for at, size in pieces]
        # What is still elsewhere (post-copy) comes by the region's mapping only: nobody knows of this one.
        every = [(page, 1) for piece in pages for page in piece]
        gather(every, len(every))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        start = _libc.mmap(None, _PAGE * len(every), _PROT_NONE, flags, -1, 0)
        if start == _MAP_FAILED or start is None:
            raise _failure(os.strerror(ctypes.get_errno()))
        try:
            self.guard(start, _PAGE * len(every), _PAGE)
        except FdError as error:
            raise _failure(str(error)) from None
        self.address = start + pieces[0][0] % _PAGE
        for piece in pages:
            length = _PAGE * len(piece)
            if _libc.mremap(piece.start, 0, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, start) == _MAP_FAILED:
                failure = _failure(os.strerror(ctypes.get_errno()))
                self.close()
                raise failure
            start += length

    def rows(self) -> list[tuple[int, int]]:
        """Of each piece, where it begins here and where it begins otherwise."""
        found, at = [], self.address
        for host, size in self.pieces:
            found.append((at, host))
            at += size
        return found

    def __repr__(self) -> str:
        return f"a view of {len(self.pieces)} pieces of guest memory"


def _failure(reason: str) -> MemoryAccessError:
    return MemoryAccessError(f"pages cannot be mapped side by side: {reason}", rule="VU-IOTLB-14")

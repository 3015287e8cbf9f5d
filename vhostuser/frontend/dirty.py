"""The dirty log as a front-end has it: a bitmap in shared memory, out of which it takes what back-ends have put in.

Must not know: who writes what; it is one bit for each 4096 bytes from guest-physical address 0 on.

How: a bit is taken out with an atomic operation, so that none is lost that a back-end sets at the same time, and only
then may its page be read. Python has no such operation. The kernel has: FUTEX_WAKE_OP clears a bit of a word,
atomically, before it wakes nobody.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re

from vhostuser.fds import Closing, OwnedFd
from vhostuser.wire.messages import Log

PAGE = 4096

_libc = ctypes.CDLL(None)
_FUTEX = {"x86_64": 202}.get(os.uname().machine, 98)
_WAKE_OP, _PRIVATE = 5, 128
_SET_BIT, _CLEAR_BIT = (2 | 8) << 28, (3 | 8) << 28  # FUTEX_OP_OR and FUTEX_OP_ANDN of 1 << oparg


class DirtyBitmap(Closing):
    """The log of a guest whose memory ends at a guest-physical address.

    Args:
        top: The end of guest memory.
        mmap_offset: Where the bitmap begins in its file, a multiple of the page size.
        fd: The file of a bitmap that is there already, which is duplicated; None: a new one.

    Attributes:
        fd: The file.
        size: Bytes of the bitmap.
        mmap_offset: As above.
    """

    def __init__(self, top: int, mmap_offset: int = 0, fd: int | None = None) -> None:
        self.size = -(-top // (8 * PAGE))
        self.mmap_offset = mmap_offset
        self.fd = OwnedFd(os.memfd_create("dirty-log", os.MFD_CLOEXEC) if fd is None else os.dup(fd))
        try:
            if fd is None:
                os.ftruncate(self.fd.fileno(), mmap_offset + self.size)
            self._map = mmap.mmap(self.fd.fileno(), self.size, offset=mmap_offset)
        except BaseException:
            self.fd.close()
            raise
        anchor = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(anchor)

    def message(self) -> Log:
        """The payload of SET_LOG_BASE."""
        return Log(self.size, self.mmap_offset)

    def pages(self) -> set[int]:
        """Guest-physical addresses of the pages whose bits are set."""
        bits = self._map[:]
        return {PAGE * (8 * at + bit) for at in _nonzero(bits) for bit in range(8) if bits[at] >> bit & 1}

    def __contains__(self, page: int) -> bool:
        at, bit = divmod(page // PAGE, 8)
        return bool(self._map[at] >> bit & 1)

    def take(self) -> set[int]:
        """Take the bits out: the pages to read from now on."""
        taken = self.pages()
        for page in taken:
            self.clear(page)
        return taken

    def put(self, page: int) -> None:
        """Set the bit of a page, as another back-end does, or a hypervisor for what the guest wrote."""
        self._change(_SET_BIT, page)

    def clear(self, page: int) -> None:
        """Take out the bit of a page, whether it is set or not."""
        self._change(_CLEAR_BIT, page)

    def _change(self, how: int, page: int) -> None:
        at, bit = divmod(page // PAGE, 8)
        word = ctypes.c_void_p(self._address + (at & ~3))
        operation = how | (8 * (at & 3) + bit) << 12
        _libc.syscall(_FUTEX, word, _WAKE_OP | _PRIVATE, 0, None, word, operation)

    def close(self) -> None:
        """Unmap it and close the file."""
        self._map.close()
        self.fd.close()


def _nonzero(bits: bytes) -> list[int]:
    return [match.start() for match in re.finditer(rb"[^\0]", bits)]

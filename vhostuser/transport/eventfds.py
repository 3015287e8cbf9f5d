"""What kind of thing a descriptor is, for those that arrive as kick, call, err or log notification.

Must not know: which ring or message the descriptor belongs to.

How it works. The file mode tells most kinds apart. An eventfd has none; only the kernel's own name for it,
in /proc, says what it is. Asking never changes the descriptor: its open file description, O_NONBLOCK
included, is shared with the peer.
"""

from __future__ import annotations

import os
import stat
from enum import StrEnum

from vhostuser.errors import FdError


class FdKind(StrEnum):
    """Kinds of open files. The values are what error messages call them."""

    EVENTFD = "eventfd"
    FIFO = "pipe"
    SOCKET = "socket"
    MEMFD = "memfd"
    FILE = "regular file"
    DIRECTORY = "directory"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    OTHER = "anonymous file"


NOTIFIERS = frozenset({FdKind.EVENTFD, FdKind.FIFO, FdKind.SOCKET})
"""What may carry a notification: an eventfd, a pipe, or a socket (what user-mode Linux calls a pipe is one)."""

_BY_FORMAT = {
    stat.S_IFIFO: FdKind.FIFO,
    stat.S_IFSOCK: FdKind.SOCKET,
    stat.S_IFREG: FdKind.FILE,
    stat.S_IFDIR: FdKind.DIRECTORY,
    stat.S_IFCHR: FdKind.CHARACTER_DEVICE,
    stat.S_IFBLK: FdKind.BLOCK_DEVICE,
}


def kind_of(fd: int) -> FdKind:
    """The kind of an open descriptor. Raises OSError (EBADF) when it is not open."""
    status = os.fstat(fd)
    kind = _BY_FORMAT.get(stat.S_IFMT(status.st_mode), FdKind.OTHER)
    # No path can look like the name of an eventfd, paths begin with a slash. One can look like a memfd's,
    # but has a link.
    if kind is FdKind.OTHER and _kernel_name(fd).startswith("anon_inode:[eventfd"):
        return FdKind.EVENTFD
    if kind is FdKind.FILE and status.st_nlink == 0 and _kernel_name(fd).startswith("/memfd:"):
        return FdKind.MEMFD
    return kind


def check_notifier(fd: int) -> None:
    """Accept what may be a kick, call or err descriptor.

    Raises:
        FdError: Neither an eventfd nor a pipe nor a socket.
    """
    kind = kind_of(fd)
    if kind not in NOTIFIERS:
        words = f"cannot notify through a descriptor of kind {kind}: an eventfd, a pipe or a socket is needed"
        raise FdError(words, rule="VU-RING-24")


def _kernel_name(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""

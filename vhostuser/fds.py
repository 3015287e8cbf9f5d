"""Ownership of file descriptors.

Every descriptor that a peer passes has exactly one owner from the moment ``recvmsg`` returns. An :class:`OwnedFd` is
closed once; a :class:`FdBundle` is what came with one message, and closes whatever nobody took.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self


class Closing:
    """What owns something, and lets go of it at the end of a ``with`` block, however that ends."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what it holds. Harmless a second time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OwnedFd(Closing):
    """One open descriptor with one owner. Closing twice is harmless, using it after closing raises ValueError.

    The stored number becomes -1 *before* the system call: another thread may be handed the same number by the kernel
    while ``close`` still runs, and a second close would then hit a stranger.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        if fd < 0:
            raise ValueError(f"{fd} is not a file descriptor")
        self._fd = fd

    def fileno(self) -> int:
        """The number. Raises ValueError once closed or detached."""
        if self._fd < 0:
            raise ValueError("the file descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or given away."""
        return self._fd < 0

    def detach(self) -> int:
        """Give the number and its ownership to the caller."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close the descriptor if it is still ours."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd}>" if self._fd >= 0 else "<OwnedFd closed>"


class FdBundle(Closing):
    """The descriptors of one message, in order. What is not taken is closed by :meth:`close`."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = [OwnedFd(fd) for fd in fds]

    def take(self) -> OwnedFd:
        """Take the first descriptor that is left. Raises IndexError when there is none."""
        return self._fds.pop(0)

    def close(self) -> None:
        """Close every descriptor that was not taken."""
        while self._fds:
            self._fds.pop().close()

    def filenos(self) -> list[int]:
        """The numbers that are left, still owned by the bundle."""
        return [fd.fileno() for fd in self._fds]

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[OwnedFd]:
        return iter(tuple(self._fds))

    def __repr__(self) -> str:
        return f"<FdBundle {[fd.fileno() for fd in self._fds]}>"

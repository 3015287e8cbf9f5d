"""Descriptors of a conversation: what a real one is of, and fresh ones like it.

Must not know: messages.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from contextlib import suppress

from vhostuser.fds import Closing, OwnedFd
from vhostuser.transcript.entries import Descriptor, Kind

MAX_MEMORY = 1 << 40
"""Bytes of a file that is made again, at most: it is sparse, and a recording may claim anything."""

_EVENTFD = "anon_inode:[eventfd]"
_FULL = (1 << 64) - 2  # one more has to wait
_KEPT_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ONE = (1).to_bytes(8, sys.byteorder)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
_HARMLESS = (*_HARMLESS_DEVICES, "/", "/proc/self/status")


def describe(fd: int, name: str) -> Descriptor:
    """What a descriptor is of. Raises OSError for one that is not open."""
    status = os.fstat(fd)
    target = os.readlink(f"/proc/self/fd/{fd}")
    if target == _EVENTFD:
        return Descriptor(name, Kind.EVENTFD, blocking=os.get_blocking(fd), full=_count(fd) == _FULL)
    if stat.S_ISREG(status.st_mode):
        return _of_file(fd, name, status, target)
    if stat.S_ISSOCK(status.st_mode):
        return Descriptor(name, Kind.SOCKET)
    if stat.S_ISFIFO(status.st_mode):
        writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        return Descriptor(name, Kind.PIPE_WRITE if writes else Kind.PIPE_READ)
    if stat.S_ISCHR(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return Descriptor(name, Kind.FILE, path=target, writable=_writable(fd))
    return Descriptor(name, Kind.OTHER)


def _writable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def _count(fd: int) -> int:
    """What an eventfd has counted."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        counts = (line.split()[1] for line in file if line.startswith("eventfd-count:"))
        return int(next(counts, "0"), 16)


def can_be_channel(fd: int) -> bool:
    """Whether a descriptor is of a connected UNIX stream socket: messages cannot go through anything else."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        sock.getpeername()
        return (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return False
    finally:
        sock.detach()


def _of_file(fd: int, name: str, status: os.stat_result, target: str) -> Descriptor:
    seals = 0
    with suppress(OSError):  # a file of a filesystem that has none
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    memory = _writable(fd)
    block = status.st_blksize if status.st_blksize != _PAGE else 0
    return Descriptor(
        name,
        Kind.MEMORY if memory else Kind.FILE,
        size=status.st_size,
        seals=seals,
        block=block if memory else 0,
        path="" if memory else target,
    )


class Props(Closing):
    """Fresh descriptors for a play, each made when it is first asked for, all of them closed at the end."""

    def __init__(self) -> None:
        self._made: dict[str, OwnedFd] = {}
        self._others: dict[str, OwnedFd] = {}  # the other ends of pipes and sockets

    def of(self, descriptor: Descriptor) -> int:
        """The descriptor that plays this one; stays ours.

        Raises:
            OSError: there are no more to be had.
        """
        if descriptor.name not in self._made:
            self._made[descriptor.name] = self._make(descriptor)
        return self._made[descriptor.name].fileno()

    def named(self, name: str) -> int | None:
        """The descriptor of that name if there is one by now."""
        made = self._made.get(name)
        return None if made is None else made.fileno()

    def other_end(self, name: str) -> OwnedFd | None:
        """The other end of a pipe or a socket, once; it is the caller's then."""
        return self._others.pop(name, None)

    def signal(self, name: str) -> None:
        """Write to an eventfd, or to the other end of a pipe or a socket, as who kicks does; without effect if it is
        full, or something else."""
        fd = self._others.get(name) or self._made.get(name)
        if fd is not None:
            with suppress(OSError):
                os.write(fd.fileno(), _ONE)

    def resize(self, name: str, size: int) -> None:
        """Change the length of memory; without effect if a seal forbids it, or it is something else."""
        if (fd := self.named(name)) is not None:
            with suppress(OSError):
                os.ftruncate(fd, size)

    def _make(self, told: Descriptor) -> OwnedFd:
        match told.kind:
            case Kind.MEMORY:
                return _memory(told)
            case Kind.EVENTFD | Kind.OTHER:
                fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | (0 if told.blocking else os.EFD_NONBLOCK)))
                if told.full:
                    os.eventfd_write(fd.fileno(), _FULL)
                return fd
            case Kind.SOCKET | Kind.CONNECTION:
                ours, theirs = (OwnedFd(end.detach()) for end in socket.socketpair())
                os.set_blocking(ours.fileno(), False)
            case Kind.PIPE_READ | Kind.PIPE_WRITE:
                reading, writing = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
                ours, theirs = (writing, reading) if told.kind is Kind.PIPE_READ else (reading, writing)
            case Kind.FILE:
                return _file(told)
        self._others[told.name] = ours
        return theirs

    def close(self) -> None:
        """Close all of them."""
        for fd in (*self._made.values(), *self._others.values()):
            fd.close()
        self._made.clear()
        self._others.clear()


def _file(told: Descriptor) -> OwnedFd:
    """A file that may be opened although a stranger wrote its path, or /dev/null in its place."""
    path = told.path if told.path in _HARMLESS else "/dev/null"
    mode = os.O_RDWR if told.writable and path in _HARMLESS_DEVICES else os.O_RDONLY
    return OwnedFd(os.open(path, mode | os.O_CLOEXEC))


def _memory(told: Descriptor) -> OwnedFd:
    fd = OwnedFd(os.memfd_create(told.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fileno(), min(told.size, MAX_MEMORY))
    if told.seals & _KEPT_SEALS:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, told.seals & _KEPT_SEALS)
    return fd

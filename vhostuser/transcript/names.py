"""Names for the descriptors of a conversation, stable and readable: the same object has the same name.

Must not know: sockets, who reads the names.

How: a descriptor is named after what it is passed for and, of rings, for which: ``kick 0``, ``memory 1``, ``log``; a
second object for the same purpose is ``kick 0.2``. Files, sockets and pipes are told apart by their inodes. All
eventfds share one; the kernel numbers them, and gives the number of one that is closed to the next. So the last of each
purpose is kept open, and known as the same as long as it is. Nothing else is kept: it might be a guest's memory, or a
connection.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vhostuser.fds import Closing, OwnedFd
from vhostuser.transcript.descriptors import describe
from vhostuser.transcript.entries import Descriptor, Kind
from vhostuser.wire.frames import Frame
from vhostuser.wire.requests import BackendRequest as B
from vhostuser.wire.requests import Direction
from vhostuser.wire.requests import FrontendRequest as R

MAX_KNOWN = 4096
"""Objects whose names are remembered; a peer can pass any number."""
MAX_HELD = 256
"""Eventfds that are kept open, at most."""

_Identity = tuple[str, int, int]

_PURPOSES: Mapping[int, str] = {
    R.SET_MEM_TABLE: "memory",
    R.ADD_MEM_REG: "memory",
    R.REM_MEM_REG: "memory",
    R.SET_LOG_BASE: "log",
    R.SET_LOG_FD: "log signal",
    R.SET_VRING_KICK: "kick",
    R.SET_VRING_CALL: "call",
    R.SET_VRING_ERR: "err",
    R.SET_BACKEND_REQ_FD: "channel",
    R.POSTCOPY_ADVISE: "userfaultfd",
    R.GET_INFLIGHT_FD: "inflight",
    R.SET_INFLIGHT_FD: "inflight",
    R.GPU_SET_SOCKET: "gpu",
    R.GET_SHARED_OBJECT: "object",
    R.SET_DEVICE_STATE_FD: "state",
}
_OWN_PURPOSES: Mapping[int, str] = {
    B.VRING_HOST_NOTIFIER_MSG: "notifier",
    B.SHARED_OBJECT_LOOKUP: "object",
    B.SHMEM_MAP: "shmem",
}
_OF_A_RING = frozenset({"kick", "call", "err", "notifier"})
_NUMBERED = frozenset({"memory"})


class Names(Closing):
    """The names that were given so far. Close it when the conversation is over."""

    def __init__(self) -> None:
        self._known: dict[_Identity, str] = {}
        self._count: Counter[str] = Counter()
        self._held: dict[str, tuple[_Identity, OwnedFd]] = {}

    def describe(self, direction: Direction, frame: Frame) -> tuple[Descriptor, ...]:
        """What each descriptor of a frame is, with its name; they stay the frame's.

        Args:
            direction: Whose requests the numbers are: of a reply, those of the request.
            frame: A request or a reply.
        """
        purpose = _purpose(direction, frame)
        return tuple(self._named(fd, purpose) for fd in frame.fds.filenos())

    def _named(self, fd: int, purpose: str) -> Descriptor:
        told = describe(fd, purpose)
        identity = _identity(fd, told.kind)
        name = self._known.get(identity) if identity else None
        if name is None:
            name = self._new_name(purpose)
            if identity:
                self._remember(identity, name)
        if identity and told.kind is Kind.EVENTFD:
            self._hold(purpose, identity, fd)
        return replace(told, name=name)

    def _new_name(self, purpose: str) -> str:
        number = self._count[purpose]
        self._count[purpose] += 1
        if purpose in _NUMBERED:
            return f"{purpose} {number}"
        return f"{purpose}.{number + 1}" if number else purpose

    def _remember(self, identity: _Identity, name: str) -> None:
        self._known[identity] = name
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _hold(self, purpose: str, identity: _Identity, fd: int) -> None:
        """Keep an eventfd, and forget the one that served this purpose before unless it serves another."""
        if purpose in self._held and self._held[purpose][0] == identity:
            return
        self._release(purpose)
        if len(self._held) >= MAX_HELD:
            self._release(next(iter(self._held)))
        with suppress(OSError):  # no more descriptors: it is named, and not known again
            self._held[purpose] = identity, OwnedFd(os.dup(fd))
            return
        self._known.pop(identity, None)

    def _release(self, purpose: str) -> None:
        identity, held = self._held.pop(purpose, (None, None))
        if identity is None or held is None:
            return
        held.close()
        if all(other != identity for other, _ in self._held.values()):
            self._known.pop(identity, None)

    def close(self) -> None:
        """Let go of all eventfds."""
        for purpose in list(self._held):
            self._release(purpose)


def _purpose(direction: Direction, frame: Frame) -> str:
    purposes = _PURPOSES if direction is Direction.FRONTEND else _OWN_PURPOSES
    purpose = purposes.get(frame.request, "descriptor")
    if purpose in _OF_A_RING and frame.payload:
        return f"{purpose} {frame.payload[0]}"
    return purpose


def _identity(fd: int, kind: Kind) -> _Identity | None:
    """What is the same for descriptors of the same object alone; None where nothing is."""
    if kind is Kind.EVENTFD:
        found = re.search(r"^eventfd-id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
        return ("eventfd", 0, int(found[1])) if found else None
    if kind is Kind.OTHER:  # anonymous files share an inode
        return None
    status = os.fstat(fd)
    return ("inode", status.st_dev, status.st_ino)

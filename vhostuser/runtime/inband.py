"""In-band notifications: kicks, calls and errors as messages, for rings that were given no descriptor for them.

Must not know rings. For each notification that has no descriptor there is an eventfd of our own in its place, so the
packet path never learns of this: a kick that comes as a message is written to the ring's, and what a ring writes to
the others goes to the front-end as a message. Calls that come while one is on its way are one call, as with any
eventfd.
"""

from __future__ import annotations

import os

import trio

from vhostuser.fds import OwnedFd
from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.wire.messages import VringState
from vhostuser.wire.requests import BackendRequest

_MESSAGES = {"call": BackendRequest.VRING_CALL, "err": BackendRequest.VRING_ERR}


class InBand:
    """The eventfds of one connection that stand for messages."""

    def __init__(self, channel: BackendChannel) -> None:
        self._channel = channel
        self._fds: dict[tuple[int, str], OwnedFd] = {}

    def fileno(self, nursery: trio.Nursery, index: int, name: str) -> int:
        """The eventfd in place of a vring's ``kick``, ``call`` or ``err``; it stays open as long as the connection."""
        if (index, name) not in self._fds:
            fd = self._fds[index, name] = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            if name in _MESSAGES:
                nursery.start_soon(self._forward, fd, _MESSAGES[name], index)
        return self._fds[index, name].fileno()

    def kick(self, index: int) -> None:
        """A kick came as a message; without an eventfd for it the ring has a descriptor, or is polled."""
        if fd := self._fds.get((index, "kick")):
            os.eventfd_write(fd.fileno(), 1)

    def close(self) -> None:
        """Close them; no ring and no task uses them any more."""
        for fd in self._fds.values():
            fd.close()

    async def _forward(self, fd: OwnedFd, request: BackendRequest, index: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(fd.fileno())
            os.eventfd_read(fd.fileno())
            await self._channel.tell(request, VringState(index, 0))

"""In-band notifications: kicks, calls and errors as messages, for rings that were given no descriptor for them.

Must not know what rings do. For each notification that has no descriptor there is an eventfd of our own in its place,
so the packet path never learns of this: a kick that comes as a message is written to the ring's, and what a ring
writes to the others goes to the front-end as a message. Calls that come while one is on its way are one call, as with
any eventfd.
"""

from __future__ import annotations

import os

import trio

from vhostuser.fds import OwnedFd
from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.runtime.vring import Vring
from vhostuser.session.backend import BackendSession
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import VringState
from vhostuser.wire.requests import BackendRequest

_MESSAGES = {"call": BackendRequest.VRING_CALL, "err": BackendRequest.VRING_ERR}


class InBand:
    """The eventfds of one connection that stand for messages; each stays open as long as that.

    Attributes:
        nursery: where tasks turn them into messages; the connection's.
    """

    def __init__(self, session: BackendSession, channel: BackendChannel) -> None:
        self.nursery: trio.Nursery | None = None
        self._session = session
        self._channel = channel
        self._fds: dict[tuple[int, str], OwnedFd] = {}

    def notifiers(self, vring: Vring) -> tuple[int, int, int]:
        """What a ring uses as kick, call and err. In the event loop only."""
        return (
            self.notifier(vring, "kick", vring.kick),
            self.notifier(vring, "call", vring.call),
            self.notifier(vring, "err", vring.err),
        )

    def notifier(self, vring: Vring, name: str, fd: OwnedFd | None) -> int:
        """What it uses as one of them: `fd`, an eventfd that stands for messages, or -1. In the event loop only."""
        if fd is not None:
            return fd.fileno()
        if ProtocolFeature.INBAND_NOTIFICATIONS not in self._session.protocol_features:
            return -1
        return -1 if name == "kick" and vring.polled else self._own(vring.index, name).fileno()

    def _own(self, index: int, name: str) -> OwnedFd:
        if (index, name) not in self._fds:
            fd = self._fds[index, name] = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            if name in _MESSAGES:
                assert self.nursery is not None
                self.nursery.start_soon(self._forward, fd, _MESSAGES[name], index)
        return self._fds[index, name]

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

"""Serving a device: one front-end after another, for as long as the endpoint yields any."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable

import trio

from vhostuser.device import Device
from vhostuser.errors import ConnectionClosedError, FramingError, PortError, first_of
from vhostuser.fds import OwnedFd
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers import HANDLERS
from vhostuser.transport.endpoints import Endpoint
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.pump import Pump

log = logging.getLogger(__name__)


class Server:
    """Serves one device on one endpoint.

    Args:
        device: the device.
        endpoint: where its front-ends come from.
        watch: what dirty logs are audited with, or None; it stays the caller's.

    Attributes:
        sessions: how many connections there were.
    """

    def __init__(
        self, device: Device, endpoint: Endpoint, watch: WriteWatch | None = None, userfaults: OwnedFd | None = None
    ) -> None:
        """Audit the dirty log if there is a `watch`; offer post-copy if there is what makes `userfaults`.

        Both stay the caller's (:mod:`vhostuser.virtio.audit`, :mod:`vhostuser.virtio.userfault`).
        """
        self.sessions = 0
        self._device = device
        self._endpoint = endpoint
        self._watch = watch
        self._connection: Connection | None = None
        self._counters: Counter[str] = Counter()
        self._userfaults = userfaults

    async def run(self) -> None:
        """Serve until cancelled, or until the endpoint has no further connection.

        A connection that ends, however it ends, leaves the device ready for the next one. A mistake of this program's
        own ends the connection that brought it to light, and no other guest; in Python's development mode
        (``python -X dev``) it is raised instead, for who looks for mistakes.

        Raises:
            PortError: the device's host side failed.
        """
        async for channel in self._endpoint:
            async with channel:
                self.sessions += 1
                self._connection = Connection(
                    self._device, channel, HANDLERS, self._counters, self._watch, self._userfaults
                )
                log.info("session %d: a front-end is connected", self.sessions)
                try:
                    await self._connection.run()
                except* ConnectionClosedError as closed:
                    log.info("session %d: %s", self.sessions, first_of(closed))
                except* FramingError as broken:
                    log.warning("session %d: closed: %s", self.sessions, first_of(broken))
                except* PortError:
                    raise
                except* Exception as mistake:
                    if sys.flags.dev_mode:
                        raise
                    log.critical("session %d: closed by a mistake of this program's", self.sessions, exc_info=mistake)
                finally:
                    self._connection = None

    def counters(self) -> dict[str, int]:
        """All counters by name: packets and notifications since the server was made, and sessions."""
        counters = self._connection.rings.live_counters() if self._connection else self._counters
        return {"sessions": self.sessions, **counters, **self._device.counters()}

    async def in_turns(self, function: Callable[[int, Pump], None]) -> None:
        """Run `function` in the thread of each living queue group between two turns, with its number and its pump.

        It is done when this returns, even if cancelled meanwhile: no thread is left behind with what was before.
        """
        if self._connection is not None:
            with trio.CancelScope(shield=True):
                await self._connection.rings.in_turns(function)

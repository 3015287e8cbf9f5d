"""A queue group in the event loop instead of a thread, for runs that have to be the same each time.

It turns the same pump and has the same calls as :class:`~vhostuser.runtime.groups.Group`; only, nothing happens at the
same time as anything else. What blocks it blocks everything, so this is no way to serve guests that nobody trusts. With
in-band notifications, Trio's ``MockClock`` and a seeded scheduler, a whole conversation with its packets is repeatable
to the byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from vhostuser.runtime.groups import Group, GroupEndedError
from vhostuser.virtio.layout import EVENT, POLL_MS, PORT_IN, PORT_OUT, WORK
from vhostuser.virtio.ring import Ring

T = TypeVar("T")


class LoopGroup(Group):
    """A queue group that a task turns."""

    _woken = trio.Event()

    async def run(self) -> None:
        """Turn and wait until cancelled.

        Raises:
            PortError: the port failed.
        """
        try:
            while True:
                todo = self.pump.turn()
                if todo & EVENT:
                    self._handle_event()
                if todo & (EVENT | WORK):
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait(todo)
        finally:
            self._closed = True
            self.pump.close()

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function`, as between two turns it always is, and have a turn follow.

        Raises:
            GroupEndedError: the group has ended.
        """
        if self._closed:
            raise GroupEndedError("the queue group has ended")
        result = function()
        self._woken.set()
        await trio.lowlevel.checkpoint()
        return result

    async def _wait(self, todo: int) -> None:
        """Wait until there is a reason for another turn."""
        self._woken = trio.Event()
        reasons: list[Callable[[], Awaitable[object]]] = [self._woken.wait]
        reasons += [partial(self._kicked, ring) for ring in self.pump.rings if ring.heeds and ring.kick >= 0]
        if any(ring.armed and ring.kick < 0 for ring in self.pump.rings):
            reasons.append(partial(trio.sleep, POLL_MS / 1000))
        if todo & PORT_IN:
            reasons.append(partial(trio.lowlevel.wait_readable, self.pump.port))
        if todo & PORT_OUT:
            reasons.append(partial(trio.lowlevel.wait_writable, self.pump.port))
        async with trio.open_nursery() as nursery:

            async def first(reason: Callable[[], Awaitable[object]]) -> None:
                await reason()
                nursery.cancel_scope.cancel()

            for reason in reasons:
                nursery.start_soon(first, reason)

    async def _kicked(self, ring: Ring) -> None:
        await trio.lowlevel.wait_readable(ring.kick)
        ring.heed()

    def _in_loop(self, function: Callable[[], None]) -> None:
        function()

"""What a fuzzer aims at: a program that it starts itself, or whoever listens at a path.

Must not know: conversations.

Only a program that was started here can be looked into: how it died, what it holds. Of a listener that was there
before, it shows that it does not answer any more, and no more than that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from vhostuser.errors import VhostUserError
from vhostuser.limits import STANDARD
from vhostuser.peer.death import Death
from vhostuser.peer.footprint import Footprint
from vhostuser.peer.program import Program, started
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect
from vhostuser.wire.codec import decode_reply
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest

LIMITS = replace(STANDARD, messages_per_second=1e9, send_timeout=1.0, message_timeout=2.0)
#: Heaps are looked after (mallopt(3)), so that spoiling one shows soon, and each time: what is freed is overwritten,
#: what lies around a piece of memory is checked. Programs with another allocator mind none of this.
ENVIRONMENT = {"MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}


class UnreachableError(VhostUserError):
    """Nobody accepts connections."""


class Target:
    """A back-end under test.

    Args:
        path: Where it listens.
        program: Its program, if it was started here.
        patience: Seconds that it has for anything.
    """

    def __init__(self, path: Path, program: Program | None, patience: float) -> None:
        self._path = path
        self._program = program
        self._patience = patience

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as can be told."""
        return self._program is None or self._program.alive

    async def connect(self) -> Channel:
        """A new connection. Raises UnreachableError."""
        with trio.move_on_after(self._patience):
            if self.alive:
                return await connect(self._path, LIMITS)
        raise UnreachableError(f"{self._path}: nobody accepts within {self._patience:g} s")

    async def death(self, within: float) -> Death | None:
        """How it died, if it does within so many seconds and was started here."""
        if self._program is None or not await self._program.ended(within):
            return None
        return await self._program.death()

    async def serves(self) -> bool:
        """Whether a next front-end is served."""
        try:
            return await self.features() is not None
        except UnreachableError:
            return False

    async def features(
        self, request: FrontendRequest = FrontendRequest.GET_FEATURES, first: Iterable[Frame] = ()
    ) -> int | None:
        """The word that a fresh connection gets for a request without payload; None if it is not answered.

        Args:
            request: What is asked.
            first: What is said before, and not answered.

        Raises:
            UnreachableError: there is no connection to be had.
        """
        channel = await self.connect()
        async with channel:
            try:
                with trio.fail_after(self._patience):
                    for frame in first:
                        await channel.send(frame)
                    await channel.send(Frame(request, 1))
                    with (answer := await channel.receive()).fds:
                        value = decode_reply(FRONTEND_REQUESTS[request], answer)
            except (VhostUserError, trio.TooSlowError):
                return None
        return value.value if isinstance(value, U64) else None

    def footprint(self) -> Footprint | None:
        """What it holds right now, if it was started here and lives."""
        if self._program is None or not self.alive:
            return None
        try:
            return Footprint.of(self._program.pid)
        except OSError:
            return None

    async def settled(self) -> Footprint | None:
        """What it holds once that no longer changes; as :meth:`footprint`."""
        if self._program is None or not self.alive:
            return None
        try:
            return await self._program.footprint()
        except OSError:
            return None

    def resident(self) -> int:
        """Bytes of memory that it has in use; 0 if that cannot be told."""
        try:
            return self._program.resident if self._program is not None else 0
        except OSError:
            return 0


class Range:
    """Where targets come from.

    Args:
        command: A command line with ``{socket}``, for a fresh program each time; or
        path: where somebody listens.
        patience: Seconds that a target has for anything.
    """

    def __init__(self, command: str | None, path: Path | None, patience: float) -> None:
        if (command is None) == (path is None):
            raise ValueError("a target is a command or a path")
        self._command = command
        self._path = path
        self._patience = patience

    @property
    def fresh(self) -> bool:
        """Whether each target is one that nobody has talked to."""
        return self._command is not None

    @asynccontextmanager
    async def target(self) -> AsyncIterator[Target]:
        """A target, alive at first.

        Raises:
            ProgramError: it cannot be started.
        """
        if self._command is None:
            assert self._path is not None
            yield Target(self._path, None, self._patience)
            return
        async with started(self._command, env=ENVIRONMENT) as program:
            yield Target(program.path, program, self._patience)

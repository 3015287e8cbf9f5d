"""The back-end under test: one that listens already, or a program that is started for each check.

Must not know: what is said to it.
"""

from __future__ import annotations

import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vhostuser.errors import VhostUserError
from vhostuser.limits import Limits
from vhostuser.peer.footprint import Footprint
from vhostuser.peer.program import Program, started
from vhostuser.transport.channel import Channel

if TYPE_CHECKING:
    from pathlib import Path

_UCRED = struct.Struct("=iII")


class TargetError(VhostUserError):
    """There is nobody to test."""


class BackEnd:
    """A back-end that listens.

    Args:
        path: Where.
        program: The program, if it was started by us.

    Attributes:
        spoiled: Whether a check failed, so that what comes next had better have another one.
    """

    def __init__(self, path: Path, program: Program | None = None) -> None:
        self.path = path
        self.spoiled = False
        self._program = program
        self._pid = None if program is None else program.pid

    async def connect(self, limits: Limits) -> Channel:
        """A new connection.

        Raises:
            TargetError: Nobody listens.
        """
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(os.fspath(self.path))
        except OSError as error:
            sock.close()
            raise TargetError(f"{self.path}: {error.strerror}") from error
        if self._pid is None:
            self._pid = _listener(sock)
        return Channel(sock, limits)

    async def death(self, within: float) -> str | None:
        """How the program ended if it does within so many seconds; None if it lives, or nobody can tell."""
        if self._program is None or not await self._program.ended(within):
            return None
        return (await self._program.death()).signature

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as anybody can tell."""
        return self._program is None or self._program.alive

    def footprint(self) -> Footprint | None:
        """What the process holds; None where nobody can tell."""
        try:
            return None if self._pid is None else Footprint.of(self._pid)
        except OSError:
            return None


def _listener(sock: trio.socket.SocketType) -> int | None:
    """The process that listens, as the kernel knows it."""
    pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid if pid > 0 else None


class Target(ABC):
    """Where back-ends come from.

    Attributes:
        name: For the report.
        shared: Whether all checks work with one back-end, one after another.
    """

    name: str
    shared: bool

    @abstractmethod
    @asynccontextmanager
    async def back_end(self) -> AsyncIterator[BackEnd]:
        """A back-end for one check. Raises TargetError or ProgramError."""
        raise NotImplementedError
        yield

    async def aclose(self) -> None:
        """No more checks come."""
        await trio.lowlevel.checkpoint()


class Listening(Target):
    """One that listens at a path, whoever started it."""

    shared = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._back_end = BackEnd(path)

    @asynccontextmanager
    async def back_end(self) -> AsyncIterator[BackEnd]:
        """That one."""
        yield self._back_end


class Spawned(Target):
    """A program that is started for each check.

    Args:
        command: Its command line, as :func:`vhostuser.peer.program.started` takes it.
    """

    shared = False

    def __init__(self, command: str) -> None:
        self.name = command

    @asynccontextmanager
    async def back_end(self) -> AsyncIterator[BackEnd]:
        """A new one, which ends with the block."""
        async with started(self.name) as program:
            yield BackEnd(program.path, program)


class Kept(Target):
    """Programs that are started when all others are busy, and kept as long as their checks do not fail.

    Args:
        command: As for :class:`Spawned`.
    """

    shared = False

    def __init__(self, command: str) -> None:
        self.name = command
        self._idle: list[tuple[BackEnd, AsyncExitStack]] = []

    @asynccontextmanager
    async def back_end(self) -> AsyncIterator[BackEnd]:
        """One that has nothing to do, or a new one."""
        back_end, stack = self._idle.pop() if self._idle else await self._start()
        back_end.spoiled = True  # until the block has ended well
        try:
            yield back_end
        finally:
            if back_end.spoiled:
                with trio.CancelScope(shield=True):
                    await stack.aclose()
            else:
                self._idle.append((back_end, stack))

    async def _start(self) -> tuple[BackEnd, AsyncExitStack]:
        stack = AsyncExitStack()
        program = await stack.enter_async_context(started(self.name))
        return BackEnd(program.path, program), stack

    async def aclose(self) -> None:
        """End those that run."""
        while self._idle:
            await self._idle.pop()[1].aclose()

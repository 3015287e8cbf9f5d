"""A program that somebody named by a command line, at the other end of a socket.

Must not know: what is said on the socket.

How: it runs in a folder of its own, where its output and its core stay, and in a session of its own, so that a command
that starts others ends with all of them. The kernel ends it when we die. Whether it listens is looked up, not tried: a
connection made in order to see would be a client that says nothing.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import trio

from vhostuser.errors import VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.peer.death import Death, explain
from vhostuser.peer.footprint import Footprint, resident

SOCKET = "{socket}"
"""Stands in a command line for the path of the socket."""

#: The kernel kills what runs behind this prefix when its parent dies, and lays its memory out the same each time.
_PREFIX = ("setpriv", "--pdeathsig", "KILL", "--", "setarch", "--addr-no-randomize")
NOTHING_MORE: Mapping[str, str] = MappingProxyType({})
_SETTLED = 5  # looks in a row that have to be equal
_LOOK = 0.01  # seconds between two looks
_WITHOUT_SHARED = "0x31"  # core(5): private memory and ELF headers; shared memory is the guest's
_ACCEPTS = "00010000"  # of the flags in /proc/net/unix


class ProgramError(VhostUserError):
    """The program cannot be started, or does not do what it is there for."""


class Program:
    """A running program.

    Attributes:
        path: where it listens, or connects to.
    """

    def __init__(self, words: list[str], folder: Path, path: Path, env: Mapping[str, str]) -> None:
        self.path = path
        self._file = Path(words[0])
        self._folder = folder
        self._death: Death | None = None
        with (folder / "output").open("wb") as output:
            # not by Trio: the kernel takes the thread that starts it for its parent, and Trio's threads come and go
            self._popen = subprocess.Popen(
                [*_PREFIX, *words],
                stdin=subprocess.PIPE,  # open as long as it runs: some programs end at its end
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self._pidfd = OwnedFd(os.pidfd_open(self.pid))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self._folder / "output").read_text(errors="replace")

    @property
    def resident(self) -> int:
        """Bytes of memory that it has in use."""
        return resident(self.pid)

    async def footprint(self, within: float = 2.0) -> Footprint:
        """What it holds once that no longer changes, or after so many seconds. Raises OSError if it is dead."""
        looks = [Footprint.of(self.pid)]
        with trio.move_on_after(within):
            while len(looks) < _SETTLED or any(look != looks[-1] for look in looks[-_SETTLED:]):
                await trio.sleep(_LOOK)
                looks.append(Footprint.of(self.pid))
        return looks[-1]

    async def ended(self, within: float) -> bool:
        """Whether it ends within so many seconds."""
        with trio.move_on_after(within):
            await self._wait()
        return not self.alive

    async def aborted(self, within: float) -> Death | None:
        """End it by SIGABRT, whose core tells where it was; None if it does not end within so many seconds."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGABRT)
        return await self.death() if await self.ended(within) else None

    async def death(self) -> Death:
        """Wait for its end, and explain it."""
        if self._death is None:
            status = await self._wait()
            core = next(self._folder.glob("core*"), None)
            self._death = await trio.to_thread.run_sync(explain, status, self.output, core, self._file)
            for left in self._folder.glob("core*"):
                left.unlink()
        return self._death

    async def _listen(self, within: float) -> None:
        with trio.move_on_after(within):
            while not _listens(self.path) and self.alive:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(_LOOK)
        if not self.alive:
            raise ProgramError(f"it ended before it listened at {self.path}: {await self.death()}")
        if not _listens(self.path):
            raise ProgramError(f"after {within:g} s nobody listens at {self.path}; it printed:\n{self.output}")

    async def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        await self._wait()
        self._pidfd.close()

    async def _wait(self) -> int:
        await trio.lowlevel.checkpoint()
        while self._popen.poll() is None:
            await trio.lowlevel.wait_readable(self._pidfd.fileno())
        return self._popen.returncode


@asynccontextmanager
async def started(
    command: str,
    *,
    path: Path | None = None,
    listens: bool = True,
    within: float = 30.0,
    env: Mapping[str, str] = NOTHING_MORE,
) -> AsyncIterator[Program]:
    """Start a program and end it when the block ends.

    Args:
        command: its command line, split as a shell does, in which ``{socket}`` stands for the socket's path.
        path: the socket's, for who listens there before the program starts; without it, one in the program's folder.
        listens: wait until it listens there.
        within: seconds for that.
        env: added to our environment.

    Raises:
        ProgramError: it cannot be started, or does not listen.
    """
    words = _words(command)
    with tempfile.TemporaryDirectory(prefix="vhostuser-peer-") as name:
        folder = Path(name)
        path = path or folder / "vhost-user.sock"
        program = Program([word.replace(SOCKET, str(path)) for word in words], folder, path, env)
        try:
            _keep_core(program.pid)
            if listens:
                await program._listen(within)
            yield program
        finally:
            with trio.CancelScope(shield=True):
                await program._end()


def _words(command: str) -> list[str]:
    """The words of a command line. Raises ProgramError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ProgramError(f"{command!r}: {error}") from None
    if not any(SOCKET in word for word in words):
        raise ProgramError(f"{command!r}: {SOCKET} has to stand where the path of the socket belongs")
    program = shutil.which(words[0])
    if program is None:
        raise ProgramError(f"{words[0]}: no such program")
    return [str(Path(program).absolute()), *words[1:]]  # it runs in another folder


def _keep_core(pid: int) -> None:
    """Have the kernel keep a core, if it may."""
    with suppress(OSError, ValueError):
        _, most = resource.prlimit(pid, resource.RLIMIT_CORE)
        resource.prlimit(pid, resource.RLIMIT_CORE, (most, most))
        Path(f"/proc/{pid}/coredump_filter").write_text(_WITHOUT_SHARED)


def _listens(path: Path) -> bool:
    """Whether a socket listens at a path, by the kernel's list of UNIX sockets."""
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[3] == _ACCEPTS and words[7] == str(path):
            return True
    return False

"""A device's state on its way through a pipe, in migration.

Must not know what the state says. Saving, the device's bytes are written until all are taken, then the pipe is closed.
Loading, bytes are gathered until the pipe's end, and given to the device when the front-end asks whether all went well:
only then does it know itself that it sent everything.

A front-end can keep a pipe open for ever, send without end, or not read. So both ways are bounded in time, and loading
in bytes by what the device has at most. Its descriptor shares the open file with the front-end, so O_NONBLOCK cannot be
relied on. A ``splice`` to or from a pipe of our own does not block, whatever that flag says at the moment.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from enum import IntEnum

import trio

from vhostuser.device import Device
from vhostuser.errors import FdError, PayloadError, StateError
from vhostuser.fds import OwnedFd
from vhostuser.transport.eventfds import FdKind, kind_of

STATE_TIMEOUT = 30.0  # seconds for all of it
_PIECE = 1 << 16  # what a pipe holds


class TransferDirection(IntEnum):
    """Which way the state goes."""

    SAVE = 0
    LOAD = 1


class StateTransfer:
    """One transfer; :meth:`run` in a task, :meth:`finish` when the front-end asks.

    Args:
        device: whose state it is.
        direction: which way it goes.
        fd: the front-end's pipe, owned from now on, also if this raises.

    Raises:
        FdError: the descriptor is no pipe, or is open for the other way.
    """

    def __init__(self, device: Device, direction: TransferDirection, fd: OwnedFd) -> None:
        self._device = device
        self._fd = fd
        self._loading = direction is TransferDirection.LOAD
        try:
            self._check_pipe()
            self._state = bytearray() if self._loading else bytearray(device.save())
        except BaseException:
            fd.close()
            raise
        self._error: str | None = None
        self._ended = trio.Event()
        self._scope = trio.CancelScope()

    def _check_pipe(self) -> None:
        if (kind := kind_of(self._fd.fileno())) is not FdKind.FIFO:
            words = f"SET_DEVICE_STATE_FD: a pipe is needed, not a descriptor of kind {kind}"
            raise FdError(words, rule="VU-STATE-4")
        wanted = os.O_RDONLY if self._loading else os.O_WRONLY
        if fcntl.fcntl(self._fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE not in (wanted, os.O_RDWR):
            words = f"SET_DEVICE_STATE_FD: the pipe cannot be {'read' if self._loading else 'written'}"
            raise FdError(words, rule="VU-STATE-4")

    async def run(self) -> None:
        """Move the bytes, then close the pipe."""
        try:
            ours, other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._error = f"there is no pipe to be had: {error.strerror}"
            self._fd.close()
            self._ended.set()
            return
        try:
            with self._fd, self._scope, trio.move_on_after(STATE_TIMEOUT):
                self._error = "it did not end in time, or another transfer took its place"
                self._error = await (self._read(ours, other) if self._loading else self._write(ours, other))
        except OSError as error:
            self._error = f"the pipe: {error.strerror}"
        finally:
            os.close(ours)
            os.close(other)
            self._ended.set()

    def cancel(self) -> None:
        """Give up; the pipe is closed."""
        self._scope.cancel()

    async def finish(self) -> None:
        """Wait for the end, and have the device take over what it loads.

        Raises:
            StateError: the bytes did not come, or did not go, all.
            PayloadError: the device cannot make sense of them.
        """
        await self._ended.wait()
        if self._error is not None:
            words = f"CHECK_DEVICE_STATE: the state of device {self._device.name}: {self._error}"
            raise StateError(words, rule="VU-STATE-3")
        if self._loading:
            self._device.load(bytes(self._state))

    async def _read(self, ours: int, other: int) -> str | None:
        while True:
            moved = await _unblocked(trio.lowlevel.wait_readable, self._fd.fileno(), other)
            if moved == 0:
                return None
            self._state += os.read(ours, moved)
            if len(self._state) > self._device.max_state:
                return f"more than {self._device.max_state} bytes came"

    async def _write(self, ours: int, other: int) -> str | None:
        rest = memoryview(self._state)
        while rest:
            pending = os.write(other, rest[:_PIECE])
            rest = rest[pending:]
            while pending:
                pending -= await _unblocked(trio.lowlevel.wait_writable, ours, self._fd.fileno())
        return None


async def _unblocked(wait: Callable[[int], Awaitable[None]], source: int, target: int) -> int:
    """Move what can be moved from pipe to pipe without blocking, waiting for either: its bytes, 0 at the end."""
    theirs = source if wait is trio.lowlevel.wait_readable else target
    while True:
        await wait(theirs)
        try:
            return os.splice(source, target, _PIECE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            await trio.lowlevel.checkpoint()


def check_request(direction: int, phase: int) -> TransferDirection:
    """What SET_DEVICE_STATE_FD asks for.

    Raises:
        PayloadError: a direction or a phase that does not exist.
    """
    if direction not in TransferDirection.__members__.values():
        words = f"SET_DEVICE_STATE_FD: direction {direction} is neither 0 (save) nor 1 (load)"
        raise PayloadError(words, rule="VU-STATE-4")
    if phase != 0:
        raise PayloadError(f"SET_DEVICE_STATE_FD: phase {phase} is not 0 (stopped)", rule="VU-STATE-4")
    return TransferDirection(direction)

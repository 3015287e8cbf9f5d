"""A vhost-user connection as a stream of frames with their file descriptors.

Must not know: what a request means, which descriptors it may carry, or who speaks first.

How it works. The socket is read with exact sizes only: twelve bytes of header, then as many as the header
announces. The kernel joins what the peer sent apart; a larger read could return two messages along with the
descriptors of the second, and nothing would tell whose they are. With exact reads every descriptor arrives
with a byte of its own message.

Descriptors are taken on header bytes, in one block. On payload bytes, in a second block, or cut by the kernel
(``MSG_CTRUNC``), they are closed and the stream counts as broken. All of them have an owner before the next
``await``: Trio's ``recvmsg`` is atomic with regard to cancellation, so nothing gets lost between the kernel
and the channel.

Each system call says that it must not wait: a socket that the peer passed to us shares its O_NONBLOCK with the peer.

Waiting for the first byte of a message has no time limit, but for the first message of a client that others wait
behind; everything after that byte has one. Messages that come too fast are read later. A stream that was left in the
middle of a message, by an error or by cancellation, stays unusable: there is no way back to a message boundary.
"""

from __future__ import annotations

import array
import errno
import math
import os
import select
import socket
import stat
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vhostuser.fds import Closing, FdBundle
from vhostuser.limits import Limits
from vhostuser.transport.access import peer_of
from vhostuser.transport.pace import Pace
from vhostuser.wire.frames import HEADER_SIZE, MAX_FDS, Frame, Header, check_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_INT_SIZE = array.array("i").itemsize
# A full block of descriptors is never cut. The rest is for the credentials that whoever made an inherited
# socket may have switched on (struct ucred, three integers).
_CONTROL_SIZE = socket.CMSG_SPACE(MAX_FDS * _INT_SIZE) + socket.CMSG_SPACE(3 * _INT_SIZE)
_PEER_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
_AT_ONCE = 0.1  # seconds


class Channel(trio.abc.AsyncResource):
    """One connection. One task may receive while another sends.

    Args:
        sock: A connected AF_UNIX SOCK_STREAM socket; the channel owns it.
        limits: How long the peer may hold it up, and how fast it may be.
        first_message_timeout: How long the peer may be silent before it says something for the first time, in seconds.

    Attributes:
        limits: those given.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        limits: Limits | None = None,
        *,
        first_message_timeout: float = math.inf,
    ) -> None:
        self.limits = limits or Limits()
        self._socket = sock
        self._patience = first_message_timeout
        self._pace = Pace(self.limits.messages_per_second)
        self._inbound = _Direction("receiving")
        self._outbound = _Direction("sending")

    async def receive(self) -> Frame:
        """Wait for the next frame. Its descriptors belong to the caller.

        Raises:
            ConnectionClosedError: The peer closed, between two messages or in the middle of one.
            FramingError: The stream cannot be followed: bad header, misplaced descriptors, a peer that
                stalls.
            trio.ClosedResourceError: The channel was closed at this end.
            trio.BusyResourceError: Another task is receiving.
        """
        with self._inbound.claim(), self._translate_errors():
            await self._pace.turn()
            await self._first_byte()
            with _MessageReader(self._socket, self._inbound) as reader:
                return await self._receive_message(reader)

    async def _first_byte(self) -> None:
        with trio.move_on_after(self._patience) as scope:
            await trio.lowlevel.wait_readable(self._socket)
        if scope.cancelled_caught:
            words = f"the peer said nothing in {self._patience:g} s after it connected"
            raise FramingError(words, rule="VIO-LIMIT-2")
        self._patience = math.inf

    async def _receive_message(self, reader: _MessageReader) -> Frame:
        begin = trio.current_time()
        with trio.move_on_after(self.limits.message_timeout) as scope:
            reader.on_fds = partial(self._hurry, scope)
            header = Header.parse(await reader.read(HEADER_SIZE, "header"))
            check_header(header)
            payload = await reader.read(header.size, "payload")
            self._inbound.mid_message = False
            return Frame(header.request, header.flags, payload, reader.take_fds())
        waited = scope.deadline - begin
        raise FramingError(f"the peer stalled: {reader.progress} after {waited:g} s", rule="VU-HDR-9")

    def _hurry(self, scope: trio.CancelScope, fds: FdBundle) -> None:
        """Do not wait long for the rest of a message with the peer's own end: while we hold that, it never closes."""
        if any(map(self.is_other_end, fds.filenos())):
            scope.deadline = min(scope.deadline, trio.current_time() + _AT_ONCE)

    async def send(self, frame: Frame) -> None:
        """Send a frame, its descriptors on the first byte; they stay with their owner.

        Raises:
            ConnectionClosedError: The peer closed.
            FramingError: The peer does not read.
            LocalProtocolError: More descriptors than the kernel passes with one message.
            trio.ClosedResourceError: The channel was closed at this end.
            trio.BusyResourceError: Another task is sending.
        """
        if len(frame.fds) > MAX_FDS:
            raise LocalProtocolError(f"{len(frame.fds)} descriptors with one message, the limit is {MAX_FDS}")
        await self._send_all(frame.encode(), frame.fds, str(frame))

    async def send_bytes(self, data: bytes, fds: FdBundle) -> None:
        """Send what need not be a message, its descriptors on the first byte: for who breaks the framing on purpose.

        Raises as :meth:`send` does.
        """
        await self._send_all(data, fds, f"{len(data)} bytes")

    async def _send_all(self, data: bytes, passed: FdBundle, what: str) -> None:
        rest = memoryview(data)
        fds = array.array("i", passed.filenos())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        timeout = self.limits.send_timeout
        with self._outbound.claim(), self._translate_errors():
            with trio.move_on_after(timeout):
                while rest:
                    rest = rest[await self._socket.sendmsg([rest], ancillary, socket.MSG_DONTWAIT) :]
                    self._outbound.mid_message = bool(rest)
                    ancillary = []
                return
            raise FramingError(f"the peer reads too slowly: {what} not taken after {timeout:g} s", rule="VU-HDR-9")

    def fileno(self) -> int:
        """The socket's number; -1 once it is closed. It stays the channel's."""
        return self._socket.fileno()

    async def wait_hangup(self) -> None:
        """Wait until the peer has closed, whatever of what it sent before is still to be read."""
        with select.epoll() as watch:
            watch.register(self._socket.fileno(), select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(watch.fileno())

    def peer_pid(self) -> int:
        """The process that connected, or that listened; in the process id namespace of this one, 0 outside of it."""
        return peer_of(self._socket)[0]

    def is_other_end(self, fd: int) -> bool:
        """Whether a descriptor is the other end of this connection, as far as names tell (a socketpair has none)."""
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        ours = self._socket.getsockname(), self._socket.getpeername()
        other = socket.socket(fileno=fd)
        try:
            return any(ours) and (other.getpeername(), other.getsockname()) == ours
        except OSError:  # not connected
            return False
        finally:
            other.detach()

    def close(self) -> None:
        """Close the socket. A task that waits on it gets ClosedResourceError."""
        self._socket.close()

    def hang_up(self) -> None:
        """End the connection for both sides, whoever else holds this socket; it still has to be closed."""
        with suppress(OSError):  # it is closed, or the peer has left
            self._socket.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """The same, for who closes resources of any kind."""
        self.close()
        await trio.lowlevel.checkpoint()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the channel was closed at this end")
        try:
            yield
        except OSError as error:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError("the channel was closed at this end") from None
            if error.errno in _PEER_GONE:
                raise ConnectionClosedError(f"closed by the peer: {error.strerror}") from error
            if error.errno == errno.ETOOMANYREFS:
                # Descriptors in flight count against their user; a peer of the same user can pile them up.
                raise FramingError("the kernel passes no more descriptors: too many are in flight") from error
            raise


class _Direction:
    """One direction of the stream: which task uses it, and whether it stands between two messages."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._lock = trio.Lock()
        self.mid_message = False

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Keep other tasks out; refuse a stream that was left in the middle of a message."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise trio.BusyResourceError(f"another task is {self._verb} on this channel") from None
        try:
            if self.mid_message:
                raise FramingError(f"an earlier message was left unfinished while {self._verb}")
            yield
        finally:
            self._lock.release()


class _MessageReader(Closing):
    """Reads one message by exact sizes and owns its descriptors until they are taken."""

    def __init__(self, sock: trio.socket.SocketType, direction: _Direction) -> None:
        self._socket = sock
        self._direction = direction
        self._fds = FdBundle()
        self.progress = ""
        self.on_fds: Callable[[FdBundle], None] = lambda fds: None

    async def read(self, count: int, part: str) -> bytes:
        data = bytearray()
        while len(data) < count:
            self.progress = f"{len(data)} of {count} {part} bytes"
            piece, ancillary, flags, _ = await self._socket.recvmsg(
                count - len(data), _CONTROL_SIZE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
            self._adopt(_passed_fds(ancillary), bool(flags & socket.MSG_CTRUNC), part)
            if not piece:
                at_boundary = not self._direction.mid_message
                raise ConnectionClosedError("closed" if at_boundary else f"closed after {self.progress}")
            self._direction.mid_message = True
            data += piece
        return bytes(data)

    def _adopt(self, block: FdBundle, truncated: bool, part: str) -> None:
        fault = ""
        if truncated:
            fault = "descriptors were lost on the way (MSG_CTRUNC): this process may have too many open"
        elif block and part != "header":
            fault = f"{len(block)} descriptors with {part} bytes, they belong on the header"
        elif block and self._fds:
            fault = f"a second block of descriptors ({len(block)} after {len(self._fds)}) in one message"
        if fault:
            block.close()
            raise FramingError(fault, rule="VU-FD-7")
        if block:
            self._fds = block
            self.on_fds(block)

    def take_fds(self) -> FdBundle:
        fds, self._fds = self._fds, FdBundle()
        return fds

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        self._fds.close()


def _passed_fds(ancillary: list[tuple[int, int, bytes]]) -> FdBundle:
    """The descriptors among the control messages; credentials and the like are ignored."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT_SIZE])
    return FdBundle(fds)

"""Where connections come from: a listening path, a path to connect to, or an inherited descriptor.

Must not know: what is said on a connection, or how long it is served.

How it works. Every origin is an :class:`Endpoint`, an asynchronous iterator of channels that all servers
treat alike::

    async with await listen(path) as endpoint:
        async for channel in endpoint:
            async with channel:
                ...

The next connection is taken only when asked for. So while one client is served the next one waits in the
kernel's backlog: connected, undisturbed, and served once its turn comes.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import stat
from abc import abstractmethod
from collections.abc import Callable

import trio

from vhostuser.errors import EndpointError
from vhostuser.limits import Limits
from vhostuser.transport.access import ANYBODY, Access
from vhostuser.transport.channel import Channel
from vhostuser.transport.pace import Pace

log = logging.getLogger(__name__)

BACKLOG = 16
"""Clients that may wait for their turn. One is usual; the rest is room for managers that probe the socket."""
RETRY_MIN = 0.1
"""Seconds before the second attempt to connect; doubled from then on."""
RETRY_MAX = 1.0
"""Longest pause between two attempts, in seconds: a peer that restarts is found again soon."""
REFUSALS_LOGGED = 10
"""Clients of the wrong user that a listener warns of; later ones are for who debugs."""

# Out of descriptors or memory: it may pass when another guest leaves, so accepting waits rather than fails.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_THERE_YET = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN})


class Endpoint(trio.abc.AsyncResource):
    """A source of connections, one at a time."""

    @abstractmethod
    async def next_channel(self) -> Channel | None:
        """Wait for the next connection; None when there will be no further one."""

    def __aiter__(self) -> Endpoint:
        return self

    async def __anext__(self) -> Channel:
        channel = await self.next_channel()
        if channel is None:
            raise StopAsyncIteration
        return channel


class Listener(Endpoint):
    """A listening socket; yields clients until it is closed.

    Args:
        sock: The listening socket, owned from now on.
        limits: Those of the channels, and how many clients a second are accepted.
        path: Where the socket was bound by us; removed at close. None for a socket that someone else made.
        access: Which user's clients are served.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        limits: Limits | None = None,
        path: str | None = None,
        access: Access = ANYBODY,
    ) -> None:
        self._socket = sock
        self._limits = limits or Limits()
        self._path = path
        self._access = access
        self._pace = Pace(self._limits.connections_per_second)
        self._refusals = 0
        self._identity = _identity(path) if path else None

    async def accept(self) -> Channel:
        """Wait for the next client. Raises trio.ClosedResourceError once the listener is closed."""
        while True:
            sock = await self._accept()
            try:
                self._access.check_peer(sock)
            except EndpointError as error:
                sock.close()
                self._refused(error)
            else:
                return Channel(sock, self._limits, first_message_timeout=self._limits.first_message_timeout)

    async def _accept(self) -> trio.socket.SocketType:
        while True:
            await self._pace.turn()
            try:
                sock, _ = await self._socket.accept()
            except OSError as error:
                if self._socket.fileno() < 0:
                    raise trio.ClosedResourceError("the listener was closed") from None
                if error.errno not in _EXHAUSTED:
                    raise
                await trio.sleep(RETRY_MIN)
            else:
                return sock

    def _refused(self, error: EndpointError) -> None:
        self._refusals += 1
        level = logging.WARNING if self._refusals <= REFUSALS_LOGGED else logging.DEBUG
        log.log(level, "%s: a client was refused: %s", self._path or "the inherited socket", error)
        if self._refusals == REFUSALS_LOGGED:
            log.warning("further clients that are refused are logged with -vv only")

    async def next_channel(self) -> Channel:
        """Wait for the next client; there is always a further one."""
        return await self.accept()

    async def aclose(self) -> None:
        """Remove the path if it still is this socket, and close."""
        # Before the close: as long as the socket is open, nothing else can have its inode number.
        if self._path and self._identity is not None:
            try:
                if _identity(self._path) == self._identity:
                    os.unlink(self._path)
            except PermissionError:  # the process was another user's when it bound it
                log.info("%s stays behind: it is in a folder of another user", self._path)
        self._identity = None
        self._socket.close()
        await trio.lowlevel.checkpoint()


class Connector(Endpoint):
    """Connects to a path, and connects again when asked for the next channel.

    That nobody is there is worth one warning; whoever waits for a peer that comes and goes knows that it does.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits | None = None, access: Access = ANYBODY) -> None:
        self._path = path
        self._limits = limits
        self._access = access
        self._earliest = -math.inf
        self._warned = False

    async def next_channel(self) -> Channel:
        """Connect, however long it takes. Raises EndpointError for what waiting will not cure."""
        # A peer that takes connections and drops them at once must not keep us spinning.
        await trio.sleep_until(self._earliest)
        channel = await connect(self._path, self._limits, self._access, absent=self._warn)
        self._earliest = trio.current_time() + RETRY_MIN
        return channel

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: %s; trying on", self._path, reason)

    async def aclose(self) -> None:
        """Nothing is held between two connections."""
        await trio.lowlevel.checkpoint()


class Connected(Endpoint):
    """One connection that exists already; there is no further one after it."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel

    async def next_channel(self) -> Channel | None:
        """The connection, the first time; then None."""
        await trio.lowlevel.checkpoint()
        channel, self._channel = self._channel, None
        return channel

    async def aclose(self) -> None:
        """Close the connection if nobody took it."""
        if self._channel is not None:
            await self._channel.aclose()


async def listen(path: str | os.PathLike[str], limits: Limits | None = None, access: Access = ANYBODY) -> Listener:
    """Listen at a path. A socket that nobody listens on any more is removed first.

    Raises:
        EndpointError: Something else is there (a live server, a file), or the path cannot be bound or given away.
    """
    await trio.lowlevel.checkpoint()
    path = os.fspath(path)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        access.bind(sock, path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise EndpointError(f"{path}: cannot listen: {error.strerror or error}") from error
    return Listener(trio.socket.from_stdlib_socket(sock), limits, path, access)


async def connect(
    path: str | os.PathLike[str],
    limits: Limits | None = None,
    access: Access = ANYBODY,
    *,
    absent: Callable[[str], None] = lambda reason: None,
) -> Channel:
    """Connect to a path, trying again until someone listens there; give up by cancelling.

    Args:
        path: The socket's.
        limits: The channel's.
        access: Which user's listener is good.
        absent: Told before each wait why there is nobody to connect to.

    Raises:
        EndpointError: A regular file, a socket of another type, no permission, a listener of the wrong user: waiting
            will not cure it.
    """
    await trio.lowlevel.checkpoint()
    path = os.fspath(path)
    delay = RETRY_MIN
    while isinstance(sock := _try_connect(path), str):
        absent(sock)
        await trio.sleep(delay)
        delay = min(2 * delay, RETRY_MAX)
    try:
        access.check_peer(sock)
    except EndpointError as error:
        sock.close()
        raise EndpointError(f"{path}: {error}") from None
    return Channel(trio.socket.from_stdlib_socket(sock), limits)


def from_fd(fd: int, limits: Limits | None = None, access: Access = ANYBODY) -> Listener | Connected:
    """Adopt an inherited socket, listening or connected. After an error the descriptor still is the caller's.

    The socket becomes non-blocking for everybody who shares it, and is not inherited further.

    Raises:
        EndpointError: Not an AF_UNIX stream socket, or neither listening nor connected, or to the wrong user.
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        raise EndpointError(f"descriptor {fd} is no socket: {getattr(error, 'strerror', error)}") from error
    try:
        listening = _is_listening(sock)
        if not listening:
            access.check_peer(sock)
    except EndpointError:
        sock.detach()
        raise
    os.set_inheritable(fd, False)
    adopted = trio.socket.from_stdlib_socket(sock)
    return Listener(adopted, limits, access=access) if listening else Connected(Channel(adopted, limits))


def _is_listening(sock: socket.socket) -> bool:
    name = f"descriptor {sock.fileno()}"
    if sock.family != socket.AF_UNIX:
        raise EndpointError(f"{name} is a socket of family {_label(sock.family)}, AF_UNIX is needed")
    if sock.type != socket.SOCK_STREAM:
        raise EndpointError(f"{name} is a socket of type {_label(sock.type)}, SOCK_STREAM is needed")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return True
    try:
        sock.getpeername()
    except OSError as error:
        raise EndpointError(f"{name} is a socket that is neither listening nor connected") from error
    return False


def _label(constant: int) -> str:
    return getattr(constant, "name", str(constant))


def _try_connect(path: str) -> socket.socket | str:
    """One attempt; the reason if there was nobody and it is worth another one.

    A non-blocking connect to a UNIX socket succeeds or fails at once: EAGAIN means that the backlog is
    full, not that the connection is under way. (Trio's own connect would take it for the latter.)
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno in _NOT_THERE_YET:
            if _is_socket_or_absent(path):
                return error.strerror or str(error)
            raise EndpointError(f"{path}: cannot connect: not a socket") from None
        raise EndpointError(f"{path}: cannot connect: {error.strerror or error}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Unlink a socket that refuses connections, and nothing else."""
    if not _is_socket_or_absent(path):
        raise EndpointError(f"{path}: exists and is not a socket")
    identity = _identity(path)
    if identity is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except BlockingIOError:  # a live server with a full backlog
            raise EndpointError(f"{path}: another server listens there") from None
        except OSError as error:
            raise EndpointError(f"{path}: exists, and cannot be probed: {error.strerror or error}") from error
        else:
            raise EndpointError(f"{path}: another server listens there")
    if _identity(path) == identity:
        os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at a path itself, or None."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_socket_or_absent(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return True

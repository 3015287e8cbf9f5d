"""Ports that are sockets: what they have in common, and the two that lead nowhere.

A *loop* is a datagram socket connected to itself: what is sent waits in its own queue, in order, until it is read. The
kernel bounds that queue by the sender's buffer, so a full one makes the sender wait for the reader, as any port does;
the wait ends with the next packet that the driver has a receive buffer for, and both are the same thread's.

A *null* port takes every packet and never has one. Reading /dev/null is an end of file, which means a port that is
gone, so it is one end of a pair whose other end has a socket filter that keeps nothing: the kernel frees a packet there
at once and tells the sender that it was sent.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress

from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import discard
from vhostuser.errors import PortError
from vhostuser.privileges import NOTHING

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_SO_ATTACH_FILTER = 26
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K: 0 bytes of the packet
BUFFER = 4 << 20  # bytes of a socket's buffers: some dozens of the longest packets, thousands of short ones


class SocketPort:
    """A port of non-blocking sockets, one for each queue pair.

    Attributes:
        name, queues, unsupported, batching, header_size: see :class:`~vhostuser.devices.net.ports.Port`.
        capabilities, mtu_capabilities: likewise.
    """

    unsupported = NetFeature(0)
    batching = Batching.DATAGRAMS
    capabilities = mtu_capabilities = NOTHING

    def __init__(self, name: str, sockets: list[socket.socket]) -> None:
        """Take over the sockets, and give them room."""
        self.name = name
        self.queues = len(sockets)
        self.header_size = 10
        self._sockets = sockets
        for sock in sockets:
            sock.setblocking(False)
            make_room(sock)

    def fileno(self, pair: int = 0) -> int:
        """The socket of a queue pair."""
        return self._sockets[pair].fileno()

    def attach(self, pair: int, attached: bool) -> None:
        """What a pair gets waits until its receive ring runs."""

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: nothing is left over from before."""
        self.header_size = header_size
        for pair in range(self.queues):
            try:
                discard(self.fileno(pair))
            except OSError as error:
                raise PortError(f"{self.name}: cannot be read: {error.strerror}") from error

    def set_carrier(self, up: bool) -> None:
        """There is no carrier to show."""

    def set_mtu(self, mtu: int) -> None:
        """There is no limit to set: any packet passes."""

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            sock.close()


class Loop(SocketPort):
    """What the guest sends comes back to it, in order, on the same queue pair."""

    def __init__(self, queues: int = 1) -> None:
        super().__init__("loop", [_to_itself() for _ in range(queues)])


class Null(SocketPort):
    """What the guest sends is gone, and nothing ever comes."""

    def __init__(self, queues: int = 1) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(queues)]
        super().__init__("null", [ours for ours, _ in pairs])
        self._ends = [end for _, end in pairs]
        for end in self._ends:
            keep_nothing(end)

    def close(self) -> None:
        """Close both ends of each pair."""
        super().close()
        for end in self._ends:
            end.close()


def _to_itself() -> socket.socket:
    """A datagram socket connected to itself; the kernel lets nobody else send to it then."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind("")  # the kernel chooses an abstract name
        sock.connect(sock.getsockname())
    except BaseException:
        sock.close()
        raise
    return sock


def keep_nothing(sock: socket.socket) -> None:
    """Have the kernel throw away whatever a socket would receive."""
    code = ctypes.create_string_buffer(_KEEP_NOTHING, len(_KEEP_NOTHING))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("H6xQ", 1, ctypes.addressof(code)))


def make_room(sock: socket.socket) -> None:
    """Give a socket buffers of ``BUFFER`` bytes, or of as many as the host allows."""
    for name, forced in ((socket.SO_SNDBUF, SO_SNDBUFFORCE), (socket.SO_RCVBUF, SO_RCVBUFFORCE)):
        sock.setsockopt(socket.SOL_SOCKET, name, BUFFER)  # up to the limit of net.core
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)

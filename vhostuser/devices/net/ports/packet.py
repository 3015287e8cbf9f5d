"""Packet sockets on an interface as port (packet(7), linux/if_packet.h): a veth, a bridge's or a network card's.

What the guest sends leaves through the interface, and what arrives there reaches the guest, besides whatever the host
makes of it. PACKET_VNET_HDR passes the virtio_net_hdr through as it is, so checksums and segmentation stay undone as
on a tap. Unlike a tap the interface cannot be told what this driver accepts: the data path drops what it did not.

A socket receives while its pair does, and no longer, or its share of the flows would end where nobody reads. The kernel
deals packets out to all sockets of a fanout group, and none leaves its group alive: one that shall be deaf gives its
place, and its number, to a new one.

The interface is the host's, and others may use it: its MTU is looked at, never changed.

An interface that goes down is a port that is gone. The kernel says it once, and does not say whether the interface will
be deleted next, which it would keep to itself.

Before Linux 6.5 the header here has 10 bytes whatever the driver has; the data path adds and cuts num_buffers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from vhostuser.devices.net.ports.sockets import SocketPort, keep_nothing, make_room
from vhostuser.errors import PortError
from vhostuser.privileges import Capability

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _VNET_HDR, _FANOUT, _IGNORE_OUTGOING, _VNET_HDR_SZ = 1, 15, 18, 23, 24
_MR_PROMISC = 1
_SO_DETACH_FILTER = 27
_FANOUT_HASH = 0
_FANOUT_UNIQUE_ID = 0x2000  # the kernel chooses a group that nobody else has
_ETH_P_ALL = 3
_WITHOUT_NUM_BUFFERS = 10
_SIOCGIFMTU = 0x8921
_IFREQ = struct.Struct("16si20x")
_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK


class Packet(SocketPort):
    """Packet sockets on one interface. Several share what arrives, by flow."""

    capabilities = Capability.NET_RAW

    def __init__(self, interface: str, queues: int = 1) -> None:
        """Open a socket for each queue pair. They receive nothing before they are attached.

        Raises:
            PortError: no such interface, down, no Ethernet, no privilege, or a kernel that cannot.
        """
        self.interface = interface
        self._group = 0  # of the sockets that share what arrives; while there are any
        self._attached = [False] * queues
        sockets: list[socket.socket] = []
        try:
            self._index = socket.if_nametoindex(interface)
            with _open(interface) as trial:
                _listen(trial, interface, self._index)
            sockets += [_open(interface) for _ in range(queues)]
        except OSError as error:
            _close(sockets)
            raise PortError(f"--packet {interface}: {_why_not(error)}") from error
        super().__init__(f"packet {interface}", sockets)

    def attach(self, pair: int, attached: bool) -> None:
        """Receive for a pair, or no longer; what a socket holds then is thrown away.

        Raises:
            PortError: the interface is gone or down, or there is no descriptor left.
        """
        if self._attached[pair] == attached:
            return
        try:
            if attached:
                self._join(self._sockets[pair])
            else:
                self._replace(self._sockets[pair])
        except OSError as error:
            action = "attached" if attached else "detached"
            raise PortError(f"{self.name}: queue {pair} cannot be {action}: {_why_not(error)}") from error
        self._attached[pair] = attached

    def _join(self, sock: socket.socket) -> None:
        """Have a socket receive its share. Between listening and sharing it would get everything: it keeps nothing."""
        keep_nothing(sock)
        _listen(sock, self.interface, self._index)
        if self.queues > 1:
            group = self._group if any(self._attached) else _FANOUT_UNIQUE_ID << 16
            sock.setsockopt(_SOL_PACKET, _FANOUT, _FANOUT_HASH << 16 | group)
            self._group = sock.getsockopt(_SOL_PACKET, _FANOUT) & 0xFFFF
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def _replace(self, sock: socket.socket) -> None:
        """Put a new socket, which receives nothing, in the place of one. Whoever sends through it notices nothing."""
        with _open(self.interface) as deaf:
            deaf.setblocking(False)
            make_room(deaf)
            self._set_header(deaf, self.header_size)
            os.dup2(deaf.fileno(), sock.fileno(), inheritable=False)

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: the header's size as far as the kernel can, and nothing left over from before."""
        super().configure(features, header_size)
        for sock in self._sockets:
            try:
                self._set_header(sock, header_size)
            except OSError as error:
                raise PortError(f"{self.name}: a virtio_net_hdr of {header_size}: {error.strerror}") from error

    def _set_header(self, sock: socket.socket, size: int) -> None:
        try:
            sock.setsockopt(_SOL_PACKET, _VNET_HDR_SZ, size)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            self.header_size = _WITHOUT_NUM_BUFFERS  # before Linux 6.5

    def set_mtu(self, mtu: int) -> None:
        """See whether frames of that MTU pass. Raises PortError when the interface's is smaller."""
        try:
            answer = fcntl.ioctl(self.fileno(), _SIOCGIFMTU, _IFREQ.pack(self.interface.encode(), 0))
        except OSError as error:
            raise PortError(f"{self.name}: its MTU: {_why_not(error)}") from error
        _, present = _IFREQ.unpack(answer)
        if mtu > present:
            raise PortError(
                f"{self.name}: an MTU of {mtu} is more than the interface's {present}, which is the host's to change"
            )


def _open(interface: str) -> socket.socket:
    """A packet socket that sends through an interface and receives nothing yet."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)  # among them our own
        sock.bind((interface, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(sock: socket.socket, interface: str, index: int) -> None:
    """Receive from the interface, whatever the address: a guest has one of its own."""
    sock.bind((interface, _ETH_P_ALL))
    if sock.getsockname()[3] not in _ETHERNET:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8x", index, _MR_PROMISC, 0))
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # ENETDOWN
        raise OSError(error, os.strerror(error))


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _why_not(error: OSError) -> str:
    """A sentence for a socket that cannot be had."""
    match error.errno:
        case errno.EPERM:
            return "CAP_NET_RAW is missing"
        case errno.ENODEV | errno.ENXIO | None:  # None: if_nametoindex says no more
            return "no such interface"
        case errno.ENETDOWN:
            return "the interface is down"
        case errno.EAFNOSUPPORT:
            return "its packets have no Ethernet header"
        case errno.ENOPROTOOPT:
            return "the kernel has no PACKET_IGNORE_OUTGOING; Linux 4.20 or later is needed"
    return error.strerror or str(error)

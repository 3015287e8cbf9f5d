"""Packet sockets on an interface as port (packet(7), linux/if_packet.h): a veth, a bridge's or a network card's.

What the guest sends leaves through the interface, and what arrives there reaches the guest, besides whatever the host
makes of it. PACKET_VNET_HDR passes the virtio_net_hdr through as it is, so checksums and segmentation stay undone as
on a tap. Unlike a tap the interface cannot be told what this driver accepts: the data path drops what it did not.

An interface that goes down is a port that is gone. The kernel says it once, and does not say whether the interface will
be deleted next, which it would keep to itself.

Before Linux 6.5 the header here has 10 bytes whatever the driver has; the data path adds and cuts num_buffers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from vhostuser.devices.net.ports.link import set_link
from vhostuser.devices.net.ports.sockets import SocketPort
from vhostuser.errors import PortError
from vhostuser.privileges import Capability

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _VNET_HDR, _FANOUT, _IGNORE_OUTGOING, _VNET_HDR_SZ = 1, 15, 18, 23, 24
_MR_PROMISC = 1
_FANOUT_HASH = 0
_FANOUT_UNIQUE_ID = 0x2000  # the kernel chooses a group that nobody else has
_ETH_P_ALL = 3
_WITHOUT_NUM_BUFFERS = 10
_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK


class Packet(SocketPort):
    """Packet sockets on one interface. Several share what arrives, by flow."""

    capabilities = Capability.NET_ADMIN

    def __init__(self, interface: str, queues: int = 1) -> None:
        """Open a socket for each queue pair.

        Raises:
            PortError: no such interface, down, no Ethernet, no privilege, or a kernel that cannot.
        """
        self.interface = interface
        sockets: list[socket.socket] = []
        try:
            index = socket.if_nametoindex(interface)
            for _ in range(queues):
                sockets.append(_open())
                _bind(sockets[-1], interface, index)
            if queues > 1:
                _share(sockets)
        except OSError as error:
            _close(sockets)
            raise PortError(f"--packet {interface}: {_why_not(error)}") from error
        super().__init__(f"packet {interface}", sockets)

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: the header's size as far as the kernel can, and nothing left over from before."""
        super().configure(features, header_size)
        for sock in self._sockets:
            try:
                sock.setsockopt(_SOL_PACKET, _VNET_HDR_SZ, header_size)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise PortError(f"{self.name}: a virtio_net_hdr of {header_size}: {error.strerror}") from error
                self.header_size = _WITHOUT_NUM_BUFFERS  # before Linux 6.5

    def set_mtu(self, mtu: int) -> None:
        """Set the interface's MTU in bytes. Raises PortError when the kernel refuses it."""
        set_link("packet", self.interface, mtu=mtu)


def _open() -> socket.socket:
    """A packet socket that receives nothing yet."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)  # among them our own
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, interface: str, index: int) -> None:
    """Receive from the interface, whatever the address: a guest has one of its own."""
    sock.bind((interface, _ETH_P_ALL))
    if sock.getsockname()[3] not in _ETHERNET:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8x", index, _MR_PROMISC, 0))
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # ENETDOWN
        raise OSError(error, os.strerror(error))


def _share(sockets: list[socket.socket]) -> None:
    first, *others = sockets
    first.setsockopt(_SOL_PACKET, _FANOUT, (_FANOUT_HASH | _FANOUT_UNIQUE_ID) << 16)
    group = first.getsockopt(_SOL_PACKET, _FANOUT) & 0xFFFF
    for sock in others:
        sock.setsockopt(_SOL_PACKET, _FANOUT, _FANOUT_HASH << 16 | group)


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

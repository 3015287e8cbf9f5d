"""Ports: where a net device's packets leave and arrive on the host.

A port is one non-blocking descriptor for each queue pair. It keeps packet boundaries, with a virtio_net_hdr before each
packet.
"""

import os
from typing import Protocol

from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.privileges import Capability

_MAX_PACKET = 65536 + 64
# frames; only a flood gets so far: a socket's buffer holds eleven thousand short ones, a tap 1000 unless told otherwise
_DISCARD_LIMIT = 65536


class Port(Protocol):
    """What a net device needs of its port.

    Attributes:
        name: for messages.
        queues: how many queue pairs it has a descriptor for.
        unsupported: network features that the port cannot do.
        batching: how packets can be moved in batches without overtaking each other or being lost.
        capabilities: what it needs of the process after it was opened.
        mtu_capabilities: what setting the MTU needs besides.
        header_size: bytes of virtio_net_hdr before each packet here, since it was configured. A port that does not know
            num_buffers has 10 although the driver has 12.
    """

    name: str
    queues: int
    unsupported: NetFeature
    batching: Batching
    capabilities: Capability
    mtu_capabilities: Capability
    header_size: int

    def fileno(self, pair: int = 0) -> int:
        """The descriptor that packets of a queue pair are read from and written to."""

    def attach(self, pair: int, attached: bool) -> None:
        """Let the host send to a queue pair, or no longer: its receive ring began to run, or does not run any more."""

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: header size in bytes, what it can receive, and nothing left over from before."""

    def set_carrier(self, up: bool) -> None:
        """Show the host whether a driver is there."""

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU in bytes, or see that it fits where the interface is not ours. Raises PortError."""

    def close(self) -> None:
        """Close the port."""


def discard(fd: int) -> int:
    """Throw away what waits to be received at a port's descriptor: the number of frames. Raises OSError."""
    frames = 0
    try:
        while frames < _DISCARD_LIMIT and os.read(fd, _MAX_PACKET):
            frames += 1
    except BlockingIOError:
        pass
    return frames

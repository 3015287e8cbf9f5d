"""Ports: where a net device's packets leave and arrive on the host.

A port is one non-blocking descriptor for each queue pair. It keeps packet boundaries, with a virtio_net_hdr before each
packet.
"""

from typing import Protocol

from vhostuser.devices.net.features import NetFeature


class Port(Protocol):
    """What a net device needs of its port.

    Attributes:
        queues: how many queue pairs it has a descriptor for.
        unsupported: network features that the port cannot do.
        batching: whether it is never full, so that packets may be written in batches without overtaking each other.
    """

    queues: int
    unsupported: NetFeature
    batching: bool

    def fileno(self, pair: int = 0) -> int:
        """The descriptor that packets of a queue pair are read from and written to."""

    def attach(self, pair: int, attached: bool) -> None:
        """Let the host send to a queue pair, or no longer: its receive ring began to run, or does not run any more."""

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: header size in bytes, what it can receive, and nothing left over from before."""

    def set_carrier(self, up: bool) -> None:
        """Show the host whether a driver is there."""

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU in bytes."""

    def close(self) -> None:
        """Close the port."""

"""The virtio network device: a port, and a queue pair for each of its descriptors."""

from __future__ import annotations

from enum import StrEnum

from vhostuser.device import Device
from vhostuser.devices.net import features as net
from vhostuser.devices.net.ports import Port
from vhostuser.devices.net.pump import NetPump
from vhostuser.devices.net.uring import check_uring
from vhostuser.errors import PortError
from vhostuser.virtio.features import SUPPORTED as RING_FEATURES

#: SET_VRING_KICK and its like have eight bits for the ring's index.
MAX_PAIRS = 128
_RECEIVE, _TRANSMIT = range(2)  # rings of a pair
_OFFERABLE = net.SUPPORTED | net.NetFeature.MTU


class IoUring(StrEnum):
    """Whether packets pass the port in batches, through io_uring."""

    AUTO = "auto"
    """Where the port and the kernel allow it."""
    ON = "on"
    """Or there is no device."""
    OFF = "off"
    """One system call a packet."""


class NetDevice(Device):
    """A network device: rings 0, 2, ... receive, rings 1, 3, ... transmit; each pair is a queue group."""

    name = "net"
    mtu_settable = True

    def __init__(
        self, port: Port, add: int = 0, remove: int = 0, *, io_uring: IoUring = IoUring.AUTO, poll_us: int = 0
    ) -> None:
        """A device on `port`, which it closes; `add` and `remove` change the features offered by default.

        After its last packet a queue pair goes on looking for the next one for `poll_us` microseconds before it sleeps.

        Raises:
            PortError: `io_uring` is ON and cannot be had. The port stays the caller's then.
        """
        self.port = port
        self.poll_us = poll_us
        self.batching = _batching(port, io_uring)
        self.groups = tuple((2 * pair + _RECEIVE, 2 * pair + _TRANSMIT) for pair in range(port.queues))
        wanted = RING_FEATURES | net.SUPPORTED | (add & _OFFERABLE)
        if port.queues > 1:
            # Without CTRL_VQ, though the driver needs both: the front-end has the control virtqueue, and adds the bit.
            wanted |= net.NetFeature.MQ
        # int: the complement of an IntFlag lacks the bits above its highest member
        self.features = net.consistent(wanted & ~int(port.unsupported) & ~remove)
        port.set_carrier(False)

    def pump(self, group: int, features: int) -> NetPump:
        """The pump of a queue pair."""
        return NetPump(self.groups[group][0], features, self.port.fileno(group), self.batching, self.poll_us)

    def driver_started(self, features: int) -> None:
        """Set the port up for what the driver accepted, and show the host a carrier."""
        self.port.configure(net.consistent(features), net.header_size(features))
        self.port.set_carrier(True)

    def ring_running(self, index: int, running: bool) -> None:
        """Let the host send to a pair exactly while it receives."""
        pair, way = divmod(index, 2)
        if way == _RECEIVE:
            self.port.attach(pair, running)

    def driver_stopped(self) -> None:
        """Take the carrier away: nobody receives now."""
        self.port.set_carrier(False)

    def set_mtu(self, mtu: int) -> None:
        """Set the port's MTU."""
        self.port.set_mtu(mtu)

    def close(self) -> None:
        """Close the port."""
        self.port.close()


def _batching(port: Port, io_uring: IoUring) -> bool:
    if io_uring is not IoUring.ON:
        return port.batching and io_uring is IoUring.AUTO
    if not port.batching:
        raise PortError("io_uring=on: the port's send buffer is limited, batches could lose packets when it is full")
    try:
        for pair in range(port.queues):
            check_uring(port.fileno(pair))
    except OSError as error:
        raise PortError(f"io_uring=on: {error.strerror}") from error
    return True

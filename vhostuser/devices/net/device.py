"""The virtio network device: a port, and a queue pair for each of its descriptors."""

from __future__ import annotations

from vhostuser.device import Device
from vhostuser.devices.net import features as net
from vhostuser.devices.net.ports import Port
from vhostuser.devices.net.pump import NetPump
from vhostuser.virtio.features import SUPPORTED as RING_FEATURES

#: SET_VRING_KICK and its like have eight bits for the ring's index.
MAX_PAIRS = 128
_RECEIVE, _TRANSMIT = range(2)  # rings of a pair
_OFFERABLE = net.SUPPORTED | net.NetFeature.MTU


class NetDevice(Device):
    """A network device: rings 0, 2, ... receive, rings 1, 3, ... transmit; each pair is a queue group."""

    name = "net"
    mtu_settable = True

    def __init__(self, port: Port, add: int = 0, remove: int = 0) -> None:
        """A device on `port`, which it closes; `add` and `remove` change the features offered by default."""
        self.port = port
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
        return NetPump(self.groups[group][0], features, self.port.fileno(group), self.port.batching)

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

"""The virtio network device: a port, and a queue pair for each of its descriptors."""

from __future__ import annotations

import os
from contextlib import suppress
from enum import StrEnum

from vhostuser.device import Device, InTurns
from vhostuser.devices.net import features as net
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.ports import Port, discard
from vhostuser.devices.net.pump import NetPump
from vhostuser.devices.net.uring import check_uring
from vhostuser.errors import PortError
from vhostuser.virtio.features import SUPPORTED as RING_FEATURES
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.pump import Pump

#: SET_VRING_KICK and its like have eight bits for the ring's index.
MAX_PAIRS = 128
_RECEIVE, _TRANSMIT = range(2)  # rings of a pair
_OFFERABLE = net.SUPPORTED | net.NetFeature.MTU | VirtioFeature.ACCESS_PLATFORM
_BROADCAST = b"\xff" * 6


class IoUring(StrEnum):
    """Whether packets pass the port in batches: through io_uring, or on a socket without it."""

    AUTO = "auto"
    """Where the port and the kernel allow it."""
    ON = "on"
    """Or there is no device."""
    OFF = "off"
    """One system call a packet."""


class NetDevice(Device):
    """A network device: rings 0, 2, ... receive, rings 1, 3, ... transmit; each pair is a queue group.

    Attributes:
        port: where packets leave and arrive; :meth:`swap` changes it.
        swaps: how often it was changed.
        lost: packets that old ports still held then.
    """

    name = "net"
    mtu_settable = True
    announces = True

    def __init__(
        self, port: Port, add: int = 0, remove: int = 0, *, io_uring: IoUring = IoUring.AUTO, poll_us: int = 0
    ) -> None:
        """A device on `port`, which it closes; `add` and `remove` change the features offered by default.

        After its last packet a queue pair goes on looking for the next one for `poll_us` microseconds before it sleeps.

        Raises:
            PortError: `io_uring` is ON and cannot be had. The port stays the caller's then.
        """
        self.port = port
        self.swaps = self.lost = 0
        self.poll_us = poll_us
        self.io_uring = io_uring
        self.batching = _batching(port, io_uring)
        self.groups = tuple((2 * pair + _RECEIVE, 2 * pair + _TRANSMIT) for pair in range(port.queues))
        wanted = RING_FEATURES | net.SUPPORTED | (add & _OFFERABLE)
        if port.queues > 1:
            # Without CTRL_VQ, though the driver needs both: the front-end has the control virtqueue, and adds the bit.
            wanted |= net.NetFeature.MQ
        # int: the complement of an IntFlag lacks the bits above its highest member
        self.features = net.consistent(wanted & ~int(port.unsupported) & ~remove)
        # NET_SET_MTU is for a front-end whose driver is told of the MTU
        self.capabilities = port.capabilities
        if self.features & net.NetFeature.MTU:
            self.capabilities |= port.mtu_capabilities
        self._accepted: int | None = None  # by the driver, while there is one
        self._mtu: int | None = None
        self._receiving: set[int] = set()  # pairs
        self._swapping = False
        port.set_carrier(False)

    def pump(self, group: int, features: int) -> NetPump:
        """The pump of a queue pair."""
        pump = NetPump(self.groups[group][0], features, self.poll_us)
        self._plug(group, pump)
        return pump

    def driver_started(self, features: int) -> None:
        """Set the port up for what the driver accepted, and show the host a carrier."""
        self.port.configure(net.consistent(features), net.header_size(features))
        self.port.set_carrier(True)
        self._accepted = features

    def ring_running(self, index: int, running: bool) -> None:
        """Let the host send to a pair exactly while it receives."""
        pair, way = divmod(index, 2)
        if way == _RECEIVE:
            self.port.attach(pair, running)
            (self._receiving.add if running else self._receiving.discard)(pair)

    def driver_stopped(self) -> None:
        """Take the carrier away: nobody receives now."""
        self._accepted = None
        self.port.set_carrier(False)

    def set_mtu(self, mtu: int) -> None:
        """Set the port's MTU, or see that it fits a port that is not ours to change."""
        self.port.set_mtu(mtu)
        self._mtu = mtu

    def announce(self, mac: bytes) -> None:
        """Broadcast a reverse ARP request in the guest's name: switches learn where it is now.

        A port takes a packet from any thread at any time, whole, so this one needs no turn of the ring's thread.
        """
        packet = bytes(self.port.header_size) + rarp_request(mac)
        try:
            os.write(self.port.fileno(), packet)
        except OSError as error:
            raise PortError(f"{self.port.name}: SEND_RARP for {mac.hex(':')}: {error.strerror}") from error

    async def swap(self, port: Port, in_turns: InTurns) -> int:
        """Go on with another port while the driver runs, as VHOST_NET_SET_BACKEND does; the old one is closed.

        The new port is made ready first. Then each queue pair moves to it between two turns: what it could not send
        yet goes to the new port, what it had received is still delivered. What the old port held is lost.

        Args:
            port: the new one; the caller's again if this raises.
            in_turns: the server's way into the threads of the rings (:meth:`vhostuser.runtime.serve.Server.in_turns`).

        Returns:
            The number of packets lost.

        Raises:
            PortError: the new port cannot do what was negotiated, or cannot be set up, or another change is under way;
                the port that is there goes on.
        """
        if self._swapping:  # the threads look at the port that is to be theirs
            raise PortError(f"{port.name}: the change to {self.port.name} is still under way")
        self._check_successor(port)
        batching = _batching(port, self.io_uring)
        self._make_ready(port)
        old, self.port = self.port, port  # pairs that start from now on have the new one
        self.batching = batching
        self.features &= ~int(port.unsupported)
        self._swapping = True
        try:
            await in_turns(self._plug)
        finally:
            self._swapping = False
        self.swaps += 1
        lost = _retire(old)
        self.lost += lost
        return lost

    def counters(self) -> dict[str, int]:
        """Counters of port changes."""
        return {"port_swaps": self.swaps, "rx_lost_in_swaps": self.lost}

    def close(self) -> None:
        """Close the port."""
        self.port.close()

    def _make_ready(self, port: Port) -> None:
        """Do to a port what the present one was told."""
        if self._mtu is not None:
            port.set_mtu(self._mtu)
        if self._accepted is not None:
            port.configure(net.consistent(self._accepted), net.header_size(self._accepted))
        for pair in self._receiving:
            port.attach(pair, True)
        port.set_carrier(self._accepted is not None)

    def _plug(self, group: int, pump: Pump) -> None:
        """Connect a pair's pump with the port as it is now."""
        assert isinstance(pump, NetPump)
        pump.use(self.port.fileno(group), self.port.header_size, self.batching)

    def _check_successor(self, port: Port) -> None:
        if port.queues < len(self.groups):
            raise PortError(f"{port.name} has {port.queues} queues, the device has {len(self.groups)} queue pairs")
        # without a driver: one that has negotiated already may start at any moment
        used = self.features if self._accepted is None else self._accepted
        if missing := used & int(port.unsupported):
            names = ", ".join(bit.name or "" for bit in net.NetFeature if bit & missing)
            whose = "the device offers" if self._accepted is None else "the driver accepted"
            raise PortError(f"{port.name} cannot do what {whose}: {names}")


def rarp_request(mac: bytes) -> bytes:
    """The frame by which a station tells its switches where it is (RFC 903, "request reverse"), without an address."""
    body = b"\x00\x01\x08\x00\x06\x04\x00\x03" + (mac + bytes(4)) * 2
    return (_BROADCAST + mac + b"\x80\x35" + body).ljust(60, b"\0")


def _retire(port: Port) -> int:
    """Close a port: how many packets it still held. Whatever is wrong with it does not matter any more."""
    lost = 0
    with suppress(PortError):
        port.set_carrier(False)  # first, so that nothing more arrives
    for pair in range(port.queues):
        with suppress(OSError):
            lost += discard(port.fileno(pair))
    port.close()
    return lost


def _batching(port: Port, io_uring: IoUring) -> Batching:
    if io_uring is IoUring.OFF:
        return Batching.NONE
    if io_uring is IoUring.AUTO:
        return port.batching
    if port.batching is Batching.NONE:
        raise PortError("io_uring=on: the port's send buffer is limited, batches could lose packets when it is full")
    try:
        for pair in range(port.queues if port.batching is Batching.URING else 0):
            check_uring(port.fileno(pair))
    except OSError as error:
        raise PortError(f"io_uring=on: {error.strerror}") from error
    return port.batching

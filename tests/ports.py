"""A net device's port whose other end the test has: packets without a tap, root or a kernel's network stack."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import trio

from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.privileges import NOTHING

MAX_PACKET = 65536 + 64


class PairPort:
    """One end of a SOCK_SEQPACKET pair for the device; :attr:`host` is the other one.

    Attributes:
        name: for messages.
        queues: one.
        attached: whether the pair's receive ring runs.
        unsupported: network features that the port cannot do: none.
        batching: none: what runs over it is tried with a system call a packet.
        capabilities, mtu_capabilities: none.
        host: the test's end, where each packet has its virtio_net_hdr before it.
        header_size: bytes of that header, as the last driver negotiated; 0 before the first.
        features: what the last driver accepted.
        carrier: whether a driver is there, as the host sees it.
        mtu: the MTU in bytes, None while nobody has set it.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self._device_end = theirs
        self.host = trio.socket.from_stdlib_socket(ours)
        self.name = "pair"
        self.queues = 1
        self.attached = False
        self.unsupported = NetFeature(0)
        self.batching = Batching.NONE
        self.capabilities = self.mtu_capabilities = NOTHING
        self.header_size = 0
        self.features = 0
        self.carrier = False
        self.mtu: int | None = None

    def fileno(self, pair: int = 0) -> int:
        """The device's end."""
        return self._device_end.fileno()

    def attach(self, pair: int, attached: bool) -> None:
        """Remember it."""
        self.attached = attached

    def configure(self, features: int, header_size: int) -> None:
        """Remember what was negotiated, and throw away what nobody received."""
        self.features = features
        self.header_size = header_size
        _drain(self._device_end.fileno())

    def set_carrier(self, up: bool) -> None:
        """Remember it."""
        self.carrier = up

    def set_mtu(self, mtu: int) -> None:
        """Remember it."""
        self.mtu = mtu

    def close(self) -> None:
        """Close the device's end."""
        self._device_end.close()

    # ---- the host's side -------------------------------------------------------------------------------------------

    async def send(self, frame: bytes, header: bytes | None = None) -> None:
        """Send a frame to the guest, behind a header of zeros unless another one is given."""
        await self.host.send((bytes(self.header_size) if header is None else header) + frame)

    async def receive(self) -> bytes:
        """Wait for the next frame from the guest; without its header."""
        return (await self.receive_packet())[self.header_size :]

    async def receive_packet(self) -> bytes:
        """Wait for the next frame from the guest, with the header before it."""
        return await self.host.recv(MAX_PACKET)

    def flush(self) -> int:
        """Throw away what the guest sent so far; the number of packets."""
        return _drain(self.host.fileno())

    def unplug(self) -> None:
        """Close the host's end, as when the interface behind a port goes away."""
        self.host.close()


def _drain(fd: int) -> int:
    count = 0
    with suppress(BlockingIOError):
        while os.read(fd, MAX_PACKET):
            count += 1
    return count

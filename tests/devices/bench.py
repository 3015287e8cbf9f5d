"""A net pump between two rings whose driver a test plays, and a pair of sockets whose host end the test has."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from tests.virtio.bench import map_guest, start
from tests.virtio.packed import PackedDriver
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing, Used
from vhostuser.virtio.features import VirtioFeature

MODERN = int(VirtioFeature.VERSION_1 | NetFeature.MRG_RXBUF)
MAX_PACKET = 1 << 18


class Net:
    """One queue pair, turned by the test.

    Attributes:
        pump: the pump; `rx` and `tx` are the driver's rings.
        port, host: the device's end and the test's end of the port, both without waiting.
        batching: how pumps make batches; tests set it for all ways.
        layout: the features of the rings' layout; tests set it for all.
        frame: a buffer with a header of zeros and a frame of 64.
    """

    batching = Batching.NONE
    layout = 0
    rx: Any  # a split ring's driver or a packed one's; tests of one layout write its fields
    tx: Any

    def __init__(
        self,
        ram: GuestRam,
        features: int = MODERN,
        size: int = 16,
        *,
        event_idx: bool = True,
        port: int | None = None,
        poll_us: int = 0,
        port_header: int | None = None,
    ) -> None:
        self.ram = ram
        self.memory = map_guest(ram)
        features |= self.layout
        in_order = bool(features & VirtioFeature.IN_ORDER)
        driver = PackedDriver if features & VirtioFeature.RING_PACKED else DriverRing
        self.rx, self.tx = (driver(ram, i, size, event_idx=event_idx, in_order=in_order) for i in range(2))
        self.port, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.port, self.host):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # SO_SNDBUFFORCE: room for the longest packets
        self.pump = NetPump(0, features, poll_us)
        fd = self.port.fileno() if port is None else port
        self.pump.use(fd, self.header_size if port_header is None else port_header, self.batching)
        start(self.pump.rx, self.rx, self.memory)
        start(self.pump.tx, self.tx, self.memory)
        self.frame = ram.alloc(76), 76

    @property
    def header_size(self) -> int:
        return self.pump.receiver.header_size

    def counters(self, *names: str) -> tuple[int, ...]:
        """Some of the counters, in order."""
        counters = self.pump.counters()
        return tuple(counters[name] for name in names)

    def close(self) -> None:
        self.pump.close()
        for thing in (self.port, self.host, self.rx, self.tx, self.memory):
            thing.close()

    # ---- the driver ------------------------------------------------------------------------------------------------

    def buffers(self, packet: bytes, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """`packet` in buffers of these sizes, of which the last one takes what is left."""
        pieces = []
        at = 0
        for size in (*sizes, len(packet)):
            if piece := packet[at : at + size]:
                address = self.ram.alloc(len(piece), 1)
                self.ram.write(address, piece)
                pieces.append((address, len(piece)))
                at += size
        return pieces

    def transmit(self, packet: bytes, sizes: Sequence[int] = (), *, indirect: bool = False) -> int:
        """Make a packet (header included) available for sending."""
        head: int = self.tx.add(self.buffers(packet, sizes), indirect=indirect)
        return head

    def post(self, *sizes: int) -> list[tuple[int, int]]:
        """Make one receive chain available, of buffers of these sizes: the buffers, filled with 0xAA."""
        buffers = [(self.ram.alloc(size, 1), size) for size in sizes]
        for address, size in buffers:
            self.ram.write(address, b"\xaa" * size)
        self.rx.add(writable=buffers, indirect=len(buffers) > 1)
        return buffers

    def content(self, buffers: Sequence[tuple[int, int]]) -> bytes:
        """What the buffers hold."""
        return b"".join(self.ram.read(address, size) for address, size in buffers)

    def reap_one(self, ring: DriverRing | PackedDriver) -> Used:
        """The one chain that was used since the last time."""
        [used] = ring.reap()
        return used

    def position(self, ring: DriverRing | PackedDriver) -> int:
        """Where the device goes on that has nothing in hand, collecting what it has used."""
        ring.reap()
        return ring.last.packed * 0x10001 if isinstance(ring, PackedDriver) else ring.used_idx

    # ---- the host --------------------------------------------------------------------------------------------------

    def received(self) -> list[bytes]:
        """Every packet that the device has sent, with its header."""
        packets = []
        try:
            while True:
                packets.append(self.host.recv(MAX_PACKET))
        except BlockingIOError:
            return packets

    def fill_port(self) -> int:
        """Transmit until the port is full: the number of packets in it."""
        while not self.counters("tx_blocked")[0]:
            self.tx.reap()
            while self.tx.free:
                self.tx.add([self.frame])
            self.pump.turn()
        return self.counters("tx_packets")[0]

    def flood_port(self) -> int:
        """Send to the guest until the port takes no more: the number of packets."""
        count = 0
        try:
            while True:
                self.host.send(bytes(self.header_size + 64))
                count += 1
        except BlockingIOError:
            return count

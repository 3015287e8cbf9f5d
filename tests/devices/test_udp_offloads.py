"""UDP segmentation and fragmentation left undone (USO, UFO), between real sockets of the host and a guest on a tap."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.devices.bench import Net
from tests.devices.namespace import in_namespace
from tests.devices.segments import datagram
from tests.devices.test_tap import ip, on_tap, seen
from vhostuser.devices.net.features import SUPPORTED, NetFeature
from vhostuser.devices.net.ports.tap import open_tap
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader

UDP_SEGMENT = 103
PORT = 5000
SIZE = 1000  # bytes of a segment
UFO, USO, NEEDS_CSUM = 3, 5, 1
PAYLOAD = bytes(i * i & 0xFF for i in range(5 * SIZE + 123))
SEGMENTS = [PAYLOAD[at : at + SIZE] for at in range(0, len(PAYLOAD), SIZE)]
WITHOUT_USO = int(SUPPORTED) & ~int(NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6)
GUEST_MAC = bytes.fromhex("525400000002")
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@dataclass(frozen=True)
class Link:
    """A guest on a tap, and a UDP socket of the host that knows where the guest is.

    Attributes:
        net: the guest's rings.
        sock: the socket.
        mac: the host's MAC address.
        host, guest: IP addresses.
    """

    net: Net
    sock: socket.socket
    mac: bytes
    host: str
    guest: str

    def send(self, payload: bytes, segment: int) -> None:
        """Send datagrams of `segment` bytes each from the host's socket, with one call."""
        self.sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        self.sock.sendto(payload, (self.guest, PORT))

    def received(self) -> list[tuple[NetHeader, bytes]]:
        """The guest's packets over IP, but for what the host says unasked under IPv6 (ICMP): header and frame."""
        buffers = [self.net.post(8192) for _ in range(self.net.rx.free)]
        self.net.pump.turn()
        used = self.net.rx.reap()
        packets = [self.net.content(buffer)[: one.written] for buffer, one in zip(buffers, used, strict=False)]
        return [(NetHeader.parse(packet[:12]), packet[12:]) for packet in packets if protocol(packet[12:]) == 17]

    def transmit(self, gso_type: int) -> None:
        """Have the guest send the payload as one packet."""
        frame, headers = datagram(self.mac + GUEST_MAC, self.guest, self.host, PORT, PAYLOAD)
        header = NetHeader(NEEDS_CSUM, gso_type, headers, SIZE, headers - 8, 6)
        self.net.transmit(header.pack(12) + frame)
        self.net.pump.turn()
        assert self.net.counters("tx_packets", "tx_rejected", "tx_dropped") == (1, 0, 0)


def protocol(frame: bytes) -> int:
    return frame[23] if frame[12:14] == b"\x08\x00" else frame[20]


@contextmanager
def linked(version: int, features: int = int(SUPPORTED)) -> Iterator[Link]:
    net, family, bits = ("10.9.0.", socket.AF_INET, 24) if version == 4 else ("fd09::", socket.AF_INET6, 64)
    with GuestRam() as ram, closing(open_tap("udp")) as tap, closing(on_tap(ram, tap, features)) as rings:
        if version == 6:
            Path("/proc/sys/net/ipv6/conf/udp/disable_ipv6").write_text("0")
        ip("address", "add", f"{net}1/{bits}", "dev", "udp", *(["nodad"] if version == 6 else []))
        ip("neighbour", "add", f"{net}2", "lladdr", GUEST_MAC.hex(":"), "dev", "udp", "nud", "permanent")
        ip("link", "set", "udp", "up")  # whoever gets the kernel's lock now comes after the carrier's work
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((f"{net}1", PORT))
            sock.settimeout(20)
            yield Link(rings, sock, bytes.fromhex(seen("udp", "address").replace(":", "")), f"{net}1", f"{net}2")


@pytest.mark.proves("VIO-TAP-5")
@VERSIONS
@in_namespace
def test_what_a_socket_sends_reaches_the_guest_unsegmented(version: int) -> None:
    with linked(version) as link:
        link.send(PAYLOAD, SIZE)
        [(header, frame)] = link.received()
        wanted, headers = datagram(GUEST_MAC + link.mac, link.host, link.guest, PORT, PAYLOAD)
        assert (header.flags, header.gso_type, header.gso_size, header.num_buffers) == (NEEDS_CSUM, USO, SIZE, 1)
        assert (header.csum_start, header.csum_offset) == (headers - 8, 6)
        assert frame[headers - 8 :] == wanted[headers - 8 :]  # with the checksum of the pseudo-header
        assert frame[:14] == wanted[:14]
        source, destination = ip_address(link.host).packed, ip_address(link.guest).packed
        assert frame[: headers - 8].endswith(source + destination)


@pytest.mark.proves("VIO-TAP-5")
@VERSIONS
@in_namespace
def test_a_driver_without_uso_gets_segments(version: int) -> None:
    with linked(version, WITHOUT_USO) as link:
        link.send(PAYLOAD, SIZE)
        got = link.received()
        headers = datagram(GUEST_MAC + link.mac, link.host, link.guest, PORT, PAYLOAD)[1]
        assert [header.gso_type for header, _ in got] == [0] * len(SEGMENTS)
        assert [frame[headers:] for _, frame in got] == SEGMENTS


@pytest.mark.proves("VIO-TAP-5")
@VERSIONS
@in_namespace
def test_what_the_guest_sends_unsegmented_reaches_a_socket_in_datagrams(version: int) -> None:
    with linked(version) as link:
        link.transmit(USO)
        assert [link.sock.recv(8192) for _ in SEGMENTS] == SEGMENTS


@pytest.mark.proves("VIO-TAP-8")
@VERSIONS
@in_namespace
def test_what_the_guest_sends_unfragmented_is_one_datagram(version: int) -> None:
    with linked(version) as link:
        link.transmit(UFO)
        assert link.sock.recv(8192) == PAYLOAD


@pytest.mark.proves("VIO-TAP-8")
@in_namespace
def test_the_kernel_fragments_towards_the_guest_whatever_it_accepted() -> None:
    with linked(4) as link:
        link.send(PAYLOAD, 0)
        got = link.received()
        assert [header.gso_type for header, _ in got] == [0] * 4
        assert b"".join(frame[34:] for _, frame in got)[8:] == PAYLOAD
        offsets = [struct.unpack_from("!H", frame, 20)[0] for _, frame in got]
        assert [bool(offset & 0x2000) for offset in offsets] == [True, True, True, False]  # more fragments

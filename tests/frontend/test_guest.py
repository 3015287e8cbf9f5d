"""The builtin guest's answers."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from vhostuser.frontend import guest as g

PROPERTY = settings(max_examples=50, deadline=None, derandomize=REPEATABLE)

MAC = bytes.fromhex("525400000001")
PEER_MAC = bytes.fromhex("525400000002")
ADDRESS = IPv4Address("192.0.2.1")
PEER = IPv4Address("192.0.2.2").packed
GUEST = g.BuiltinGuest(MAC, ADDRESS)

# The example of RFC 1071, section 3.
RFC1071_EXAMPLE = bytes.fromhex("0001f203f4f5f6f7")


def ping(data: bytes, destination: bytes = ADDRESS.packed) -> bytes:
    message = g.icmp_echo(g.ICMP_ECHO_REQUEST, struct.pack("!HH", 77, 1) + data)
    return g.ethernet(MAC, PEER_MAC, g.ETH_IPV4, g.ipv4(PEER, destination, g.IP_ICMP, message))


def payload_of(frame: bytes) -> g.Ipv4Packet:
    assert frame[:14] == PEER_MAC + MAC + b"\x08\x00"
    packet = g.parse_ipv4(frame[14:])
    assert packet is not None
    assert (packet.source, packet.destination) == (ADDRESS.packed, PEER)
    return packet


def test_checksum() -> None:
    assert g.checksum(RFC1071_EXAMPLE) == 0xDDF2 ^ 0xFFFF
    assert g.checksum(RFC1071_EXAMPLE + b"\x22\x0d") == 0
    assert g.checksum(b"\xff") == 0x00FF


def test_arp() -> None:
    reply = GUEST.answer(g.arp_request(PEER_MAC, PEER, ADDRESS.packed))
    assert reply == (
        PEER_MAC + MAC + bytes.fromhex("0806 0001 0800 06 04 0002") + MAC + ADDRESS.packed + PEER_MAC + PEER
    )


def test_arp_for_somebody_else() -> None:
    assert GUEST.answer(g.arp_request(PEER_MAC, PEER, PEER)) is None


@PROPERTY
@given(st.binary(max_size=1472))
def test_ping(data: bytes) -> None:
    reply = GUEST.answer(ping(data))
    assert reply is not None
    message = payload_of(reply).payload
    assert message[:2] == b"\0\0"
    assert g.checksum(message) == 0
    assert message[4:] == struct.pack("!HH", 77, 1) + data


@PROPERTY
@given(st.binary(max_size=1472))
def test_udp_echo(data: bytes) -> None:
    request = g.ipv4(PEER, ADDRESS.packed, g.IP_UDP, g.udp(PEER, ADDRESS.packed, 4000, g.UDP_ECHO_PORT, data))
    reply = GUEST.answer(g.ethernet(MAC, PEER_MAC, g.ETH_IPV4, request))
    assert reply is not None
    datagram = payload_of(reply).payload
    assert struct.unpack("!HHH", datagram[:6]) == (g.UDP_ECHO_PORT, 4000, 8 + len(data))
    assert datagram[8:] == data
    pseudo_header = ADDRESS.packed + PEER + struct.pack("!BBH", 0, g.IP_UDP, len(datagram))
    assert g.checksum(pseudo_header + datagram) == 0


def test_padding_after_a_packet_is_not_part_of_it() -> None:
    assert GUEST.answer(ping(b"") + bytes(18)) == GUEST.answer(ping(b""))


def broken(offset: int) -> bytes:
    frame = bytearray(ping(b"data"))
    frame[offset] ^= 0x01
    return bytes(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        ping(b"", destination=PEER),
        ping(b"")[:13],
        ping(b"")[:33],
        ping(b"")[:-1],
        b"\x52\x54\0\0\0\x09" + ping(b"")[6:],
        g.ethernet(MAC, PEER_MAC, 0x86DD, bytes(40)),
        g.ethernet(MAC, PEER_MAC, g.ETH_IPV4, g.ipv4(PEER, ADDRESS.packed, 6, bytes(20))),
        *map(broken, (14, 15, 20, 24, 34, 36, 42)),
    ],
)
def test_what_is_not_for_us_or_broken_has_no_answer(frame: bytes) -> None:
    assert GUEST.answer(frame) is None


@PROPERTY
@given(st.binary(max_size=100), st.sampled_from([g.ETH_ARP, g.ETH_IPV4]))
def test_any_body_is_survived(body: bytes, kind: int) -> None:
    GUEST.answer(g.ethernet(MAC, PEER_MAC, kind, body))

"""A very small guest, for the demo and for tests: it answers ARP, ping and UDP echo.

Must not know: rings and messages; frames come from and go to a :class:`~vhostuser.frontend.net.NetDriver`.

How: :meth:`BuiltinGuest.answer` is a pure function from one frame to at most one other. A request turns
into its answer by swapping addresses and changing a type, so most of it is copied from the request. The
other functions build and check frames; tests use them to play the guest's peer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from vhostuser.frontend.net import NetDriver

ETH_IPV4 = 0x0800
ETH_ARP = 0x0806
IP_ICMP = 1
IP_UDP = 17
ARP_REQUEST = 1
ARP_REPLY = 2
ICMP_ECHO_REPLY = 0
ICMP_ECHO_REQUEST = 8
UDP_ECHO_PORT = 7
BROADCAST = b"\xff" * 6

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_KIND = (1, ETH_IPV4, 6, 4)  # hardware and protocol type, lengths of both addresses
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_IPV4_NO_OPTIONS = 0x45
_FRAGMENT_MASK = 0x3FFF  # more fragments, or an offset


class Ipv4Packet(NamedTuple):
    """What an IPv4 packet says, as far as this guest reads it."""

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes


class BuiltinGuest:
    """A network stack that only answers.

    Args:
        mac: Its Ethernet address, six bytes.
        address: Its IPv4 address.
    """

    def __init__(self, mac: bytes, address: IPv4Address) -> None:
        self.mac = mac
        self.address = address

    async def run(self, driver: NetDriver) -> None:
        """Answer frames until cancelled."""
        while True:
            reply = self.answer((await driver.receive()).frame)
            if reply is not None:
                await driver.send(reply)

    def answer(self, frame: bytes) -> bytes | None:
        """The frame that answers this one; None for what is not for us, or broken, or not understood."""
        if len(frame) < _ETHERNET.size:
            return None
        destination, source, kind = _ETHERNET.unpack_from(frame)
        if destination not in (self.mac, BROADCAST):
            return None
        body = frame[_ETHERNET.size :]
        if kind == ETH_ARP:
            reply = self._answer_arp(body)
        elif kind == ETH_IPV4:
            reply = self._answer_ipv4(body)
        else:
            return None
        return None if reply is None else ethernet(source, self.mac, kind, reply)

    def _answer_arp(self, body: bytes) -> bytes | None:
        if len(body) < _ARP.size:
            return None
        *kind, operation, mac, address, _, target = _ARP.unpack_from(body)
        if tuple(kind) != _ARP_KIND or operation != ARP_REQUEST or target != self.address.packed:
            return None
        return _ARP.pack(*_ARP_KIND, ARP_REPLY, self.mac, self.address.packed, mac, address)

    def _answer_ipv4(self, body: bytes) -> bytes | None:
        packet = parse_ipv4(body)
        if packet is None or packet.destination != self.address.packed:
            return None
        if packet.protocol == IP_ICMP:
            reply = _answer_icmp(packet.payload)
        elif packet.protocol == IP_UDP:
            reply = _answer_udp(packet)
        else:
            return None
        return None if reply is None else ipv4(packet.destination, packet.source, packet.protocol, reply)


def _answer_icmp(message: bytes) -> bytes | None:
    if len(message) < 8 or message[0] != ICMP_ECHO_REQUEST or checksum(message):
        return None
    return icmp_echo(ICMP_ECHO_REPLY, message[4:])


def _answer_udp(packet: Ipv4Packet) -> bytes | None:
    if len(packet.payload) < _UDP.size:
        return None
    source, destination, length, _ = _UDP.unpack_from(packet.payload)
    if destination != UDP_ECHO_PORT or not _UDP.size <= length <= len(packet.payload):
        return None
    return udp(packet.destination, packet.source, destination, source, packet.payload[_UDP.size : length])


####
# Building and checking
####


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); zero over data that includes its own right checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(destination: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    """An Ethernet frame."""
    return _ETHERNET.pack(destination, source, kind) + body


def arp_request(mac: bytes, address: bytes, target: bytes) -> bytes:
    """A broadcast frame that asks who has an IPv4 address."""
    body = _ARP.pack(*_ARP_KIND, ARP_REQUEST, mac, address, bytes(6), target)
    return ethernet(BROADCAST, mac, ETH_ARP, body)


def ipv4(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet without options, not to be fragmented."""
    length = _IPV4.size + len(payload)
    fields = [_IPV4_NO_OPTIONS, 0, length, 0, 0x4000, 64, protocol, 0, source, destination]
    fields[7] = checksum(_IPV4.pack(*fields))
    return _IPV4.pack(*fields) + payload


def parse_ipv4(data: bytes) -> Ipv4Packet | None:
    """Read a whole IPv4 packet; None for a fragment, or when length or checksum are wrong."""
    if len(data) < _IPV4.size:
        return None
    version, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(data)
    header_size = (version & 0xF) * 4
    if version >> 4 != 4 or not _IPV4.size <= header_size <= length <= len(data):
        return None
    if fragment & _FRAGMENT_MASK or checksum(data[:header_size]):
        return None
    return Ipv4Packet(source, destination, protocol, data[header_size:length])


def icmp_echo(kind: int, rest: bytes) -> bytes:
    """An ICMP echo message: request or reply, then identifier, sequence number and data."""
    return struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + rest)) + rest


def udp(source: bytes, destination: bytes, source_port: int, destination_port: int, data: bytes) -> bytes:
    """A UDP datagram with its checksum."""
    length = _UDP.size + len(data)
    pseudo_header = source + destination + struct.pack("!BBH", 0, IP_UDP, length)
    unsummed = _UDP.pack(source_port, destination_port, length, 0) + data
    # A sum of zero means that there is none; the other zero of one's complement stands for it.
    total = checksum(pseudo_header + unsummed) or 0xFFFF
    return _UDP.pack(source_port, destination_port, length, total) + data

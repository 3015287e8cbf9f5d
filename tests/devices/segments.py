"""TCP segments and UDP packets that are too long for the wire."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from vhostuser.frontend.net import NetHeader


def segment(version: int, ecn: bool, payload: int = 40_000) -> tuple[NetHeader, bytes]:
    """A TCP segment that is too long for the wire, with a pseudo-header's checksum only where it matters: nowhere."""
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 0x90 if ecn else 0x10, 100, 0, 0)
    if version == 4:
        inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + payload, 1, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
        total = sum(struct.unpack("!10H", inner))
        inner = inner[:10] + struct.pack("!H", 0xFFFF - total % 0xFFFF) + inner[12:]
    else:
        inner = struct.pack("!IHBB16s16s", 6 << 28, 20 + payload, 6, 64, bytes(16), b"\x20" * 16)
    link = bytes.fromhex("ffffffffffff 525400000001") + (b"\x08\x00" if version == 4 else b"\x86\xdd")
    frame = link + inner + tcp + bytes(i & 0xFF for i in range(payload))
    headers = 14 + len(inner) + 20
    kind = (1 if version == 4 else 4) | (0x80 if ecn else 0)
    return NetHeader(1, kind, headers, 1448, headers - 20, 16), frame


def datagram(macs: bytes, source: str, destination: str, port: int, payload: bytes) -> tuple[bytes, int]:
    """A UDP packet, however long, and the size of its headers; the checksum is that of the pseudo-header."""
    here, there = (ip_address(address).packed for address in (source, destination))
    size = 8 + len(payload)
    if len(here) == 4:
        start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 17, 0)
        inner = start[:10] + struct.pack("!H", 0xFFFF ^ fold(start + here + there)) + here + there
    else:
        inner = struct.pack("!IHBB", 6 << 28, size, 17, 64) + here + there
    partial = fold(here + there + struct.pack("!II", size, 17))
    udp = struct.pack("!HHHH", port, port, size, partial)
    frame = macs + (b"\x08\x00" if len(here) == 4 else b"\x86\xdd") + inner + udp + payload
    return frame, len(frame) - len(payload)


def fold(data: bytes) -> int:
    """The sum of 16-bit words in one's complement (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total

"""TCP segments that are too long for the wire."""

from __future__ import annotations

import struct

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

"""What a device writes into a driver's rings: used buffers that could be right, with everything that can be wrong.

Must not know: vhost-user messages, devices.

Layouts are written here once more, as in ``rings``, and for the same reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from vhostuser.fuzz.values import edge
from vhostuser.transcript.entries import Entry, Signalled, Wrote

_USED = struct.Struct("<II")  # id, len
_PACKED = struct.Struct("<QIHH")  # addr, len, id, flags
_WRAPS = (0x8080, 0x8080, 0x8080, 0, 0x80, 0x8000)  # AVAIL and USED as in the first round, in the second, and neither
_LENGTHS = (0, 1, 12, 60, 1514, 1526, 65562, 0xFFFFFFFF)
_MOST = 64  # entries that are written at once


def returned(random: Random, ring: int, num: int, packed: bool) -> Iterator[Entry]:
    """Give buffers back that may not be the driver's, and call it."""
    yield from (_packed if packed else _split)(random, ring, num)
    yield Signalled(f"call {ring}")


def _split(random: Random, ring: int, num: int) -> Iterator[Wrote]:
    place, count = f"used {ring}", random.choice((1, 2, min(num, _MOST)))
    entries = b"".join(_USED.pack(_id(random, num, 32), _length(random)) for _ in range(count))
    yield Wrote(place, 4, (entries,))
    index = random.choice((count, count, num, num + 1, 0x8000, 0xFFFF, edge(random, 16))) & 0xFFFF
    if random.random() < 0.2:  # there and gone again while the driver looks
        yield Wrote(place, 2, (_half(index), _half(edge(random, 16))), 0.02)
    else:
        yield Wrote(place, 2, (_half(index),))
    match random.randrange(6):
        case 0:
            yield Wrote(place, 4 + 8 * num, (_half(edge(random, 16)),))  # avail_event
        case 1:
            yield Wrote(place, 0, (_half(edge(random, 16)),))  # flags
        case 2:  # what the driver alone may write
            yield Wrote(f"descriptor {ring}", 16 * random.randrange(num), (random.randbytes(16),))


def _packed(random: Random, ring: int, num: int) -> Iterator[Wrote]:
    place, count = f"descriptor {ring}", random.choice((1, 2, min(num, _MOST)))
    begin = random.choice((0, 0, 0, random.randrange(num)))
    for slot in range(begin, min(begin + count, num)):
        entry = _PACKED.pack(edge(random, 64), _length(random), _id(random, num, 16), random.choice(_WRAPS))
        yield Wrote(place, 16 * slot, (entry,))
    if random.random() < 0.2:
        yield Wrote(f"used {ring}", 0, (_half(edge(random, 16)) + _half(edge(random, 16)),))


def _id(random: Random, num: int, width: int) -> int:
    return random.choice((random.randrange(num), random.randrange(num), num, num + 1, edge(random, width)))


def _length(random: Random) -> int:
    return random.choice(_LENGTHS) if random.random() < 0.7 else edge(random, 32)


def _half(number: int) -> bytes:
    return number.to_bytes(2, "little")

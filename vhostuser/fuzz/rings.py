"""What a driver puts into its rings: chains that could be right, with everything that can be wrong about them.

Must not know: vhost-user messages, devices.

Layouts are those of the virtio specification, written here once more and apart from both of the package's own rings:
a fuzzer that shares a mistake with what it tests cannot find it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from vhostuser.fuzz.stage import BUFFERS, DEVICE_PART, DRIVER_PART, MEMORY_SIZE, REGIONS, place
from vhostuser.fuzz.values import edge
from vhostuser.transcript.entries import Wrote

_SPLIT = struct.Struct("<QIHH")  # addr, len, flags, next
_PACKED = struct.Struct("<QIHH")  # addr, len, id, flags
_NEXT, _WRITE, _INDIRECT, _AVAIL, _USED = 1, 2, 4, 1 << 7, 1 << 15
_LENGTHS = (1, 12, 16, 60, 64, 512, 1526, 4096, 65562)
_MEMORY = "memory 0"


def filled(random: Random, ring: int, num: int, packed: bool) -> Iterator[Wrote]:
    """A ring's memory, as a driver leaves it that has made some chains available."""
    yield Wrote(_MEMORY, BUFFERS, (random.randbytes(256),))
    yield from (_packed if packed else _split)(random, place(ring), num)


def changed(random: Random, ring: int, num: int, packed: bool, seconds: float) -> Wrote:
    """Two versions of one place in a ring, one after the other while the device looks."""
    at = place(ring) + random.choice(
        (
            16 * random.randrange(max(num, 1)) + random.choice((0, 8, 12, 14)),
            DRIVER_PART + random.choice((0, 2, 4)),
            DEVICE_PART + random.choice((0, 2, 4)),
        )
    )
    length = random.choice((2, 2, 4, 8))
    return Wrote(_MEMORY, at, tuple(_number(random, length) for _ in range(2)), seconds)


def _number(random: Random, length: int) -> bytes:
    return edge(random, 8 * length).to_bytes(length, "little")


def _split(random: Random, at: int, num: int) -> Iterator[Wrote]:
    table = b"".join(_SPLIT.pack(*_buffer(random, at), _split_flags(random), _next(random, i, num)) for i in range(num))
    yield Wrote(_MEMORY, at, (table,))
    heads = [random.randrange(num) if random.random() < 0.9 else edge(random, 16) for _ in range(num)]
    index = random.randint(1, num) if random.random() < 0.8 else edge(random, 16)
    event = random.choice((0, index, edge(random, 16)))
    driver = struct.pack(f"<HH{num}HH", random.choice((0, 0, 1, edge(random, 16))), index, *heads, event)
    yield Wrote(_MEMORY, at + DRIVER_PART, (driver,))
    if random.random() < 0.2:
        yield Wrote(_MEMORY, at + DEVICE_PART, (_number(random, 2) + _number(random, 2),))


def _packed(random: Random, at: int, num: int) -> Iterator[Wrote]:
    ring = b"".join(_PACKED.pack(*_buffer(random, at), _id(random, num), _packed_flags(random)) for _ in range(num))
    yield Wrote(_MEMORY, at, (ring,))
    yield Wrote(_MEMORY, at + DRIVER_PART, (_number(random, 2) + _number(random, 2),))


def _buffer(random: Random, ring: int) -> tuple[int, int]:
    """Where a buffer lies and how long it is: mostly in memory, sometimes across a border, sometimes in the ring."""
    length = random.choice(_LENGTHS) if random.random() < 0.85 else edge(random, 32)
    match random.randrange(12):
        case 0:
            return edge(random, 64), length
        case 1:
            return ring + random.randrange(0, DEVICE_PART, 8), length
        case 2:
            return random.choice(REGIONS) + MEMORY_SIZE - random.choice((0, 1, 16, length)) & (1 << 64) - 1, length
        case 3:
            return ring, 16 * random.randrange(1, 9)  # as an indirect table it leads back to the ring
    return random.choice((BUFFERS, BUFFERS + 4096, REGIONS[1] + 64 * random.randrange(64))), length


def _split_flags(random: Random) -> int:
    return random.choices((0, _NEXT, _WRITE, _NEXT | _WRITE, _INDIRECT, edge(random, 16)), (6, 6, 5, 3, 2, 1))[0]


def _next(random: Random, index: int, num: int) -> int:
    return random.choices(((index + 1) % num, random.randrange(num), edge(random, 16)), (8, 2, 1))[0]


def _packed_flags(random: Random) -> int:
    wrap = random.choices((_AVAIL, _USED, _AVAIL | _USED, 0), (8, 1, 1, 1))[0]
    return wrap | _split_flags(random) & ~(_AVAIL | _USED)


def _id(random: Random, num: int) -> int:
    return random.randrange(num) if random.random() < 0.9 else edge(random, 16)

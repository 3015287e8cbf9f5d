"""What a driver gives a fuzzer of rings to begin with: rings as it fills them, words. It is the front-end's driver."""

from __future__ import annotations

from collections.abc import Iterator

from fuzzing.guest import EVENT_IDX, IN_ORDER, INDIRECT, PACKED, RAM, Shape, image_of
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DescriptorFlags
from vhostuser.frontend.split import DriverRing

_SIZE = 8


def filled(flags: int) -> tuple[Shape, bytes]:
    """A ring with four chains, and its memory: readable, writable, both; the third in a table if that is negotiated."""
    make = PackedDriverRing if flags & PACKED else DriverRing
    with (
        GuestRam(RAM) as ram,
        make(ram, 0, _SIZE, event_idx=bool(flags & EVENT_IDX), in_order=bool(flags & IN_ORDER)) as ring,
    ):
        plain, across = (ram.alloc(64), 64), (RAM[1][0] - 16, 32)
        ring.add([plain])
        ring.add((), [plain, across])
        ring.add([plain, across], [plain], indirect=bool(flags & INDIRECT))
        ring.add([across], [across])
        return Shape(flags, ring.size, ring.base, ring.desc_addr, ring.avail_addr, ring.used_addr), image_of(ram)


def _words() -> Iterator[tuple[str, bytes]]:
    for flag in DescriptorFlags:
        yield f"flag_{flag.name}", flag.to_bytes(2, "little")
    yield "flags_available", (DescriptorFlags.AVAIL | DescriptorFlags.NEXT).to_bytes(2, "little")
    yield "flags_used", (DescriptorFlags.AVAIL | DescriptorFlags.USED).to_bytes(2, "little")
    for begin, size in RAM:
        yield f"address_{begin:x}", begin.to_bytes(8, "little")
        yield f"end_{begin + size:x}", (begin + size - 1).to_bytes(8, "little")
    yield "address_that_wraps", (2**64 - 16).to_bytes(8, "little")
    for length in (0, 16, 16 * _SIZE, 4096, 2**32 - 1):
        yield f"length_{length}", length.to_bytes(4, "little")
    for number in (0, 1, _SIZE - 1, _SIZE, 2 * _SIZE, 0x7FFF, 0x8000, 0xFFFF):
        yield f"number_{number}", number.to_bytes(2, "little")


def words() -> dict[str, bytes]:
    """Descriptor flags, addresses at the borders of memory, lengths and indices, by name."""
    return dict(_words())

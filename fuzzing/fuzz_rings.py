"""A split or packed ring on memory whose content is the fuzzer's, turned by hand.

Input::

    shape    13 bytes, as ``guest.Shape`` has them: layout, size, position, addresses
    image    u16 size, and so many bytes for the beginning of memory: descriptors, rings, tables
    then, for each of up to 64 steps, a u8: its kind in the lower three bits, a number in the others
    0        take a burst of up to number + 1 chains, if none is in hand
    1        give so many chains of the burst back, and publish
    2        arm
    3        disarm
    4        the driver writes: address u16, value u16
    5        stop, and start at the position that was told
    6        adopt another memory table, an odd number: without the second region

A ring is set up or refused with PayloadError or MemoryAccessError, and then breaks with one of the faults or does not.
Findings are every other exception; a buffer that is not guest memory, or not of the kind that the device expects; a
write outside of the ring's own areas; and a ring that is broken and yields a chain all the same.
"""

from collections.abc import Iterator

from fuzzing import driver
from fuzzing.engine import fuzz
from fuzzing.feed import Feed
from fuzzing.guest import EVENT_IDX, IN_ORDER, INDIRECT, PACKED, RAM, REFUSED, Shape, guest, only_its_own, take
from vhostuser.errors import MemoryAccessError
from vhostuser.virtio.ring import Ring

STEPS = 64
TAKE, GIVE, ARM, DISARM, WRITE, RESTART, ADOPT = range(7)
words = driver.words


def one_input(data: bytes) -> None:
    """Set a ring up, then do one step after the other."""
    feed = Feed(data)
    shape = Shape.read(feed)
    guest().lay_out(feed.some(feed.number(2)))
    try:
        ring = shape.ring()
        with only_its_own(ring):
            ring.start(shape.base)
        for _ in range(STEPS):
            if feed:
                step(ring, feed)
    except REFUSED:
        return


def step(ring: Ring, feed: Feed) -> None:
    """One step. Raises PayloadError if the ring cannot go on."""
    word = feed.number(1)
    kind, number = word & 7, word >> 3
    if kind == WRITE:
        address, value = feed.number(2), feed.number(2)
        if address < sum(RAM[1]):  # in the two regions where the ring can be
            guest().ram.store_u16(address & ~1, value)
        return
    with only_its_own(ring):
        if kind == ADOPT:
            adopt(ring, bool(number & 1))
        elif kind == RESTART:
            ring.start(ring.stop())
        elif ring.runs():
            turn(ring, kind, number)


def turn(ring: Ring, kind: int, number: int) -> None:
    """A call of those that make a device's turn."""
    if kind == TAKE and not ring.taken:
        take(ring, number + 1)
    elif kind == GIVE and ring.taken:
        count = min(number, ring.taken)
        for i in range(count):
            ring.written[i] = min(number, ring.size[i])
        ring.give(count)
        ring.publish()
    elif kind == ARM:
        ring.arm()
    elif kind == DISARM:
        ring.disarm()


def adopt(ring: Ring, less: bool) -> None:
    """Another memory table. A ring that is not in it is broken until it adopts one that it is in."""
    try:
        ring.adopt(guest().less if less else guest().memory)
    except MemoryAccessError:
        assert ring.fault, "a ring outside of memory is not broken"
        assert not ring.runs()


def seeds() -> Iterator[bytes]:
    """Rings as drivers fill them, with turns that use all of it, and what may come between turns."""
    turns = bytes((TAKE | 7 << 3, GIVE | 2 << 3, ARM, DISARM, TAKE | 31 << 3, GIVE | 31 << 3, ARM))
    between = bytes((RESTART, TAKE, WRITE, 2, 1, 3, 0, ADOPT | 1 << 3, TAKE, ADOPT, RESTART, TAKE, ADOPT, TAKE))
    for flags in (0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT, IN_ORDER | INDIRECT):
        for layout in (0, PACKED):
            for expects in range(3):
                shape, image = driver.filled(flags | layout | expects << 4)
                yield seed(shape, image, turns)
                yield seed(shape, image, turns[:2] + between + turns)


def seed(shape: Shape, image: bytes, steps: bytes) -> bytes:
    """An input."""
    return shape.pack() + len(image).to_bytes(2, "little") + image + steps


if __name__ == "__main__":
    fuzz(one_input)

"""A record of requests in flight whose content is the fuzzer's, and the back-ends that come and go over it.

Input::

    region   mmap_offset u16, mmap_size u16, num_queues u16, queue_size u16, as in SET_INFLIGHT_FD
    content  u16 size, and so many bytes for the beginning of the region's file
    shape    13 bytes, as ``guest.Shape`` has them: layout, size, position, addresses
    image    u16 size, and so many bytes for the beginning of memory
    then, for each of up to 64 steps, a u8: its kind in the lower three bits, a number in the others
    0        take a burst of up to number + 1 chains, if none is in hand or waits to be published
    1        give so many chains of the burst back
    2        publish
    3        the back-end stops the ring, and another one starts it
    4        likewise, and chains in hand stay in flight
    5        the back-end is killed, and another one starts the ring

The first back-end starts the ring or refuses it with PayloadError or MemoryAccessError. Findings are every other
exception, a write outside of the ring's own areas, and a back-end that refuses what an earlier one left, or begins with
anything but what that one had taken and not published. A driver that offers a chain twice at a time is on its own.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cache
from itertools import product

from fuzzing import driver
from fuzzing.engine import fuzz
from fuzzing.feed import Feed
from fuzzing.guest import INDIRECT, PACKED, REFUSED, Shape, guest, image_of, only_its_own, take
from vhostuser.errors import PayloadError
from vhostuser.fds import OwnedFd
from vhostuser.virtio.inflight import Region, create, part_size
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.split import SplitRing

FILE_SIZE = 0x1000
STEPS = 64
TAKE, GIVE, PUBLISH, STOP, KEEP, KILL = range(6)
words = driver.words


@cache
def file() -> OwnedFd:
    """The region's file, made once."""
    return create(FILE_SIZE)


def one_input(data: bytes) -> None:
    """Have a back-end start a ring, and others after it."""
    feed = Feed(data)
    numbers = [feed.number(2) for _ in range(4)]
    os.pwrite(file().fileno(), feed.some(feed.number(2))[:FILE_SIZE].ljust(FILE_SIZE, b"\0"), 0)
    shape = Shape.read(feed)
    guest().lay_out(feed.some(feed.number(2)))
    try:
        region = Region(file().fileno(), *numbers)
    except PayloadError:
        return
    with closing(region):
        try:
            succession = Succession(shape, region)
        except REFUSED:
            return
        for word in feed.some(STEPS):
            if succession.recording and not succession.doubled:
                succession.step(word)


class Succession:
    """Back-ends over one record, and the ring of the present one.

    Attributes:
        unpublished: The heads of what was taken and not published, in order; the first `given` of them were given back.
    """

    def __init__(self, shape: Shape, region: Region) -> None:
        self.shape, self.region = shape, region
        self.base = shape.base
        self.unpublished: list[int] = []
        self.given = 0
        self.ring = self.boot()

    @property
    def recording(self) -> bool:
        """Whether there is a record; without one there are no promises."""
        return self.ring.recording()

    @property
    def doubled(self) -> bool:
        """Whether the driver has offered a chain twice: a split ring's record has one mark for both."""
        ring = self.ring
        if not isinstance(ring, SplitRing) or ring.record is None:
            return False
        marked = [ring.record.head(ring.published + i) for i in range(ring.record.beyond(ring.published))]
        return len(set(marked)) < len(marked)

    def boot(self) -> Ring:
        """The ring of a new back-end. Raises as a ring's start does."""
        part = self.region.part(0, self.shape.features)
        ring = self.shape.ring()
        with only_its_own(ring):
            ring.start(self.base, part)
        assert ring.owes() or not self.unpublished, f"chains {self.unpublished} are forgotten"
        return ring

    def step(self, word: int) -> None:
        """One step of the present back-end, or the next back-end."""
        kind, number = word & 7, word >> 3
        if kind in (STOP, KEEP, KILL):
            self.end(kind)
            self.ring = self.boot()
        elif self.ring.runs():
            with only_its_own(self.ring):
                self.turn(kind, number)

    def turn(self, kind: int, number: int) -> None:
        """A call of those that make a device's turn."""
        ring = self.ring
        if kind == TAKE and not ring.taken and not self.given:
            self.took(list(ring.head[: take(ring, number + 1)]))
        elif kind == GIVE and ring.taken:
            count = min(number, ring.taken)
            ring.give(count)
            self.given += count
        elif kind == PUBLISH:
            self.publish()

    def took(self, heads: list[int]) -> None:
        """Hold what was taken to what was taken before and not published."""
        known = self.unpublished[self.given : self.given + len(heads)]
        assert heads[: len(known)] == known, f"{known} were taken, and now {heads}"
        self.unpublished += heads[len(known) :]

    def publish(self) -> None:
        """Tell the driver of what was given back."""
        self.ring.publish()
        del self.unpublished[: self.given]
        self.given = 0

    def end(self, kind: int) -> None:
        """The end of a back-end. One that is not killed has published what it has given back."""
        if kind == KILL:
            self.given = 0
            return
        with only_its_own(self.ring):
            if self.ring.runs():
                self.publish()
            kept = self.ring.taken if kind == KEEP else 0
            self.base = self.ring.stop(keep=kind == KEEP)
        del self.unpublished[kept:]


def seeds() -> Iterator[bytes]:
    """A fresh record and one of a back-end that was killed, on rings as drivers fill them, with every end in turn."""
    turn = bytes((TAKE | 1 << 3, GIVE | 1 << 3, PUBLISH, TAKE | 2 << 3))
    one = bytes((TAKE, GIVE | 1 << 3, PUBLISH))
    courses = (
        b"".join(turn + bytes((end,)) for end in (KILL, STOP, KEEP, KILL)) + turn,
        one + bytes((TAKE, KILL)) + one + bytes((TAKE | 1 << 3, KILL)) + turn,  # taken over, then killed again
    )
    for layout, course in product((0, PACKED), courses):
        shape, image = driver.filled(layout | INDIRECT)
        for queue_size in (shape.num, 2 * shape.num):
            numbers = (0, part_size(shape.features, queue_size), 1, queue_size)
            yield seed(numbers, b"", shape, image, course)
            one_input(seed(numbers, b"", shape, image, turn))
            content = os.pread(file().fileno(), numbers[1], 0)
            yield seed(numbers, content, shape, image_of(guest().ram), course)


def seed(numbers: Iterable[int], content: bytes, shape: Shape, image: bytes, steps: bytes) -> bytes:
    """An input."""
    region = b"".join(number.to_bytes(2, "little") for number in (*numbers, len(content)))
    return region + content + shape.pack() + len(image).to_bytes(2, "little") + image + steps


if __name__ == "__main__":
    fuzz(one_input)

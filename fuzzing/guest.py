"""A guest's memory with the fuzzer's content, and a ring in it that no driver runs.

The ring is called by hand, call by call, which is possible in the interpreted edition alone. A harness sets a ring up
as the runtime does: what a front-end tells is judged in the session's terms first, then the ring is placed and started.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from fuzzing.feed import Feed
from vhostuser.errors import MemoryAccessError, PayloadError
from vhostuser.frontend.memory import GuestRam
from vhostuser.session.vrings import check_ring
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import BURST, EITHER, READABLE, SEGMENTS, WRITABLE
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.virtio.ring import FAULTS, Ring
from vhostuser.virtio.rings import make_ring
from vhostuser.wire.messages import VringAddr

if not hasattr(Ring, "take"):
    raise RuntimeError("a compiled ring's calls cannot be reached from Python: set VHOSTUSER_EDITION=interpreted")

RAM = ((0, 0x2000), (0x2000, 0x1000), (1 << 32, 0x1000))
"""Two regions that touch, and one far away; a ring can be in the first two."""
REFUSED = (PayloadError, MemoryAccessError)
"""What a ring answers to what it cannot be set up with."""
PACKED, EVENT_IDX, INDIRECT, IN_ORDER = 1, 2, 4, 8
EXPECTS = (EITHER, READABLE, WRITABLE)


class Guest:
    """Memory that is made once, and laid out anew for each input.

    Attributes:
        ram: As the driver sees it.
        memory: As the device sees it.
        less: The same without the second region.
        call: An eventfd, as the driver gives one.
    """

    def __init__(self) -> None:
        self.ram = GuestRam(RAM)
        self.memory = self._mapped(0, 1, 2)
        self.less = self._mapped(0, 2)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _mapped(self, *indices: int) -> GuestMemory:
        regions = (self.ram.regions[index] for index in indices)
        return GuestMemory(
            Mapping(
                region.fd.fileno(),
                region.guest_phys_addr,
                region.memory_size,
                region.userspace_addr,
                region.mmap_offset,
            )
            for region in regions
        )

    def lay_out(self, image: bytes) -> None:
        """Put bytes at the beginning of memory, and zeros everywhere else."""
        for region in self.ram.regions:
            region.bytes[:] = image[: region.memory_size].ljust(region.memory_size, b"\0")
            image = image[region.memory_size :]

    def content(self) -> list[bytes]:
        """All of memory, region by region."""
        return [bytes(region.bytes) for region in self.ram.regions]


def image_of(ram: GuestRam) -> bytes:
    """The bytes at the beginning of memory, up to the zeros at its end."""
    return b"".join(region.bytes for region in ram.regions).rstrip(b"\0")


@cache
def guest() -> Guest:
    """The memory of this process."""
    return Guest()


class Shape(NamedTuple):
    """What a front-end tells of a ring.

    Attributes:
        flags: ``PACKED``, ``EVENT_IDX``, ``INDIRECT``, ``IN_ORDER``; above them a number of ``EXPECTS``.
        num: Its size.
        base: Its position.
        descriptor, available, used: Guest-physical addresses of its areas.
    """

    flags: int
    num: int
    base: int
    descriptor: int
    available: int
    used: int

    @classmethod
    def read(cls, feed: Feed) -> Shape:
        """Take it from an input: u8, u16, u32, and three addresses of u16."""
        return cls(*(feed.number(size) for size in (1, 2, 4, 2, 2, 2)))

    def pack(self) -> bytes:
        """The part of an input that stands for it."""
        return struct.pack("<BHIHHH", *self)

    @property
    def features(self) -> int:
        """The acknowledged virtio features."""
        packed = VirtioFeature.RING_PACKED if self.flags & PACKED else 0
        return int(VirtioFeature.VERSION_1 | packed | (VirtioFeature.IN_ORDER if self.flags & IN_ORDER else 0))

    def ring(self) -> Ring:
        """The ring, placed in memory. Raises PayloadError or MemoryAccessError, as the runtime would."""
        told = guest().ram.userspace_addr
        descriptor, available, used = told(self.descriptor), told(self.available), told(self.used)
        addr = VringAddr(0, 0, descriptor, used, available, log=0)
        check_ring(0, self.num, self.base, addr, bool(self.flags & PACKED))
        ring = make_ring(self.features, 0, EXPECTS[(self.flags >> 4) % len(EXPECTS)])
        addresses = (descriptor, available, used)
        ring.configure(self.num, addresses, bool(self.flags & EVENT_IDX), bool(self.flags & INDIRECT))
        ring.adopt(guest().memory)
        ring.set_call(guest().call)
        return ring


@contextmanager
def only_its_own(ring: Ring) -> Iterator[None]:
    """Have a ring write in its own areas and nowhere else."""
    areas = [(ring.memory.guest_phys_addr(at), size) for at, size in ring.own_areas() if at]
    before = guest().content()
    yield
    for (begin, _), old, new in zip(RAM, before, guest().content(), strict=True):
        if old != new:
            assert blotted(old, begin, areas) == blotted(new, begin, areas), f"the ring wrote outside of {areas}"


def blotted(content: bytes, begin: int, areas: list[tuple[int, int]]) -> bytes:
    """A region's content from address `begin` on, without some (address, size) ranges."""
    rest = bytearray(content)
    for address, size in areas:
        offset = address - begin
        if 0 <= offset < len(content):
            rest[offset : offset + size] = bytes(size)
    return bytes(rest)


def take(ring: Ring, limit: int) -> int:
    """Take a burst and hold it to what a device relies on: how many chains it has."""
    taken = ring.take(limit)
    if taken < 0:
        assert ring.fault == taken
        assert taken in FAULTS, f"fault {taken} is unknown"
        assert not ring.taken, "a broken ring has a burst"
        return 0
    assert taken == ring.taken <= min(limit, BURST), f"{taken} chains, {limit} were wanted"
    for i in range(taken):
        check_chain(ring, i)
    return taken


def check_chain(ring: Ring, i: int) -> None:
    """Hold a chain to what a device relies on: its buffers are guest memory, and of the kind it expects."""
    first, segments, readable = ring.first[i], ring.segments[i], ring.readable[i]
    assert 0 <= readable <= segments <= SEGMENTS, f"{readable} of {segments} pieces are readable"
    assert ring.expects != READABLE or readable == segments, "a writable buffer for a device that reads"
    assert ring.expects != WRITABLE or readable == 0, "a readable buffer for a device that writes"
    pieces = [(ring.iov[2 * k], ring.iov[2 * k + 1]) for k in range(first, first + segments)]
    for at, size in pieces:
        assert size > 0, "an empty piece"
        inside = any(m.host_address <= at and at + size <= m.host_address + m.size for m in ring.memory.mappings)
        assert inside, f"{size} bytes at {at:#x} are not guest memory"
    assert ring.size[i] == sum(size for _, size in pieces) < 1 << 32
    if segments:  # a chain that is dropped has no place
        assert [ring.iov[2 * k + 1] for k in (first - 1, first + segments)] == [0, 0], "a spare slot is in use"

"""What a record of requests in flight says to a ring that starts (vhost-user, "Inflight I/O tracking").

Must not know where the record is mapped, nor guest memory: it reads a copy, and nothing is written here. The front-end
can write to the record at any time, and what crashed may have stopped between any two stores; so everything is checked
that is used, and what cannot be is refused by name. The layouts are told in ``split_record`` and ``packed_record``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from vhostuser.errors import PayloadError

#: What ``version`` says once a part is in use; 0 is one that nobody has written to.
VERSION = 1

_COUNTERS = 1 << 64


class SplitState(NamedTuple):
    """What is left of a split ring's requests.

    Attributes:
        batch: the heads that the driver was told of last, oldest first, if they may still be marked.
        marked: the heads in flight, oldest first.
        counter: the number for the next one.
        last: what the next link names.
        stray: marks that mean nothing.
    """

    batch: list[int]
    marked: list[int]
    counter: int
    last: int
    stray: list[int]


class Place(NamedTuple):
    """Where a packed ring goes on: a slot, and the wrap counter there."""

    slot: int
    wrap: bool


class Descriptor(NamedTuple):
    """A recorded descriptor."""

    addr: int
    length: int
    id: int
    flags: int


class PackedState(NamedTuple):
    """What is left of a packed ring's requests.

    Attributes:
        place: where the driver waits for the next used descriptor.
        free: the first free entry; -1: nobody has written to the record.
        chains: the entries of each chain in flight, oldest first.
        counter: the number for the next one.
        stray: marks that mean nothing.
    """

    place: Place
    free: int
    chains: list[list[int]]
    counter: int
    stray: list[int]


class Snapshot:
    """A copy of one ring's part of the region.

    Args:
        index: the ring.
        num: its size in descriptors.
        entries: how many the part has room for.
        unit: bytes of the header, and of an entry.
        data: the copy.
    """

    def __init__(self, index: int, num: int, entries: int, unit: int, data: bytes) -> None:
        self.index = index
        self.num = num
        self.entries = entries
        self._unit = unit
        self._data = data

    def header(self, offset: int, layout: str) -> int:
        """A number of the header; `layout` is a letter of ``struct``."""
        return int(struct.unpack_from("=" + layout, self._data, offset)[0])

    def entry(self, entry: int, offset: int, layout: str) -> int:
        """A number of an entry. Raises PayloadError for an entry that is not there."""
        if entry >= self.entries:
            raise self.wrong(f"entry {entry} is not below {self.entries}")
        return self.header(self._unit * (entry + 1) + offset, layout)

    def marked(self) -> list[int]:
        """The entries that are marked as in flight."""
        marks = self._data[self._unit :: self._unit]
        return [entry for entry in range(self.entries) if marks[entry]]

    def in_order(self, entries: list[int]) -> list[int]:
        """Entries in the order in which their chains were taken."""
        return sorted(entries, key=lambda entry: (self.entry(entry, 8, "Q"), entry))

    def next_counter(self, ordered: list[int]) -> int:
        """The number after that of the last of these."""
        return (self.entry(ordered[-1], 8, "Q") + 1) % _COUNTERS if ordered else 0

    def in_use(self) -> bool:
        """Whether anybody has written to it.

        Raises:
            PayloadError: it is not laid out as we know it, or for another queue size.
        """
        features, version, desc_num = self.header(0, "Q"), self.header(8, "H"), self.header(10, "H")
        if version == 0:
            return False
        if version != VERSION or features:
            raise self.wrong(f"version {version}, features {features:#x}; known is version {VERSION} without any")
        if desc_num != self.entries:
            raise self.wrong(f"desc_num {desc_num} is not its queue_size {self.entries}")
        return True

    def wrong(self, what: str) -> PayloadError:
        """An error about it."""
        return PayloadError(f"vring {self.index}: inflight region: {what}", rule="VIO-INFLIGHT-6")


def read_split(found: Snapshot, used: int) -> SplitState:
    """What is left, for a ring whose used index is `used`.

    Raises:
        PayloadError: the record contradicts itself or the ring.
    """
    if not found.in_use():
        return SplitState([], [], 0, 0, found.marked())
    batch = _last_split_batch(found, used)
    done = set(batch)
    marked = found.in_order([head for head in found.marked() if head not in done])
    for head in marked:
        _check_head(found, head)
    return SplitState(batch, marked, found.next_counter(marked), found.header(12, "H"), [])


def _last_split_batch(found: Snapshot, used: int) -> list[int]:
    recorded = found.header(14, "H")
    count = (used - recorded) & 0xFFFF
    if count > found.num:
        raise found.wrong(f"from used_idx {recorded} to {used} in the ring are more than its {found.num} descriptors")
    batch: dict[int, None] = {}  # in the order of the links, which is the newest first
    head = found.header(12, "H")
    for _ in range(count):
        _check_head(found, head)
        if head in batch:
            raise found.wrong(f"head {head} is in the last batch twice")
        batch[head] = None
        head = found.entry(head, 6, "H")
    return list(reversed(batch))


def _check_head(found: Snapshot, head: int) -> None:
    if head >= found.num:
        raise found.wrong(f"head {head} is not below the ring's size {found.num}")


def read_packed(found: Snapshot, fresh: Place, is_available: Callable[[Place], bool]) -> PackedState:
    """What is left.

    Args:
        found: the record.
        fresh: where the ring goes on if the record was never used.
        is_available: whether the slot at a place is still as the driver made it available.

    Raises:
        PayloadError: the record contradicts itself or the ring.
    """
    marked = found.marked()
    if not found.in_use():
        return PackedState(fresh, -1, [], 0, marked)
    place, free, done = _last_packed_batch(found, is_available)
    left = [entry for entry in marked if entry not in done]
    if free in left and sum(found.entry(entry, 6, "H") for entry in left) != found.entries:
        left.remove(free)  # it was being recorded, and is still in the ring; a full list of free entries has no head
    left = found.in_order(left)
    stray = sorted(set(marked) - set(left))
    return PackedState(place, free, _chains(found, left), found.next_counter(left), stray)


def _last_packed_batch(found: Snapshot, is_available: Callable[[Place], bool]) -> tuple[Place, int, set[int]]:
    """Where the ring goes on, the first free entry, and the first entries of what the driver knows of already."""
    new = Place(found.header(16, "H"), bool(found.header(20, "B")))
    old = Place(found.header(18, "H"), bool(found.header(21, "B")))
    for slot in (new.slot, old.slot):
        if slot >= found.num:
            raise found.wrong(f"used_idx {slot} is not below the ring's size {found.num}")
    if new == old or is_available(old):
        return old, found.header(14, "H"), set()
    moved = new.slot - old.slot + (found.num if new.wrap != old.wrap else 0)
    if not 0 < moved <= found.num:
        raise found.wrong(f"no batch leads from {old} to {new}")
    done: set[int] = set()
    entry = found.header(12, "H")
    while moved > 0:
        span = found.entry(entry, 6, "H")
        if entry in done or not 0 < span <= moved:
            raise found.wrong(f"entry {entry}, of {span} descriptors, is not in a batch from {old} to {new}")
        done.add(entry)
        moved -= span
        entry = found.entry(found.entry(entry, 4, "H"), 2, "H")
    return new, found.header(12, "H"), done


def _chains(found: Snapshot, heads: list[int]) -> list[list[int]]:
    """The entries of each chain, none of them in two chains, and no more than the ring has descriptors."""
    chains: list[list[int]] = []
    seen: set[int] = set()
    for head in heads:
        span, last, chain = found.entry(head, 6, "H"), found.entry(head, 4, "H"), [head]
        while len(chain) < span and len(seen) + len(chain) < found.num:
            chain.append(found.entry(chain[-1], 2, "H"))
        members = set(chain)
        if not len(chain) == len(members) == span or members & seen or chain[-1] != last:
            raise found.wrong(f"the {span} entries from {head} to {last} are no chain in a ring of {found.num}")
        seen |= members
        chains.append(chain)
    if len(seen) > found.num:
        raise found.wrong(f"{len(seen)} descriptors are in flight in a ring of {found.num}")
    return chains


def descriptor_of(found: Snapshot, entry: int) -> Descriptor:
    """A recorded descriptor."""
    fields = ((24, "Q"), (20, "I"), (16, "H"), (18, "H"))
    return Descriptor(*(found.entry(entry, offset, layout) for offset, layout in fields))

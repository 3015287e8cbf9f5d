"""The IOTLB: which I/O virtual addresses (IOVAs) a driver may use, and where they are in guest memory.

Must not know messages, nor who answers a miss.

An :class:`IotlbTable` is a snapshot, as a memory table is: it never changes, each update or invalidation makes a new
one, and each queue group adopts it between two turns. So when all have, no withdrawn translation is in use any more.

For the rings it is two address tables, of what the device may read and of what it may write, so that permissions cost
the packet path nothing: a range that is not in the table is a ``MISS``. An entry keeps the front-end's address from
which its place in this process follows, so that it survives a new memory table that still has the memory.

The packet path finds a ring's areas by one address each. A Linux guest gives a ring pages as they come, and only up to
256 descriptors is each area within one; of a larger ring the IOTLB tells the pieces, and a ``view`` puts them together.

The front-end is trusted to keep the table, not to keep it small: there are at most ``IOTLB_ENTRIES`` in at most
``IOTLB_PIECES`` pieces, and the oldest go first. What has gone is asked for again when it is needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from vhostuser.errors import MemoryAccessError, PayloadError
from vhostuser.virtio.layout import IOMMU_READ, IOMMU_WRITE, MISS
from vhostuser.virtio.memory import GuestMemory, table_of
from vhostuser.virtio.view import Pieces

IOTLB_ENTRIES = 2048  # of one connection
IOTLB_PIECES = 8192  # of all its entries together: one may lie in as many regions as there are
_LIMIT = 1 << 64


class IotlbMissError(MemoryAccessError):
    """Part of a ring lies at an address that is not translated yet.

    Attributes:
        iova: the first such address.
        perm: the permission that is needed there.
    """

    def __init__(self, iova: int, perm: int) -> None:
        super().__init__(f"IOVA {iova:#x} is not in the IOTLB")
        self.iova = iova
        self.perm = perm


class Entry(NamedTuple):
    """One translation.

    Attributes:
        iova: its first address as the driver knows it.
        size: bytes.
        uaddr: the first address as the front-end knows it.
        perm: ``IOMMU_READ``, ``IOMMU_WRITE``, or both.
        age: how many updates came before it.
        pieces: triples, one behind the other: IOVA, bytes, and where they lie in this process.
    """

    iova: int
    size: int
    uaddr: int
    perm: int
    age: int
    pieces: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.iova + self.size


class IotlbTable:
    """An immutable table of translations over a memory table.

    Attributes:
        memory: the memory table.
        entries: by IOVA; no two overlap.
        readable: where the device may read, by IOVA.
        writable: where it may write.
    """

    def __init__(self, memory: GuestMemory, entries: Iterable[Entry] = (), updates: int = 0) -> None:
        self.memory = memory
        self._updates = updates
        self.entries = list(entries)
        self.readable = self._table(IOMMU_READ)
        self.writable = self._table(IOMMU_WRITE)

    def _table(self, perm: int) -> GuestMemory:
        return table_of(array("Q", [n for entry in self.entries if entry.perm & perm for n in entry.pieces]), MISS)

    def updated(self, iova: int, size: int, uaddr: int, perm: int) -> IotlbTable:
        """This table with one more translation. It replaces all that it overlaps: the front-end has the last word.

        Raises:
            PayloadError: an empty range, a wrap past 2^64, or memory that is in no region.
        """
        check_range(iova, size)
        if uaddr + size > _LIMIT:
            raise PayloadError(f"IOTLB_MSG: uaddr {uaddr:#x} + size {size:#x} wraps past 2^64", rule="VU-IOTLB-4")
        pieces = _pieces_of(self.memory, iova, size, uaddr)
        if not pieces:
            words = f"IOTLB_MSG: uaddr {uaddr:#x}: its {size:#x} bytes are not all in memory regions"
            raise PayloadError(words, rule="VU-IOTLB-4")
        first, last = self._overlap(iova, size)
        entries = self.entries.copy()
        entries[first:last] = [Entry(iova, size, uaddr, perm, self._updates, pieces)]
        return IotlbTable(self.memory, _latest(entries), self._updates + 1)

    def invalidated(self, iova: int, size: int) -> IotlbTable:
        """This table without the translations of which some part is in a range.

        Raises:
            PayloadError: an empty range, or a wrap past 2^64.
        """
        check_range(iova, size)
        first, last = self._overlap(iova, size)
        return IotlbTable(self.memory, self.entries[:first] + self.entries[last:], self._updates)

    def over(self, memory: GuestMemory) -> IotlbTable:
        """The same translations over another memory table, as far as it has what they lead to."""
        moved = (
            entry._replace(pieces=_pieces_of(memory, entry.iova, entry.size, entry.uaddr)) for entry in self.entries
        )
        return IotlbTable(memory, _latest([entry for entry in moved if entry.pieces]), self._updates)

    def translates(self, iova: int, perm: int) -> bool:
        """Whether the device may use a byte so."""
        first, last = self._overlap(iova, 1)
        return first < last and not perm & ~self.entries[first].perm

    def ring_pieces(self, iova: int, length: int, perm: int, name: str) -> Pieces:
        """Where part of a ring lies in this process: one piece, if its pages lie side by side.

        Raises:
            IotlbMissError: some of it is not translated yet.
            MemoryAccessError: some of it may not be used so.
        """
        pieces: list[tuple[int, int]] = []
        at, end = iova, iova + length
        while at < end:
            first, last = self._overlap(at, 1)
            if first == last:
                raise IotlbMissError(at, perm)
            entry = self.entries[first]
            if perm & ~entry.perm:
                words = f"{name} at IOVA {at:#x}: permission {perm} is needed, it has {entry.perm}"
                raise MemoryAccessError(words, rule="VU-IOTLB-7")
            for start, size, host in zip(*[iter(entry.pieces)] * 3, strict=True):
                if not start <= at < min(start + size, end):
                    continue
                place, piece = host + at - start, min(start + size, end) - at
                if pieces and sum(pieces[-1]) == place:
                    begin, before = pieces.pop()
                    pieces.append((begin, before + piece))
                else:
                    pieces.append((place, piece))
                at += piece
        return tuple(pieces)

    def _overlap(self, iova: int, size: int) -> tuple[int, int]:
        """The slice of the entries that have a part in a range."""
        first = bisect_left(self.entries, iova + 1, key=lambda entry: entry.end)
        return first, bisect_left(self.entries, iova + size, lo=first, key=lambda entry: entry.iova)


def _latest(entries: list[Entry]) -> list[Entry]:
    """As many of some entries as a table may have, the latest."""
    pieces = sum(len(entry.pieces) // 3 for entry in entries)
    if len(entries) <= IOTLB_ENTRIES and pieces <= IOTLB_PIECES:
        return entries
    kept = sorted(entries, key=lambda entry: entry.age, reverse=True)
    while len(kept) > IOTLB_ENTRIES or pieces > IOTLB_PIECES:
        pieces -= len(kept.pop().pieces) // 3
    return sorted(kept)


def check_range(iova: int, size: int) -> None:
    """Judge a range of IOVAs.

    Raises:
        PayloadError: it is empty, or wraps past 2^64.
    """
    if size == 0:
        raise PayloadError(f"IOTLB_MSG: size is 0 (iova {iova:#x})", rule="VU-IOTLB-4")
    if iova + size > _LIMIT:
        raise PayloadError(f"IOTLB_MSG: iova {iova:#x} + size {size:#x} wraps past 2^64", rule="VU-IOTLB-4")


def _pieces_of(memory: GuestMemory, iova: int, size: int, uaddr: int) -> tuple[int, ...]:
    """Where a range of the front-end's addresses lies, region by region; nothing if some of it is in none."""
    pieces: list[int] = []
    at, end = uaddr, uaddr + size
    for mapping in sorted(memory.mappings, key=lambda mapping: mapping.userspace_addr):
        offset = at - mapping.userspace_addr
        if 0 <= offset < mapping.memory_size and at < end:
            piece = min(end - at, mapping.memory_size - offset)
            pieces += iova + at - uaddr, piece, mapping.host_address + offset
            at += piece
    return tuple(pieces) if at == end else ()

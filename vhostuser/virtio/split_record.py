"""What a split ring records of its requests in flight (vhost-user, "Inflight I/O tracking").

Must not know how a chain is walked or used. Its part of the region::

    header   features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16
    entry    inflight u8, padding, next u16 at 6, counter u64 at 8; entry i is about the chain whose head is i

**While it runs.** A chain that is taken is marked, with a number that says in which order. Chains that are published
are linked first, then ``used.idx`` tells the driver, then the marks go, and last ``used_idx`` repeats what the driver
was told. Whoever comes after a crash can tell three cases apart: the driver knows nothing of the last batch, and all of
it is marked; it knows, which ``used_idx`` does not say yet, and the links name the batch; or all is done.

**When it starts again** the marks that are left are the chains to be done once more, in the order of their numbers.
We use chains in the order in which they came, so the ring goes back to the used index, and finds at the next places
the heads that were marked in place of what the avail ring says, which may have been overwritten since. A chain that is
put back into the ring stays marked in the same way, and costs nothing when it is taken again.

So place `p` of the avail ring and place `p` of the used ring are always about the same chain here, and ``heads`` keeps
which one, from the moment it is marked to the moment it is published.
"""

from __future__ import annotations

from array import array

import cython

from vhostuser.errors import PayloadError
from vhostuser.virtio.inflight import Part
from vhostuser.virtio.memory import gather
from vhostuser.virtio.recovery import VERSION, Snapshot, read_split

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.primitives import (
        fence,
        load_u16,
        store_release_u16,
        store_u8,
        store_u16,
        store_u64,
    )

_UNIT = 16  # bytes of the header, and of an entry


class SplitRecord:
    """One split ring's part of the inflight region, from its start to its stop.

    Attributes:
        owed: how many of the marked chains were taken by a back-end before us.
    """

    def __init__(self, index: int, part: Part, num: int) -> None:
        """A record for ring `index` of `num` descriptors.

        Raises:
            PayloadError: the part is for a smaller ring.
        """
        if num > part.entries:
            words = f"vring {index}: size {num} is above the inflight region's queue_size {part.entries}"
            raise PayloadError(words, rule="VIO-INFLIGHT-6")
        self.index = index
        self.at = part.address
        self.part = part
        self.num = num
        heads = array("H", bytes(2 * num))
        self.heads = heads
        self.heads_address = heads.buffer_info()[0]
        self.recorded = self.owed = 0
        self.last = 0
        self.counter = 0

    # ---- the control side ------------------------------------------------------------------------------------------

    def resume(self, used: int) -> None:
        """Take over what the region holds for a ring whose used index is `used`, which is where it goes on.

        Raises:
            PayloadError: the region contradicts itself or the ring.
        """
        size = _UNIT * (self.part.entries + 1)
        found = Snapshot(self.index, self.num, self.part.entries, _UNIT, gather([(self.part.address, size)], size))
        state = read_split(found, used)
        for entry in state.stray:
            self.clear(entry)
        self.last = state.last
        self.keep(used - len(state.batch), state.batch)
        self.open(used - len(state.batch), used)
        self.keep(used, state.marked)
        self.recorded = (used + len(state.marked)) & 0xFFFF
        self.owed = len(state.marked)
        self.counter = state.counter

    def clear(self, entry: int) -> None:
        """Take a mark away."""
        at: cython.ulonglong = self.at + _UNIT + _UNIT * entry
        with cython.nogil:
            store_u8(at, 0)

    def open(self, old: cython.int, new: cython.int) -> None:
        """Do what a crash left undone of the batch from place `old` up to `new`, and write the header."""
        entries: cython.int = self.part.entries
        version: cython.int = VERSION
        with cython.nogil:
            self.finish(old, new)
            store_u16(self.at + 12, self.last)
            store_u64(self.at, 0)
            store_u16(self.at + 10, entries)
            store_release_u16(self.at + 8, version)

    def keep(self, place: int, heads: list[int]) -> None:
        """Note which chains belong to the places from `place` on."""
        for i, head in enumerate(heads):
            self.heads[(place + i) & (self.num - 1)] = head

    def forget(self, next_avail: cython.int, in_hand: cython.int) -> None:
        """Take the marks away from chains that were put back: the ring stops at `next_avail` and has them again.

        The `in_hand` chains before that place stay in flight. The newest first, so that the marks are those of the
        oldest chains at every moment. What was resumed and not taken again stays marked: the avail ring may not have
        it any more.
        """
        left: cython.int = self.beyond(next_avail) - max(self.owed - in_hand, 0)
        with cython.nogil:
            while left > 0:
                left -= 1
                self.recorded = (self.recorded - 1) & 0xFFFF
                store_u8(self.entry(self.head(self.recorded)), 0)

    # ---- the ring's turn -------------------------------------------------------------------------------------------

    def fetch(self, avail: cython.ulonglong, next_avail: cython.int, limit: cython.int) -> cython.ulonglong:
        """Mark the next `limit` chains, as far as they are new; where their heads can be read, each once.

        `avail` is where the avail ring's entries lie. A head that cannot be is kept for the ring to find.
        """
        ahead: cython.int = self.beyond(next_avail)
        place: cython.int
        head: cython.uint
        while ahead < limit:
            place = (next_avail + ahead) & (self.num - 1)
            head = load_u16(avail + 2 * place)
            self.heads[place] = head
            if head >= self.num:
                break
            store_u64(self.entry(head) + 8, self.counter)
            store_u8(self.entry(head), 1)
            self.counter += 1
            ahead += 1
            self.recorded = (next_avail + ahead) & 0xFFFF
        return self.heads_address

    def publish(self, idx: cython.ulonglong, old: cython.int, new: cython.int) -> None:
        """Tell the driver, at address `idx`, of the chains from place `old` up to `new`."""
        place: cython.int = old
        head: cython.uint
        while place != new:
            head = self.head(place)
            store_u16(self.entry(head) + 6, self.last)
            store_u16(self.at + 12, head)
            self.last = head
            place = (place + 1) & 0xFFFF
        store_release_u16(idx, new)
        fence()  # the marks stay until then
        self.finish(old, new)
        self.owed = max(self.owed - ((new - old) & 0xFFFF), 0)

    def finish(self, old: cython.int, new: cython.int) -> None:
        """The driver knows of the chains from place `old` up to `new`: they are not in flight any more."""
        place: cython.int = old & 0xFFFF
        while place != new:
            store_u8(self.entry(self.head(place)), 0)
            place = (place + 1) & 0xFFFF
        store_u16(self.at + 14, new)

    def beyond(self, next_avail: cython.int) -> cython.int:
        """How many chains from place `next_avail` on are marked."""
        return (self.recorded - next_avail) & 0xFFFF

    def head(self, place: cython.int) -> cython.uint:
        """Which chain belongs to a place."""
        return self.heads[place & (self.num - 1)]

    def entry(self, head: cython.uint) -> cython.ulonglong:
        """Where the entry of a chain lies."""
        return self.at + 16 + 16 * cython.cast(cython.ulonglong, head)

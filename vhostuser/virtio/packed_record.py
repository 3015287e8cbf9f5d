"""What a packed ring records of its requests in flight (vhost-user, "Inflight I/O tracking").

Must not know how a chain is walked or used. Its part of the region::

    header   features u64, version u16, desc_num u16, free_head u16, old_free_head u16, used_idx u16, old_used_idx u16,
             used_wrap_counter u8, old_used_wrap_counter u8
    entry    inflight u8, next u16 at 2, last u16 at 4, num u16 at 6, counter u64 at 8, then a copy of a descriptor:
             id u16 at 16, flags u16 at 18, len u32 at 20, addr u64 at 24

A used descriptor overwrites the ring, so the record has a copy of every descriptor in flight: a chain takes as many
entries as it has slots from a list of free ones, and its first entry stands for it.

**While it runs.** A chain that is taken is copied, then marked, then its entries leave the free list. What is about to
be published goes back to the list and is counted in ``used_idx``; then the first used descriptor's flags tell the
driver; then the marks go, and the ``old_`` fields repeat the others. Whoever comes after a crash looks at that
descriptor: if it is available no more, the driver knows, and the rest is done for the crashed one; if it is, the
``old_`` fields are where things stand. A used index and its wrap counter are useless without each other, and stand side
by side with the old ones: all four change with one store of eight bytes.

**When it starts again** the ring goes on where the driver waits for the next used descriptor. The slots from there on
belong to the chains in flight, and the driver does not look at them; so the copies are written there once more, in the
order in which the chains were taken, each as available, over whatever the crashed one had begun to use. From then on
nothing is special about them but that they are marked already, as after a chain was put back into the ring.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

import cython

from vhostuser.errors import PayloadError
from vhostuser.virtio.inflight import Part
from vhostuser.virtio.memory import gather
from vhostuser.virtio.recovery import VERSION, PackedState, Place, Snapshot, descriptor_of, read_packed

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE
    from vhostuser.virtio.primitives import (
        fence,
        load_u16,
        load_u32,
        load_u64,
        store_release_u16,
        store_u8,
        store_u16,
        store_u32,
        store_u64,
    )

_UNIT = 32  # bytes of the header, and of an entry


class PackedRecord:
    """One packed ring's part of the inflight region, from its start to its stop.

    Attributes:
        known: how many chains, from the next to be used on, are recorded.
        owed: how many of those were taken by a back-end before us.
        unused: whether nobody had written to the region before.
    """

    def __init__(self, index: int, part: Part, num: int, desc: int) -> None:
        """A record for ring `index` of `num` descriptors, which lies at address `desc`.

        Raises:
            PayloadError: the part is for a smaller ring.
        """
        if num > part.entries:
            words = f"vring {index}: size {num} is above the inflight region's queue_size {part.entries}"
            raise PayloadError(words, rule="VIO-INFLIGHT-6")
        self.index = index
        self.part = part
        self.at = part.address
        self.entries = part.entries
        self.num = num
        self.desc = desc
        self.link = array("H", bytes(2 * part.entries))  # our own copy of the free list
        self.free = 0
        self.old_used, self.old_wrap = 0, 0
        self.room = part.entries
        self.heads = array("H", bytes(2 * part.entries))  # the recorded chains, in a circle from `first` on
        self.tails = array("H", bytes(2 * part.entries))
        self.spans = array("H", bytes(2 * part.entries))
        self.first = self.known = self.owed = 0
        self.counter = 0
        self.unused = True

    # ---- the control side ------------------------------------------------------------------------------------------

    def resume(self, fresh: Place) -> Place:
        """Take over what the region holds: where the ring goes on, which is at `fresh` if it holds nothing.

        Raises:
            PayloadError: the region contradicts itself or the ring.
        """
        size = _UNIT * (self.entries + 1)
        found = Snapshot(self.index, self.num, self.entries, _UNIT, gather([(self.part.address, size)], size))
        state = read_packed(found, fresh, self.is_available)
        for entry in state.stray:
            self.clear(entry)
        self.unused = state.free < 0
        if not self.unused:  # the links of the last batch have done their duty only then
            self.free = state.free
            self.open(state.place.slot, state.place.wrap)
        self.restore(found, state)
        self.owed = self.known
        self.list_free({entry for chain in state.chains for entry in chain})
        self.open(state.place.slot, state.place.wrap)
        self.counter = state.counter
        return state.place

    def is_available(self, place: Place) -> bool:
        """Whether the slot at a place is still as the driver made it available: not used, nor anything after that."""
        at: cython.ulonglong = self.desc + 16 * cython.cast(cython.ulonglong, place.slot)
        flags: cython.int
        with cython.nogil:
            flags = load_u16(at + 14)
        return bool(flags & DESC_AVAIL) == place.wrap != bool(flags & DESC_USED)

    def clear(self, entry: cython.int) -> None:
        """Take a mark away."""
        with cython.nogil:
            store_u8(self.entry(entry), 0)

    def restore(self, found: Snapshot, state: PackedState) -> None:
        """Write the chains in flight back into the ring, and note them as recorded."""
        slot, wrap = state.place
        for chain in state.chains:
            self.note(chain[0], chain[len(chain) - 1], len(chain))
            for entry, following in pairwise(chain):
                self.link[entry] = following  # so they stand in the region, and go back to the free list
            for i, entry in enumerate(chain):
                addr, length, name, flags = descriptor_of(found, entry)
                flags &= DESC_WRITE | DESC_INDIRECT
                flags |= (DESC_NEXT if i + 1 < len(chain) else 0) | (DESC_AVAIL if wrap else DESC_USED)
                self.put(slot, addr, length, name, flags)
                slot += 1
                if slot == self.num:
                    slot, wrap = 0, not wrap

    def put(
        self, slot: cython.int, addr: cython.ulonglong, length: cython.uint, name: cython.int, flags: cython.int
    ) -> None:
        """Write a descriptor into the ring."""
        at: cython.ulonglong = self.desc + 16 * cython.cast(cython.ulonglong, slot)
        with cython.nogil:
            store_u64(at, addr)
            store_u32(at + 8, length)
            store_u16(at + 12, name)
            store_u16(at + 14, flags)

    def list_free(self, taken: set[int]) -> None:
        """Link the entries that no chain has."""
        following = 0
        for entry in reversed(range(self.entries)):
            if entry not in taken:
                self.set_link(entry, following)
                following = entry
        self.free = following

    def set_link(self, entry: cython.int, following: cython.int) -> None:
        """Write one link of the free list."""
        self.link[entry] = following
        with cython.nogil:
            store_u16(self.entry(entry) + 2, following)

    def open(self, slot: cython.int, wrap: cython.bint) -> None:
        """Write the header, its version last."""
        entries: cython.int = self.entries
        version: cython.int = VERSION
        with cython.nogil:
            store_u16(self.at + 12, self.free)
            self.settle(slot, wrap)
            store_u64(self.at, 0)
            store_u16(self.at + 10, entries)
            store_release_u16(self.at + 8, version)

    def forget(self, in_hand: cython.int) -> None:
        """Take the marks away from all but the first `in_hand` chains: they were put back, and the ring stops.

        The newest first, so that the marks are those of the oldest chains at every moment.
        """
        with cython.nogil:
            while self.known > in_hand:
                self.known -= 1
                self.release(self.circle(self.known))
                store_u8(self.entry(self.free), 0)
                store_u16(self.at + 14, self.free)

    # ---- the ring's turn -------------------------------------------------------------------------------------------

    def add(self, slot: cython.int, span: cython.int) -> None:
        """Record a chain of `span` descriptors, the first in `slot`.

        They are read once more for that. A driver that changed them meanwhile, which it must not, gets what it wrote
        then, checked like anything else, and only after a crash. If there is no room it changed what was put back.
        """
        head: cython.int = self.free
        tail: cython.int = head
        at: cython.ulonglong
        source: cython.ulonglong
        if span > self.room:
            return
        for _ in range(span):
            tail = self.free
            at = self.entry(tail)
            source = self.desc + 16 * cython.cast(cython.ulonglong, slot)
            store_u64(at + 24, load_u64(source))
            store_u32(at + 20, load_u32(source + 8))
            store_u16(at + 16, load_u16(source + 12))
            store_u16(at + 18, load_u16(source + 14))
            self.free = self.link[tail]
            slot = slot + 1 if slot + 1 < self.num else 0
        at = self.entry(head)
        store_u16(at + 4, tail)
        store_u16(at + 6, span)
        store_u64(at + 8, self.counter)
        store_u8(at, 1)
        store_u16(self.at + 12, self.free)
        store_u16(self.at + 14, self.free)
        self.counter += 1
        self.note(head, tail, span)

    def note(self, head: cython.int, tail: cython.int, span: cython.int) -> None:
        """Remember a recorded chain."""
        k: cython.int = self.circle(self.known)
        self.heads[k] = head
        self.tails[k] = tail
        self.spans[k] = span
        self.known += 1
        self.room -= span

    def publish(
        self, place: cython.ulonglong, flags: cython.int, count: cython.int, used: cython.int, wrap: cython.bint
    ) -> None:
        """Tell the driver of the first `count` chains, by `flags` at address `place`, so that a crash can be told.

        `used` and `wrap` are where the ring goes on then.
        """
        i: cython.int
        count = min(count, self.known)
        for i in range(count):
            self.release(self.circle(i))
        self.store_used(used, wrap)
        store_release_u16(place, flags)
        fence()  # the marks stay until then
        for i in range(count):
            store_u8(self.entry(self.heads[self.circle(i)]), 0)
        self.settle(used, wrap)
        self.first = self.circle(count)
        self.known -= count
        self.owed = max(self.owed - count, 0)

    def settle(self, used: cython.int, wrap: cython.bint) -> None:
        """Nothing is left undone of the last batch, behind which the ring goes on."""
        store_u16(self.at + 14, self.free)
        self.old_used = used
        self.old_wrap = wrap
        self.store_used(used, wrap)

    def store_used(self, used: cython.int, wrap: cython.int) -> None:
        """Store where the ring goes on, beside where it went on before the batch: two indices, two wrap counters."""
        places: cython.ulonglong = used
        old: cython.ulonglong = self.old_used
        wraps: cython.ulonglong = wrap | self.old_wrap << 8
        store_u64(self.at + 16, places | old << 16 | wraps << 32)

    def release(self, k: cython.int) -> None:
        """Give the entries of the chain at place `k` of the circle back to the free list."""
        self.link[self.tails[k]] = self.free
        store_u16(self.entry(self.tails[k]) + 2, self.free)
        self.free = self.heads[k]
        store_u16(self.at + 12, self.free)
        self.room += self.spans[k]

    def circle(self, i: cython.int) -> cython.int:
        """The place of the `i`-th recorded chain; as many as there are entries is once around."""
        i += self.first
        return i - self.entries if i >= self.entries else i

    def entry(self, entry: cython.int) -> cython.ulonglong:
        """Where an entry lies."""
        return self.at + 32 + 32 * cython.cast(cython.ulonglong, entry)

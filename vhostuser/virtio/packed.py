"""The packed virtqueue, device side (virtio 1.2, section 2.8).

One ring of descriptors serves both directions; beside it each side has a word that says when it wants to be notified::

    desc     16 bytes a slot: addr u64, len u32, id u16, flags u16
    driver   off_wrap u16, flags u16: when the driver wants a call (written by the driver)
    device   the same: when the device wants a kick (written by the device)

Both sides go around the ring and turn a *wrap counter* over at its end. A slot is available when its AVAIL flag equals
the device's counter and its USED flag does not; the device makes both equal to its own counter to say that it is used.
A chain is the slots behind one another as far as NEXT goes, and is named by the id in its last one. It is used by one
entry, written over its first slot; both sides then skip the rest. Any size up to 32768 does.

**Ordering.** The same edges as in the split layout, with a slot's flags in the place of an index:

* the flags of a chain's first slot are loaded with acquire, once, before any other field of the chain; the driver
  stores them last, so the other slots need no look at their AVAIL and USED;
* the flags of the first entry that a `publish` makes visible are stored with release, after everything else of all of
  them: a driver that goes through the ring in order sees none of the burst, or whatever it gets to;
* a full fence stands between that store and loading the driver's event word: the driver stores its event and then
  looks at the next slot, so one of the two sees the other;
* a full fence stands between storing the device's event word and looking at the next slot again, for the same reason
  turned round.

An event word is loaded and stored whole, so its flags and its position always belong together.

**In order.** We use chains in the order in which they were made available, always. With IN_ORDER the driver knows, and
one used descriptor with the id of a batch's last chain may stand for the batch (2.8.8). It tells one length, so only a
ring that the device never writes to (transmit) does so; its driver then touches one cache line instead of sixteen.
"""

from __future__ import annotations

from array import array

import cython

from vhostuser.errors import PayloadError
from vhostuser.virtio.inflight import Part
from vhostuser.virtio.recovery import Place

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import (
        AT_NO_CALL,
        BAD_INDIRECT,
        BURST,
        CALLS_SUPPRESSED,
        CHAIN_LOOP,
        CHAINS,
        CHAINS_DROPPED,
        DESC_AVAIL,
        DESC_INDIRECT,
        DESC_NEXT,
        DESC_USED,
        DESC_WRITE,
        EVENT_DESC,
        EVENT_DISABLE,
        EVENT_ENABLE,
        GOOD,
        IOMMU_READ,
        IOMMU_WRITE,
        PARK,
        POOL,
        READABLE,
        SEGMENTS,
        TABLE,
        WRAP,
    )
    from vhostuser.virtio.packed_record import PackedRecord
    from vhostuser.virtio.primitives import (
        fence,
        load_acquire_u16,
        load_u16,
        load_u32,
        load_u64,
        store_release_u16,
        store_u16,
        store_u32,
    )
    from vhostuser.virtio.ring import Ring


def area_sizes(num: int) -> tuple[int, int, int]:
    """Bytes of the descriptor ring, the driver's event word and the device's."""
    return 16 * num, 4, 4


class PackedRing(Ring):
    """A packed virtqueue of any size up to 32768, which the session has checked.

    Attributes:
        in_order: whether IN_ORDER was acknowledged.
    """

    def __init__(self, index: cython.int, expects: cython.int, in_order: cython.bint = False) -> None:
        super().__init__(index, expects)
        self.in_order = in_order
        self.next_avail = self.next_used = self.seen = 0
        self.avail_wrap = self.used_wrap = self.seen_wrap = True
        self.blocked = False
        self.span = array("i", bytes(4 * BURST))
        self.in_hand = 0
        self.held, self.held_flags, self.moved, self.given = -1, 0, 0, 0
        self.signalled = False
        self.record: PackedRecord | None = None

    # ---- the control side ------------------------------------------------------------------------------------------

    def area_sizes(self) -> tuple[int, int, int]:
        """Bytes of the descriptor ring, the driver's event word and the device's."""
        return area_sizes(self.num)

    def area_permissions(self) -> tuple[int, int, int]:
        """What an IOMMU has to allow of the descriptor ring, the driver's event word and the device's."""
        return IOMMU_READ | IOMMU_WRITE, IOMMU_READ, IOMMU_WRITE

    def set_position(self, base: int, part: Part | None) -> None:
        """Go on at `base`: the avail slot and its wrap counter in the low half, the used ones in the high half.

        Both halves of a fresh ring are slot 0 and counter 1, and peers tell less. DPDK sends the low half alone: then
        using goes on where fetching does. User-mode Linux sends 0, and others nothing; that would be the beginning of
        an even lap, before which the lap behind has left slot 0 used. Where it has not, the ring is fresh.

        With a record of what is in flight both go on at the used slot, and where the record says: see `PackedRecord`.

        Raises:
            ValueError: a slot is not below the ring's size; the caller has to check what a front-end says.
            PayloadError: the record contradicts the ring; or there is none, and the ring has gone on since.
        """
        first: cython.int
        low, high = base & 0xFFFF, base >> 16
        if base == 0:
            with cython.nogil:
                first = load_u16(self.slot(0) + 14)
            low = 0 if first & DESC_USED else WRAP
        if high == 0:
            high = low
        avail, used = low & 0x7FFF, high & 0x7FFF
        avail_wrap, used_wrap = bool(low & WRAP), bool(high & WRAP)
        if max(avail, used) >= self.num:
            raise ValueError(f"packed position {base:#x} is not in a ring of {self.num} (vring {self.index})")
        record: PackedRecord | None = None
        if part is not None:
            record = PackedRecord(self.index, part, self.num, self.desc)
            avail, avail_wrap = used, used_wrap = record.resume(Place(used, used_wrap))
            if self.log.on and record.owed:
                self.log_ring()
        if record is None or record.unused:
            self.check_position(used, used_wrap)
        self.record = record
        self.next_avail = self.seen = avail
        self.next_used = used
        self.avail_wrap = self.seen_wrap = avail_wrap
        self.used_wrap = used_wrap
        self.in_hand = self.moved = self.given = 0
        self.held = -1
        self.blocked = self.signalled = False

    def check_position(self, used: cython.int, wrap: cython.bint) -> None:
        """Find out whether a ring can be used next at slot `used` with this wrap counter.

        In the lap that is under way no slot from there on was used, and in the lap before none of those that the
        driver has written to since. A front-end whose back-end died may know no better than what it told that one.

        Raises:
            PayloadError: a slot says otherwise.
        """
        wrong: cython.int = -1
        with cython.nogil:
            wrong = self.find_used(used, wrap)
        if wrong >= 0:
            raise PayloadError(
                f"vring {self.index}: it cannot go on at slot {used}, wrap counter {int(wrap)}: slot {wrong} was used "
                f"in another lap than that. After a crash a packed ring goes on with an inflight region only",
                rule="VIO-INFLIGHT-3",
            )

    def find_used(self, used: cython.int, wrap: cython.bint) -> cython.int:
        """A slot that contradicts the position `used` with wrap counter `wrap`, or -1."""
        index: cython.int
        flags: cython.int
        for index in range(cython.cast(cython.int, self.num)):
            flags = load_u16(self.slot(index) + 14)
            if ((flags & DESC_AVAIL) != 0) != ((flags & DESC_USED) != 0):
                continue
            if ((flags & DESC_USED) != 0) == (wrap if index >= used else not wrap):
                return index
        return -1

    def log_ring(self) -> None:
        """Log all of the ring: what was in flight was written into it again."""
        with cython.nogil:
            fence()
            self.log.desc_area(0, 16 * cython.cast(cython.ulonglong, self.num))
            self.log.poke()

    def recording(self) -> bool:
        """Whether it is recorded what is in flight."""
        return self.record is not None

    def end_record(self) -> None:
        """Record nothing any more but what is in hand."""
        if self.record is not None:
            self.record.forget(self.taken)
            self.record = None

    def position(self) -> int:
        """The next avail slot and its wrap counter, and the next used ones above them."""
        avail = self.next_avail | (WRAP if self.avail_wrap else 0)
        return avail | (self.next_used | (WRAP if self.used_wrap else 0)) << 16

    # ---- the device's turn -----------------------------------------------------------------------------------------

    def take(self, limit: cython.int) -> cython.int:
        """Take up to `limit` chains into the burst: their number, 0 for none, below 0 for a broken ring."""
        flags: cython.int
        answer: cython.int
        first: cython.int = self.next_avail
        self.begin()
        self.in_hand = 0
        self.blocked = False
        limit = min(limit, BURST)
        # slots that we have are not the driver's: whatever it writes there meanwhile, they are not available again
        while (
            self.taken < limit
            and self.iov_end + SEGMENTS + 2 <= POOL
            and self.in_hand < cython.cast(cython.int, self.num)
        ):
            flags = load_acquire_u16(self.slot(self.next_avail) + 14)
            if not self.available(flags, self.avail_wrap):
                break
            self.open_chain(0)
            answer = self.walk(flags)
            if answer == PARK or answer < 0:
                self.blocked = True
                if answer == PARK or self.taken:  # the good ones first; a bad one then heads the next burst
                    break
                return self.fail(answer)
            self.fetched(self.span[self.taken])
            self.close_chain(answer)
        if self.record is not None:
            self.record_new(self.record, first)
        self.seen = self.next_avail
        self.seen_wrap = self.avail_wrap
        return self.taken

    def record_new(self, record: PackedRecord, slot: cython.int) -> None:
        """Record the chains of the burst, which begins at `slot`, but for those that were put back."""
        i: cython.int
        record.desc = self.desc  # the ring may lie elsewhere by now
        for i in range(self.taken):
            if i >= record.known:
                record.add(slot, self.span[i])
            slot += self.span[i]
            if slot >= cython.cast(cython.int, self.num):
                slot -= self.num

    def slot(self, index: cython.int) -> cython.ulonglong:
        """Where a slot lies."""
        return self.desc + 16 * cython.cast(cython.ulonglong, index)

    def available(self, flags: cython.int, wrap: cython.bint) -> cython.bint:
        """Whether a slot with these flags is available to who has come there with this wrap counter."""
        return ((flags & DESC_AVAIL) != 0) == wrap and ((flags & DESC_USED) != 0) != wrap

    def fetched(self, count: cython.int) -> None:
        """Go `count` slots on, or back if it is below zero; at most once around."""
        self.in_hand += count
        self.next_avail += count
        if self.next_avail >= cython.cast(cython.int, self.num):
            self.next_avail -= self.num
            self.avail_wrap = not self.avail_wrap
        elif self.next_avail < 0:
            self.next_avail += self.num
            self.avail_wrap = not self.avail_wrap

    def walk(self, flags: cython.int) -> cython.int:
        """Gather the chain at the next slot, whose flags these are: ``GOOD``, ``DROP``, ``PARK``, or a fault below 0.

        Even a chain that is dropped is followed to its end, which has its id and says how long it is.
        """
        at: cython.ulonglong = self.slot(self.next_avail)
        index: cython.int = self.next_avail
        span: cython.int = 1
        answer: cython.int = GOOD
        address: cython.ulonglong
        length: cython.uint
        if flags & DESC_INDIRECT:
            address = load_u64(at)
            length = load_u32(at + 8)
            self.head[self.taken] = load_u16(at + 12)
            self.span[self.taken] = 1
            return BAD_INDIRECT if flags & DESC_NEXT else self.walk_table(address, length)
        while True:
            address = load_u64(at)
            length = load_u32(at + 8)
            if answer == GOOD:
                answer = self.gather(address, length, (flags & DESC_WRITE) != 0)
            if answer == PARK:
                return PARK
            if not flags & DESC_NEXT:
                break
            if self.in_hand + span == cython.cast(cython.int, self.num):
                return CHAIN_LOOP
            span += 1
            index += 1
            if index == cython.cast(cython.int, self.num):
                index = 0
            at = self.slot(index)
            flags = load_u16(at + 14)
            if flags & DESC_INDIRECT:
                return BAD_INDIRECT  # unlike in the split layout, a list is of one type throughout (2.8.7)
        self.head[self.taken] = load_u16(at + 12)
        self.span[self.taken] = span
        return answer

    def walk_table(self, table: cython.ulonglong, length: cython.uint) -> cython.int:
        """Gather the chain in an indirect table of `length` bytes: all of its entries, one behind the other.

        No flag but WRITE means anything there (2.8.7); that tables do not nest is checked all the same.
        """
        entry: cython.ulonglong
        flags: cython.int
        answer: cython.int
        i: cython.uint
        if not self.indirect or length & 15 or length == 0 or length > 16 * TABLE or table + length < table:
            return BAD_INDIRECT
        for i in range(length >> 4):
            entry = self.indirect_entry(table, i)
            if entry < 16:
                return PARK if entry == 1 else BAD_INDIRECT
            flags = load_u16(entry + 14)
            if flags & DESC_INDIRECT:
                return BAD_INDIRECT
            answer = self.gather(load_u64(entry), load_u32(entry + 8), (flags & DESC_WRITE) != 0)
            if answer != GOOD:
                return answer
        return GOOD

    def give(self, count: cython.int) -> None:
        """Give the first `count` chains of the burst back as used, put the others back as available."""
        i: cython.int
        back: cython.int = 0
        batch: cython.int = 0
        first: cython.int = self.next_used
        for i in range(count):
            if self.segments[i] == 0:
                self.counts[CHAINS_DROPPED] += 1
            batch += self.span[i]
            if i + 1 < count and self.in_order and self.expects == READABLE:
                continue
            self.use(self.head[i], self.written[i], batch)
            batch = 0
        self.counts[CHAINS] += count
        self.given += count
        for i in range(count, self.taken):
            back += self.span[i]
        self.fetched(-back)
        if self.log.on:
            self.log_burst()
            self.log_entries(first, count)
        self.taken = 0

    def log_entries(self, slot: cython.int, count: cython.int) -> None:
        """Log the used descriptors that the first `count` chains of the burst got, from `slot` on."""
        i: cython.int
        for i in range(count):
            if i == 0 or not (self.in_order and self.expects == READABLE):
                self.log.desc_area(16 * cython.cast(cython.ulonglong, slot), 16)
            slot += self.span[i]
            if slot >= cython.cast(cython.int, self.num):
                slot -= self.num

    def use(self, name: cython.int, written: cython.uint, span: cython.int) -> None:
        """Write one used descriptor with the id `name`, and go `span` slots on.

        The flags of the first one since the last `publish` are kept for it: the driver sees nothing until then.
        """
        at: cython.ulonglong = self.slot(self.next_used)
        flags: cython.int = (DESC_AVAIL | DESC_USED) if self.used_wrap else 0
        if written:
            flags |= DESC_WRITE
        store_u32(at + 8, written)
        store_u16(at + 12, name)
        if self.held < 0:
            self.held = self.next_used
            self.held_flags = flags
        else:
            store_u16(at + 14, flags)
        self.moved += span
        self.next_used += span
        if self.next_used >= cython.cast(cython.int, self.num):
            self.next_used -= self.num
            self.used_wrap = not self.used_wrap

    def publish(self) -> None:
        """Make everything given visible to the driver at once, then signal it if it asked for that."""
        if self.held < 0:
            return
        if self.record is not None:
            self.record.publish(self.slot(self.held) + 14, self.held_flags, self.given, self.next_used, self.used_wrap)
        else:
            store_release_u16(self.slot(self.held) + 14, self.held_flags)
        fence()
        if self.log.on:
            self.log.desc_area(16 * cython.cast(cython.ulonglong, self.held) + 14, 2)
            self.log.poke()
        self.held = -1
        self.given = 0
        if self.asked():
            self.notify()
        else:
            self.counts[CALLS_SUPPRESSED] += 1
            self.note(AT_NO_CALL, 0)
        self.moved = 0

    def asked(self) -> cython.bint:
        """Whether the driver wants a call for the slots that were used since the last one was thought of.

        Its word names a slot and a wrap counter: the call is due when that slot was passed.
        """
        event: cython.uint = load_u32(self.driver)
        passed: cython.int
        first: cython.bint = not self.signalled
        if not self.event_idx or ((event >> 16) & 3) != EVENT_DESC:
            return ((event >> 16) & 3) != EVENT_DISABLE
        self.signalled = True
        passed = self.next_used - cython.cast(cython.int, event & (WRAP - 1))
        if ((event & WRAP) != 0) != self.used_wrap:
            passed += self.num
        # after a start nobody knows what the driver was last told, so the first one is always sent
        return first or 0 < passed <= self.moved

    def owes(self) -> cython.bint:
        """Whether chains that a back-end before us left in flight are not used yet."""
        return self.record is not None and self.record.owed > 0

    def arm(self) -> cython.bint:
        """Ask for a kick when the slot behind what the last `take` saw becomes available. True: it has already.

        A chain that cannot be taken now stands there itself; what makes it usable is no kick.
        """
        event: cython.uint = EVENT_ENABLE << 16
        if self.event_idx:
            event = (EVENT_DESC << 16) | self.seen | (WRAP if self.seen_wrap else 0)
        store_u32(self.device, event)
        self.armed = True
        fence()
        if self.log.on:
            self.log.device_area(0, 4)
            self.log.poke()
        return not self.blocked and self.available(load_acquire_u16(self.slot(self.seen) + 14), self.seen_wrap)

    def disarm(self) -> None:
        """Tell the driver that no kick is needed."""
        if self.armed:
            self.armed = False
            store_u32(self.device, EVENT_DISABLE << 16)
            if self.log.on:
                fence()
                self.log.device_area(0, 4)

"""The split virtqueue, device side (virtio 1.2, section 2.7).

The driver writes a descriptor table and the avail ring, the device writes the used ring::

    desc    16 bytes an entry: addr u64, len u32, flags u16, next u16
    avail   flags u16, idx u16, ring u16[num], used_event u16
    used    flags u16, idx u16, {id u32, len u32}[num], avail_event u16

**Ordering.** Both sides run at the same time; four edges keep them honest:

* ``avail.idx`` is loaded with acquire before any entry that it announces;
* ``used.idx`` is stored with release after the entries that it announces;
* a full fence stands between storing ``used.idx`` and loading ``used_event`` (or ``avail.flags``): the driver stores
  its event and then looks at ``used.idx``, so one of the two sees the other;
* a full fence stands between asking for a kick (``avail_event``, ``used.flags``) and looking at ``avail.idx`` again,
  for the same reason turned round: the driver stores ``avail.idx`` and then looks whether a kick is wanted.

Neither full fence may be weaker: a processor lets a later load overtake an earlier store, x86 included, and then both
sides read what was there before and sleep. ``tests/virtio/fences.py`` takes out one at a time and sees that happen.

Used entries are never read back: what the driver scribbles there is its own affair. Indices are 16 bits and wrap; all
differences are masked.
"""

from __future__ import annotations

import cython

from vhostuser.virtio.inflight import Part

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import (
        AT_NO_CALL,
        AVAIL_INDEX,
        AVAIL_NO_INTERRUPT,
        BAD_INDIRECT,
        BURST,
        CALLS_SUPPRESSED,
        CHAIN_LOOP,
        CHAINS,
        CHAINS_DROPPED,
        DESC_INDIRECT,
        DESC_NEXT,
        DESC_WRITE,
        GOOD,
        HEAD_INDEX,
        IOMMU_READ,
        IOMMU_WRITE,
        NEXT_INDEX,
        PARK,
        POOL,
        SEGMENTS,
        TABLE,
        USED_NO_NOTIFY,
    )
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
    from vhostuser.virtio.split_record import SplitRecord


def area_sizes(num: int, event_idx: bool) -> tuple[int, int, int]:
    """Bytes of descriptor table, avail ring and used ring; the event fields count only where negotiated."""
    event = 2 if event_idx else 0
    return 16 * num, 4 + 2 * num + event, 4 + 8 * num + event


class SplitRing(Ring):
    """A split virtqueue. The size is a power of two up to 32768, which the session has checked."""

    def __init__(self, index: cython.int, expects: cython.int) -> None:
        super().__init__(index, expects)
        self.next_avail = self.seen = self.next_used = self.published = 0
        self.signalled = False
        self.record: SplitRecord | None = None

    # ---- the control side ------------------------------------------------------------------------------------------

    def area_sizes(self) -> tuple[int, int, int]:
        """Bytes of descriptor table, avail ring and used ring."""
        return area_sizes(self.num, self.event_idx)

    def area_permissions(self) -> tuple[int, int, int]:
        """What an IOMMU has to allow of descriptor table, avail ring and used ring."""
        return IOMMU_READ, IOMMU_READ, IOMMU_WRITE

    def set_position(self, base: int, part: Part | None) -> None:
        """Go on at avail index `base`; the used index is the one in guest memory.

        With a record of what is in flight the ring goes on at its used index, whatever `base` says: see `SplitRecord`.
        """
        with cython.nogil:
            self.next_used = self.published = load_u16(self.device + 2)
        self.record = None
        if part is not None:
            base = self.next_used
            record = SplitRecord(self.index, part, self.num)
            record.resume(base)
            self.record = record
        self.next_avail = self.seen = base
        self.signalled = False

    def position(self) -> int:
        """The next avail index."""
        return self.next_avail

    def recording(self) -> bool:
        """Whether it is recorded what is in flight."""
        return self.record is not None

    def end_record(self) -> None:
        """Record nothing any more but what is in hand."""
        if self.record is not None:
            self.record.forget(self.next_avail, self.taken)
            self.record = None

    # ---- the device's turn -----------------------------------------------------------------------------------------

    def take(self, limit: cython.int) -> cython.int:
        """Take up to `limit` chains into the burst: their number, 0 for none, below 0 for a broken ring."""
        waiting: cython.int
        answer: cython.int
        head: cython.uint
        heads: cython.ulonglong = self.driver + 4
        self.begin()
        self.seen = load_acquire_u16(self.driver + 2)
        waiting = (self.seen - self.next_avail) & 0xFFFF
        if waiting > cython.cast(cython.int, self.num):
            return self.fail(AVAIL_INDEX)
        limit = min(limit, waiting, BURST)
        if self.record is not None:
            heads = self.record.fetch(heads, self.next_avail, limit)
        while self.taken < limit and self.iov_end + SEGMENTS + 2 <= POOL:
            head = load_u16(heads + 2 * (self.next_avail & (self.num - 1)))
            if head < self.num:
                self.open_chain(head)
                answer = self.walk(head)
            else:
                answer = HEAD_INDEX
            if answer < 0:
                # the good ones before it are served first; it will then stand at the head of the next burst
                return self.taken if self.taken else self.fail(answer)
            if answer == PARK:
                break
            self.close_chain(answer)
            self.next_avail = (self.next_avail + 1) & 0xFFFF
        return self.taken

    def walk(self, head: cython.uint) -> cython.int:
        """Gather one chain. ``GOOD``, ``DROP``, ``PARK``, or below 0 what broke the ring.

        > The device MUST handle the case of zero or more normal chained descriptors followed by a single descriptor
        > with flags&VIRTQ_DESC_F_INDIRECT (2.7.5.3.2).
        """
        index: cython.uint = head
        entries: cython.uint = self.num
        left: cython.uint = self.num
        table: cython.ulonglong = 0  # guest address of the indirect table, once inside it
        inside: cython.bint = False
        entry: cython.ulonglong
        address: cython.ulonglong
        length: cython.uint
        flags: cython.int
        following: cython.uint
        answer: cython.int
        while True:
            entry = self.indirect_entry(table, index) if inside else self.desc + 16 * index
            if entry < 16:
                return PARK if entry == 1 else BAD_INDIRECT
            address = load_u64(entry)
            length = load_u32(entry + 8)
            flags = load_u16(entry + 12)
            following = load_u16(entry + 14)
            if flags & DESC_INDIRECT:
                if inside or not self.indirect or flags & DESC_NEXT or length & 15 or length == 0:
                    return BAD_INDIRECT
                if length > 16 * TABLE or address + length < address:
                    return BAD_INDIRECT
                inside = True
                table = address
                index = 0
                entries = left = length >> 4
                continue
            answer = self.gather(address, length, (flags & DESC_WRITE) != 0)
            if answer != GOOD or not flags & DESC_NEXT:
                return answer
            left -= 1
            if left == 0:
                return CHAIN_LOOP
            if following >= entries:
                return NEXT_INDEX
            index = following

    def give(self, count: cython.int) -> None:
        """Give the first `count` chains of the burst back as used, put the others back as available."""
        i: cython.int
        entry: cython.ulonglong
        for i in range(count):
            entry = self.device + 4 + 8 * (self.next_used & (self.num - 1))
            store_u32(entry, self.head[i])
            store_u32(entry + 4, self.written[i])
            self.next_used = (self.next_used + 1) & 0xFFFF
            if self.segments[i] == 0:
                self.counts[CHAINS_DROPPED] += 1
        self.counts[CHAINS] += count
        if self.log.on:
            self.log_burst()
            self.log_entries(count)
        self.next_avail = (self.next_avail - (self.taken - count)) & 0xFFFF
        self.taken = 0

    def log_entries(self, count: cython.int) -> None:
        """Log the last `count` used entries that were written."""
        first: cython.int = (self.next_used - count) & (self.num - 1)
        until: cython.int = min(count, self.num - first)
        if until:
            self.log.device_area(4 + 8 * first, 8 * until)
        if until < count:
            self.log.device_area(4, 8 * (count - until))

    def publish(self) -> None:
        """Make everything given visible to the driver at once, then signal it if it asked for that.

        > the device MUST send a notification if the idx field [passes] used_event (2.7.7.2)
        """
        new: cython.int = self.next_used
        old: cython.int = self.published
        event: cython.int
        wanted: cython.bint
        if new == old:
            return
        if self.record is not None:
            self.record.publish(self.device + 2, old, new)
        else:
            store_release_u16(self.device + 2, new)
        self.published = new
        fence()
        if self.log.on:
            self.log.device_area(2, 2)
            self.log.poke()
        if self.event_idx:
            event = load_u16(self.driver + 4 + 2 * self.num)
            # after a start nobody knows what the driver was last told, so the first one is always sent
            wanted = not self.signalled or ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
            self.signalled = True
        else:
            wanted = (load_u16(self.driver) & AVAIL_NO_INTERRUPT) == 0
        if wanted:
            self.notify()
        else:
            self.counts[CALLS_SUPPRESSED] += 1
            self.note(AT_NO_CALL, 0)

    def owes(self) -> cython.bint:
        """Whether chains that a back-end before us left in flight are not used yet."""
        return self.record is not None and self.record.owed > 0

    def arm(self) -> cython.bint:
        """Ask for a kick when ``avail.idx`` passes what the last `take` saw. True: it has done so already."""
        if self.event_idx:
            store_u16(self.device + 4 + 8 * self.num, self.seen)
        else:
            store_u16(self.device, 0)
        self.armed = True
        fence()
        if self.log.on:
            self.log.device_area(4 + 8 * self.num if self.event_idx else 0, 2)
            self.log.poke()
        return load_acquire_u16(self.driver + 2) != self.seen

    def disarm(self) -> None:
        """Tell the driver that no kick is needed. With EVENT_IDX the stale avail_event says so by itself."""
        if self.armed:
            self.armed = False
            if not self.event_idx:
                store_u16(self.device, USED_NO_NOTIFY)
                if self.log.on:
                    fence()
                    self.log.device_area(0, 2)

"""Faults of back-ends that the suite's checks of rings and packets have to find.

A fault is a change of the package's source text, as in ``tests.faults``. Those of a group are in one copy of the
package together: each of its checks fails for its own, and for no other's sake, as `shows` says.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One broken rule.

    Attributes:
        check: The check that has to find it.
        module: The file that is changed, below the package.
        old, new: A text that is there exactly once, and what takes its place.
        shows: A pattern in what the check says.
        also: Further checks that have to find it, and a pattern for each.
    """

    check: str
    module: str
    old: str
    new: str
    shows: str
    also: tuple[tuple[str, str], ...] = ()

    @property
    def finders(self) -> dict[str, str]:
        """The checks that have to find it, each with what it says."""
        return {self.check: self.shows, **dict(self.also)}


NET = "net --loop --queues 2 --features +ACCESS_PLATFORM"
SPLIT, PACKED, RING = "virtio/split.py", "virtio/packed.py", "virtio/ring.py"
DEVICE, HEADER = "devices/net/device.py", "devices/net/header.py"
TRANSMIT, RECEIVE = "devices/net/transmit.py", "devices/net/receive.py"

GROUPS: dict[str, tuple[str, list[Fault]]] = {
    "split rings": (
        NET,
        [
            Fault(
                "chains.a_buffer_in_two_regions",
                "virtio/memory.py",
                "            address = following\n            row += 1\n",
                "            address = following + 1\n            row += 1\n",
                "region before: a frame of .* was sent",
            ),
            Fault(
                "chains.normal_descriptors_then_a_table",
                SPLIT,
                "if inside or not self.indirect or flags & DESC_NEXT",
                "if inside or index != head or not self.indirect or flags & DESC_NEXT",
                "1 descriptors, then a table",
            ),
            Fault(
                "broken_rings.tables_that_break_a_split_ring",
                SPLIT,
                " or length & 15 or length == 0:",
                " or length == 0:",
                "a table of 15 bytes",
            ),
            Fault(
                "log.a_used_ring_is_logged_page_by_page",
                SPLIT,
                "            self.log_entries(count)\n",
                "",
                "page 0x80001000 is not in the log",
            ),
            Fault(
                "chains.a_table_longer_than_its_ring",
                SPLIT,
                "entries = left = length >> 4",
                "entries = length >> 4",
                "a table of 5 entries in a ring of 4",
            ),
            Fault(
                "chains.chains_of_no_use_come_back",
                RING,
                "        if length == 0:\n            return DROP\n",
                "        if length == 0:\n            return GOOD\n",
                "an empty buffer behind others",
            ),
            Fault(
                "chains.a_chain_of_a_thousand_pieces",
                "virtio/layout.py",
                "SEGMENTS = 1000 ",
                "SEGMENTS = 1010 ",
                "1001 pieces in one chain",
            ),
            Fault(
                "broken_rings.descriptors_that_break_a_split_ring",
                SPLIT,
                "if following >= entries:",
                "if following > entries:",
                "next is 64 in a ring of 64",
            ),
            Fault(
                "broken_rings.heads_that_break_a_ring",
                SPLIT,
                "if head < self.num:",
                "if head <= self.num:",
                "head 64 in a ring of 64",
            ),
            Fault(
                "broken_rings.indices_that_break_a_ring",
                SPLIT,
                "if waiting > cython.cast(cython.int, self.num):",
                "if waiting > 2 * cython.cast(cython.int, self.num):",
                "65 ahead of a ring of 64",
            ),
            Fault(
                "broken_rings.chains_before_a_bad_one_are_served",
                SPLIT,
                "return self.taken if self.taken else self.fail(answer)",
                "return self.fail(answer)",
                "split rings: vring 1: 0 chains were used",
            ),
            Fault(
                "broken_rings.a_broken_ring_stands_still",
                RING,
                "                signal(self.err, self.err_may_block)\n",
                "                signal(self.err, self.err_may_block)\n" * 2,
                "err was signalled 2 times",
            ),
            Fault(
                "ring_layouts.what_a_driver_writes_into_the_used_ring",
                SPLIT,
                "            store_release_u16(self.device + 2, new)\n",
                "            store_release_u16(self.device + 2, (load_u16(self.device + 2) + new - old) & 0xFFFF)\n",
                "used.idx was 0xa5a5 by the driver, is 0xa5a6, not 1",
            ),
            Fault(
                "ring_layouts.without_event_idx_there_are_no_event_fields",
                SPLIT,
                "event = 2 if event_idx else 0",
                "event = 2",
                "refused",
            ),
            Fault(
                "ring_layouts.without_in_order_too",
                SPLIT,
                "store_u32(entry, self.head[i])",
                "store_u32(entry, self.head[count - 1 - i])",
                "split rings: chains .* were offered in this order",
            ),
            Fault(
                "notifications.a_call_when_used_event_is_passed",
                SPLIT,
                "((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)",
                "True",
                "a call came",
            ),
            Fault(
                "notifications.a_call_unless_a_flag_says_no",
                SPLIT,
                "wanted = (load_u16(self.driver) & AVAIL_NO_INTERRUPT) == 0",
                "wanted = True",
                "avail.flags is 1: a call came",
            ),
            Fault(
                "notifications.a_kick_is_asked_for",
                SPLIT,
                "store_u16(self.device + 4 + 8 * self.num, self.seen)",
                "store_u16(self.device + 4 + 8 * self.num, self.seen - 1 & 0xFFFF)",
                "has not asked for a kick",
                (("notifications.no_notification_is_lost", "with EVENT_IDX: nothing was used"),),
            ),
            Fault(
                "notifications.a_burst_costs_a_kick_and_few_calls",
                "virtio/layout.py",
                "BURST = 64 ",
                "BURST = 16 ",
                "128 chains were available at once, and 8 calls came",
            ),
            Fault(
                "notifications.calls_when_nobody_knows_what_was_told",
                RING,
                "        with cython.nogil:\n            self.notify()\n",
                "",
                "the ring was started: no call came",
            ),
            Fault(
                "notifications.a_ring_without_a_kick_descriptor_is_looked_at",
                "virtio/pump.py",
                "self.pause() if looked_at else -1)",
                "-1)",
                "0 of 1 chains were used",
            ),
            Fault(
                "vanishing_memory.a_buffer_that_vanishes",
                "virtio/pump.py",
                "        if now == self.vanished:",
                "        if now >= self.vanished:",
                "a buffer was cut off: err of vring 1 was not signalled",
                (
                    ("vanishing_memory.a_ring_that_vanishes", "the ring was cut off: err of vring 1 was not"),
                    (
                        "vanishing_memory.a_ring_that_vanishes_leaves_the_other_one",
                        "the ring was cut off: err of vring 0 was not",
                    ),
                    ("vanishing_memory.a_table_that_vanishes", "a table was cut off|an indirect table was cut off"),
                ),
            ),
            Fault(
                "iommu.a_chain_that_waits_holds_up_those_behind_it",
                SPLIT,
                "            if answer == PARK:\n                break\n",
                "            if answer == PARK:\n                answer = 1\n",
                "split rings: ",
            ),
            Fault(
                "net_sending.what_offered_features_require_is_offered",
                DEVICE,
                "net.consistent(wanted & ~int(port.unsupported) & ~remove)",
                "wanted & ~int(port.unsupported) & ~remove & ~int(net.NetFeature.GUEST_CSUM)",
                "GUEST_TSO4 is offered without GUEST_CSUM",
            ),
            Fault(
                "net_sending.several_pairs_and_no_control_queue",
                DEVICE,
                "wanted |= net.NetFeature.MQ",
                "wanted |= net.NetFeature.MQ | net.NetFeature.CTRL_VQ",
                "CTRL_VQ is offered",
            ),
        ],
    ),
    "packed rings": (
        NET,
        [
            Fault(
                "chains.next_means_nothing_in_a_packed_table",
                PACKED,
                "            if answer != GOOD:\n                return answer\n        return GOOD\n",
                "            if answer != GOOD or not flags & DESC_NEXT:\n                return answer\n"
                "        return GOOD\n",
                "a frame of .* bytes was sent",
                (("chains.flags_mean_nothing_in_a_packed_table", "0x0 among the flags in a table"),),
            ),
            Fault(
                "broken_rings.tables_that_break_a_packed_ring",
                PACKED,
                "if not self.indirect or length & 15 or",
                "if not self.indirect or",
                "a table of 15 bytes",
            ),
            Fault(
                "broken_rings.descriptors_that_break_a_packed_ring",
                PACKED,
                "                return CHAIN_LOOP\n",
                "                break\n",
                "NEXT all around the ring",
            ),
            Fault(
                "ring_layouts.a_packed_chain_is_used_by_one_descriptor",
                PACKED,
                "        store_u16(at + 12, name)\n",
                "        store_u16(at + 12, name)\n        if span > 1:\n            store_u32(at + 24, 0)\n",
                "of 3 slots was used; of the others were",
            ),
            Fault(
                "ring_layouts.two_flags_make_a_slot_available",
                PACKED,
                "((flags & DESC_AVAIL) != 0) == wrap and ((flags & DESC_USED) != 0) != wrap",
                "((flags & DESC_AVAIL) != 0) == wrap",
                "a slot with flags 0x8[0-9a-f]*, where 0x8[0-9a-f] are available, was used",
            ),
            Fault(
                "ring_layouts.buffer_ids_come_back_as_they_are",
                PACKED,
                "        self.head[self.taken] = load_u16(at + 12)\n        self.span[self.taken] = span\n",
                "        self.head[self.taken] = load_u16(at + 12) & 0x7FFF\n        self.span[self.taken] = span\n",
                "used id 32767 is no chain in flight",
            ),
            Fault(
                "ring_layouts.positions_of_which_half_is_told",
                PACKED,
                "        if high == 0:\n",
                "        if high == low == 0:\n",
                "SET_VRING_BASE 0x8000 for a ring at 0x80008000",
            ),
            Fault(
                "ring_layouts.a_batch_that_is_read_has_one_used_descriptor",
                PACKED,
                "self.in_order and self.expects == READABLE:\n                continue",
                "False:\n                continue",
                "written to: slots 0, 1, 2",
            ),
            Fault(
                "notifications.the_event_word_asks_for_all_calls_or_for_none",
                PACKED,
                "return ((event >> 16) & 3) != EVENT_DISABLE",
                "return True",
                "DISABLE: a call came",
            ),
            Fault(
                "notifications.the_event_word_asks_for_a_call_at_a_slot",
                PACKED,
                "return first or 0 < passed <= self.moved",
                "return first or 0 <= passed < self.moved",
                "number 1 begins at .*: a call came",
            ),
            Fault(
                "notifications.a_kick_for_the_next_slot_is_asked_for",
                PACKED,
                "event = (EVENT_DESC << 16) | self.seen |",
                "event = (EVENT_DESC << 16) | (self.seen + 1) |",
                "has not asked for a kick",
            ),
            Fault(
                "net_receiving.num_buffers_is_one_without_mergeable_buffers",
                RECEIVE,
                "        if self.header_size < 12:\n",
                "        if not self.mergeable:\n",
                "num_buffers is 0",
            ),
            Fault(
                "net_receiving.a_packet_takes_as_many_buffers_as_it_needs",
                RECEIVE,
                "        self.set_num_buffers(i, end - i)\n",
                "        self.set_num_buffers(i, 1)\n",
                "buffers of 100, 100,",
            ),
            Fault(
                "net_receiving.a_packet_longer_than_its_buffer",
                RECEIVE,
                "elif not self.mergeable or (all_there_are and",
                "elif (all_there_are and",
                "2 packets were to be received",
            ),
        ],
    ),
    "sending": (
        NET,
        [
            Fault(
                "net_sending.headers_that_cannot_be",
                HEADER,
                "return demand(gso) & ~offloads == 0 and load_u16(header + 4) != 0",
                "return demand(gso) & ~offloads == 0",
                "^gso_size 0: ",
            ),
            Fault(
                "net_sending.offloads_that_were_not_negotiated",
                HEADER,
                "(not offloads & _CSUM or load_u16(header + 6) + load_u16(header + 8) + 2 > frame)",
                "load_u16(header + 6) + load_u16(header + 8) + 2 > frame",
                "CSUM is not negotiated: ",
            ),
            Fault(
                "net_sending.flags_of_receiving_are_not_sent",
                HEADER,
                "    store_u8(header, flags & _NEEDS_CSUM)\n",
                "",
                "flags 0x2 were sent, 0x2 came back",
            ),
            Fault(
                "net_sending.without_guest_csum_flags_are_zero",
                RECEIVE,
                "self.flagless = not features & NetFeature.GUEST_CSUM",
                "self.flagless = False",
                "a packet came with flags 0x2",
            ),
            Fault(
                "net_sending.what_the_driver_does_not_accept_is_not_delivered",
                RECEIVE,
                "if accepts(load_u8(flags), load_u8(gso), self.accepted):",
                "if True:",
                "no offload was accepted, and a packet came",
            ),
            Fault(
                "net_sending.header_and_frame_may_be_split_in_any_way",
                RECEIVE,
                "            copy(self.ring.iov[k], source, part)\n            source += part\n",
                "            copy(self.ring.iov[k], source, part)\n            source += max(part, 2)\n",
                "buffers of 1, 1, .*: what came back as number 0",
            ),
            Fault(
                "net_sending.frames_of_usual_sizes_are_sent",
                TRANSMIT,
                "_MIN_FRAME = cython.declare(cython.ulonglong, 14)",
                "_MIN_FRAME = cython.declare(cython.ulonglong, 13)",
                "a frame of 13 bytes, then one of 14",
            ),
            Fault(
                "net_sending.what_has_no_room_waits",
                TRANSMIT,
                "            return _BLOCKED\n        if sent == _EFAULT:",
                "            return _SENT\n        if sent == _EFAULT:",
                "200 packets were to be received",
            ),
            Fault(
                "net_sending.a_guest_is_announced",
                DEVICE,
                r"\x06\x04\x00\x03",
                r"\x06\x04\x00\x01",
                "a reverse ARP request of 52:54:00:76:68:09 is due",
            ),
            Fault(
                "net_receiving.a_packet_waits_for_buffers_and_stays_first",
                RECEIVE,
                "elif not self.mergeable or (all_there_are and i == 0 and not self.may_grow(taken)):",
                "elif True:",
                "the one behind it: it was received",
            ),
            Fault(
                "ring_layouts.with_in_order_chains_are_used_in_order",
                PACKED,
                "self.use(self.head[i], self.written[i], batch)",
                "self.use(self.head[0] if self.expects == READABLE else self.head[i], self.written[i], batch)",
                "packed rings: vring 1: [0-9]+ chains were used",
            ),
            Fault(
                "ring_layouts.each_receive_buffer_has_a_used_entry",
                PACKED,
                "if i + 1 < count and self.in_order and self.expects == READABLE:",
                "if i + 1 < count and self.in_order:",
                "packed rings: .* has no used entry",
            ),
        ],
    ),
    "receiving": (
        NET,
        [
            Fault(
                "net_sending.the_header_is_as_long_as_the_features_say",
                "devices/net/features.py",
                "return 12 if features & (VirtioFeature.VERSION_1 | NetFeature.MRG_RXBUF) else 10",
                "return 12",
                "a header of 10 bytes",
            ),
            Fault(
                "net_receiving.num_buffers_wherever_it_lies",
                RECEIVE,
                "            store_u8(self.ring.iov[k] + offset, (count >> (8 * byte)) & 0xFF)\n",
                "",
                "a first chain of buffers of 10, 90 bytes",
            ),
            Fault(
                "net_receiving.a_packet_that_no_number_of_buffers_holds",
                RECEIVE,
                "elif not self.mergeable or (all_there_are and i == 0 and not self.may_grow(taken)):",
                "elif False:",
                "1 packets were to be received, 0 were",
            ),
            Fault(
                "net_receiving.chains_that_cannot_hold_a_packet_come_back",
                RECEIVE,
                "if self.ring.size[end] < (self.header_size if end == i else 1):",
                "if self.ring.size[end] < 1:",
                "a chain with 11 bytes",
            ),
            Fault(
                "ring_layouts.what_is_published_together_appears_at_once",
                SPLIT,
                "            if self.segments[i] == 0:\n                self.counts[CHAINS_DROPPED] += 1\n",
                "            store_release_u16(self.device + 2, self.next_used)\n"
                "            __import__('time').sleep(0.002)\n",  # however busy the machine is, somebody looks now
                "split rings: a packet takes 15 buffers",
            ),
            Fault(
                "chains.buffers_may_be_split_in_any_way",
                SPLIT,
                "            index = following\n",
                "            index = (index + 1) % self.num\n",
                "split rings: pieces of",
            ),
            Fault(
                "chains.a_packed_chain_goes_around_the_end",
                PACKED,
                "                index = 0\n            at = self.slot(index)",
                "                index = 1\n            at = self.slot(index)",
                "vring 1|a frame of",
            ),
            Fault(
                "ring_layouts.split_rings_of_any_size_wrap",
                SPLIT,
                "self.next_avail = (self.next_avail + 1) & 0xFFFF",
                "self.next_avail = (self.next_avail + 1) & 0x7FFF",
                "a ring of 4 from 0xfffa on",
            ),
        ],
    ),
    "an entropy device": (
        "rng",
        [
            Fault(
                "entropy.buffers_get_random_bytes",
                "devices/rng.py",
                "os.urandom(min(chain.writable, _MOST))",
                "(bytes(range(1, 256)) * 258)[: min(chain.writable, _MOST)]",
                "some 32 have come before",
            ),
            Fault(
                "chains.a_chain_of_four_gibibytes",
                RING,
                "if self.size[i] >> 32:",
                "if self.size[i] >> 40:",
                "2\\^32 bytes in one chain: came back with 65536 bytes written",
            ),
            Fault(
                "chains.a_table_in_two_regions",
                RING,
                "        for i in range(pieces):\n            copy(self.scratch_address",
                "        for i in range(1):\n            copy(self.scratch_address",
                "a table .* of which are in the region before",
            ),
            Fault(
                "chains.a_buffer_beyond_memory",
                "virtio/memory.py",
                "            piece = self.rows[3 * row + 1] - offset\n",
                "            piece = self.rows[3 * row + 1] - offset + 1\n",
                "behind a region: it was done all the same|SIGSEGV",
            ),
        ],
    ),
}

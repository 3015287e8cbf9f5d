"""Faults of back-ends, each with the test that has to notice it.

A fault is a change of the package's source text, which has to be there word for word: code that moves takes its row
along, loudly. The test has to name the statement, and to fail with what `shows` says, since a test that fails for
another reason would not have noticed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One broken rule.

    Attributes:
        name: what is wrong, in a few words.
        statement: the rule's identifier.
        module: the file that is changed, below the package.
        changes: texts that are there exactly once, each with what takes its place.
        test: the test that names the statement, as pytest has it, below ``tests``; one of its cases is enough.
        shows: a pattern in the failing test's output.
    """

    name: str
    statement: str
    module: str
    changes: tuple[tuple[str, str], ...]
    test: str
    shows: str


FAULTS = [
    Fault(
        "a ring index is out of bounds by one",
        "VU-RING-7",
        "session/backend.py",
        (("if index >= len(self.vrings):", "if index > len(self.vrings):"),),
        "session/test_vrings.py::test_a_ring_that_does_not_exist_is_refused_everywhere",
        "IndexError: list index out of range",
    ),
    Fault(
        "a buffer may end one byte behind its region",
        "VIO-MEM-1",
        "virtio/memory.py",
        (
            (
                "            piece = self.rows[3 * row + 1] - offset\n",
                "            piece = self.rows[3 * row + 1] - offset + 1\n",
            ),
        ),
        "virtio/test_memory.py::test_no_byte_behind_a_region_belongs_to_it",
        r"assert \[\(\d+, 17\)\] == ",
    ),
    Fault(
        "a ring may end one descriptor behind its region",
        "VU-RING-21",
        "virtio/memory.py",
        (("length <= mapping.memory_size - offset:", "length <= mapping.memory_size - offset + 16:"),),
        "hostile/test_rings_control.py::test_ring_addresses_outside_memory",
        "request 8 .* was not refused",
    ),
    Fault(
        "a region may wrap past 2^64",
        "VU-MEM-3",
        "virtio/memory.py",
        (("if first + self.size > _LIMIT:", "if first > _LIMIT:"),),
        "hostile/test_memory_control.py::test_ranges_that_cannot_be",
        "request 5 .* was not refused",
    ),
    Fault(
        "a descriptor leaks on the error path only",
        "VU-RING-24",
        "runtime/handlers/rings.py",
        (("    except FdError as error:\n        fd.close()", "    except FdError as error:\n        fd.detach()"),),
        "hostile/test_notifiers.py::test_descriptors_that_cannot_notify",
        "left behind: Counter",
    ),
    Fault(
        "the second of two descriptors leaks",
        "VU-FD-6",
        "fds.py",
        (
            (
                "        while self._fds:\n            self._fds.pop().close()",
                "        while self._fds:\n            self._fds.pop(0).close()\n"
                "            for fd in self._fds[:1]:\n                fd.detach()",
            ),
        ),
        "hostile/test_framing.py::test_surplus_descriptors",
        "left behind: Counter",
    ),
    Fault(
        "a reply has the wrong size",
        "VU-PAY-1",
        "wire/layouts.py",
        (
            (
                '_U64 = _value(messages.U64, cs.Struct("value" / cs.Int64un))',
                '_U64 = _value(messages.U64, cs.Struct("value" / cs.Int32un))',
            ),
        ),
        "wire/test_layouts.py::test_fixed_sizes",
        r"assert frozenset\(\{4\}\) == \{8\}",
    ),
    Fault(
        "a reply is sent twice",
        "VU-REP-1",
        "runtime/connection.py",
        (
            (
                "                await self._channel.send(reply)",
                "                await self._channel.send(reply)\n                await self._channel.send(reply)",
            ),
        ),
        "runtime/test_connection.py::test_every_request_is_answered_once",
        r"assert \[1, 1, 3, 3",
    ),
    Fault(
        "NEED_REPLY is honoured without REPLY_ACK",
        "VU-REP-3",
        "session/backend.py",
        (("return message.need_reply and ProtocolFeature.REPLY_ACK in acknowledged", "return message.need_reply"),),
        "session/test_backend.py::test_need_reply_without_reply_ack_is_ignored",
        "SET_OWNER need_reply: wrong answer",
    ),
    Fault(
        "old memory is still mapped when its removal is acknowledged",
        "VU-SLOT-2",
        "runtime/rings.py",
        (("        old.close(memory)", "        self._retired.append(old)"),),
        "runtime/test_memory_slots.py::test_a_region_is_unmapped_before_the_answer_and_the_others_stay",
        r"assert \[2, 2, 2, 2\] == \[2, 2, 2, 1\]",
    ),
    Fault(
        "a kick that comes while notifications are turned on is lost",
        "VIO-NOTIFY-5",
        "virtio/split.py",
        (("return load_acquire_u16(self.driver + 2) != self.seen", "return False"),),
        "virtio/test_notify.py::test_no_access_of_the_device_lets_a_kick_be_lost[split-flags]",
        r'assert interleaved\("kicks"',
    ),
    Fault(
        "a kick that comes before the ring is enabled is lost",
        "VU-RING-28",
        "runtime/handlers/rings.py",
        (
            (
                '        await connection.rings.in_turn(vring.index, lambda ring: setattr(ring, "enabled", enabled))',
                "        connection.rings._ring(vring.index).enabled = enabled",
            ),
        ),
        "runtime/test_connection.py::test_a_disabled_receive_ring_yields_nothing",
        "TooSlowError",
    ),
    Fault(
        "used_event is read before used.idx is written, as without a fence",
        "VIO-NOTIFY-5",
        "virtio/split.py",
        (
            (
                "        store_release_u16(self.device + 2, new)\n",
                "        event = load_u16(self.driver + 4 + 2 * self.num)\n"
                "        store_release_u16(self.device + 2, new)\n",
            ),
            (
                "            event = load_u16(self.driver + 4 + 2 * self.num)\n            # after",
                "            # after",
            ),
        ),
        "virtio/test_notify.py::test_no_access_of_the_device_lets_a_call_be_lost[split-event_idx]",
        r'assert interleaved\("calls"',
    ),
    Fault(
        "avail.idx may be one too far ahead",
        "VIO-RING-10",
        "virtio/split.py",
        (("if waiting > cython.cast(cython.int, self.num):", "if waiting > cython.cast(cython.int, self.num) + 1:"),),
        "virtio/test_split.py::test_avail_indices_that_break_a_ring",
        "assert 1 == 8",
    ),
    Fault(
        "an indirect table may be nested",
        "VIO-RING-8",
        "virtio/split.py",
        (("if inside or not self.indirect or", "if not self.indirect or"),),
        "virtio/test_split.py::test_indirect_tables_that_break_a_ring",
        "assert 1 == 8",
    ),
    Fault(
        "a chain in an indirect table may be a loop",
        "VIO-RING-8",
        "virtio/split.py",
        (("            left -= 1\n", "            left -= not inside\n"),),
        "virtio/test_split.py::test_indirect_tables_that_break_a_ring",
        "assert 1 == 8",
    ),
    Fault(
        "a descriptor's length is read twice",
        "VIO-RING-14",
        "virtio/split.py",
        (("self.gather(address, length, (flags", "self.gather(address, load_u32(entry + 8), (flags"),),
        "virtio/test_notify.py::test_each_field_that_the_driver_writes_is_read_once",
        r"assert \{1, 2\} == \{1\}",
    ),
    Fault(
        "a bit is set behind the end of the log",
        "VU-LOG-7",
        "virtio/dirty.py",
        (("if at >= self.size:", "if at > self.size:"),),
        "virtio/test_dirty.py::test_the_first_page_behind_the_log",
        "assert not any",
    ),
    Fault(
        "the last page of a buffer is not logged",
        "VU-LOG-1",
        "virtio/dirty.py",
        (("while page <= last and self.log is not None:", "while page < last and self.log is not None:"),),
        "virtio/test_dirty.py::test_a_python_devices_buffers_are_logged_as_far_as_they_were_written",
        "AssertionError: not logged: ",
    ),
    Fault(
        "used entries are not logged",
        "VU-LOG-1",
        "virtio/split.py",
        (("            self.log_entries(count)\n", ""),),
        "virtio/test_dirty.py::test_a_rings_own_writes_are_logged",
        "AssertionError: not logged: ",
    ),
    Fault(
        "buffers are logged by the address at which they are mapped",
        "VU-LOG-1",
        "virtio/dirty.py",
        (("self.mark(self.memory.guest_phys_addr(host), length)", "self.mark(host, length)"),),
        "virtio/test_dirty.py::test_a_python_devices_buffers_are_logged_as_far_as_they_were_written",
        "AssertionError: not logged: ",
    ),
    Fault(
        "the old call descriptor is signalled",
        "VU-RING-17",
        "runtime/handlers/rings.py",
        (("    if vring.live:\n        notifier", '    if vring.live and name != "call":\n        notifier'),),
        "runtime/test_connection.py::test_a_new_call_descriptor_is_signalled_once",
        "BlockingIOError",
    ),
    Fault(
        "an IOTLB entry is used after it was withdrawn",
        "VU-IOTLB-3",
        "runtime/handlers/iommu.py",
        (
            (
                "    await connection.rings.adopt_iotlb(_changed(connection.iommu.table, message.payload))\n",
                "    connection.iommu.table = _changed(connection.iommu.table, message.payload)\n"
                "    if message.payload.type == IotlbType.UPDATE:\n"
                "        await connection.rings.adopt_iotlb(connection.iommu.table)\n",
            ),
        ),
        "runtime/test_iommu.py::test_invalidations_under_traffic",
        "assert driver.tx.desc_addr // PAGE in",
    ),
    Fault(
        "what is written is logged by I/O virtual address",
        "VU-IOTLB-13",
        "virtio/ring.py",
        (
            (
                "        self.log.place(self.memory, self.desc, self.device)\n",
                "        rows = list(self.writes_to.rows)\n"
                "        pairs = sorted(zip(rows[2::3], rows[::3], strict=True))\n"
                "        self.writes_to._find_by(pairs)\n"
                "        self.log.place(self.writes_to, self.desc, self.device)\n",
            ),
        ),
        "runtime/test_iommu.py::test_the_log_is_by_guest_physical_address",
        "assert written <= logged",
    ),
    Fault(
        "GET_VRING_BASE does not wait for requests in flight",
        "VU-VRING-BASE-1",
        "runtime/handlers/inflight.py",
        (("    if waits:\n", "    if False:\n"),),
        "runtime/test_inflight.py::test_a_stop_waits_for_what_is_in_flight",
        "assert not True|GroupEndedError|is no longer the device's",
    ),
    Fault(
        "an inflight region may have one more queue than there are rings",
        "VU-INFLIGHT-2",
        "runtime/inflight.py",
        (("1 <= told.num_queues <= self._num_rings:", "1 <= told.num_queues <= self._num_rings + 1:"),),
        "runtime/test_inflight.py::test_a_region_for_what_there_is_not_is_refused",
        "DID NOT RAISE .*RefusedError",
    ),
    Fault(
        "the third front-end is never served",
        "VU-COM-1",
        "runtime/serve.py",
        (
            (
                "        async for channel in self._endpoint:\n",
                "        async for channel in self._endpoint:\n"
                "            if self.sessions == 2:\n                await trio.sleep_forever()\n",
            ),
        ),
        "runtime/test_serve.py::test_one_front_end_after_another",
        "TooSlowError",
    ),
]

"""The driver's side of a packed ring: where every bit stands. What both layouts do alike is in test_rings.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.packed import Event, EventFlags, PackedDescriptor, PackedDriverRing, PackedRing, Position
from vhostuser.frontend.rings import DescriptorFlags, Used

NEXT, WRITE, INDIRECT = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT
AVAIL, USED = DescriptorFlags.AVAIL, DescriptorFlags.USED


@pytest.fixture
def ring(memory: GuestRam) -> Iterator[PackedDriverRing]:
    with PackedDriverRing(memory, 0, 4) as ring:
        yield ring


def use(ring: PackedDriverRing, buffer_id: int, length: int = 0, flags: int = 0) -> None:
    """What a device in step with the driver does when it is done with a buffer."""
    flags |= AVAIL | USED if ring.next_used.wrap else 0
    ring.set_descriptor(ring.next_used.offset, PackedDescriptor(0, length, buffer_id, flags))


def test_the_parts_are_aligned_and_do_not_overlap(memory: GuestRam) -> None:
    memory.alloc(1, 1)
    ring = PackedRing(memory, 7)
    assert ring.desc_addr % 16 == ring.avail_addr % 4 == ring.used_addr % 4 == 0
    assert ring.avail_addr >= ring.desc_addr + 16 * 7
    assert ring.used_addr >= ring.avail_addr + 4
    assert memory.alloc(1, 1) >= ring.used_addr + 4


def test_every_field_stands_where_the_specification_says(memory: GuestRam) -> None:
    ring = PackedRing(memory, 4)
    descriptor = PackedDescriptor(0x1122334455667788, 0xAABBCCDD, 0x0304, NEXT | WRITE | AVAIL)
    ring.set_descriptor(1, descriptor)
    assert memory.read(ring.desc_addr + 16, 16).hex() == "8877665544332211ddccbbaa04038300"
    assert ring.descriptor(1) == descriptor
    ring.set_flags(1, INDIRECT | USED)
    assert memory.read(ring.desc_addr + 30, 2).hex() == "0480"
    ring.driver_event = Event(0x8102, EventFlags.DESC)
    ring.device_event = Event(0x0304, EventFlags.DISABLE)
    assert memory.read(ring.avail_addr, 4).hex() == "02810200"
    assert memory.read(ring.used_addr, 4).hex() == "04030100"
    assert (ring.driver_event, ring.device_event) == ((0x8102, 2), (0x0304, 1))


def test_a_fresh_ring_is_zero_and_begins_in_the_first_lap(ring: PackedDriverRing, memory: GuestRam) -> None:
    assert ring.base == 0x80008000
    assert ring.next_avail == ring.next_used == (0, 1)
    assert memory.read(ring.desc_addr, 64) == bytes(64)


def test_a_chain_and_the_end_of_a_lap(ring: PackedDriverRing) -> None:
    first = ring.add(readable=[(0x1000, 10)])
    use(ring, first)
    assert ring.reap() == [Used(first, 0)]
    second = ring.add(readable=[(0x2000, 20), (0x3000, 30)], writable=[(0x4000, 40), (0x5000, 50)])
    chain = [ring.descriptor(i) for i in (1, 2, 3, 0)]
    assert [(d.addr, d.length, d.flags) for d in chain] == [
        (0x2000, 20, AVAIL | NEXT),
        (0x3000, 30, AVAIL | NEXT),
        (0x4000, 40, AVAIL | NEXT | WRITE),
        (0x5000, 50, USED | WRITE),
    ]
    assert chain[-1].id == second
    assert second not in {descriptor.id for descriptor in chain[:-1]}
    assert (ring.next_avail, ring.free, ring.in_flight) == (Position(1, 0), 0, 1)


def test_an_indirect_table_has_no_other_flag_than_write(ring: PackedDriverRing, memory: GuestRam) -> None:
    head = ring.add(readable=[(0x1000, 10)], writable=[(0x2000, 20)], indirect=True)
    descriptor = ring.descriptor(0)
    assert (descriptor.length, descriptor.id, descriptor.flags) == (32, head, INDIRECT | AVAIL)
    table = PackedDescriptor(0x1000, 10).pack() + PackedDescriptor(0x2000, 20, flags=WRITE).pack()
    assert memory.read(descriptor.addr, 32) == table


def test_indirect_tables_are_used_again(ring: PackedDriverRing, memory: GuestRam) -> None:
    for _ in range(3):
        use(ring, ring.add(readable=[(0, 1)] * 9, indirect=True))
        ring.reap()
    before = memory.alloc(0, 1)
    ring.add(readable=[(0, 1)] * 5, indirect=True)
    assert memory.alloc(0, 1) == before


def test_a_length_without_the_write_flag_means_nothing(ring: PackedDriverRing) -> None:
    for flags, written in ((0, 0), (WRITE, 100)):
        head = ring.add(writable=[(0, 100)])
        use(ring, head, 100, flags)
        assert ring.reap() == [Used(head, written)]


@pytest.mark.parametrize("flags", [AVAIL, USED, 0], ids=["available", "other lap", "used a lap ago"])
def test_what_is_not_used(flags: int, ring: PackedDriverRing) -> None:
    ring.add(writable=[(0, 100)])
    ring.set_flags(0, flags)
    assert not ring.has_used
    assert ring.reap() == []


@pytest.mark.parametrize("base", [0x80028002, 0x00020002, 0x8002])
def test_a_ring_that_goes_on_somewhere(base: int, ring: PackedDriverRing) -> None:
    ring.reset(base)
    wrap = base >> 15 & 1
    assert ring.base == base
    assert ring.next_avail == ring.next_used == (2, wrap)
    # As the device left them: the beginning used in this lap, the rest in the one before.
    assert [bool(ring.flags(i) & USED) for i in range(4)] == [wrap == 1] * 2 + [wrap == 0] * 2
    assert not ring.has_used


@pytest.mark.parametrize(
    ("event_idx", "event", "wanted"),
    [
        (False, Event(0, EventFlags.ENABLE), True),
        (False, Event(0, EventFlags.DISABLE), False),
        (False, Event(3, EventFlags.DESC), True),  # not negotiated: to be safe
        (False, Event(0, 3), True),  # reserved
        (True, Event(0x8000, EventFlags.DISABLE), False),
        (True, Event(0x8000, EventFlags.ENABLE), True),
        (True, Event(0x8000 | 1, EventFlags.DESC), False),  # behind
        (True, Event(0x8000 | 2, EventFlags.DESC), True),
        (True, Event(0x8000 | 3, EventFlags.DESC), True),
        (True, Event(0, EventFlags.DESC), True),
        (True, Event(1, EventFlags.DESC), False),  # still to come
        (True, Event(0x8000, EventFlags.DESC), False),  # the next lap but one
        (True, Event(2, EventFlags.DESC), False),
    ],
)
def test_kicks(event_idx: bool, event: Event, wanted: bool, ring: PackedDriverRing) -> None:
    ring.event_idx = event_idx
    ring.reset(0x80028002)
    ring.device_event = event
    ring.add(readable=[(0, 1)] * 3)  # the descriptors 2 and 3, and 0 in the next lap
    assert ring.kick() is wanted


def test_a_call_is_asked_for_at_the_next_used_descriptor(ring: PackedDriverRing) -> None:
    ring.event_idx = True
    for place in (0x8000, 0x8003, 2):
        ring.ask_for_call()
        assert ring.driver_event == (place, EventFlags.DESC)
        use(ring, ring.add(readable=[(0, 1)] * 3))
        ring.reap()


def test_the_first_descriptor_of_a_chain_becomes_available_last(memory: GuestRam) -> None:
    class Watched(PackedDriverRing):
        def set_flags(self, index: int, flags: int) -> None:
            written.append(index)
            super().set_flags(index, flags)

    written: list[int] = []
    with Watched(memory, 0, 4) as ring:
        ring.reset(0x80028002)
        ring.add(readable=[(0, 1)] * 3)
    assert sorted(written) == [0, 2, 3]
    assert written[-1] == 2

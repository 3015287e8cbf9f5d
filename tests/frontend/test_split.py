"""The driver's side of a split ring, against a device that the test plays by hand."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from vhostuser.errors import RemoteProtocolError
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.split import NO_NOTIFICATION, Descriptor, DescriptorFlags, DriverRing, SplitRing, Used

PROPERTY = settings(max_examples=50, deadline=None, derandomize=REPEATABLE)

NEXT, WRITE, INDIRECT = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT


@pytest.fixture
def ring(memory: GuestRam) -> Iterator[DriverRing]:
    with DriverRing(memory, 0, 8) as ring:
        yield ring


def use(ring: SplitRing, head: int, written: int = 0) -> None:
    """What a device does when it is done with a chain."""
    ring.set_used(ring.used_idx, Used(head, written))
    ring.used_idx += 1


def signalled(fd: int) -> bool:
    readable, _, _ = select.select([fd], [], [], 0)
    return bool(readable) and os.eventfd_read(fd) > 0


def chain_of(ring: SplitRing, head: int) -> list[Descriptor]:
    chain = [ring.descriptor(head)]
    while chain[-1].flags & NEXT:
        chain.append(ring.descriptor(chain[-1].next))
    return chain


def plain(chain: list[Descriptor]) -> list[tuple[int, int, int]]:
    return [(d.addr, d.length, d.flags & ~NEXT) for d in chain]


####
# Layout
####


def test_the_parts_are_aligned_and_do_not_overlap(memory: GuestRam) -> None:
    memory.alloc(1, 1)
    ring = SplitRing(memory, 8)
    assert ring.desc_addr % 16 == ring.avail_addr % 2 == ring.used_addr % 4 == 0
    assert ring.avail_addr >= ring.desc_addr + 16 * 8
    assert ring.used_addr >= ring.avail_addr + 6 + 2 * 8
    assert memory.alloc(1, 1) >= ring.used_addr + 6 + 8 * 8


def test_every_field_stands_where_the_specification_says(memory: GuestRam) -> None:
    ring = SplitRing(memory, 4)
    ring.set_descriptor(1, Descriptor(0x1122334455667788, 0xAABBCCDD, NEXT | WRITE, 3))
    ring.avail_flags, ring.avail_idx, ring.used_event = 1, 2, 0x0506
    ring.set_avail(5, 0x0304)
    ring.used_flags, ring.used_idx, ring.avail_event = 1, 3, 0x0708
    ring.set_used(6, Used(9, 10))
    assert memory.read(ring.desc_addr + 16, 16).hex() == "8877665544332211ddccbbaa03000300"
    assert memory.read(ring.avail_addr, 14).hex() == "0100020000000403000000000605"
    assert memory.read(ring.used_addr, 4).hex() == "01000300"
    assert memory.read(ring.used_addr + 4 + 2 * 8, 8).hex() == "090000000a000000"
    assert memory.read(ring.used_addr + 4 + 4 * 8, 2).hex() == "0807"


####
# Adding
####


def test_a_chain_is_linked_and_made_available(ring: DriverRing) -> None:
    head = ring.add(readable=[(0x1000, 10), (0x2000, 20)], writable=[(0x3000, 30)])
    assert ring.avail_idx == 1
    assert ring.avail(0) == head
    assert plain(chain_of(ring, head)) == [(0x1000, 10, 0), (0x2000, 20, 0), (0x3000, 30, WRITE)]
    assert (ring.free, ring.in_flight) == (5, 1)


def test_an_indirect_chain_takes_one_descriptor(ring: DriverRing, memory: GuestRam) -> None:
    head = ring.add(readable=[(0x1000, 10)], writable=[(0x3000, 30)] * 20, indirect=True)
    table = ring.descriptor(head)
    assert (table.flags, table.length, ring.free) == (INDIRECT, 21 * 16, 7)
    last = memory.read(table.addr + 20 * 16, 16)
    assert last == Descriptor(0x3000, 30, WRITE, 0).pack()


def test_indirect_tables_are_used_again(ring: DriverRing, memory: GuestRam) -> None:
    for _ in range(3):
        use(ring, ring.add(readable=[(0, 1)] * 9, indirect=True))
        ring.reap()
    before = memory.alloc(0, 1)
    use(ring, ring.add(readable=[(0, 1)] * 5, indirect=True))
    assert memory.alloc(0, 1) == before


def test_a_full_ring_takes_no_more(ring: DriverRing) -> None:
    ring.add(readable=[(0, 1)] * 8)
    with pytest.raises(ValueError, match="0 descriptors are free"):
        ring.add(readable=[(0, 1)])
    with pytest.raises(ValueError, match="0 buffers"):
        ring.add()


####
# Collecting
####


def test_used_chains_come_back_in_the_devices_order(ring: DriverRing) -> None:
    first, second = ring.add(writable=[(0, 100)]), ring.add(writable=[(0, 100)] * 2)
    use(ring, second, 200)
    use(ring, first, 7)
    assert ring.reap() == [Used(second, 200), Used(first, 7)]
    assert (ring.free, ring.in_flight, ring.reap()) == (8, 0, [])


@PROPERTY
@given(
    data=st.data(),
    chains=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()).filter(lambda c: c[0] + c[1])),
)
def test_any_traffic_leaves_the_ring_consistent(data: st.DataObject, chains: list[tuple[int, int, bool]]) -> None:
    with GuestRam([(0, MIB)]) as memory, DriverRing(memory, 0, 8) as ring:
        ring.reset(0xFFFA)  # the indices wrap on the way
        lent: list[int] = []
        for readable, writable, indirect in chains:
            while ring.free < readable + writable or (lent and data.draw(st.booleans())):
                use(ring, lent.pop(data.draw(st.integers(0, len(lent) - 1))))
                assert len(ring.reap()) == 1
            head = ring.add([(0, 16)] * readable, [(0, 16)] * writable, indirect=indirect)
            assert head not in lent
            assert ring.avail(ring.avail_idx - 1) == head
            lent.append(head)
        assert ring.in_flight == len(lent)


@pytest.mark.parametrize(
    ("head", "written", "reason"),
    [(7, 0, "used id 7"), (0x10000, 0, "used id 65536"), (0, 101, "101 bytes written to a chain with 100")],
)
def test_a_device_that_uses_what_it_was_not_given(head: int, written: int, reason: str, ring: DriverRing) -> None:
    assert ring.add(writable=[(0, 100)]) == 0
    use(ring, head, written)
    with pytest.raises(RemoteProtocolError, match=reason):
        ring.reap()


def test_a_used_index_that_runs_ahead(ring: DriverRing) -> None:
    ring.add(writable=[(0, 100)])
    ring.used_idx = 2
    with pytest.raises(RemoteProtocolError, match="2 chains used, 1 in flight"):
        ring.reap()


def test_in_order_the_table_is_used_like_a_ring(memory: GuestRam) -> None:
    with DriverRing(memory, 0, 8, in_order=True) as ring:
        for first in (0, 3, 6, 1, 4):
            assert ring.add(readable=[(0, 1)] * 3) == first
            assert [d.next for d in chain_of(ring, first)[:-1]] == [(first + 1) % 8, (first + 2) % 8]
            use(ring, first)
            ring.reap()


def test_a_batch_that_the_used_index_does_not_count(memory: GuestRam) -> None:
    with DriverRing(memory, 0, 8, in_order=True) as ring:
        ring.add(readable=[(0, 1)])
        use(ring, ring.add(readable=[(0, 1)]))
        with pytest.raises(RemoteProtocolError, match="used id 1 ends a batch of which used_idx lacks 1"):
            ring.reap()


####
# Notifications
####


def test_a_kick_that_the_device_does_not_want(ring: DriverRing) -> None:
    ring.used_flags = NO_NOTIFICATION
    ring.add(readable=[(0, 1)])
    assert not ring.kick()
    assert not signalled(ring.kick_fd.fileno())
    assert ring.kick(force=True)
    assert signalled(ring.kick_fd.fileno())


@pytest.mark.parametrize(
    ("base", "added", "avail_event", "wanted"),
    [
        (0, 1, 0, True),
        (0, 1, 1, False),
        (0, 3, 2, True),
        (0, 3, 3, False),
        (5, 2, 4, False),
        (5, 2, 5, True),
        (0xFFFF, 2, 0xFFFF, True),
        (0xFFFF, 2, 0, True),
        (0xFFFF, 2, 1, False),
    ],
)
def test_kicks_by_index(base: int, added: int, avail_event: int, wanted: bool, memory: GuestRam) -> None:
    with DriverRing(memory, 0, 8, event_idx=True) as ring:
        ring.reset(base)
        ring.avail_event = avail_event
        for _ in range(added):
            ring.add(readable=[(0, 1)])
        assert ring.kick() is wanted
        assert not ring.kick()


def test_a_kick_on_a_full_counter_does_not_fail(ring: DriverRing) -> None:
    os.eventfd_write(ring.kick_fd.fileno(), 0xFFFFFFFFFFFFFFFE)
    ring.add(readable=[(0, 1)])
    assert ring.kick()


async def test_wait_for_a_call(ring: DriverRing) -> None:
    head = ring.add(writable=[(0, 100)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.wait_used)
        await trio.testing.wait_all_tasks_blocked()
        os.eventfd_write(ring.call_fd.fileno(), 1)  # a call for nothing
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        use(ring, head, 1)
        os.eventfd_write(ring.call_fd.fileno(), 1)
    assert ring.reap() == [Used(head, 1)]


async def test_waiting_asks_for_a_call_at_the_next_chain(memory: GuestRam) -> None:
    with DriverRing(memory, 0, 8, event_idx=True) as ring:
        for _ in range(3):
            use(ring, ring.add(writable=[(0, 1)]))
        await ring.wait_used()
        ring.reap()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ring.wait_used)
                await trio.testing.wait_all_tasks_blocked()
                assert ring.used_event == 3
                scope.cancel()

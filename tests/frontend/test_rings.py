"""What a driver does alike with both layouts, against a device written for the test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from tests.frontend.devices import WRITE, Device, Taken, device_of, make_ring
from vhostuser.errors import RemoteProtocolError
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.rings import DriverQueue, Used

PROPERTY = settings(max_examples=150, deadline=None, derandomize=REPEATABLE)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def ring(memory: GuestRam, packed: bool) -> Iterator[DriverQueue]:
    with make_ring(memory, packed) as ring:
        yield ring


@pytest.fixture
def in_order(memory: GuestRam, packed: bool) -> Iterator[DriverQueue]:
    with make_ring(memory, packed, in_order=True) as ring:
        yield ring


####
# Any traffic
####


class Traffic:
    """A driver, a device, and what each has to expect of the other."""

    def __init__(self, ring: DriverQueue) -> None:
        self.ring = ring
        self.device = device_of(ring)
        self.lent: list[tuple[int, list[tuple[int, int, int]]]] = []  # not taken yet
        self.taken: list[Taken] = []
        self.expected: list[Used] = []

    def add(self, readable: int, writable: int, indirect: bool) -> None:
        """Lend a chain of buffers that no other chain has."""
        if not readable + writable or (1 if indirect else readable + writable) > self.ring.free:
            return
        sizes = range(1, readable + writable + 1)
        buffers = [(self.ring.memory.alloc(size, 1), size) for size in sizes]
        head = self.ring.add(buffers[:readable], buffers[readable:], indirect=indirect)
        assert head not in {other for other, _ in self.lent} | {taken.head for taken in self.taken}
        flags = [0] * readable + [WRITE] * writable
        self.lent.append((head, [(*buffer, flag) for buffer, flag in zip(buffers, flags, strict=True)]))

    def take(self) -> None:
        assert self.device.has_available == bool(self.lent)
        if self.lent:
            self.taken.append(self.device.take())
            assert self.taken[-1][:2] == self.lent.pop(0)

    def use(self, choice: int, fill: bool) -> None:
        """One chain, or with IN_ORDER the oldest so many."""
        if not self.taken:
            return
        choice %= len(self.taken)
        batch = self.taken[: choice + 1] if self.ring.in_order else [self.taken[choice]]
        room = sum(length for _, length, flags in batch[-1].buffers if flags)
        written = room if fill else room // 2
        self.device.use(*batch, written=written)
        for used in batch[:-1]:
            self.expected.append(Used(used.head, sum(length for _, length, flags in used.buffers if flags)))
        self.expected.append(Used(batch[-1].head, written))
        self.taken = [taken for taken in self.taken if taken not in batch]

    def reap(self) -> None:
        assert self.ring.has_used == bool(self.expected)
        assert self.ring.reap() == self.expected
        self.expected = []
        assert self.ring.in_flight == len(self.lent) + len(self.taken)


ADD = st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 3), st.booleans())
USE = st.tuples(st.just("use"), st.integers(0, 15), st.booleans())
STEPS = st.lists(st.one_of(ADD, ADD, st.tuples(st.just("take")), USE, st.tuples(st.just("reap"))), max_size=120)


def run(traffic: Traffic, steps: list[tuple[object, ...]]) -> None:
    for name, *arguments in steps:
        getattr(traffic, str(name))(*arguments)
    while traffic.lent:
        traffic.take()
    while traffic.taken:
        traffic.use(0, True)
    traffic.reap()
    assert traffic.ring.free == traffic.ring.size


@PROPERTY
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0xFFF0, 0xFFFF) | st.just(0), st.booleans(), STEPS)
def test_any_traffic_over_a_split_ring(size: int, base: int, in_order: bool, steps: list[tuple[object, ...]]) -> None:
    with GuestRam([(0, MIB)]) as memory, make_ring(memory, False, 0, size, in_order=in_order) as ring:
        ring.reset(base)
        run(Traffic(ring), steps)


@PROPERTY
@given(st.integers(1, 9), st.integers(0, 8), st.booleans(), st.booleans(), STEPS)
def test_any_traffic_over_a_packed_ring(
    size: int, offset: int, wrap: bool, in_order: bool, steps: list[tuple[object, ...]]
) -> None:
    with GuestRam([(0, MIB)]) as memory, make_ring(memory, True, 0, size, in_order=in_order) as ring:
        ring.reset((offset % size | wrap << 15) * 0x10001)
        run(Traffic(ring), steps)


@pytest.mark.parametrize(("size", "length", "rounds"), [(1, 1, 5), (32768, 16, 1)])
def test_the_smallest_and_the_largest_ring(size: int, length: int, rounds: int, packed: bool) -> None:
    with GuestRam([(0, 2 * MIB)]) as memory, make_ring(memory, packed, 0, size, in_order=True) as ring:
        ring.reset(ring.FRESH + (size - 1) * 0x10001 if packed else 0xFFFF)
        device = device_of(ring)
        for _ in range(rounds):
            heads = [ring.add(writable=[(0, 1)] * length) for _ in range(size // length)]
            with pytest.raises(ValueError, match="0 descriptors are free"):
                ring.add(writable=[(0, 1)])
            batch = [device.take() for _ in heads]
            assert not device.has_available
            device.use(*batch, written=length)
            assert ring.reap() == [Used(head, length) for head in heads]


####
# In order
####


def test_one_entry_for_a_batch(in_order: DriverQueue) -> None:
    device = device_of(in_order)
    heads = [in_order.add(readable=[(0, 5)], writable=[(0, 100), (0, 50)]) for _ in range(2)]
    batch = [device.take(), device.take()]
    device.use(*batch, written=7)
    assert in_order.reap() == [Used(heads[0], 150), Used(heads[1], 7)]
    assert (in_order.free, in_order.in_flight) == (8, 0)


def test_without_in_order_nothing_is_skipped(ring: DriverQueue) -> None:
    device = device_of(ring)
    first, second = ring.add(writable=[(0, 100)]), ring.add(writable=[(0, 100)])
    taken = [device.take(), device.take()]
    device.use(taken[1], written=7)
    assert ring.reap() == [Used(second, 7)]
    device.use(taken[0], written=9)
    assert ring.reap() == [Used(first, 9)]


####
# Notifications
####


@PROPERTY
@given(st.booleans(), st.integers(0, 7), st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3)), max_size=30))
def test_the_device_is_kicked_for_the_chain_that_it_waits_for(
    packed: bool, start: int, rounds: list[tuple[int, int]]
) -> None:
    with GuestRam([(0, MIB)]) as memory, make_ring(memory, packed, event_idx=True) as ring:
        ring.reset(ring.FRESH + start * (0x10001 if packed else 1))
        device = device_of(ring)
        for further, added in rounds:
            device.ask_for_kick(further)
            for _ in range(added):
                ring.add(readable=[(0, 1)])
            assert ring.kick() == (further < added)
            assert not ring.kick()
            for _ in range(added):
                device.use(device.take())
            ring.reap()


def test_a_device_that_wants_no_kicks(ring: DriverQueue) -> None:
    device = device_of(ring)
    device.ask_for_no_kicks()
    ring.add(readable=[(0, 1)])
    assert not ring.kick()
    device.ask_for_kick()
    assert ring.kick()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_driver_that_wants_no_calls(event_idx: bool, memory: GuestRam, packed: bool) -> None:
    with make_ring(memory, packed, event_idx=event_idx) as ring:
        device = device_of(ring)
        ring.ask_for_no_calls()
        for wanted in (False, True, False):
            ring.add(readable=[(0, 1)])
            assert device.use(device.take()) is wanted
            ring.reap()
            ring.ask_for_no_calls() if wanted else ring.ask_for_call()


def test_a_call_is_wanted_for_any_chain_of_a_batch(memory: GuestRam, packed: bool) -> None:
    with make_ring(memory, packed, event_idx=True, in_order=True) as ring:
        device = device_of(ring)
        for _ in range(10):
            for _ in range(3):
                ring.add(readable=[(0, 1)])
            ring.ask_for_call()
            assert device.use(*(device.take() for _ in range(3)))
            ring.reap()


def test_a_call_is_wanted_once(memory: GuestRam, packed: bool) -> None:
    with make_ring(memory, packed, event_idx=True) as ring:
        device = device_of(ring)
        for _ in range(8):
            ring.add(readable=[(0, 1)])
        ring.ask_for_call()
        assert [device.use(device.take()) for _ in range(8)] == [True] + [False] * 7


@pytest.mark.parametrize("event_idx", [False, True])
async def test_waiting(event_idx: bool, memory: GuestRam, packed: bool) -> None:
    with make_ring(memory, packed, event_idx=event_idx) as ring:
        device: Device = device_of(ring)
        ring.ask_for_no_calls()
        head = ring.add(writable=[(0, 100)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring.wait_used)
            await trio.testing.wait_all_tasks_blocked()
            os.eventfd_write(ring.call_fd.fileno(), 1)  # a call for nothing
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            assert device.use(device.take(), written=1)
            os.eventfd_write(ring.call_fd.fileno(), 1)
        assert ring.reap() == [Used(head, 1)]


async def test_waiting_for_a_ring_to_break(ring: DriverQueue) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.wait_broken)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        os.eventfd_write(ring.err_fd.fileno(), 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(ring.err_fd.fileno())


####
# Devices that break the rules
####


def test_a_chain_that_is_used_twice(ring: DriverQueue) -> None:
    ring.add(writable=[(0, 100)])
    second = ring.add(writable=[(0, 100)])
    device = device_of(ring)
    device.take()
    taken = device.take()
    device.use(taken)
    assert ring.reap() == [Used(second, 0)]
    device.use(taken)
    with pytest.raises(RemoteProtocolError, match=f"used id {second} is no chain in flight"):
        ring.reap()


def test_more_written_than_there_is_room(ring: DriverQueue) -> None:
    ring.add(readable=[(0, 100)], writable=[(0, 50)])
    device = device_of(ring)
    device.use(device.take(), written=51)
    with pytest.raises(RemoteProtocolError, match="51 bytes written to a chain with 50"):
        ring.reap()

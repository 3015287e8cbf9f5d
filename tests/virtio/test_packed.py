"""Packed rings: which chains come out, what breaks a ring, what is given back, and when the driver is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.virtio.bench import (
    InOrderDiscard,
    PackedBench,
    PackedDiscard,
    map_guest,
    map_region,
    signals,
    start,
    turn_until_idle,
)
from tests.virtio.packed import AVAIL, DESC, DISABLE, ENABLE, FRESH, INDIRECT, NEXT, USED, WRITE, PackedDriver, Place
from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import Used
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import ASK_TRANSLATION, BURST, EVENT, IOMMU_READ, MISS, READABLE, VANISHED, WORK, WRITABLE
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import ChainPump
from vhostuser.virtio.ring import FAULTS
from vhostuser.virtio.rings import area_sizes, make_ring

MIB = 1 << 20
NOWHERE = 0xDEAD_0000_0000
BUFFER = (0x1000, 64)
CHAIN_LOOP, BAD_INDIRECT = -4, -5
# the fixture's memory is the same for every example, and only grows
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
sizes = st.integers(1, 40)


@st.composite
def positions(draw: st.DrawFn, size: int) -> int:
    """A position whose halves are equal, as a drained ring's are; 0, which means a fresh ring, is not one of them."""
    place = Place(draw(st.integers(0, size - 1), label="slot"), draw(st.booleans(), label="wrap"))
    return place.packed * 0x10001 or FRESH


@pytest.fixture
def bench(ram: GuestRam) -> Iterator[PackedBench]:
    with PackedBench(ram) as bench:
        yield bench


def whole(place: Place) -> int:
    """The position of a ring that has nothing in hand."""
    return place.packed * 0x10001


# ---- chains ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PACKED-1")
@SHARED
@given(st.data())
def test_a_chain_comes_out_as_it_was_put_in(ram: GuestRam, data: st.DataObject) -> None:
    """Chains of all shapes, one after the other through rings of all sizes: the laps end anywhere in a chain."""
    size = data.draw(sizes, label="size")
    with PackedBench(ram, size, base=data.draw(positions(size))) as bench:
        for _ in range(data.draw(st.integers(1, 12), label="chains")):
            indirect = data.draw(st.booleans(), label="indirect")
            pieces = data.draw(st.lists(st.booleans(), min_size=1, max_size=9 if indirect else min(9, size)))
            content = [data.draw(st.binary(min_size=1, max_size=9)) for writable in pieces if not writable]
            rooms = [(ram.alloc(7), 7) for writable in pieces if writable]
            name = bench.driver.add([bench.buffer(piece) for piece in content], rooms, indirect=indirect)
            assert bench.pump.turn() == EVENT
            ticket = bench.pump.ticket
            assert bench.pump.read(ticket) == b"".join(content)
            answer = data.draw(st.binary(max_size=7 * len(rooms)), label="answer")
            assert bench.pump.write(ticket, answer) == len(answer)
            assert bench.pump.complete(ticket, len(answer))
            assert bench.driver.reap() == [Used(name, len(answer))]
            assert b"".join(ram.read(*room) for room in rooms).startswith(answer)
        assert bench.ring.stop() == whole(bench.driver.next)


@pytest.mark.proves("VIO-PACKED-2", "VIO-PACKED-3", "VIO-ORDER-3", "VIO-ORDER-4")
@SHARED
@given(st.data())
def test_bursts_come_back_in_order_and_a_used_entry_skips_its_chain(ram: GuestRam, data: st.DataObject) -> None:
    size = data.draw(sizes, label="size")
    bench_of: type[Any] = data.draw(st.sampled_from([PackedDiscard, InOrderDiscard]))
    with bench_of(ram, size, base=data.draw(positions(size))) as bench:
        driver = bench.driver
        for _ in range(data.draw(st.integers(1, 6), label="turns")):
            names = []
            while driver.free and data.draw(st.booleans(), label="more"):
                span = data.draw(st.integers(1, driver.free), label="span")
                names.append(driver.add([bench.buffer] * span, indirect=data.draw(st.booleans(), label="indirect")))
            turn_until_idle(bench.pump)
            assert driver.reap() == [(name, 0) for name in names]
            assert driver.chains == []
        assert bench.ring.stop() == whole(driver.next) == whole(driver.last)


@pytest.mark.proves("VIO-PACKED-3")
def test_the_largest_ring_full_twice_around() -> None:
    with GuestRam([(0, 8 * MIB)]) as ram, PackedDiscard(ram, 32767) as bench:
        for _ in range(2):
            for i in range(32767):
                bench.driver.offer((*bench.buffer, 0), name=i)
            while bench.pump.turn(4096) == WORK:
                pass
            assert [bench.driver.read(i).id for i in range(32767)] == list(range(32767))
            bench.driver.chains, bench.driver.last = [], bench.driver.next
        assert bench.ring.stop() == FRESH


@pytest.mark.proves("VIO-PACKED-4")
@pytest.mark.parametrize("name", [0, 15, 16, 0x7FFF, 0xFFFF])
def test_a_buffer_id_is_the_drivers_own_affair(bench: PackedBench, name: int) -> None:
    bench.driver.offer((*BUFFER, NEXT), (*BUFFER, 0), name=name)
    assert bench.pump.turn() == EVENT
    assert bench.pump.complete(bench.pump.ticket, 0)
    assert bench.driver.reap() == [(name, 0)]
    assert bench.ring.fault == 0


@pytest.mark.proves("VIO-PACKED-4")
def test_the_id_is_in_the_last_slot_of_a_chain(bench: PackedBench) -> None:
    bench.driver.offer((*BUFFER, NEXT), (*BUFFER, NEXT), (*BUFFER, 0), name=7)
    for slot in range(2):
        content = bench.driver.read(slot)
        bench.driver.write(slot, content._replace(id=0x1111))
    assert bench.pump.turn() == EVENT
    assert bench.pump.complete(bench.pump.ticket, 0)
    assert bench.driver.read(0).id == 7


@pytest.mark.proves("VIO-PACKED-1")
@pytest.mark.parametrize("flags", [0, NEXT, AVAIL, USED, NEXT | AVAIL | USED])
def test_in_a_table_no_flag_but_write_means_anything(bench: PackedBench, flags: int) -> None:
    pieces = [bench.buffer(piece) for piece in (b"first ", b"second")]
    room = ram_address, _ = bench.ram.alloc(8), 8
    table = bench.driver.table([*((*piece, flags) for piece in pieces), (*room, flags | WRITE)])
    bench.driver.offer((*table, INDIRECT | WRITE))
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"first second"
    assert bench.pump.write(bench.pump.ticket, b"answer") == 6
    assert bench.ram.read(ram_address, 6) == b"answer"


@pytest.mark.parametrize("before", range(1, 48, 5), ids=lambda before: f"{before} bytes before the boundary")
def test_an_indirect_table_in_two_regions(before: int) -> None:
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram, PackedBench(ram) as bench:
        pieces = [bench.buffer(piece) for piece in (b"one ", b"two ", b"three")]
        bench.driver.offer((*bench.driver.table([(*piece, 0) for piece in pieces], MIB - before), INDIRECT))
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"one two three"


# ---- chains that are dropped -----------------------------------------------------------------------------------------

BAD_CHAINS = {
    "unmapped": [(NOWHERE, 64, 0)],
    "length 0": [(0x1000, 0, 0)],
    "length 0xffffffff": [(0x1000, 0xFFFFFFFF, 0)],
    "address and length wrap": [((1 << 64) - 16, 32, 0)],
    "good, then unmapped, then good": [(*BUFFER, NEXT), (NOWHERE, 64, NEXT), (*BUFFER, 0)],
    "writable before readable": [(*BUFFER, NEXT | WRITE), (*BUFFER, NEXT), (*BUFFER, 0)],
}


@pytest.mark.proves("VIO-RING-5", "VIO-PACKED-2")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_chain_that_cannot_be_used_is_given_back_unused(bench: PackedBench, name: str, indirect: bool) -> None:
    """With its id, which is behind what is wrong with it; and the next one is found behind all of it."""
    chain = BAD_CHAINS[name]
    bench.driver.offer(*([(*bench.driver.table(chain), INDIRECT)] if indirect else chain), name=3)
    assert bench.pump.turn() == WORK
    assert bench.ring.fault == 0
    assert bench.driver.reap() == [(3, 0)]
    assert bench.ring.counters()["chains_dropped"] == 1
    bench.driver.add([bench.buffer(b"next")])
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"next"


@pytest.mark.proves("VIO-RING-5")
@pytest.mark.parametrize(("expects", "flags"), [(READABLE, WRITE), (WRITABLE, 0)], ids=["readable", "writable"])
def test_a_chain_of_the_wrong_direction_is_given_back_unused(ram: GuestRam, expects: int, flags: int) -> None:
    with PackedBench(ram, expects=expects) as bench:
        bench.driver.offer((*BUFFER, flags ^ WRITE | NEXT), (*BUFFER, flags))
        assert bench.pump.turn() == WORK
        assert bench.driver.reap() == [(0, 0)]
        assert bench.ring.counters()["chains_dropped"] == 1


@pytest.mark.proves("VIO-RING-7")
@pytest.mark.parametrize(("count", "usable"), [(1000, True), (1001, False)])
def test_a_chain_has_at_most_a_thousand_pieces(ram: GuestRam, count: int, usable: bool) -> None:
    with PackedBench(ram, 1200) as bench:
        bench.driver.add([(0x1000 + i, 1) for i in range(count)])
        assert bench.pump.turn() == (EVENT if usable else WORK)
        assert bench.ring.fault == 0


# ---- what breaks a ring ----------------------------------------------------------------------------------------------

Raw = tuple[int, int, int]
BROKEN_CHAINS: dict[str, tuple[int, list[Raw]]] = {
    "next all around": (CHAIN_LOOP, [(*BUFFER, NEXT)] * 16),
    "indirect and next": (BAD_INDIRECT, [(0x1000, 16, INDIRECT | NEXT), (*BUFFER, 0)]),
    "indirect behind a buffer": (BAD_INDIRECT, [(*BUFFER, NEXT), (0x1000, 16, INDIRECT)]),
    "indirect of length 0": (BAD_INDIRECT, [(0x1000, 0, INDIRECT)]),
    "indirect of 15 bytes": (BAD_INDIRECT, [(0x1000, 15, INDIRECT)]),
    "indirect of 17 bytes": (BAD_INDIRECT, [(0x1000, 17, INDIRECT)]),
    "indirect of 32769 entries": (BAD_INDIRECT, [(0x1000, 16 * 32769, INDIRECT)]),
    "indirect of 2^28 entries": (BAD_INDIRECT, [(0x1000, 0xFFFFFFF0, INDIRECT)]),
    "indirect table nowhere": (BAD_INDIRECT, [(NOWHERE, 16, INDIRECT)]),
    "indirect table ends nowhere": (BAD_INDIRECT, [(16 * MIB - 8, 16, INDIRECT)]),
    "indirect table wraps": (BAD_INDIRECT, [((1 << 64) - 16, 32, INDIRECT)]),
}


def assert_broken(bench: PackedBench, fault: int) -> None:
    assert bench.ring.fault == fault
    assert FAULTS[fault]
    assert not bench.pump.holding
    assert bench.pump.turn() == EVENT
    bench.ring.report()
    assert signals(bench.driver.err_fd.fileno()) == 1
    before = [bench.driver.read(slot) for slot in range(bench.driver.size)]
    assert bench.pump.turn() == 0  # reported, and silent from now on
    assert [bench.driver.read(slot) for slot in range(bench.driver.size)] == before


@pytest.mark.proves("VIO-PACKED-5")
@pytest.mark.parametrize("base", [FRESH, 0x0005_0005, 0x800F_800F], ids=hex)
@pytest.mark.parametrize("name", BROKEN_CHAINS)
def test_descriptors_that_break_a_ring(ram: GuestRam, name: str, base: int) -> None:
    fault, chain = BROKEN_CHAINS[name]
    with PackedBench(ram, base=base) as bench:
        bench.driver.offer(*chain)
        assert bench.pump.turn() == EVENT
        assert_broken(bench, fault)
        assert bench.ring.stop() == base


@pytest.mark.proves("VIO-PACKED-5")
@pytest.mark.parametrize("table", [[(0x1000, 16, INDIRECT)], [(*BUFFER, 0), (0x1000, 16, INDIRECT)]])
def test_a_nested_table_breaks_a_ring(bench: PackedBench, table: list[Raw]) -> None:
    bench.driver.offer((*bench.driver.table(table), INDIRECT))
    assert bench.pump.turn() == EVENT
    assert_broken(bench, BAD_INDIRECT)


@pytest.mark.proves("VIO-PACKED-5")
def test_an_indirect_table_that_was_not_negotiated(ram: GuestRam) -> None:
    with PackedBench(ram, indirect=False) as bench:
        bench.driver.add([BUFFER], indirect=True)
        assert bench.pump.turn() == EVENT
        assert_broken(bench, BAD_INDIRECT)


@pytest.mark.proves("VIO-RING-11", "VIO-PACKED-5")
def test_good_chains_before_a_bad_one_are_served(ram: GuestRam) -> None:
    with PackedDiscard(ram) as bench:
        names = bench.add(5)
        place = bench.driver.next
        bench.driver.offer((0x1000, 17, INDIRECT))
        assert bench.pump.turn() == EVENT
        assert bench.ring.fault == BAD_INDIRECT
        bench.driver.chains.pop()
        assert [used.head for used in bench.driver.reap()] == names
        assert bench.ring.stop() == whole(place)


@pytest.mark.proves("VIO-PACKED-6")
def test_slots_that_we_have_are_not_available_again(ram: GuestRam) -> None:
    """A driver that makes its slots available twice, a lap ahead, while the device holds them: one lap is a burst."""
    with PackedDiscard(ram, 4) as bench:
        for i in range(4):
            bench.driver.write(i, bench.driver.read(i)._replace(addr=0x1000, length=64, flags=AVAIL))
        assert bench.pump.turn(64) == 0
        assert bench.ring.counters()["chains"] == 4
        assert bench.ring.stop() == 0


@pytest.mark.proves("VIO-PACKED-6")
def test_a_chain_that_runs_over_slots_that_we_have_waits_for_them(ram: GuestRam) -> None:
    """So that what a burst puts back is never more than a lap."""
    with PackedDiscard(ram, 4) as bench:
        bench.driver.offer((*BUFFER, 0), (*BUFFER, NEXT), (*BUFFER, NEXT), (*BUFFER, NEXT))
        assert bench.pump.turn(2) == WORK
        assert bench.ring.counters()["chains"] == 2
        assert bench.ring.stop() == 0x0001_0001


def test_a_ring_whose_addresses_left_memory_is_broken(bench: PackedBench) -> None:
    bench.driver.add([BUFFER])
    assert bench.pump.turn() == EVENT
    with pytest.raises(MemoryAccessError, match="the descriptor area of vring 0"):
        bench.ring.adopt(GuestMemory())
    assert bench.ring.fault == -7
    assert bench.ring.stop() == FRESH, "the chain that was out went back"


# ---- addresses that are not known yet --------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-2")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("where", ["buffer", "second buffer", "indirect table"])
def test_a_chain_with_an_unknown_address_stays_in_the_ring(where: str, event_idx: bool) -> None:
    """It stands there available, and is no reason for another turn: the front-end has to act, not the driver."""
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram:
        partial = GuestMemory([map_region(ram.regions[0])], MISS)
        driver = PackedDriver(ram, 0, 16, event_idx=event_idx)
        ring = make_ring(VirtioFeature.RING_PACKED, 0, READABLE)
        pump = ChainPump(ring)
        start(ring, driver, partial)
        ram.write(MIB, b"known")
        match where:
            case "buffer":
                driver.add([(MIB, 5)])
            case "second buffer":
                driver.add([(0x1000, 5), (MIB, 5)])
            case "indirect table":
                driver.offer((*driver.table([(MIB, 5, 0)], MIB + 0x100), INDIRECT))
        driver.add([(0x2000, 5)])
        hole = MIB + 0x100 if where == "indirect table" else MIB
        for todo, question in ((EVENT, (ASK_TRANSLATION, hole, IOMMU_READ)), (0, None), (0, None)):
            assert (pump.turn(), ring.question()) == (todo, question)
            assert (ring.fault, ring.taken, driver.used_idx) == (0, 0, 0)
        assert ring.armed
        assert ring.position() == FRESH
        known = map_guest(ram)
        ring.adopt(known)
        partial.close()
        assert pump.turn() == EVENT
        assert pump.read(pump.ticket).endswith(b"known")
        ring.stop()
        pump.close()
        driver.close()
        known.close()


# ---- memory that vanishes --------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("when", ["before a take", "before a completion", "before a start", "with an indirect table"])
def test_a_ring_whose_memory_vanished_breaks(when: str) -> None:
    with GuestRam([(0, MIB), (1 << 32, MIB)], seals=0) as ram:
        table = when == "with an indirect table"
        with PackedBench(ram, region=int(not table)) as bench:
            if table:
                bench.driver.offer((*bench.driver.table([(*BUFFER, 0)], 1 << 32), INDIRECT))
            if when == "before a completion":
                bench.driver.add([BUFFER])
                assert bench.pump.turn() == EVENT
            os.ftruncate(ram.regions[1].fd.fileno(), 0)
            if when == "before a completion":
                assert not bench.pump.complete(bench.pump.ticket, 0)
            if when == "before a start":
                bench.ring.stop()
                bench.ring.start(0)
            else:
                assert bench.pump.turn() == EVENT
            assert bench.ring.fault == VANISHED


# ---- position --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PACKED-7")
@pytest.mark.parametrize(
    ("base", "position"),
    [
        pytest.param(0x8000_8000, 0x8000_8000, id="fresh"),
        pytest.param(0x8000, 0x8000_8000, id="fresh, low half alone"),
        pytest.param(0, 0x8000_8000, id="nothing told"),
        pytest.param(0x0003, 0x0003_0003, id="low half alone, an even lap"),
        pytest.param(0x8007, 0x8007_8007, id="low half alone, an odd lap"),
    ],
)
def test_a_base_says_where_to_fetch_and_where_to_use(ram: GuestRam, base: int, position: int) -> None:
    with PackedBench(ram, base=base) as bench:
        assert bench.ring.stop() == position


@pytest.mark.proves("VIO-PACKED-7")
def test_a_base_tells_both_places_where_chains_were_in_flight(ram: GuestRam) -> None:
    with PackedBench(ram, base=0x8005_8005) as bench:
        for _ in range(12):
            bench.driver.add([BUFFER])
        bench.ring.stop()
        bench.ring.start(0x8005_0001)
        assert bench.ring.stop() == 0x8005_0001


@pytest.mark.proves("VIO-PACKED-7")
@SHARED
@given(st.integers(1, 40))
def test_a_ring_that_stops_at_an_even_lap_goes_on_there(ram: GuestRam, size: int) -> None:
    """The position is 0 then; that the lap behind was used keeps it from being a fresh ring."""
    with PackedDiscard(ram, size) as bench:
        bench.add(size)
        turn_until_idle(bench.pump)
        assert len(bench.driver.reap()) == size
        assert bench.ring.stop() == 0
        signals(bench.driver.call_fd.fileno())
        bench.driver.base = 0
        names = bench.add(1)
        start(bench.ring, bench.driver, bench.memory)
        bench.ring.enabled = False
        turn_until_idle(bench.pump)
        assert bench.driver.reap() == [(names[0], 0)]


@pytest.mark.proves("VIO-PACKED-7")
@pytest.mark.parametrize("base", [0x0010, 0x8000_8010, 0x8010_8000, 0x7FFF_7FFF], ids=hex)
def test_a_position_beyond_the_ring_is_refused_by_the_ring_too(bench: PackedBench, base: int) -> None:
    bench.ring.stop()
    with pytest.raises(ValueError, match=f"{base:#x} is not in a ring of 16"):
        bench.ring.start(base)
    assert not bench.ring.started


@pytest.mark.proves("VIO-PACKED-7")
@pytest.mark.parametrize("base", [FRESH, 0x000F_000F, 0x800F_800F], ids=hex)
def test_a_chain_that_is_out_when_its_ring_stops_goes_back(ram: GuestRam, base: int) -> None:
    """Over the end of the ring too."""
    with PackedBench(ram, base=base) as bench:
        bench.driver.add([bench.buffer(b"later"), bench.buffer(b" on")])
        assert bench.pump.turn() == EVENT
        assert bench.ring.stop() == base
        assert bench.driver.used_idx == 0
        start(bench.ring, bench.driver, bench.memory)
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"later on"


# ---- in order --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-ORDER-1")
def test_a_batch_that_was_only_read_has_one_used_descriptor(ram: GuestRam) -> None:
    with InOrderDiscard(ram, 16) as bench:
        for span in (1, 3, 2):
            last = bench.driver.add([bench.buffer] * span)
        before = [bench.driver.read(i) for i in range(16)]
        turn_until_idle(bench.pump)
        after = [bench.driver.read(i) for i in range(16)]
        assert [i for i in range(16) if before[i] != after[i]] == [0]
        assert after[0][1:] == (0, last, AVAIL | USED)
        assert bench.ring.stop() == whole(bench.driver.next)


@pytest.mark.proves("VIO-ORDER-2")
def test_a_ring_that_is_written_to_has_a_used_descriptor_for_each_chain(ram: GuestRam) -> None:
    with PackedBench(ram) as bench:
        ring = make_ring(VirtioFeature.RING_PACKED | VirtioFeature.IN_ORDER, 0, WRITABLE)
        bench.ring.stop()
        pump = ChainPump(ring)
        start(ring, bench.driver, bench.memory)
        names = [bench.driver.add(writable=[BUFFER]) for _ in range(3)]
        for written in (5, 6, 7):
            assert pump.turn() == EVENT
            assert pump.complete(pump.ticket, written)
        assert bench.driver.reap() == [(names[0], 5), (names[1], 6), (names[2], 7)]
        pump.close()


# ---- notifications ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PACKED-8")
@SHARED
@given(st.data())
def test_a_call_is_made_when_the_slot_of_the_event_word_was_passed(ram: GuestRam, data: st.DataObject) -> None:
    """The model counts slots from the beginning on and knows of no wrap counter."""
    size = data.draw(sizes, label="size")
    base = data.draw(positions(size))
    with PackedDiscard(ram, size, base=base, event_idx=True) as bench:
        driver, first, used = bench.driver, True, 0
        begin = driver.next
        for _ in range(data.draw(st.integers(1, 8), label="turns")):
            spans = []
            while driver.free and data.draw(st.booleans(), label="more"):
                spans.append(data.draw(st.integers(1, min(3, driver.free)), label="span"))
                driver.add([bench.buffer] * spans[-1])
            event = used + data.draw(st.integers(-size + 1, size), label="event")
            driver.set_event(driver.avail_addr, DESC, driver.ahead(begin, event).packed)
            calls = 0
            for i in range(0, len(spans), BURST):
                end = used + sum(spans[i : i + BURST])
                calls += first or used <= event < end
                used, first = end, False
            turn_until_idle(bench.pump)
            assert signals(driver.call_fd.fileno()) == calls
            driver.reap()


@pytest.mark.proves("VIO-PACKED-8")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize(("flags", "calls"), [(ENABLE, 1), (DISABLE, 0), (3, 1)])
def test_an_event_word_without_a_slot_asks_for_all_calls_or_for_none(
    ram: GuestRam, event_idx: bool, flags: int, calls: int
) -> None:
    with PackedDiscard(ram, event_idx=event_idx) as bench:
        bench.driver.set_event(bench.driver.avail_addr, flags, 0x1234)
        for _ in range(3):
            bench.add(2)
            turn_until_idle(bench.pump)
            assert signals(bench.driver.call_fd.fileno()) == calls


@pytest.mark.proves("VIO-PACKED-8")
def test_without_event_idx_a_slot_in_the_event_word_means_nothing(ram: GuestRam) -> None:
    with PackedDiscard(ram) as bench:
        bench.driver.set_event(bench.driver.avail_addr, DESC, 0x7FFF)
        bench.add()
        turn_until_idle(bench.pump)
        assert signals(bench.driver.call_fd.fileno()) == 1


@pytest.mark.proves("VIO-PACKED-9")
@SHARED
@given(st.data())
def test_the_device_asks_for_the_next_slot_with_event_idx(ram: GuestRam, data: st.DataObject) -> None:
    size = data.draw(sizes, label="size")
    with PackedDiscard(ram, size, base=data.draw(positions(size)), event_idx=True) as bench:
        for _ in range(4):
            bench.add(data.draw(st.integers(0, size), label="chains"))
            turn_until_idle(bench.pump)
            assert bench.driver.event(bench.driver.used_addr) == (DESC, bench.driver.next.packed)
            bench.driver.reap()


@pytest.mark.proves("VIO-PACKED-9")
def test_kicks_are_off_while_the_ring_is_worked_on(ram: GuestRam) -> None:
    with PackedDiscard(ram) as bench:
        turn_until_idle(bench.pump)
        assert bench.driver.event(bench.driver.used_addr)[0] == ENABLE
        bench.add(8)
        assert bench.pump.turn(4) == WORK
        assert bench.driver.event(bench.driver.used_addr)[0] == DISABLE
        turn_until_idle(bench.pump)
        assert bench.driver.event(bench.driver.used_addr)[0] == ENABLE


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3, 256, 32768])
def test_areas(num: int) -> None:
    for event_idx in (0, VirtioFeature.RING_EVENT_IDX):
        assert area_sizes(VirtioFeature.RING_PACKED | event_idx, num) == (16 * num, 4, 4)

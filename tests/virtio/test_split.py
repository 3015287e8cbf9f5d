"""Split rings: which chains come out, what breaks a ring, and what is given back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.virtio.bench import INDIRECT, NEXT, WRITE, Bench, Discard, map_guest, map_region, signals, start
from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import Descriptor, DriverRing
from vhostuser.virtio.layout import ASK_TRANSLATION, EVENT, FAULT, IOMMU_READ, MISS, READABLE, WORK, WRITABLE
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import ChainPump
from vhostuser.virtio.ring import FAULTS
from vhostuser.virtio.split import SplitRing, area_sizes

MIB = 1 << 20
NOWHERE = 0xDEAD_0000_0000
# the fixture's memory is the same for every example, and only grows
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def bench(ram: GuestRam) -> Iterator[Bench]:
    with Bench(ram) as bench:
        yield bench


def finish(bench: Bench, written: int = 0) -> None:
    """Complete the chain that is out, which has to be the next one used."""
    slot = bench.driver.used_idx
    assert bench.pump.complete(bench.pump.ticket, written)
    assert bench.driver.used_idx == (slot + 1) & 0xFFFF
    assert bench.driver.used(slot).written == written


# ---- chains ----------------------------------------------------------------------------------------------------------


@st.composite
def splits(draw: st.DrawFn, limit: int = 12) -> list[bytes]:
    return draw(st.lists(st.binary(min_size=1, max_size=40), max_size=limit))


@pytest.mark.proves("VIO-RING-1")
@SHARED
@given(splits(), st.lists(st.integers(1, 40), max_size=12), st.integers(0, 0xFFFF), st.data())
def test_a_chain_comes_out_as_it_was_put_in(
    ram: GuestRam, readable: list[bytes], writable: list[int], base: int, data: st.DataObject
) -> None:
    if not readable and not writable:
        readable = [b"?"]
    indirect = data.draw(st.booleans(), label="indirect")
    with Bench(ram, 32, base=base) as bench:
        rooms = [bench.room(size) for size in writable]
        head = bench.driver.add([bench.buffer(piece) for piece in readable], rooms, indirect=indirect)
        assert bench.pump.turn() == EVENT
        ticket = bench.pump.ticket
        assert bench.pump.read(ticket) == b"".join(readable)
        can_read, can_write = bench.pump.buffers()
        assert [size for _, size in can_read] == [len(piece) for piece in readable]
        assert [size for _, size in can_write] == writable
        answer = data.draw(st.binary(max_size=sum(writable) + 5), label="answer")
        written = bench.pump.write(ticket, answer)
        assert written == min(len(answer), sum(writable))
        assert bench.pump.complete(ticket, written)
        assert bench.driver.reap() == [(head, written)]
        got = b"".join(ram.read(address, size) for address, size in rooms)
        assert got[:written] == answer[:written]
        assert not any(got[written:])
        assert bench.ring.stop() == (base + 1) & 0xFFFF


@pytest.mark.proves("VIO-RING-2")
@SHARED
@given(splits(8), splits(8))
def test_normal_descriptors_then_an_indirect_one(ram: GuestRam, normal: list[bytes], rest: list[bytes]) -> None:
    rest = rest or [b"?"]
    with Bench(ram, 16) as bench:
        table = bench.table(
            [(*bench.buffer(piece), NEXT if i < len(rest) - 1 else 0, i + 1) for i, piece in enumerate(rest)]
        )
        direct = [(*bench.buffer(piece), NEXT, i + 1) for i, piece in enumerate(normal)]
        bench.offer(*direct, (*table, INDIRECT, 0))
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"".join([*normal, *rest])


def test_the_indirect_flag_wins_over_write(bench: Bench) -> None:
    """> the device MUST ignore the write-only flag of the descriptor that refers to an indirect table (2.7.5.3.2)"""
    table = bench.table([(*bench.buffer(b"read me"), 0, 0)])
    bench.offer((*table, INDIRECT | WRITE, 0))
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"read me"


def test_an_indirect_table_is_walked_by_next_not_in_order(bench: Bench) -> None:
    pieces = [bench.buffer(piece) for piece in (b"first ", b"third", b"second ")]
    table = bench.table([(*pieces[0], NEXT, 2), (*pieces[1], 0, 0), (*pieces[2], NEXT, 1)])
    bench.offer((*table, INDIRECT, 0))
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"first second third"


@pytest.mark.proves("VIO-RING-3")
@pytest.mark.parametrize("before", range(1, 48), ids=lambda before: f"{before} bytes before the boundary")
def test_an_indirect_table_in_two_regions(before: int) -> None:
    """Wherever the boundary falls, inside an entry too; the table of three entries begins just before it."""
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram, Bench(ram) as bench:
        pieces = [bench.buffer(piece) for piece in (b"one ", b"two ", b"three")]
        entries = [(*piece, NEXT if i < 2 else 0, i + 1) for i, piece in enumerate(pieces)]
        bench.offer((*bench.table(entries, MIB - before), INDIRECT, 0))
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"one two three"


def test_an_indirect_entry_in_sixteen_regions() -> None:
    """More pieces than an entry has bytes cannot be; regions of one byte are the worst."""
    with GuestRam([(0, MIB)]) as ram, Bench(ram) as bench:
        address, size = bench.buffer(b"found")
        content = address.to_bytes(8, "little") + size.to_bytes(4, "little") + bytes(4)
        ram.write(0x80000, content)
        mappings = [map_region(ram.regions[0])]
        for i in range(16):  # the same byte again, at an address of its own
            mapping = map_region(ram.regions[0])
            mapping.host_address += 0x80000 + i
            mapping.guest_phys_addr, mapping.userspace_addr, mapping.memory_size = 0x9000_0000 + i, i, 1
            mappings.append(mapping)
        memory = GuestMemory(mappings)
        bench.ring.adopt(memory)
        bench.offer((0x9000_0000, 16, INDIRECT, 0))
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"found"
        bench.ring.stop()
        memory.close()


def test_a_buffer_in_two_regions() -> None:
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram, Bench(ram) as bench:
        ram.write(MIB - 2, b"he")
        ram.write(MIB, b"llo")
        bench.offer((MIB - 2, 5, 0, 0))
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"hello"
        assert len(bench.pump.buffers()[0]) == 2


def test_a_ring_of_one(ram: GuestRam) -> None:
    with Bench(ram, 1) as bench:
        for i in range(5):
            bench.driver.add([bench.buffer(bytes([i]))])
            assert bench.pump.turn() == EVENT
            assert bench.pump.read(bench.pump.ticket) == bytes([i])
            finish(bench)
            assert len(bench.driver.reap()) == 1


@pytest.mark.proves("VIO-RING-4")
def test_the_largest_ring_full_and_around_the_wrap() -> None:
    with GuestRam([(0, 4 * MIB)]) as ram, Discard(ram, 32768, base=50_000) as bench:
        heads = bench.add(32768)
        while bench.pump.turn(4096) == WORK:
            pass
        assert [used.head for used in bench.driver.reap()] == heads
        assert bench.ring.stop() == (50_000 + 32768) & 0xFFFF
        assert bench.ring.fault == 0


# ---- chains that are dropped -----------------------------------------------------------------------------------------

BAD_CHAINS = {
    "unmapped": [(NOWHERE, 64, 0, 0)],
    "length 0": [(0x1000, 0, 0, 0)],
    "length 0xffffffff": [(0x1000, 0xFFFFFFFF, 0, 0)],
    "address and length wrap": [((1 << 64) - 16, 32, 0, 0)],
    "one byte past the region": [(16 * MIB - 15, 16, 0, 0)],
    "good, then unmapped": [(0x1000, 64, NEXT, 1), (NOWHERE, 64, 0, 0)],
    "good, then length 0": [(0x1000, 64, NEXT, 1), (0x2000, 0, 0, 0)],
    "writable before readable": [(0x1000, 64, NEXT | WRITE, 1), (0x2000, 64, 0, 0)],
}


@pytest.mark.proves("VIO-RING-5")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_chain_that_cannot_be_used_is_given_back_unused(bench: Bench, name: str, indirect: bool) -> None:
    if indirect:
        bench.offer((*bench.table(BAD_CHAINS[name]), INDIRECT, 0))
    else:
        bench.offer(*BAD_CHAINS[name])
    assert bench.pump.turn() == WORK
    assert bench.ring.fault == 0
    assert bench.driver.used_idx == 1
    assert bench.driver.used(0) == (0, 0)
    assert bench.ring.counters()["chains_dropped"] == 1
    bench.driver.set_descriptor(0, Descriptor(*bench.buffer(b"next"), 0, 0))
    bench.driver.avail_idx += 1
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"next"


@pytest.mark.proves("VIO-RING-5")
@pytest.mark.parametrize(("expects", "flags"), [(READABLE, WRITE), (WRITABLE, 0)], ids=["readable", "writable"])
def test_a_chain_of_the_wrong_direction_is_given_back_unused(ram: GuestRam, expects: int, flags: int) -> None:
    with Bench(ram, expects=expects) as bench:
        right = flags ^ WRITE
        bench.offer((0x1000, 64, right | NEXT, 1), (0x2000, 64, flags, 0))
        assert bench.pump.turn() == WORK
        assert bench.driver.used(0) == (0, 0)
        assert bench.ring.counters()["chains_dropped"] == 1


@pytest.mark.proves("VIO-RING-6")
def test_a_chain_of_more_than_four_gibibytes_is_given_back_unused() -> None:
    """Each buffer is guest memory, all together are no 32-bit length."""
    with GuestRam([(0, 1 << 31)]) as ram, Bench(ram) as bench:
        bench.offer((0, 1 << 31, NEXT, 1), (0, 1 << 31, 0, 0))
        assert bench.pump.turn() == WORK
        assert bench.driver.used(0) == (0, 0)
        bench.offer((0, 1 << 31, NEXT, 1), (0, (1 << 31) - 1, 0, 0))
        assert bench.pump.turn() == EVENT


@pytest.mark.proves("VIO-RING-7")
@pytest.mark.parametrize(("count", "usable"), [(1000, True), (1001, False)])
def test_a_chain_has_at_most_a_thousand_pieces(ram: GuestRam, count: int, usable: bool) -> None:
    with Bench(ram, 16) as bench:
        buffers = [(0x1000 + i, 1) for i in range(count)]
        bench.driver.add(readable=buffers, indirect=True)
        assert bench.pump.turn() == (EVENT if usable else WORK)
        assert bench.ring.fault == 0
        if usable:
            assert len(bench.pump.read(bench.pump.ticket)) == count


# ---- what breaks a ring ----------------------------------------------------------------------------------------------

AVAIL_INDEX, HEAD_INDEX, NEXT_INDEX, CHAIN_LOOP, BAD_INDIRECT = -1, -2, -3, -4, -5
BUFFER = (0x1000, 64)
Raw = tuple[int, int, int, int]
BROKEN_CHAINS: dict[str, tuple[int, list[Raw]]] = {
    "next is the size": (NEXT_INDEX, [(*BUFFER, NEXT, 16)]),
    "next is 65535": (NEXT_INDEX, [(*BUFFER, NEXT, 65535)]),
    "next is itself": (CHAIN_LOOP, [(*BUFFER, NEXT, 0)]),
    "a cycle of three": (CHAIN_LOOP, [(*BUFFER, NEXT, 1), (*BUFFER, NEXT, 2), (*BUFFER, NEXT, 0)]),
    "a cycle of all": (CHAIN_LOOP, [(*BUFFER, NEXT, (i + 1) % 16) for i in range(16)]),
    "indirect and next": (BAD_INDIRECT, [(0x1000, 16, INDIRECT | NEXT, 1), (*BUFFER, 0, 0)]),
    "indirect of length 0": (BAD_INDIRECT, [(0x1000, 0, INDIRECT, 0)]),
    "indirect of 15 bytes": (BAD_INDIRECT, [(0x1000, 15, INDIRECT, 0)]),
    "indirect of 17 bytes": (BAD_INDIRECT, [(0x1000, 17, INDIRECT, 0)]),
    "indirect of 2^28 entries": (BAD_INDIRECT, [(0x1000, 0xFFFFFFF0, INDIRECT, 0)]),
    "indirect of 32769 entries": (BAD_INDIRECT, [(0x1000, 16 * 32769, INDIRECT, 0)]),
    "indirect table nowhere": (BAD_INDIRECT, [(NOWHERE, 16, INDIRECT, 0)]),
    "indirect table ends nowhere": (BAD_INDIRECT, [(16 * MIB - 8, 16, INDIRECT, 0)]),
    "indirect table wraps": (BAD_INDIRECT, [((1 << 64) - 16, 32, INDIRECT, 0)]),
}
BROKEN_TABLES: dict[str, tuple[int, list[Raw]]] = {
    "nested": (BAD_INDIRECT, [(0x1000, 16, INDIRECT, 0)]),
    "nested later": (BAD_INDIRECT, [(*BUFFER, NEXT, 1), (0x1000, 16, INDIRECT, 0)]),
    "next is the table's size": (NEXT_INDEX, [(*BUFFER, NEXT, 2), (*BUFFER, 0, 0)]),
    "next is below the ring's size alone": (NEXT_INDEX, [(*BUFFER, NEXT, 5), (*BUFFER, 0, 0)]),
    "a cycle": (CHAIN_LOOP, [(*BUFFER, NEXT, 1), (*BUFFER, NEXT, 0)]),
}


def assert_broken(bench: Bench, fault: int) -> None:
    assert bench.ring.fault == fault
    assert FAULTS[fault]
    assert not bench.pump.holding
    assert bench.pump.turn() == EVENT
    bench.ring.report()
    assert signals(bench.driver.err_fd.fileno()) == 1
    assert bench.pump.turn() == 0  # reported, and silent from now on
    used = bench.driver.used_idx
    bench.driver.avail_idx = used
    bench.offer((*BUFFER, 0, 0))
    assert bench.pump.turn() == 0
    assert bench.driver.used_idx == used


@pytest.mark.proves("VIO-RING-8")
@pytest.mark.parametrize("name", BROKEN_CHAINS)
def test_descriptors_that_break_a_ring(bench: Bench, name: str) -> None:
    fault, chain = BROKEN_CHAINS[name]
    bench.offer(*chain)
    assert bench.pump.turn() == EVENT
    assert_broken(bench, fault)


@pytest.mark.proves("VIO-RING-8")
@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_indirect_tables_that_break_a_ring(bench: Bench, name: str) -> None:
    fault, table = BROKEN_TABLES[name]
    bench.offer((*BUFFER, NEXT, 1), (*bench.table(table), INDIRECT, 0))
    assert bench.pump.turn() == EVENT
    assert_broken(bench, fault)


@pytest.mark.proves("VIO-RING-8")
def test_an_indirect_table_that_was_not_negotiated(ram: GuestRam) -> None:
    with Bench(ram, indirect=False) as bench:
        bench.driver.add(readable=[BUFFER], indirect=True)
        assert bench.pump.turn() == EVENT
        assert_broken(bench, BAD_INDIRECT)


@pytest.mark.proves("VIO-RING-9")
@pytest.mark.parametrize("head", [16, 17, 0x7FFF, 0xFFFF])
def test_heads_that_break_a_ring(bench: Bench, head: int) -> None:
    bench.offer((*BUFFER, 0, 0), head=head)
    assert bench.pump.turn() == EVENT
    assert_broken(bench, HEAD_INDEX)


@pytest.mark.proves("VIO-RING-10")
@pytest.mark.parametrize("base", [0, 0xFFF8, 0xFFFF])
@pytest.mark.parametrize("ahead", [17, 0x8000, 0xFFFF])
def test_avail_indices_that_break_a_ring(ram: GuestRam, base: int, ahead: int) -> None:
    with Bench(ram, base=base) as bench:
        bench.driver.avail_idx = base + ahead
        assert bench.pump.turn() == EVENT
        assert_broken(bench, AVAIL_INDEX)


@pytest.mark.proves("VIO-RING-10")
@pytest.mark.parametrize("base", [0, 0xFFF8, 0xFFFF])
def test_an_avail_index_as_far_ahead_as_the_ring_is_long(ram: GuestRam, base: int) -> None:
    with Discard(ram, base=base) as bench:
        heads = bench.add(16)
        assert bench.pump.turn() == 0
        assert [used.head for used in bench.driver.reap()] == heads


def test_a_ring_whose_addresses_left_memory_is_broken(ram: GuestRam, bench: Bench) -> None:
    with pytest.raises(MemoryAccessError, match="the descriptor area of vring 0"):
        bench.ring.adopt(GuestMemory())
    assert bench.pump.turn() == EVENT
    assert bench.ring.fault == -7
    bench.ring.report()
    assert signals(bench.driver.err_fd.fileno()) == 1
    assert bench.ring.stop() == 0


def test_a_ring_that_was_not_started_is_not_broken_by_memory(ram: GuestRam) -> None:
    ring = SplitRing(0, READABLE)
    ring.configure(16, (0, 0, 0), False, False)
    with pytest.raises(MemoryAccessError):
        ring.adopt(GuestMemory())
    assert ring.fault == 0


def test_a_broken_ring_can_be_started_again(bench: Bench) -> None:
    bench.offer((*BUFFER, 0, 0), head=16)
    assert bench.pump.turn() == EVENT
    assert bench.ring.stop() == 0
    bench.driver.reset()
    start(bench.ring, bench.driver, bench.memory)
    bench.driver.add([bench.buffer(b"again")])
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"again"


@pytest.mark.proves("VIO-RING-11")
def test_good_chains_before_a_bad_one_are_served(ram: GuestRam) -> None:
    with Discard(ram) as bench:
        heads = bench.add(5)
        bench.driver.set_avail(5, 99)
        bench.driver.avail_idx += 1
        assert bench.pump.turn() == EVENT
        assert [used.head for used in bench.driver.reap()] == heads
        assert bench.ring.fault == HEAD_INDEX
        assert bench.ring.stop() == 5


# ---- addresses that are not known yet --------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-2")
@pytest.mark.parametrize("where", ["buffer", "second buffer", "indirect table", "second region"])
def test_a_chain_with_an_unknown_address_stays_in_the_ring(where: str) -> None:
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram:
        partial = GuestMemory([map_region(ram.regions[0])], MISS)
        driver = DriverRing(ram, 0, 16, event_idx=True)
        ring = SplitRing(0, READABLE)
        pump = ChainPump(ring)
        start(ring, driver, partial)
        ram.write(MIB, b"known")
        ram.write(0x1000, b"well ")
        match where:
            case "buffer":
                driver.add([(MIB, 5)])
            case "second buffer":
                driver.add([(0x1000, 5), (MIB, 5)])
            case "indirect table":
                driver._indirect_tables[0] = (MIB + 0x100, 0x100)
                driver.add([(MIB, 5)], indirect=True)
            case "second region":
                ram.write(MIB - 5, b"well ")
                driver.add([(MIB - 5, 10)])
        hole = MIB + 0x100 if where == "indirect table" else MIB
        for todo, question in ((EVENT, (ASK_TRANSLATION, hole, IOMMU_READ)), (0, None), (0, None)):
            assert (pump.turn(), ring.question()) == (todo, question)
            assert (ring.fault, ring.taken, driver.used_idx) == (0, 0, 0)
        assert ring.armed
        assert ring.position() == 0
        whole = map_guest(ram)
        ring.adopt(whole)
        partial.close()
        assert pump.turn() == EVENT
        assert pump.read(pump.ticket).endswith(b"known")
        ring.stop()
        pump.close()
        driver.close()
        whole.close()


@pytest.mark.proves("VIO-MEM-2")
def test_chains_before_an_unknown_address_are_served_and_those_behind_it_wait() -> None:
    with GuestRam([(0, MIB), (MIB, MIB)]) as ram, Bench(ram, absent=MISS) as bench:
        for address in (0x1000, 4 * MIB, 0x2000):
            bench.driver.add([(address, 8)])
        assert bench.pump.turn() == EVENT
        finish(bench)
        assert bench.pump.turn() == EVENT
        assert bench.ring.question() == (ASK_TRANSLATION, 4 * MIB, IOMMU_READ)
        assert bench.pump.turn() == 0
        assert bench.driver.used_idx == 1
        assert bench.ring.stop() == 1


def test_a_table_that_knows_everything_says_so(ram: GuestRam) -> None:
    with Bench(ram, absent=FAULT) as bench:
        bench.driver.add([(NOWHERE, 8)])
        assert bench.pump.turn() == WORK
        assert bench.ring.counters()["chains_dropped"] == 1


# ---- order and position ----------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-RING-4", "VIO-ORDER-2", "VIO-ORDER-3", "VIO-ORDER-4")
@SHARED
@given(st.integers(0, 0xFFFF), st.permutations(range(16)), st.lists(st.integers(1, 16), min_size=1, max_size=12))
def test_chains_are_used_in_the_order_they_were_offered(
    ram: GuestRam, base: int, heads: list[int], batches: list[int]
) -> None:
    with Discard(ram, base=base) as bench:
        driver = bench.driver
        for index in range(16):
            driver.set_descriptor(index, Descriptor(*bench.buffer))
        at = base
        for batch in batches:
            for i in range(batch):
                driver.set_avail(at + i, heads[(at + i) % 16])
            driver.avail_idx = at + batch
            assert bench.pump.turn() == 0
            assert driver.used_idx == (at + batch) & 0xFFFF
            assert [driver.used(at + i).head for i in range(batch)] == [heads[(at + i) % 16] for i in range(batch)]
            at = (at + batch) & 0xFFFF
        assert bench.ring.stop() == at


@pytest.mark.proves("VIO-RING-12")
def test_the_used_ring_is_never_read_back(bench: Bench) -> None:
    for i in range(40):
        for slot in range(16):
            bench.driver.set_used(slot, (0xFFFFFFFF, 0xFFFFFFFF))  # type: ignore[arg-type]
        bench.driver.used_idx = 0x5555
        bench.offer((*BUFFER, 0, 0))
        assert bench.pump.turn() == EVENT
        assert bench.pump.complete(bench.pump.ticket, 0)
        assert bench.driver.used_idx == i + 1
        assert bench.driver.used(i) == (0, 0)


def test_a_start_takes_the_used_index_from_memory(ram: GuestRam) -> None:
    """A back-end may die with chains in hand: the base says where to fetch, memory where to use."""
    with Bench(ram) as bench:
        bench.ring.stop()
        bench.driver.reset(7)
        bench.driver.used_idx = 4
        bench.driver.avail_idx = 8
        bench.driver.set_descriptor(3, Descriptor(*BUFFER))
        bench.driver.set_avail(7, 3)
        start(bench.ring, bench.driver, bench.memory)
        assert bench.pump.turn() == EVENT
        assert bench.pump.complete(bench.pump.ticket, 0)
        assert (bench.driver.used_idx, bench.driver.used(4).head) == (5, 3)
        assert bench.ring.stop() == 8


def test_a_chain_that_is_out_when_its_ring_stops_goes_back(bench: Bench) -> None:
    bench.driver.add([bench.buffer(b"later")])
    assert bench.pump.turn() == EVENT
    ticket = bench.pump.ticket
    assert bench.ring.stop() == 0
    assert not bench.pump.holding
    with pytest.raises(MemoryAccessError, match="no longer the device's"):
        bench.pump.read(ticket)
    assert not bench.pump.complete(ticket, 5)
    assert bench.driver.used_idx == 0
    start(bench.ring, bench.driver, bench.memory)
    assert bench.pump.turn() == EVENT
    assert bench.pump.read(bench.pump.ticket) == b"later"
    with pytest.raises(MemoryAccessError):
        bench.pump.read(ticket)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "event_idx", "sizes"), [(1, False, (16, 6, 12)), (256, True, (4096, 518, 2054))])
def test_areas(num: int, event_idx: bool, sizes: tuple[int, int, int]) -> None:
    assert area_sizes(num, event_idx) == sizes


@pytest.mark.proves("VIO-RING-13")
def test_event_fields_need_not_be_memory_unless_negotiated() -> None:
    """The avail ring ends with its region: there is no byte for used_event."""
    with GuestRam([(0, MIB), (1 << 32, MIB)]) as ram, Bench(ram) as bench:
        bench.ring.stop()
        driver = bench.driver
        driver.avail_addr = MIB - (4 + 2 * 16)
        end = ram.userspace_addr(driver.avail_addr)
        told = ram.userspace_addr(driver.desc_addr), end, ram.userspace_addr(driver.used_addr)
        bench.ring.configure(16, told, False, True)
        bench.ring.adopt(bench.memory)
        bench.ring.configure(16, told, True, True)
        with pytest.raises(MemoryAccessError, match=r"driver area of vring 0 .* its 38 bytes"):
            bench.ring.adopt(bench.memory)

"""The IOTLB against a model of single pages, and what rings do with what it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.virtio.bench import PACKED, addresses, map_guest, map_region, signals
from tests.virtio.packed import PackedDriver
from vhostuser.errors import MemoryAccessError, PayloadError
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio import iotlb
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.iotlb import IOTLB_ENTRIES, IotlbMissError, IotlbTable
from vhostuser.virtio.layout import ASK_DENIED, ASK_TRANSLATION, EITHER, EVENT, IOMMU_READ, IOMMU_WRITE, WORK
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import ChainPump
from vhostuser.virtio.ring import FAULTS
from vhostuser.virtio.rings import make_ring

PAGE = 4096
BOTH = IOMMU_READ | IOMMU_WRITE
LAYOUT = ((0, MIB), (MIB, MIB), (1 << 32, MIB))
IOVA = 1 << 44
TOP = 1 << 64


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[GuestRam, GuestMemory]]:
    with GuestRam(LAYOUT) as ram:
        memory = map_guest(ram)
        yield ram, memory
        memory.close()


def host(memory: GuestMemory, guest_phys_addr: int) -> int:
    """Where a guest-physical address lies in this process."""
    return memory.pieces(guest_phys_addr, 1)[0][0]


# ---- the table -------------------------------------------------------------------------------------------------------


class Update(NamedTuple):
    first: int
    pages: int
    target: int
    perm: int


class Invalidate(NamedTuple):
    first: int
    pages: int


SPAN = st.integers(1, 6)
UPDATES = st.builds(Update, st.integers(0, 20), SPAN, st.integers(250, 258), st.integers(1, 3))
CHANGES = st.lists(UPDATES | st.builds(Invalidate, st.integers(0, 20), SPAN), max_size=12)


@pytest.mark.proves("VU-IOTLB-1", "VU-IOTLB-2", "VU-IOTLB-3")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_translations_are_the_front_ends_last_words(
    shared: tuple[GuestRam, GuestMemory], changes: list[Update | Invalidate]
) -> None:
    """An update replaces whole what it overlaps, and an invalidation withdraws whole what it touches."""
    ram, memory = shared
    table = IotlbTable(memory)
    model: list[Update] = []
    for change in changes:
        pages = range(change.first, change.first + change.pages)
        model = [old for old in model if old.first not in pages and change.first not in range(old.first, _end(old))]
        if isinstance(change, Update):
            model.append(change)
            uaddr = ram.userspace_addr(change.target * PAGE)
            table = table.updated(IOVA + change.first * PAGE, change.pages * PAGE, uaddr, change.perm)
        else:
            table = table.invalidated(IOVA + change.first * PAGE, change.pages * PAGE)
    for page in range(28):
        for perm, rows in ((IOMMU_READ, table.readable), (IOMMU_WRITE, table.writable)):
            owner = next((old for old in model if page in range(old.first, _end(old)) and old.perm & perm), None)
            if owner is None:
                with pytest.raises(MemoryAccessError):
                    rows.pieces(IOVA + page * PAGE, 1)
            else:
                expected = host(memory, (owner.target + page - owner.first) * PAGE + 5)
                assert rows.pieces(IOVA + page * PAGE + 5, 7) == [(expected, 7)]


def _end(update: Update) -> int:
    return update.first + update.pages


def test_ranges_span_entries_and_regions(shared: tuple[GuestRam, GuestMemory]) -> None:
    ram, memory = shared
    table = IotlbTable(memory).updated(IOVA, 2 * PAGE, ram.userspace_addr(MIB - PAGE), BOTH)
    table = table.updated(IOVA + 2 * PAGE, PAGE, ram.userspace_addr(1 << 32), BOTH)
    assert table.readable.pieces(IOVA + 1, 3 * PAGE - 1) == [
        (host(memory, MIB - PAGE + 1), PAGE - 1),
        (host(memory, MIB), PAGE),
        (host(memory, 1 << 32), PAGE),
    ]


WRONG = {
    "size 0": (0x1000, 0, 0, "size is 0"),
    "iova wraps": (TOP - PAGE, PAGE + 1, 0, "iova .* wraps"),
    "uaddr wraps": (0, PAGE + 1, TOP - PAGE, "uaddr .* wraps"),
    "no memory": (0, PAGE, 0x1000, "not all in memory regions"),
}


@pytest.mark.proves("VU-IOTLB-4")
@pytest.mark.parametrize(("iova", "size", "uaddr", "reason"), WRONG.values(), ids=list(WRONG))
def test_s5_what_cannot_be_a_translation(
    shared: tuple[GuestRam, GuestMemory], iova: int, size: int, uaddr: int, reason: str
) -> None:
    table = IotlbTable(shared[1])
    with pytest.raises(PayloadError, match=reason):
        table.updated(iova, size, uaddr, BOTH)
    if "uaddr" not in reason and "memory" not in reason:
        with pytest.raises(PayloadError, match=reason):
            table.invalidated(iova, size)


@pytest.mark.proves("VU-IOTLB-4")
def test_part_of_a_translation_in_no_region(shared: tuple[GuestRam, GuestMemory]) -> None:
    ram, memory = shared
    with pytest.raises(PayloadError):
        IotlbTable(memory).updated(IOVA, 2 * PAGE, ram.userspace_addr(2 * MIB - PAGE), BOTH)


@pytest.mark.proves("VU-IOTLB-5")
def test_the_oldest_goes_first(shared: tuple[GuestRam, GuestMemory]) -> None:
    ram, memory = shared
    table = IotlbTable(memory)
    order = [i * 7919 % IOTLB_ENTRIES for i in range(IOTLB_ENTRIES)]
    for i in order:
        table = table.updated(IOVA + i * PAGE, PAGE, ram.userspace_addr(0), IOMMU_READ)
    table = table.updated(IOVA + order[0] * PAGE, PAGE, ram.userspace_addr(PAGE), IOMMU_READ)  # now the newest
    table = table.updated(IOVA - PAGE, PAGE, ram.userspace_addr(0), IOMMU_READ)
    known = {(entry.iova - IOVA) // PAGE for entry in table.entries}
    assert known == {-1, *order} - {order[1]}


@pytest.mark.proves("VU-IOTLB-5")
def test_the_oldest_go_first_where_they_lie_in_many_pieces(
    shared: tuple[GuestRam, GuestMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iotlb, "IOTLB_PIECES", 5)
    ram, memory = shared
    table = IotlbTable(memory)
    for i in range(3):
        table = table.updated(IOVA + i * PAGE, PAGE, ram.userspace_addr(0), IOMMU_READ)
    for i in (4, 8):
        table = table.updated(IOVA + i * PAGE, 2 * PAGE, ram.userspace_addr(MIB - PAGE), IOMMU_READ)  # in two regions
    assert [(entry.iova - IOVA) // PAGE for entry in table.entries] == [2, 4, 8]
    assert table.translates(IOVA + 5 * PAGE, IOMMU_READ)
    assert not table.translates(IOVA + 5 * PAGE, IOMMU_WRITE)
    assert not table.translates(IOVA + PAGE, IOMMU_READ)


@pytest.mark.proves("VU-IOTLB-6")
def test_a_new_memory_table_keeps_what_it_still_has(shared: tuple[GuestRam, GuestMemory]) -> None:
    ram, memory = shared
    table = IotlbTable(memory).updated(IOVA, PAGE, ram.userspace_addr(0), BOTH)
    table = table.updated(IOVA + PAGE, PAGE, ram.userspace_addr(MIB), BOTH)
    fewer = GuestMemory([map_region(ram.regions[1])])
    moved = table.over(fewer)
    assert moved.writable.pieces(IOVA + PAGE, PAGE) == [(host(fewer, MIB), PAGE)]
    with pytest.raises(MemoryAccessError):
        moved.writable.pieces(IOVA, 1)
    fewer.close()


def test_the_pieces_of_a_ring(shared: tuple[GuestRam, GuestMemory]) -> None:
    ram, memory = shared
    told = ram.userspace_addr
    table = (
        IotlbTable(memory).updated(IOVA, PAGE, told(0x3000), IOMMU_READ).updated(IOVA + PAGE, PAGE, told(0x4000), BOTH)
    )
    [piece] = table.ring_pieces(IOVA + 16, 2 * PAGE - 16, IOMMU_READ, "it")
    assert piece == (host(memory, 0x3010), 2 * PAGE - 16)
    with pytest.raises(MemoryAccessError, match="permission 2 is needed, it has 1"):
        table.ring_pieces(IOVA + 16, 2 * PAGE - 16, IOMMU_WRITE, "it")
    with pytest.raises(IotlbMissError) as miss:
        table.ring_pieces(IOVA + 16, 3 * PAGE, IOMMU_READ, "it")
    assert (miss.value.iova, miss.value.perm) == (IOVA + 2 * PAGE, IOMMU_READ)
    apart = table.updated(IOVA + PAGE, PAGE, told(0x8000), BOTH)
    pieces = apart.ring_pieces(IOVA + 16, 2 * PAGE - 32, IOMMU_READ, "it")
    assert pieces == ((host(memory, 0x3010), PAGE - 16), (host(memory, 0x8000), PAGE - 16))


# ---- rings -----------------------------------------------------------------------------------------------------------


class Translated:
    """A ring of either layout, and a buffer, all by IOVA; what its IOTLB holds is the test's choice."""

    def __init__(self, features: int) -> None:
        self.ram = GuestRam()
        self.memory = map_guest(self.ram)
        self.iotlb = IotlbTable(self.memory)
        packed = features & VirtioFeature.RING_PACKED
        self.driver = PackedDriver(self.ram, 0, 16) if packed else DriverRing(self.ram, 0, 16)
        self.buffer = self.ram.alloc(PAGE, PAGE)
        self.ring = make_ring(features, 0, EITHER)
        self.pump = ChainPump(self.ring)
        areas = [told - self.ram.userspace_addr(0) + IOVA for told in addresses(self.driver)]
        self.ring.configure(16, (areas[0], areas[1], areas[2]), False, True)
        self.ring.set_call(self.driver.call_fd.fileno())
        self.ring.enabled = True
        self.ring.adopt(self.memory, self.iotlb)

    def know(self, guest_phys_addr: int, perm: int = BOTH) -> None:
        """Translate one page, and have the ring adopt it."""
        page = guest_phys_addr & -PAGE
        self.iotlb = self.iotlb.updated(IOVA + page, PAGE, self.ram.userspace_addr(page), perm)
        self.ring.adopt(self.memory, self.iotlb)

    def answer_all(self, perm: int = BOTH) -> list[tuple[int, int]]:
        """Turn, and answer what the ring asks: the pages and permissions asked for."""
        asked = []
        while self.pump.turn() == EVENT and (question := self.ring.question()):
            what, iova, wanted = question
            assert what == ASK_TRANSLATION
            asked.append(((iova - IOVA) // PAGE, wanted))
            self.know(iova - IOVA, perm)
        return asked

    def close(self) -> None:
        self.ring.stop()
        self.pump.close()
        self.driver.close()
        self.memory.close()
        self.ram.close()


@pytest.fixture(params=[VirtioFeature.VERSION_1, PACKED], ids=["split", "packed"])
def translated(request: pytest.FixtureRequest) -> Iterator[Translated]:
    ring = Translated(request.param)
    yield ring
    ring.close()


@pytest.mark.proves("VU-IOTLB-7")
def test_a_ring_whose_place_is_unknown_waits_and_asks(translated: Translated) -> None:
    ring = translated.ring
    base = 0x80058005 if isinstance(translated.driver, PackedDriver) else 5
    ring.start(base)
    assert (ring.fault, signals(translated.driver.call_fd.fileno())) == (0, 0)
    assert ring.stop() == base, "a ring that never began keeps the position that it was told"
    ring.set_call(translated.driver.call_fd.fileno())
    ring.adopt(translated.memory, translated.iotlb)
    translated.driver.reset()
    ring.start(translated.driver.base)
    translated.driver.add([(IOVA + translated.buffer, 5)])
    asked = translated.answer_all()
    assert asked[0][0] == translated.driver.desc_addr // PAGE
    assert asked[-1] == (translated.buffer // PAGE, IOMMU_READ)
    assert signals(translated.driver.call_fd.fileno()) == 1, "the call of a start"
    assert translated.pump.holding


@pytest.mark.proves("VU-IOTLB-3")
def test_a_ring_goes_on_after_its_place_was_withdrawn(translated: Translated) -> None:
    ring, driver = translated.ring, translated.driver
    ring.start(driver.base)
    for done in range(1, 4):
        translated.ram.write(translated.buffer, b"%d" % done)
        driver.add([(IOVA + translated.buffer, 1)])
        translated.answer_all()
        assert translated.pump.read(translated.pump.ticket) == b"%d" % done
        assert translated.pump.complete(translated.pump.ticket, 0)
        assert len(driver.reap()) == 1
        translated.iotlb = IotlbTable(translated.memory)
        ring.adopt(translated.memory, translated.iotlb)
        assert not ring.armed


@pytest.mark.proves("VU-IOTLB-14")
def test_a_ring_in_parts_of_pages_breaks(translated: Translated) -> None:
    """Its descriptors begin at the end of one page, and what follows is in the middle of another."""
    ring, ram = translated.ring, translated.ram
    ring.start(translated.driver.base)
    end = IOVA + (1 << 30)
    for page, target in ((end - PAGE, 0x8000), (end, 0xC000 + 64)):
        translated.iotlb = translated.iotlb.updated(page, PAGE, ram.userspace_addr(target), BOTH)
    ring.configure(16, (end - 16, end + 256, end + 512), False, True)
    with pytest.raises(MemoryAccessError, match="cannot be mapped side by side: they are not whole"):
        ring.adopt(translated.memory, translated.iotlb)
    assert "side by side" in FAULTS[ring.fault]


@pytest.mark.proves("VU-IOTLB-8")
@pytest.mark.parametrize(("perm", "wrong"), [(IOMMU_READ, IOMMU_WRITE), (IOMMU_WRITE, IOMMU_READ)])
def test_an_access_that_is_not_allowed(translated: Translated, perm: int, wrong: int) -> None:
    """The chain is dropped and the front-end is told."""
    ring, driver = translated.ring, translated.driver
    ring.start(driver.base)
    translated.answer_all()
    translated.know(translated.buffer, perm)
    buffer = [(IOVA + translated.buffer, 8)]
    if wrong == IOMMU_READ:
        driver.add(buffer)
    else:
        driver.add([], buffer)
    assert translated.pump.turn() == WORK
    assert ring.counters()["chains_dropped"] == 1
    assert translated.pump.turn() == EVENT
    assert ring.question() == (ASK_DENIED, IOVA + translated.buffer, wrong)
    assert translated.pump.turn() == 0
    assert ring.fault == 0


@pytest.mark.proves("VU-IOTLB-9")
def test_a_kick_asks_again(translated: Translated) -> None:
    ring, driver = translated.ring, translated.driver
    ring.set_kick(driver.kick_fd.fileno())
    ring.start(driver.base)
    translated.answer_all()
    driver.add([(IOVA + translated.buffer, 8)])
    asked = ASK_TRANSLATION, IOVA + translated.buffer, IOMMU_READ
    assert (translated.pump.turn(), ring.question()) == (EVENT, asked)
    assert (translated.pump.turn(), ring.question()) == (0, None)
    assert ring.armed
    driver.kick(force=True)
    assert (translated.pump.run(), ring.question()) == (EVENT, asked)

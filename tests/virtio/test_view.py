"""Pages side by side that are not, and rings whose areas are such pages."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.bench import PACKED, map_guest
from tests.virtio.packed import PackedDriver
from vhostuser.errors import MemoryAccessError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.iommu import ScatteredRam
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.postcopy import PageServer
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.iotlb import IotlbTable
from vhostuser.virtio.layout import EITHER, EVENT, IOMMU_READ, IOMMU_WRITE
from vhostuser.virtio.pump import ChainPump
from vhostuser.virtio.ring import FAULTS
from vhostuser.virtio.rings import make_ring
from vhostuser.virtio.userfault import UserFault, open_source
from vhostuser.virtio.view import Pieces, View

PAGE = 4096
SIZE = 1024


def shared_mappings() -> Counter[str]:
    """Where guest memory is mapped in this process."""
    return Counter(line for line in Path("/proc/self/maps").read_text().splitlines() if line.split()[1][-1] == "s")


# ---- a view ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-IOTLB-14")
@settings(max_examples=60, deadline=None)
@given(
    pages=st.lists(st.integers(0, 15), min_size=2, max_size=8),
    skipped=st.integers(0, PAGE - 1),
    last=st.integers(1, PAGE),
    data=st.binary(min_size=16, max_size=16),
)
def test_a_view_is_the_pages_in_this_order(pages: list[int], skipped: int, last: int, data: bytes) -> None:
    with GuestRam([(0, 8 * PAGE), (1 << 32, 8 * PAGE)]) as ram:
        places = [(page % 8) * PAGE + (page // 8 << 32) for page in pages]
        for page, place in enumerate(places):
            ram.write(place, os.urandom(PAGE))
            ram.write(place + 8 * page, data)
        memory, before = map_guest(ram), shared_mappings()
        [begin, *between, end] = [memory.pieces(place, PAGE)[0] for place in places]
        pieces: Pieces = ((begin[0] + skipped, PAGE - skipped), *between, (end[0], last))
        view = View(pieces)
        shown = b"".join(ram.read(place, PAGE) for place in places)[skipped : -PAGE + last or None]
        assert ctypes.string_at(view.address, len(shown)) == shown
        ctypes.memmove(view.address + len(shown) - 1, data, 1)
        assert ram.read(places[-1] + last - 1, 1) == data[:1]
        view.close()
        memory.close()
        assert shared_mappings() - before == Counter()


@pytest.mark.proves("VU-IOTLB-14")
def test_parts_of_pages_and_pages_that_are_gone() -> None:
    with GuestRam([(0, 8 * PAGE)], seals=0) as ram:
        memory = map_guest(ram)
        [(first, _)] = memory.pieces(0, PAGE)
        for pieces in (((first, 64), (first + PAGE, PAGE)), ((first, PAGE), (first + 2 * PAGE + 64, 64))):
            with pytest.raises(MemoryAccessError, match="they are not whole"):
                View(pieces)
        os.ftruncate(ram.regions[0].fd.fileno(), 0)
        with pytest.raises(MemoryAccessError, match="cannot be mapped side by side: Invalid argument"):
            View(((first + 2 * PAGE, PAGE), (first, PAGE)))
        memory.close()


@pytest.mark.proves("VU-POST-7")
async def test_a_page_that_is_still_elsewhere_is_waited_for() -> None:
    """It comes by the region's mapping; the view is not known to those who bring pages."""
    with GuestRam([(0, 4 * PAGE)]) as ram, open_source() as source:
        ram.write(2 * PAGE, b"came")
        memory, [region] = map_guest(ram), ram.table().regions
        [(first, _)] = memory.pieces(0, PAGE)
        with closing(PageServer(ram)) as pages, closing(UserFault(source)) as faults:
            faults.register(memory.mappings[0])
            pages._fd, pages.places = OwnedFd(os.dup(faults.fileno())), [replace(region, userspace_addr=first)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pages.run)
                view = await trio.to_thread.run_sync(View, ((first + 2 * PAGE, PAGE), (first, PAGE)))
                nursery.cancel_scope.cancel()
            assert pages.asked == [2 * PAGE, 0]
        assert ctypes.string_at(view.address, 8) == b"came".ljust(8, b"\0")
        view.close()
        memory.close()


# ---- rings -----------------------------------------------------------------------------------------------------------


class Scattered:
    """A ring of either layout in pages that lie anywhere, translated as a whole."""

    def __init__(self, features: int) -> None:
        self.ram = ScatteredRam([(0, MIB)], seals=0)
        self.before = shared_mappings()
        self.memory = map_guest(self.ram)
        self.regions = shared_mappings()
        packed = features & VirtioFeature.RING_PACKED
        self.driver = PackedDriver(self.ram, 0, SIZE) if packed else DriverRing(self.ram, 0, SIZE)
        self.buffer = self.ram.alloc(PAGE, PAGE)
        self.iotlb = IotlbTable(self.memory)
        for page in range(self.driver.desc_addr & -PAGE, self.buffer + PAGE, PAGE):
            self.know(page)
        self.ring = make_ring(features, 0, EITHER)
        self.pump = ChainPump(self.ring)
        self.ring.configure(SIZE, (self.driver.desc_addr, self.driver.avail_addr, self.driver.used_addr), False, True)
        self.ring.enabled = True
        self.adopt()
        self.ring.start(self.driver.base)

    def know(self, iova: int) -> None:
        """Translate one page."""
        self.iotlb = self.iotlb.updated(iova, PAGE, self.ram.userspace_addr(iova), IOMMU_READ | IOMMU_WRITE)

    def adopt(self) -> None:
        """Have the ring adopt the table."""
        self.ring.adopt(self.memory, self.iotlb)

    def serve(self, count: int) -> None:
        """Bring so many chains through the ring."""
        for i in range(count):
            data = b"%d" % i
            self.ram.write(self.buffer, data)
            self.driver.add([(self.buffer, len(data))])
            self.pump.turn()
            assert self.pump.read(self.pump.ticket) == data
            assert self.pump.complete(self.pump.ticket, 0)
            assert len(self.driver.reap()) == 1

    @property
    def views(self) -> Counter[str]:
        """What is mapped besides the regions."""
        return shared_mappings() - self.regions


@pytest.fixture(params=[VirtioFeature.VERSION_1, PACKED], ids=["split", "packed"])
def scattered(request: pytest.FixtureRequest) -> Iterator[Scattered]:
    ring = Scattered(request.param)
    yield ring
    ring.pump.close()
    ring.memory.close()
    assert shared_mappings() == ring.before
    ring.driver.close()
    ring.ram.close()


@pytest.mark.proves("VU-IOTLB-14")
def test_chains_through_a_ring_in_many_pages(scattered: Scattered) -> None:
    scattered.serve(SIZE + 10)
    assert len(scattered.views) >= SIZE * 16 // PAGE
    position = scattered.ring.stop()
    assert not scattered.views
    scattered.adopt()
    scattered.ring.start(position)
    scattered.serve(10)


@pytest.mark.proves("VU-IOTLB-3", "VU-IOTLB-14")
def test_a_view_stays_until_one_of_its_pages_is_withdrawn(scattered: Scattered) -> None:
    before, page = scattered.views, (scattered.driver.desc_addr & -PAGE) + PAGE
    scattered.iotlb = scattered.iotlb.invalidated(scattered.buffer, 1)
    scattered.adopt()
    assert scattered.views == before
    scattered.iotlb = scattered.iotlb.invalidated(page, 1)
    scattered.adopt()
    assert not scattered.views
    scattered.know(page)
    scattered.know(scattered.buffer)
    scattered.adopt()
    scattered.serve(10)


@pytest.mark.proves("VIO-MEM-4")
def test_memory_that_vanishes_under_a_view_breaks_the_ring(scattered: Scattered) -> None:
    os.ftruncate(scattered.ram.regions[0].fd.fileno(), 0)
    assert scattered.pump.turn() == EVENT
    assert "vanished" in FAULTS[scattered.ring.fault]

"""Guest memory: what a region's mapping refuses, and where a guest-physical range lies."""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.virtio.bench import map_guest, shared_mappings
from vhostuser.errors import FdError, MemoryAccessError, PayloadError
from vhostuser.frontend.memory import USERSPACE_BASE, GuestRam
from vhostuser.virtio.memory import GuestMemory, Mapping

PAGE = 4096
TOP = 1 << 64


@dataclass(frozen=True)
class Fake(Mapping):
    """A region that is not mapped: a table can be asked where it lies, at addresses that no test could map."""

    guest_phys_addr: int
    memory_size: int
    host_address: int
    userspace_addr: int = 0

    def close(self) -> None:
        """There is nothing to unmap."""


def table(*regions: tuple[int, int]) -> GuestMemory:
    """A table of regions (guest-physical address, size), each far away from the others in this process."""
    return GuestMemory(Fake(begin, size, 0x1000_0000 * (i + 1), begin) for i, (begin, size) in enumerate(regions))


def memfd(size: int) -> int:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    return fd


# ---- a table of regions ----------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Regions that do not overlap, in any order; about half of the neighbours touch."""
    regions = []
    at = draw(st.integers(0, 64))
    for _ in range(draw(st.integers(1, 8))):
        size = draw(st.integers(1, 32))
        regions.append((at, size))
        at += size + draw(st.sampled_from([0, 0, 1, 7]))
    return draw(st.permutations(regions))


@pytest.mark.proves("VIO-MEM-1")
@given(layouts(), st.integers(0, 360), st.integers(1, 120))
def test_a_range_lies_where_each_of_its_bytes_lies(regions: list[tuple[int, int]], address: int, length: int) -> None:
    host = {begin + i: 0x1000_0000 * (k + 1) + i for k, (begin, size) in enumerate(regions) for i in range(size)}
    memory = table(*regions)
    if all(address + i in host for i in range(length)):
        found = [at + i for at, size in memory.pieces(address, length) for i in range(size)]
        assert found == [host[address + i] for i in range(length)]
        assert len(memory.pieces(address, length)) <= len(regions)
    else:
        with pytest.raises(MemoryAccessError, match=f"{address:#x}: its {length} bytes"):
            memory.pieces(address, length)


@pytest.mark.proves("VIO-MEM-1")
def test_no_byte_behind_a_region_belongs_to_it() -> None:
    """The first two regions touch, and one byte lies between the second and the third."""
    memory = table((PAGE, PAGE), (2 * PAGE, PAGE), (3 * PAGE + 1, PAGE))
    assert memory.pieces(2 * PAGE - 16, 17) == [(0x1000_0000 + PAGE - 16, 16), (0x2000_0000, 1)]
    assert memory.pieces(3 * PAGE - 2, 2) == [(0x2000_0000 + PAGE - 2, 2)]
    for address, length in [(PAGE - 1, 2), (3 * PAGE - 2, 3), (3 * PAGE, 1), (4 * PAGE, 2)]:
        with pytest.raises(MemoryAccessError):
            memory.pieces(address, length)


@pytest.mark.proves("VIO-MEM-1")
@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(TOP - 16, 17, id="one byte past 2^64"),
        pytest.param(TOP - 1, 0xFFFFFFFF, id="the longest buffer at the last address"),
        pytest.param(TOP - PAGE, TOP - 1, id="a length that wraps"),
        pytest.param(0, TOP - 1, id="all there is"),
    ],
)
def test_addresses_do_not_wrap(address: int, length: int) -> None:
    memory = table((TOP - PAGE, PAGE), (0, PAGE))
    with pytest.raises(MemoryAccessError):
        memory.pieces(address, length)


def test_the_last_byte_of_the_address_space_is_memory_like_any_other() -> None:
    assert table((TOP - PAGE, PAGE)).pieces(TOP - 16, 16) == [(0x1000_0000 + PAGE - 16, 16)]


def test_nothing_is_in_an_empty_table() -> None:
    memory = GuestMemory()
    assert memory.pieces(0, 0) == []
    with pytest.raises(MemoryAccessError):
        memory.pieces(0, 1)
    with pytest.raises(MemoryAccessError, match="0 known"):
        memory.ring_address(0, 1, "used")


@pytest.mark.parametrize(
    "regions",
    [
        pytest.param([(0, 16), (15, 16)], id="by one byte"),
        pytest.param([(0, 16), (0, 16)], id="twice the same"),
        pytest.param([(0, 64), (16, 16)], id="one inside the other"),
        pytest.param([(32, 16), (0, 33)], id="not in order"),
    ],
)
@pytest.mark.parametrize("name", ["guest_phys_addr", "userspace_addr"])
def test_regions_that_overlap(name: str, regions: list[tuple[int, int]]) -> None:
    apart = (0x10000 * i for i in range(len(regions)))
    fakes = [
        Fake(begin, size, 0, other) if name == "guest_phys_addr" else Fake(other, size, 0, begin)
        for (begin, size), other in zip(regions, apart, strict=True)
    ]
    with pytest.raises(PayloadError, match=f"overlaps .* in {name}"):
        GuestMemory(fakes)


# ---- rings: all in one region ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "length", "found"),
    [
        pytest.param(0x100, 0x100, 0, id="all of a region"),
        pytest.param(0x1FF, 1, 0xFF, id="its last byte"),
        pytest.param(0x101, 0x100, None, id="one byte past its end"),
        pytest.param(0xFF, 2, None, id="one byte before its begin"),
        pytest.param(0x200, 1, None, id="behind its end"),
        pytest.param(0x2FF, 2, None, id="into a neighbour"),
        pytest.param(TOP - 1, 2, None, id="past 2^64"),
    ],
)
def test_a_ring_lies_in_one_region(at: int, length: int, found: int | None) -> None:
    memory = GuestMemory([Fake(0, 0x100, 0x5000, 0x100), Fake(0x100, 0x80, 0x9000, 0x280), Fake(0x180, 8, 0, 0x300)])
    if found is not None:
        assert memory.ring_address(at, length, "used") == 0x5000 + found
    else:
        with pytest.raises(MemoryAccessError, match=f"used at {at:#x}: its {length} bytes .*3 known"):
            memory.ring_address(at, length, "used")


# ---- mapped regions --------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-1")
@pytest.mark.parametrize("mmap_offset", [0, PAGE, 3 * PAGE])
def test_bytes_arrive_across_regions(mmap_offset: int) -> None:
    with GuestRam([(PAGE, PAGE), (0, PAGE), (4 * PAGE, PAGE)], mmap_offset=mmap_offset) as ram:
        memory = map_guest(ram)
        data = bytes(range(100))
        ram.write(PAGE - 50, data[:50])
        ram.write(PAGE, data[50:])
        assert memory.read(PAGE - 50, 100) == data
        memory.write(PAGE - 50, data[::-1])
        assert ram.read(PAGE - 50, 50) + ram.read(PAGE, 50) == data[::-1]
        with pytest.raises(MemoryAccessError):
            memory.write(2 * PAGE - 50, data)
        memory.close()


def test_a_region_may_begin_anywhere_in_its_file() -> None:
    fd = memfd(2 * PAGE)
    try:
        os.pwrite(fd, b"first byte", PAGE - 3)
        memory = GuestMemory([Mapping(fd, 0x1234, PAGE, USERSPACE_BASE, PAGE - 3)])
        assert memory.read(0x1234, 10) == b"first byte"
        memory.write(0x1234 + PAGE - 4, b"last")
        assert os.pread(fd, 4, 2 * PAGE - 3 - 4) == b"last"
        memory.close()
    finally:
        os.close(fd)


def test_huge_pages_are_mapped_from_an_aligned_begin(hugepages: int) -> None:
    size = 2 << 20
    with GuestRam([(0, size)], hugetlb=True, mmap_offset=size) as ram:
        fd = ram.regions[0].fd.fileno()
        memory = GuestMemory([Mapping(fd, 0, size // 2, USERSPACE_BASE, size + PAGE)])
        memory.write(0, b"huge")
        assert ram.read(PAGE, 4) == b"huge"
        memory.close()


def test_closing_unmaps_once() -> None:
    before = shared_mappings()
    with GuestRam() as ram:
        memory = map_guest(ram)
        assert shared_mappings() == before + 4  # the driver has mapped both regions as well
        memory.close()
        memory.close()
        assert shared_mappings() == before + 2


@pytest.mark.parametrize(
    ("guest_phys_addr", "memory_size", "userspace_addr", "mmap_offset", "reason"),
    [
        pytest.param(0, 0, 0, 0, "its size is 0", id="empty"),
        pytest.param(TOP - PAGE, PAGE + 1, 0, 0, "guest_phys_addr .* wraps past 2\\^64", id="guest_phys_addr wraps"),
        pytest.param(0, PAGE + 1, TOP - PAGE, 0, "userspace_addr .* wraps past 2\\^64", id="userspace_addr wraps"),
        pytest.param(0, PAGE, 0, TOP - PAGE + 1, "mmap_offset .* wraps past 2\\^64", id="mmap_offset wraps"),
        pytest.param(0, 1 << 63, 0, 0, "past the end of the file at 0x2000", id="2^63 bytes"),
        pytest.param(0, 2 * PAGE + 1, 0, 0, "ends at 0x2001, past the end of the file at 0x2000", id="a byte too long"),
        pytest.param(0, PAGE, 0, PAGE + 1, "ends at 0x2001, past the end of the file", id="offset a byte too far"),
    ],
)
def test_ranges_that_cannot_be(
    guest_phys_addr: int, memory_size: int, userspace_addr: int, mmap_offset: int, reason: str
) -> None:
    fd, before = memfd(2 * PAGE), shared_mappings()
    try:
        with pytest.raises(PayloadError, match=reason):
            Mapping(fd, guest_phys_addr, memory_size, userspace_addr, mmap_offset)
        assert shared_mappings() == before
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "eventfd", "/dev/zero", "read-only", "write-only"])
def test_descriptors_that_are_no_memory(kind: str) -> None:
    with tempfile.NamedTemporaryFile() as file, socket.socket() as sock:
        file.truncate(PAGE)
        pipe = os.pipe()
        fds = {
            "pipe": pipe[0],
            "socket": os.dup(sock.fileno()),
            "directory": os.open("/", os.O_RDONLY),
            "eventfd": os.eventfd(0),
            "/dev/zero": os.open("/dev/zero", os.O_RDWR),
            "read-only": os.open(file.name, os.O_RDONLY),
            "write-only": os.open(file.name, os.O_WRONLY),
        }
        try:
            with pytest.raises(FdError, match=r"no regular file|not open for reading and writing"):
                Mapping(fds[kind], 0, PAGE, 0, 0)
        finally:
            for fd in [*fds.values(), pipe[1]]:
                os.close(fd)

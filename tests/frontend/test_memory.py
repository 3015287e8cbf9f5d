"""Guest memory as the front-end has it."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest

from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import DEFAULT_LAYOUT, MIB, USERSPACE_BASE, GuestRam, RamRegion


def test_table_and_files_match(memory: GuestRam) -> None:
    regions = memory.table().regions
    assert [(region.guest_phys_addr, region.memory_size) for region in regions] == list(DEFAULT_LAYOUT)
    for region, fd in zip(regions, memory.fds(), strict=True):
        assert region.userspace_addr == USERSPACE_BASE + region.guest_phys_addr
        assert os.fstat(fd).st_size == region.mmap_offset + region.memory_size


def test_what_is_written_is_in_the_file_at_its_offset() -> None:
    with GuestRam([(0x10000, MIB)], mmap_offset=mmap.PAGESIZE) as memory:
        memory.write(0x10010, b"guest")
        assert memory.read(0x10010, 5) == b"guest"
        assert os.pread(memory.fds()[0], 5, memory.table().regions[0].mmap_offset + 0x10) == b"guest"


def test_halfwords_are_little_endian_in_memory(memory: GuestRam) -> None:
    memory.store_u16(0x20, 0x1_1234)
    assert memory.load_u16(0x20) == 0x1234
    assert memory.read(0x20, 2) == b"\x34\x12"


@pytest.mark.parametrize("address", [16 * MIB - 1, 16 * MIB, (1 << 32) - 1, (1 << 32) + 16 * MIB, 1 << 63])
def test_outside_the_regions_is_nothing(address: int, memory: GuestRam) -> None:
    with pytest.raises(MemoryAccessError):
        memory.read(address, 2)
    with pytest.raises(MemoryAccessError):
        memory.write(address, b"ab")
    with pytest.raises(MemoryAccessError):
        memory.load_u16(address)


def test_allocations_are_aligned_and_apart(memory: GuestRam) -> None:
    first, second, third = memory.alloc(3), memory.alloc(5, 4096), memory.alloc(1, 1)
    assert (first, second, third) == (0, 4096, 4101)


def test_allocation_goes_on_in_the_next_region(memory: GuestRam) -> None:
    assert memory.alloc(16 * MIB) == 0
    assert memory.alloc(16) == 1 << 32
    with pytest.raises(MemoryError):
        memory.alloc(17 * MIB)


def test_allocation_from_a_chosen_region(memory: GuestRam) -> None:
    assert memory.alloc(16, region=1) == 1 << 32


def test_regions_come_and_go(memory: GuestRam) -> None:
    dimm = memory.add(RamRegion(8 << 30, MIB))
    assert memory.top == (8 << 30) + MIB
    assert memory.table().regions[-1] == dimm.message()
    assert memory.alloc(16, region=2) == 8 << 30
    memory.write(8 << 30, b"plugged")
    memory.remove(memory.regions[0])
    assert memory.read(8 << 30, 7) == b"plugged"
    assert memory.alloc(16) == 1 << 32, "what is left of the others is where it was"
    memory.remove(dimm)
    assert dimm.fd.closed
    with pytest.raises(MemoryAccessError):
        memory.read(8 << 30, 1)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK])
def test_seals(seals: int) -> None:
    with GuestRam([(0, MIB)], seals=seals) as memory:
        assert fcntl.fcntl(memory.fds()[0], fcntl.F_GET_SEALS) == seals


def test_a_size_that_cannot_be_mapped_leaves_nothing_behind() -> None:
    with pytest.raises((OSError, OverflowError, ValueError)):
        GuestRam([(0, MIB), (1 << 32, 1 << 62)])

"""The kernel as witness of what this process wrote to guest memory, and of nothing else."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.virtio.bench import map_guest
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.memory import GuestMemory, Mapping

PAGE = 4096
HUGE = 2 * MIB
SEVERAL = 3000  # ranges, more than one answer of the kernel holds


@pytest.fixture
def watch() -> Iterator[WriteWatch]:
    with closing(WriteWatch()) as watch:
        yield watch


def ranges(watch: WriteWatch) -> list[tuple[int, int]]:
    return [(first, last) for _, first, last in watch.written()]


def test_our_writes_are_seen_once(ram: GuestRam, watch: WriteWatch) -> None:
    with closing(map_guest(ram)) as memory:
        memory.write(5 * PAGE, b"before")
        watch.follow(memory.mappings)
        assert ranges(watch) == []
        memory.write(5 * PAGE, b"after")
        memory.write((1 << 32) + PAGE - 1, b"two pages")
        assert ranges(watch) == [(5 * PAGE, 6 * PAGE - 1), (1 << 32, (1 << 32) + 2 * PAGE - 1)]
        assert ranges(watch) == []
        memory.write(5 * PAGE, b"again")
        assert ranges(watch) == [(5 * PAGE, 6 * PAGE - 1)]


def test_the_guests_writes_and_our_reads_are_not_seen(ram: GuestRam, watch: WriteWatch) -> None:
    with closing(map_guest(ram)) as memory:
        watch.follow(memory.mappings)
        ram.write(3 * PAGE, b"the guest's")
        assert memory.read(3 * PAGE, 4 * PAGE)[:5] == b"the g"
        assert ranges(watch) == []
        memory.write(3 * PAGE, b"ours")
        ram.write(3 * PAGE, b"the guest's")
        assert ranges(watch) == [(3 * PAGE, 4 * PAGE - 1)]


def test_what_the_kernel_writes_for_us_is_seen(ram: GuestRam, watch: WriteWatch) -> None:
    with closing(map_guest(ram)) as memory:
        watch.follow(memory.mappings)
        [(address, _)] = memory.pieces(7 * PAGE, 5)
        reader, writer = os.pipe()
        os.write(writer, b"bytes")
        os.readv(reader, [(ctypes.c_char * 5).from_address(address)])
        assert ranges(watch) == [(7 * PAGE, 8 * PAGE - 1)]
        os.close(reader)
        os.close(writer)


def test_many_ranges_take_many_answers(ram: GuestRam, watch: WriteWatch) -> None:
    with closing(map_guest(ram)) as memory:
        watch.follow(memory.mappings)
        pages = [2 * i * PAGE for i in range(SEVERAL // 2)]
        for page in pages:
            memory.write(page, b"x")
        assert [first for first, _ in ranges(watch)] == pages


def test_of_a_huge_page_only_the_whole_is_known(hugepages: int, watch: WriteWatch) -> None:
    with GuestRam([(0, 2 * HUGE)], hugetlb=True) as ram, closing(map_guest(ram)) as memory:
        watch.follow(memory.mappings)
        memory.write(HUGE + 5 * PAGE, b"x")
        assert ranges(watch) == [(HUGE, 2 * HUGE - 1)]
        assert ranges(watch) == []


def test_memory_that_vanished_is_not_watched_any_more(watch: WriteWatch) -> None:
    with GuestRam([(0, 4 * PAGE), (MIB, 4 * PAGE)], seals=0) as ram, closing(map_guest(ram)) as memory:
        watch.follow(memory.mappings)
        os.ftruncate(ram.regions[0].fd.fileno(), 0)
        with pytest.raises(Exception, match="vanished"):
            memory.write(0, b"x")
        memory.write(MIB, b"x")
        assert (MIB, MIB + PAGE - 1) in ranges(watch)


def test_a_file_that_cannot_be_watched_is_named_and_the_others_are_watched(ram: GuestRam, watch: WriteWatch) -> None:
    with closing(WriteWatch()) as other, closing(map_guest(ram)) as memory:
        other.follow(memory.mappings[:1])
        with pytest.raises(OSError, match=r"memory region 0x0\+"):
            watch.follow(memory.mappings)
        memory.write(1 << 32, b"x")
        assert ranges(watch) == [(1 << 32, (1 << 32) + PAGE - 1)]


def test_a_region_that_begins_within_a_page_is_told_within_its_bounds(watch: WriteWatch) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(4 * PAGE)
        mapping = Mapping(file.fileno(), 0x10_0100, PAGE, 0, 0x100)
        with closing(GuestMemory([mapping])) as memory:
            watch.follow(memory.mappings)
            memory.write(0x10_0100, b"x" * PAGE)
            assert ranges(watch) == [(0x10_0100, 0x10_10FF)]

"""Guest memory tells what others have stored in it from what was stored through it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vhostuser.conformance.memory import RecordedRam
from vhostuser.conformance.record import Record

PAGE = 4096
LAYOUT = [(0x10000, 4 * PAGE), (0x40000, 2 * PAGE)]


@pytest.fixture
def memory() -> Iterator[RecordedRam]:
    with RecordedRam(Record(), LAYOUT) as memory:
        yield memory


def by_another(memory: RecordedRam, guest_phys_addr: int, data: bytes) -> None:
    """As the back-end stores."""
    region = next(r for r in memory.regions if 0 <= guest_phys_addr - r.guest_phys_addr < r.memory_size)
    os.pwrite(region.fd.fileno(), data, region.mmap_offset + guest_phys_addr - region.guest_phys_addr)


def test_what_others_store_shows_by_page(memory: RecordedRam) -> None:
    memory.watch()
    memory.write(0x10000, b"own")
    memory.store_u16(0x40002, 7)
    assert memory.foreign() == set()
    by_another(memory, 0x10000 + 2 * PAGE + 5, b"!")
    by_another(memory, 0x40000 + PAGE - 1, b"??")
    assert memory.foreign() == {0x10000 + 2 * PAGE, 0x40000, 0x40000 + PAGE}


def test_what_was_taken_over_shows_no_more_until_it_changes_again(memory: RecordedRam) -> None:
    memory.watch()
    by_another(memory, 0x10000 + PAGE, b"!")
    by_another(memory, 0x40000, b"!")
    memory.absorb([0x10000 + PAGE])
    assert memory.foreign() == {0x40000}
    by_another(memory, 0x10000 + PAGE, b"?")
    assert memory.foreign() == {0x10000 + PAGE, 0x40000}


def test_a_copy_is_the_same_memory_elsewhere(memory: RecordedRam) -> None:
    memory.write(memory.alloc(64), b"content")
    with RecordedRam(Record(), LAYOUT) as copy:
        copy.copy(memory)
        assert [bytes(region.bytes) for region in copy.regions] == [bytes(region.bytes) for region in memory.regions]
        assert copy.alloc(64) == memory.alloc(64)

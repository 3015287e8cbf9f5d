"""The dirty log: whatever a ring writes is in it, and nothing else, for both layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.virtio.bench import (
    Bench,
    Discard,
    InOrderDiscard,
    PackedBench,
    PackedDiscard,
    map_region,
    signals,
    turn_until_idle,
)
from tests.virtio.logged import PAGE, map_log, turn, witnessed
from vhostuser.errors import FdError, PayloadError
from vhostuser.frontend.dirty import DirtyBitmap
from vhostuser.frontend.memory import MIB, USERSPACE_BASE, GuestRam
from vhostuser.virtio.dirty import DirtyLog
from vhostuser.virtio.layout import EVENT, VANISHED
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.virtio.ring import FAULTS

LAST_PAGE = (1 << 64) - PAGE
either_layout = pytest.mark.parametrize("kind", [Bench, PackedBench], ids=["split", "packed"])
any_discard = pytest.mark.parametrize(
    "kind", [Discard, PackedDiscard, InOrderDiscard], ids=["split", "packed", "in order"]
)
either_event = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


ROUNDS = 2000
#: Sets and clears the bits beside that of a page until it is told to end: how often one was not as it left it.
ANOTHER = """
import sys
from vhostuser.frontend.dirty import PAGE, DirtyBitmap
top, fd, page = map(int, sys.argv[1:])
with DirtyBitmap(top, fd=fd) as bitmap:
    print("ready", flush=True)
    wrong = 0
    while top - PAGE not in bitmap:
        for theirs in range(page + PAGE, page + 8 * PAGE, PAGE):
            bitmap.put(theirs)
            wrong += theirs not in bitmap
            bitmap.clear(theirs)
            wrong += theirs in bitmap
    print(wrong)
"""


@pytest.fixture
def bitmap(ram: GuestRam) -> Iterator[DirtyBitmap]:
    with DirtyBitmap(ram.top) as bitmap:
        yield bitmap


def page_of(address: int) -> int:
    return address & -PAGE


# ---- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-LOG-1", "VU-LOG-2")
@either_layout
def test_a_python_devices_buffers_are_logged_as_far_as_they_were_written(ram: GuestRam, kind: Any) -> None:
    with kind(ram) as bench, witnessed(ram, bench.memory, bench.ring) as witness:
        buffers = [(ram.alloc(2 * PAGE, PAGE), 2 * PAGE), (ram.alloc(3 * PAGE, PAGE), 3 * PAGE)]
        bench.driver.add([(ram.alloc(8), 8)], buffers)
        turn_until_idle(bench.pump)
        witness.agree()
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x" * (3 * PAGE + 1)))
        written = witness.agree()
        (first, _), (second, _) = buffers
        own = written - {first, first + PAGE, second, second + PAGE}
        assert len(written) == len(own) + 4
        assert own == {page_of(bench.driver.used_addr if kind is Bench else bench.driver.desc_addr)}


@pytest.mark.proves("VU-LOG-1")
@any_discard
@either_event
def test_a_rings_own_writes_are_logged(ram: GuestRam, kind: Any, event_idx: bool) -> None:
    size = 1024  # the areas take pages
    with kind(ram, size, event_idx=event_idx) as bench, witnessed(ram, bench.memory, bench.ring) as witness:
        seen = set()
        for count in (1, 63, 64, 1, 700, 1, 300, 1024):
            bench.add(count)
            while bench.driver.in_flight:
                bench.pump.turn(64)
                seen |= witness.agree()
                bench.driver.reap()
            seen |= turn(bench.pump, witness)
        begin = bench.driver.used_addr if kind is Discard else bench.driver.desc_addr
        length = 8 * size if kind is Discard else 16 * size
        assert {page_of(begin), page_of(begin + length - 1)} <= seen
        assert page_of(bench.driver.used_addr) in seen


@pytest.mark.proves("VU-LOG-3")
@either_layout
def test_without_f_log_a_rings_own_writes_are_not_logged(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    with kind(ram) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, False, None, -1)
        buffer = ram.alloc(64, PAGE)
        bench.driver.add([], [(buffer, 64)])
        turn_until_idle(bench.pump)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
        turn_until_idle(bench.pump)
        assert bitmap.take() == {buffer}


@pytest.mark.proves("VU-LOG-4")
@either_layout
def test_a_log_that_is_off_stays_as_it_is(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    with kind(ram) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, True, None, -1)
        bench.ring.set_log(None, True, None, -1)
        bench.driver.add([], [(ram.alloc(64), 64)])
        turn_until_idle(bench.pump)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
        turn_until_idle(bench.pump)
        assert bitmap.take() == set()
        assert bench.ring.counters()["pages_logged"] == 0


@pytest.mark.proves("VU-LOG-5")
def test_a_split_rings_device_area_is_logged_where_the_front_end_says(ram: GuestRam, bitmap: DirtyBitmap) -> None:
    told = 0x8000_0000 + 8  # no memory is there, but the log goes on up to the next region
    with Discard(ram, 1024, event_idx=True) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, True, told, -1)
        bench.add(1)
        turn_until_idle(bench.pump)
        assert bitmap.take() == {page_of(told), page_of(told + 4 + 8 * 1024)}


@pytest.mark.proves("VU-LOG-6")
@either_layout
def test_a_file_mapped_twice_is_logged_under_the_address_that_was_used(ram: GuestRam, kind: Any) -> None:
    region, elsewhere = ram.regions[0], 1 << 33
    again = Mapping(region.fd.fileno(), elsewhere, region.memory_size, USERSPACE_BASE + elsewhere, 0)
    memory = GuestMemory([*map(map_region, ram.regions), again])
    with kind(ram) as bench, closing(memory), DirtyBitmap(elsewhere + MIB) as bitmap, map_log(bitmap) as log:
        bench.ring.adopt(memory)
        bench.ring.set_log(log, True, None, -1)
        buffer = ram.alloc(8, PAGE)
        bench.driver.add([], [(elsewhere + buffer, 8)])
        turn_until_idle(bench.pump)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
        pages = bitmap.take()
        assert elsewhere + buffer in pages
        assert buffer not in pages
        bench.ring.adopt(bench.memory)


@either_layout
def test_other_bits_of_the_log_stay(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    with kind(ram) as bench, map_log(bitmap) as log:
        os.pwrite(bitmap.fd.fileno(), b"\xa5" * bitmap.size, 0)
        before = bitmap.pages()
        bench.ring.set_log(log, True, None, -1)
        buffers = [ram.alloc(PAGE, PAGE) for _ in range(9)]
        bench.driver.add([], [(buffer, PAGE) for buffer in buffers])
        turn_until_idle(bench.pump)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x" * 9 * PAGE))
        after = bitmap.pages()
        assert before < after
        assert after - before <= {*buffers, page_of(bench.driver.used_addr), page_of(bench.driver.desc_addr)}
        assert after >= set(buffers)


@either_layout
def test_bits_that_others_set_and_clear_meanwhile_are_theirs(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    """Another back-end shares the byte. What it sets stays set and what it clears stays clear; and so does ours."""
    page = ram.alloc(8 * PAGE, 8 * PAGE)
    words = [sys.executable, "-c", ANOTHER, *map(str, (ram.top, bitmap.fd.fileno(), page))]
    with kind(ram) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, False, None, -1)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, pass_fds=[bitmap.fd.fileno()]) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            for _ in range(ROUNDS):
                bench.driver.add([], [(page, 8)])
                turn_until_idle(bench.pump)
                bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
                bench.driver.reap()
                assert page in bitmap
                bitmap.clear(page)
            bitmap.put(ram.top - PAGE)  # that is all
            assert other.stdout.read() == "0\n"


# ---- what a front-end may do to it -----------------------------------------------------------------------------------


@pytest.mark.proves("VU-LOG-7")
@either_layout
@pytest.mark.parametrize("size", [1, 2, 4096, 4097])
def test_nothing_is_written_beyond_the_log(ram: GuestRam, kind: Any, size: int) -> None:
    with kind(ram) as bench, ExitStack() as stack:
        bitmap = stack.enter_context(DirtyBitmap(ram.top, mmap_offset=PAGE))
        os.ftruncate(bitmap.fd.fileno(), 4 * PAGE)
        log = stack.enter_context(closing(DirtyLog(bitmap.fd.fileno(), size, PAGE)))
        bench.ring.set_log(log, True, None, -1)
        far = ram.alloc(PAGE, PAGE, 1)
        bench.driver.add([], [(far, PAGE)])
        turn_until_idle(bench.pump)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x" * PAGE))
        content = os.pread(bitmap.fd.fileno(), 4 * PAGE, 0)
        assert not any(content[:PAGE])
        assert not any(content[PAGE + size :])
        assert bench.ring.counters()["pages_beyond_log"] >= 1


@pytest.mark.proves("VU-LOG-7")
@pytest.mark.parametrize("size", [1, 2, 4096, 4097])
def test_the_first_page_behind_the_log(ram: GuestRam, size: int) -> None:
    """The last page that the log has a bit for is logged, and the one behind it, whose bit is in the next byte, not."""
    with Discard(ram) as bench, ExitStack() as stack:
        bitmap = stack.enter_context(DirtyBitmap(ram.top))
        os.ftruncate(bitmap.fd.fileno(), 2 * PAGE)
        log = stack.enter_context(closing(DirtyLog(bitmap.fd.fileno(), size, 0)))
        for told in (8 * size * PAGE, 8 * size * PAGE - PAGE):
            assert not any(os.pread(bitmap.fd.fileno(), 2 * PAGE, 0))
            bench.ring.set_log(log, True, told, -1)
            bench.add()
            turn_until_idle(bench.pump)
        content = os.pread(bitmap.fd.fileno(), 2 * PAGE, 0)
        assert [i for i, byte in enumerate(content) if byte] == [size - 1]
        assert content[size - 1] == 0x80


@pytest.mark.proves("VU-LOG-7")
@pytest.mark.parametrize(
    "told", [LAST_PAGE, (1 << 64) - 1, (1 << 64) - 8, 1 << 63, 0xDEAD_BEEF_0000], ids=lambda told: f"L2-{told:#x}"
)
def test_a_log_address_that_is_nowhere_is_counted_and_skipped(ram: GuestRam, bitmap: DirtyBitmap, told: int) -> None:
    with Discard(ram, event_idx=True) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, True, told, -1)
        bench.add(3)
        turn_until_idle(bench.pump)
        assert bitmap.take() == set()
        assert bench.ring.counters()["pages_beyond_log"] == 3  # used entries, used.idx, avail_event
        assert len(bench.driver.reap()) == 3


@pytest.mark.proves("VU-LOG-8")
@either_layout
def test_a_log_that_vanishes_breaks_the_ring(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    with kind(ram) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, True, None, -1)
        os.ftruncate(bitmap.fd.fileno(), 0)
        bench.driver.add([], [(ram.alloc(8), 8)])
        assert turn_until_idle(bench.pump) & EVENT
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
        assert bench.ring.fault == VANISHED
        assert "truncated" in FAULTS[VANISHED]


@pytest.mark.proves("VU-LOG-9")
@either_layout
def test_the_logs_eventfd_is_signalled_once_a_burst(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with kind(ram) as bench, map_log(bitmap) as log:
        turn_until_idle(bench.pump)
        bench.ring.set_log(log, True, None, fd)
        bench.driver.add([], [(ram.alloc(8 * PAGE), 8 * PAGE)])
        turn_until_idle(bench.pump)
        before = signals(fd)
        bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x" * 8 * PAGE))
        assert signals(fd) == 1, before
        turn_until_idle(bench.pump)
        signals(fd)
        bench.driver.reap()
        bench.driver.add([], [(ram.alloc(8), 8)])
    os.close(fd)


@pytest.mark.proves("VU-LOG-9")
@either_layout
def test_a_logs_eventfd_that_is_full_keeps_nobody(ram: GuestRam, bitmap: DirtyBitmap, kind: Any) -> None:
    fd = os.eventfd(0)  # it would block
    os.eventfd_write(fd, (1 << 64) - 2)
    with kind(ram) as bench, map_log(bitmap) as log:
        bench.ring.set_log(log, True, None, fd)
        for _ in range(3):
            bench.driver.add([], [(ram.alloc(8), 8)])
            turn_until_idle(bench.pump)
            bench.pump.complete(bench.pump.ticket, bench.pump.write(bench.pump.ticket, b"x"))
            bitmap.take()
        assert len(bench.driver.reap()) == 3
    os.close(fd)


@pytest.mark.proves("VU-LOG-10")
@pytest.mark.parametrize(
    ("size", "offset", "words"),
    [
        pytest.param(0, 0, "its size is 0", id="L1-empty"),
        pytest.param(2 * PAGE + 1, 0, "past the end of the file", id="L1-longer than its file"),
        pytest.param(PAGE, PAGE + 1, "past the end of the file", id="L1-offset too far"),
        pytest.param(PAGE, (1 << 64) - PAGE + 1, "wraps past 2", id="L1-offset wraps"),
        pytest.param((1 << 64) - 1, 2, "wraps past 2", id="L1-size wraps"),
    ],
)
def test_a_log_that_cannot_be_is_refused(size: int, offset: int, words: str) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, 2 * PAGE)
    with pytest.raises(PayloadError, match=words):
        DirtyLog(fd, size, offset)
    os.close(fd)


def test_a_log_that_is_no_file_is_refused() -> None:
    fd = os.eventfd(0)
    with pytest.raises(FdError, match="no regular file"):
        DirtyLog(fd, PAGE, 0)
    os.close(fd)

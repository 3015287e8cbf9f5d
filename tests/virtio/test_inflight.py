"""What a ring records of its requests in flight, and what the next back-end makes of it."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.virtio.bench import map_guest
from tests.virtio.packed import AVAIL, USED, PackedDriver
from tests.virtio.recorded import Recorded, RecordedBurst, RecordedChain
from vhostuser.errors import PayloadError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing, Used
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.inflight import Region, create, part_size
from vhostuser.virtio.layout import EVENT, VANISHED

both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
FRESH = 0x8000_8000


class Header(NamedTuple):
    """A split ring's header as it lies in the region."""

    features: int
    version: int
    desc_num: int
    last_batch_head: int
    used_idx: int


class PackedHeader(NamedTuple):
    """A packed ring's."""

    features: int
    version: int
    desc_num: int
    free_head: int
    old_free_head: int
    used_idx: int
    old_used_idx: int
    used_wrap_counter: int
    old_used_wrap_counter: int


class Entry(NamedTuple):
    """An entry of a split ring."""

    inflight: int = 0
    next: int = 0
    counter: int = 0


class PackedEntry(NamedTuple):
    """An entry of a packed ring."""

    inflight: int = 0
    next: int = 0
    last: int = 0
    num: int = 0
    counter: int = 0
    id: int = 0
    flags: int = 0
    len: int = 0
    addr: int = 0


SPLIT, SPLIT_ENTRY = struct.Struct("=QHHHH"), struct.Struct("=B5xHQ")
PACKED, PACKED_ENTRY = struct.Struct("=QHHHHHHBB10x"), struct.Struct("=BxHHHQHHIQ")


def header(bench: Recorded) -> Header:
    return Header(*SPLIT.unpack(os.pread(bench.file.fileno(), 16, 0)))


def packed_header(bench: Recorded) -> PackedHeader:
    return PackedHeader(*PACKED.unpack(os.pread(bench.file.fileno(), 32, 0)))


def entries(bench: Recorded) -> list[Entry]:
    data = os.pread(bench.file.fileno(), 16 * bench.driver.size, 16)
    return [Entry(*fields) for fields in SPLIT_ENTRY.iter_unpack(data)]


def packed_entries(bench: Recorded) -> list[PackedEntry]:
    data = os.pread(bench.file.fileno(), 32 * bench.driver.size, 32)
    return [PackedEntry(*fields) for fields in PACKED_ENTRY.iter_unpack(data)]


def write(bench: Recorded, head: Header | PackedHeader, rows: Sequence[Entry | PackedEntry]) -> None:
    """Lay a record into the region."""
    one, each = (SPLIT, SPLIT_ENTRY) if isinstance(head, Header) else (PACKED, PACKED_ENTRY)
    os.pwrite(bench.file.fileno(), one.pack(*head) + b"".join(each.pack(*row) for row in rows), 0)


def marked(bench: Recorded) -> int:
    """How many chains are recorded as in flight."""
    packed = bool(bench.features & VirtioFeature.RING_PACKED)
    return sum(row.inflight for row in (packed_entries(bench) if packed else entries(bench)))


def cuts(*words: str) -> Any:
    """What every cut of a ring's life comes to, in a process of its own that runs the interpreted edition."""
    command = [sys.executable, "-m", "tests.virtio.cut", *words]
    environment = {**os.environ, "VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


# ---- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-INFLIGHT-1", "VIO-INFLIGHT-2")
@pytest.mark.parametrize("device", ["chain", "burst"])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_whatever_store_a_back_end_dies_at_every_chain_is_completed_once(layout: str, device: str) -> None:
    ran = cuts(layout, device)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["cuts"] > 100
    assert found["lives"] > 10


@pytest.mark.parametrize(
    ("layout", "mistake"),
    [
        ("split", "marks-go-first"),
        ("split", "no-marks"),
        ("packed", "nothing-restored"),
        ("packed", "nothing-counted"),
    ],
)
def test_the_cuts_find_a_mistake(layout: str, mistake: str) -> None:
    ran = cuts(layout, "burst", mistake)
    assert ran.returncode == 1
    assert "Error" in ran.stderr.splitlines()[-1]


@pytest.mark.proves("VIO-INFLIGHT-3")
@pytest.mark.parametrize("laps", [0, 1])
@pytest.mark.parametrize("used", [1, 5, 6])
def test_a_packed_ring_without_a_record_is_not_resumed_at_a_place_that_it_has_left(
    ram: GuestRam, used: int, laps: int
) -> None:
    """The front-end of a back-end that died tells what it told that one: here, a fresh ring."""
    with RecordedBurst(ram, packed=True) as bench:
        bench.boot()
        for _ in range(7 * laps + used):
            bench.add()
            bench.turn()
            bench.reap()
        bench.die()
        pump, ring = bench.make_pump()
        try:
            ring.configure(7, bench.addresses, False, True)
            ring.adopt(bench.memory)
            with pytest.raises(PayloadError, match=r"cannot go on at slot 0, wrap counter 1: slot \d was used"):
                ring.start(FRESH)
            assert not ring.started
        finally:
            pump.close()


# ---- what is recorded ------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-INFLIGHT-4")
@pytest.mark.parametrize(
    ("packed", "queue_size", "size"),
    [
        (False, 1, 64),
        (False, 3, 64),
        (False, 4, 128),
        (False, 256, 4160),
        (True, 1, 64),
        (True, 2, 128),
        (True, 256, 8256),
    ],
)
def test_the_size_of_a_part(packed: bool, queue_size: int, size: int) -> None:
    assert part_size(VirtioFeature.RING_PACKED if packed else 0, queue_size) == size


@pytest.mark.proves("VIO-INFLIGHT-1")
def test_a_split_record(ram: GuestRam) -> None:
    with RecordedChain(ram, packed=False) as bench:
        bench.boot()
        assert header(bench) == (0, 1, 8, 0, 0)
        for _ in range(3):
            bench.add(2)
        assert bench.pump.turn() == EVENT
        assert [row.inflight for row in entries(bench)] == [1, 0, 0, 0, 0, 0, 0, 0]
        bench.turn()
        assert bench.reap() == 3
        assert header(bench) == (0, 1, 8, 4, 3)
        assert entries(bench)[::2] == [(0, 0, 0), (0, 0, 1), (0, 2, 2), (0, 0, 0)]


@pytest.mark.proves("VIO-INFLIGHT-2")
def test_a_packed_record(ram: GuestRam) -> None:
    with RecordedChain(ram, packed=True) as bench:
        bench.boot()
        assert packed_header(bench) == (0, 1, 7, 0, 0, 0, 0, 1, 1)
        assert [row.next for row in packed_entries(bench)] == [1, 2, 3, 4, 5, 6, 0]
        bench.add(2)
        bench.add(3)
        assert bench.pump.turn() == EVENT
        address = bench.buffer[0]
        assert packed_entries(bench)[0] == (1, 1, 1, 2, 0, 0, 1 | AVAIL, 64, address)
        assert packed_entries(bench)[1][5:] == (0, AVAIL, 64, address)
        assert packed_header(bench) == (0, 1, 7, 2, 2, 0, 0, 1, 1)
        bench.turn()
        assert bench.reap() == 2
        # the first chain's entries were free again when the second was taken
        assert packed_header(bench) == (0, 1, 7, 0, 0, 5, 5, 1, 1)
        assert [row.inflight for row in packed_entries(bench)] == [0] * 7


@both
@pytest.mark.proves("VIO-INFLIGHT-5")
def test_a_ring_that_stops_has_nothing_in_flight(ram: GuestRam, packed: bool) -> None:
    with RecordedChain(ram, packed) as bench:
        bench.boot()
        bench.add(2)
        bench.add(1)
        assert bench.pump.turn() == EVENT
        assert marked(bench) == 1
        assert bench.stop() == (FRESH if packed else 0)
        assert marked(bench) == 0
        bench.boot()
        bench.finish()


@both
@pytest.mark.proves("VIO-INFLIGHT-5")
def test_a_ring_that_stops_at_once_keeps_its_record(ram: GuestRam, packed: bool) -> None:
    with RecordedChain(ram, packed) as bench:
        bench.boot()
        bench.add(2)
        bench.add(1)
        assert bench.pump.turn() == EVENT
        assert bench.stop(keep=True) == (0x8000_8002 if packed else 1)
        assert marked(bench) == 1
        bench.boot()
        bench.finish()


@pytest.mark.proves("VIO-INFLIGHT-2")
def test_a_packed_record_that_was_taken_over_has_room_for_as_many_chains_again(ram: GuestRam) -> None:
    """The entries of a chain that a back-end before this one took are free entries, one and all, once it is used."""
    with RecordedChain(ram, packed=True) as bench:
        bench.boot()
        bench.add(2)
        assert bench.pump.turn() == EVENT
        bench.die()
        bench.boot()
        bench.turn()
        assert bench.reap() == 1
        bench.add(3)
        assert bench.pump.turn() == EVENT
        assert packed_entries(bench)[0][:4] == (1, 1, 2, 3)
        assert [row.flags & 1 for row in packed_entries(bench)[:3]] == [1, 1, 0]
        bench.die()
        bench.boot()
        bench.finish()


@both
def test_chains_that_are_put_back_are_recorded_once(ram: GuestRam, packed: bool) -> None:
    """A full port, or a packet that wants more buffers than there are, puts chains back again and again."""
    with RecordedChain(ram, packed) as bench:
        bench.boot()
        bench.add()
        bench.add()
        for _ in range(5):
            assert bench.pump.turn() == EVENT
            bench.ring.adopt(bench.memory)  # it goes back
            assert marked(bench) == 1
        bench.finish()
        counters = [row.counter for row in (packed_entries(bench) if packed else entries(bench))]
        assert max(counters) == bench.ring.counters()["chains"] - 1
        assert bench.ring.counters()["chains"] == 11


@both
def test_a_record_goes_on_when_the_memory_table_changes(ram: GuestRam, packed: bool) -> None:
    with RecordedBurst(ram, packed) as bench:
        bench.boot()
        bench.add(2)
        bench.turn()
        before, bench.memory = bench.memory, map_guest(ram)
        bench.ring.adopt(bench.memory)
        before.close()  # whoever still looked there would not live
        bench.finish()
        bench.die()
        bench.boot()
        bench.finish()


# ---- records of others -----------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-INFLIGHT-1")
def test_a_split_record_of_a_back_end_that_uses_chains_out_of_order(ram: GuestRam) -> None:
    """Heads 0 to 3 were taken, 2 and 1 used; the avail ring was written over since."""
    with RecordedBurst(ram, packed=False, size=4) as bench:
        driver = bench.driver
        assert isinstance(driver, DriverRing)
        heads = [driver.add([bench.buffer]) for _ in range(4)]
        assert heads == [0, 1, 2, 3]
        driver.set_used(0, Used(2, 0))
        driver.set_used(1, Used(1, 0))
        driver.used_idx = 2
        assert [used.head for used in driver.reap()] == [2, 1]
        assert [driver.add([bench.buffer]) for _ in range(2)] == [1, 2]  # over the places of 0 and 1
        write(bench, Header(0, 1, 4, 1, 2), [Entry(1, 0, 41), Entry(0, 2, 40), Entry(0, 0, 42), Entry(1, 0, 39)])
        bench.boot()
        bench.turn()
        assert [used.head for used in driver.reap()] == [3, 0, 1, 2]
        bench.finish()


@pytest.mark.proves("VIO-INFLIGHT-2")
@pytest.mark.parametrize("published", [False, True])
def test_a_packed_record_of_a_back_end_that_uses_chains_out_of_order(ram: GuestRam, published: bool) -> None:
    """Chains of one, two and one slot were taken; the last was about to be used, in the first one's place, or was."""
    with RecordedBurst(ram, packed=True, size=8) as bench:
        driver = bench.driver
        assert isinstance(driver, PackedDriver)
        one, two, three = (driver.add([bench.buffer] * span) for span in (1, 2, 1))
        slots = [driver.read(slot) for slot in range(4)]
        rows = [
            PackedEntry(1, 1, 0, 1, 0, one, slots[0].flags, *bench.buffer[::-1]),
            PackedEntry(1, 2, 2, 2, 1, 0, slots[1].flags, *bench.buffer[::-1]),
            PackedEntry(0, 3, 0, 0, 0, two, slots[2].flags, *bench.buffer[::-1]),
            PackedEntry(1, 4, 3, 1, 2, three, slots[3].flags, *bench.buffer[::-1]),
            *(PackedEntry(0, following) for following in (5, 6, 0)),
        ]
        write(bench, PackedHeader(0, 1, 7, 3, 4, 1, 0, 1, 1), rows)
        driver.write(0, slots[0]._replace(id=three, flags=AVAIL | USED if published else slots[0].flags))
        bench.boot()
        bench.turn()
        used = [driver.read(slot) for slot in range(4)]
        # the driver knows how long each chain was, and skips the slots that no used descriptor is in
        places = {0: three, 1: one, 2: two} if published else {0: one, 1: two, 3: three}
        assert {i: slot.id for i, slot in enumerate(used) if slot.flags & USED} == places


GOOD = Header(0, 1, 8, 0, 0)
GOOD_PACKED = PackedHeader(0, 1, 7, 0, 0, 0, 0, 1, 1)


@pytest.mark.proves("VIO-INFLIGHT-6")
@pytest.mark.parametrize(
    ("head", "rows", "reason"),
    [
        (GOOD._replace(version=7), [], "version 7, features 0x0; known is version 1"),
        (GOOD._replace(features=4), [], "version 1, features 0x4"),
        (GOOD._replace(desc_num=16), [], "desc_num 16 is not its queue_size 8"),
        (GOOD._replace(used_idx=9), [], "from used_idx 9 to 0 in the ring are more than its 8 descriptors"),
        (GOOD._replace(used_idx=65535, last_batch_head=8), [], "head 8 is not below the ring's size 8"),
        (GOOD._replace(used_idx=65534), [Entry(1, 9)], "head 9 is not below the ring's size 8"),
        (GOOD._replace(used_idx=65534), [Entry(1, 0)], "head 0 is in the last batch twice"),
    ],
)
def test_i1_a_split_record_that_cannot_be(ram: GuestRam, head: Header, rows: list[Entry], reason: str) -> None:
    with RecordedBurst(ram, packed=False) as bench:
        write(bench, head, rows)
        with pytest.raises(PayloadError, match=f"^vring 1: inflight region: {reason}"):
            bench.boot()
        assert not bench.ring.started


@pytest.mark.proves("VIO-INFLIGHT-6")
@pytest.mark.parametrize(
    ("head", "rows", "reason"),
    [
        (GOOD_PACKED._replace(version=2), [], "version 2"),
        (GOOD_PACKED._replace(desc_num=8), [], "desc_num 8 is not its queue_size 7"),
        (GOOD_PACKED._replace(used_idx=7), [], "used_idx 7 is not below the ring's size 7"),
        (GOOD_PACKED._replace(old_used_idx=9), [], "used_idx 9 is not below the ring's size 7"),
        (GOOD_PACKED._replace(used_wrap_counter=0, used_idx=1), [], "no batch leads from"),
        (GOOD_PACKED._replace(used_idx=2), [PackedEntry(num=0)], "entry 0, of 0 descriptors, is not in a batch"),
        (GOOD_PACKED._replace(used_idx=2), [PackedEntry(num=3)], "entry 0, of 3 descriptors, is not in a batch"),
        (GOOD_PACKED._replace(used_idx=2), [PackedEntry(num=1, next=0)], "entry 0, of 1 descriptors, is not in"),
        (GOOD_PACKED._replace(used_idx=2, free_head=7), [], "entry 7 is not below 7"),
        (GOOD_PACKED._replace(used_idx=2), [PackedEntry(num=1, last=9)], "entry 9 is not below 7"),
        (GOOD_PACKED._replace(old_free_head=6), [PackedEntry(1, num=0)], "the 0 entries from 0 to 0 are no chain"),
        (GOOD_PACKED._replace(old_free_head=6), [PackedEntry(1, num=8, next=0)], "the 8 entries from 0 to 0 are no"),
        (GOOD_PACKED._replace(old_free_head=6), [PackedEntry(1, num=2, next=0)], "the 2 entries from 0 to 0 are no"),
        (GOOD_PACKED._replace(old_free_head=6), [PackedEntry(1, num=2, next=99)], "the 2 entries from 0 to 0 are no"),
        (GOOD_PACKED._replace(old_free_head=6), [PackedEntry(1, num=3, next=99)], "entry 99 is not below 7"),
        (
            GOOD_PACKED._replace(old_free_head=6),
            [PackedEntry(1, next=1, last=1, num=2), PackedEntry(1, last=1, num=1)],
            "the 1 entries from 1 to 1 are no chain",
        ),
    ],
)
def test_i1_a_packed_record_that_cannot_be(
    ram: GuestRam, head: PackedHeader, rows: list[PackedEntry], reason: str
) -> None:
    with RecordedBurst(ram, packed=True) as bench:
        write(bench, head, rows)
        with pytest.raises(PayloadError, match=f"^vring 1: inflight region: {reason}"):
            bench.boot()
        assert not bench.ring.started


@pytest.mark.proves("VIO-INFLIGHT-6")
@both
@SHARED
@given(seed=st.integers(0, 1 << 32), sparse=st.booleans(), version=st.integers(0, 1))
def test_i1_any_bytes_in_the_record_hurt_nobody(
    ram: GuestRam, packed: bool, seed: int, sparse: bool, version: int
) -> None:
    """Neither at the start nor when they change under a ring that runs."""
    entropy = random.Random(seed)
    with RecordedBurst(ram, packed) as bench:
        size = bench.driver.size
        data = bytes(entropy.choice((0, 0, 0, 1, 2, 7)) if sparse else entropy.getrandbits(8) for _ in range(192))
        os.pwrite(bench.file.fileno(), data, 0)
        os.pwrite(bench.file.fileno(), struct.pack("=QHH", 0, version, size), 0)
        bench.add(2)
        try:
            bench.boot()
        except PayloadError:
            return
        for _ in range(4):
            os.pwrite(bench.file.fileno(), entropy.randbytes(192), 0)
            bench.add(1)
            bench.pump.turn()


@both
def test_a_ring_that_is_larger_than_its_part_is_refused(ram: GuestRam, packed: bool) -> None:
    reason = r"size \d is above the inflight region's queue_size 4"
    with RecordedBurst(ram, packed, entries=4) as bench, pytest.raises(PayloadError, match=reason):
        bench.boot()


@both
def test_a_part_may_be_larger_than_its_ring(ram: GuestRam, packed: bool) -> None:
    with RecordedBurst(ram, packed, entries=64) as bench:
        bench.boot()
        bench.finish()
        bench.die()
        bench.boot()
        bench.finish()


@pytest.mark.proves("VIO-MEM-4")
@both
@pytest.mark.parametrize("when", ["before a start", "before a turn"])
def test_a_ring_whose_record_vanished_breaks(ram: GuestRam, packed: bool, when: str) -> None:
    with RecordedBurst(ram, packed) as bench:
        fd = os.memfd_create("unsealed")
        try:
            os.ftruncate(fd, 4096)
            bench.use(Region(fd, 0, part_size(bench.features, 8), 1, bench.driver.size))
            if when == "before a start":
                os.ftruncate(fd, 0)
            bench.boot()
            os.ftruncate(fd, 0)
            bench.add()
            bench.pump.turn()
            assert bench.ring.fault == VANISHED
        finally:
            os.close(fd)


@pytest.mark.parametrize("offset", [1, 63, 65, 100])
def test_an_offset_where_no_part_can_be_is_refused(offset: int) -> None:
    with create(8192) as fd, pytest.raises(PayloadError, match=rf"mmap_offset {offset:#x} is not a multiple of 64"):
        Region(fd.fileno(), offset, 4096, 1, 8)


def test_a_ring_beyond_the_region_is_not_recorded() -> None:
    with create(8192) as fd:
        region = Region(fd.fileno(), 64, 512, 2, 8)
        assert region.part(1, 0) == (region.host_address + 192, 8)
        assert region.part(2, 0) is None
        reason = "vring 1: its part of the inflight region ends at 0x280, the region at 0x200"
        with pytest.raises(PayloadError, match=reason):
            region.part(1, VirtioFeature.RING_PACKED)
        region.close()

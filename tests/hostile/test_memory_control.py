"""Rows M of the hostile inputs, as far as messages go: memory tables that lie, and memory that changes under rings.

What the data path makes of memory that vanishes under packets is the matter of ``test_vanishing``.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import Running, accepted, ask, borrowed, closed, eventfd, refused, signalled, talking
from tests.hostile.victim import DEADLINE, Victim, exchange, good_session, split_rings
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import MIB, USERSPACE_BASE, GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.wire import layouts
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import MemoryRegion, MemoryTable, SingleRegion, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
PAGE = mmap.PAGESIZE
SIZE = 16 * PAGE
END = 1 << 64
HUGE = 2 * MIB


def region(
    guest_phys_addr: int = 0, memory_size: int = SIZE, userspace_addr: int = USERSPACE_BASE, mmap_offset: int = 0
) -> MemoryRegion:
    """A region that is right but for what the test changes."""
    return MemoryRegion(guest_phys_addr, memory_size, userspace_addr, mmap_offset)


def table(*regions: MemoryRegion, fds: list[int]) -> Frame:
    return ask(R.SET_MEM_TABLE, MemoryTable(regions), fds)


@contextmanager
def memfd(size: int = SIZE, flags: int = 0) -> Iterator[int]:
    with borrowed(os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)) as (fd,):
        os.ftruncate(fd, size)
        yield fd


# ---- M1: counts ------------------------------------------------------------------------------------------------------


def counted(nregions: int, regions: int, padding: int = 0) -> bytes:
    """A table that claims `nregions` and has `regions`."""
    described = tuple(region(i * SIZE, userspace_addr=USERSPACE_BASE + i * SIZE) for i in range(regions))
    head = nregions.to_bytes(4, "little") + padding.to_bytes(4, "little")
    return head + b"".join(layouts.build(SingleRegion(one))[8:] for one in described)


@pytest.mark.proves("VU-PAY-3", "VU-MEM-2")
@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        pytest.param(counted(0, 1), 1, id="M1-nregions-0-in-room-for-1"),
        pytest.param(counted(0, 1), 0, id="M1-nregions-0-without-descriptors"),
        pytest.param(counted(9, 8), 8, id="M1-nregions-9-in-room-for-8"),
        pytest.param(counted(9, 8), 9, id="M1-nregions-9-in-room-for-8-with-9-descriptors"),
        pytest.param(counted(0xFFFFFFFF, 1), 1, id="M1-nregions-ffffffff-in-room-for-1"),
        pytest.param(counted(0xFFFFFFFF, 8), 8, id="M1-nregions-ffffffff-in-room-for-8"),
        pytest.param(counted(2, 1), 2, id="M1-nregions-2-in-room-for-1"),
        pytest.param(counted(0, 0), 0, id="M1-nregions-0-and-nothing-else"),
        pytest.param(counted(1, 0), 1, id="M1-nregions-1-without-a-region"),
        pytest.param(counted(9, 9), 9, id="M1-nregions-9-with-9-regions"),
        pytest.param(counted(0xFFFFFFFF, 126), 8, id="M1-nregions-ffffffff-in-4040-bytes"),
        pytest.param(counted(1, 9), 1, id="M1-nregions-1-in-room-for-9"),
        pytest.param(counted(1, 1), 2, id="M1-1-region-with-2-descriptors"),
        pytest.param(counted(2, 2), 1, id="M1-2-regions-with-1-descriptor"),
        pytest.param(counted(8, 8), 7, id="M1-8-regions-with-7-descriptors"),
        pytest.param(counted(8, 8), 9, id="M1-8-regions-with-9-descriptors"),
    ],
)
async def test_counts_that_contradict_each_other(attacker: FrontEnd, payload: bytes, fds: int) -> None:
    with memfd() as fd:
        await refused(attacker, ask(R.SET_MEM_TABLE, payload, [fd] * fds))


@pytest.mark.proves("VU-HDR-6", "VU-MEM-2")
@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        pytest.param(counted(1, 1)[:-1], 1, id="M1-a-region-without-its-last-byte"),
        pytest.param(counted(1, 1) + b"\0", 1, id="M1-a-region-and-a-byte"),
        pytest.param(counted(1, 0)[:7], 1, id="M1-nothing-but-half-a-count"),
    ],
)
async def test_a_size_that_no_table_has(attacker: FrontEnd, payload: bytes, fds: int) -> None:
    with memfd() as fd:
        await closed(attacker, ask(R.SET_MEM_TABLE, payload, [fd] * fds))


@pytest.mark.proves("VU-PAY-3")
@pytest.mark.parametrize("room", [pytest.param(n, id=f"M1-nregions-1-in-room-for-{n}") for n in (2, 8)])
async def test_room_for_more_regions_than_are_told(attacker: FrontEnd, room: int) -> None:
    with memfd() as fd:
        await accepted(attacker, ask(R.SET_MEM_TABLE, counted(1, room), [fd]))


# ---- M2: ranges ------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-MEM-3")
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(region(memory_size=0), id="M2-size-0"),
        pytest.param(region(guest_phys_addr=END - SIZE + 1), id="M2-guest_phys_addr-wraps-by-1"),
        pytest.param(region(guest_phys_addr=END - PAGE), id="M2-guest_phys_addr-wraps"),
        pytest.param(region(userspace_addr=END - SIZE + 1), id="M2-userspace_addr-wraps-by-1"),
        pytest.param(region(userspace_addr=END - 1), id="M2-userspace_addr-wraps"),
        pytest.param(region(mmap_offset=END - SIZE), id="M2-mmap_offset-ends-at-2^64"),
        pytest.param(region(mmap_offset=END - PAGE), id="M2-mmap_offset-wraps"),
        pytest.param(region(mmap_offset=END - 1, memory_size=1), id="M2-mmap_offset-wraps-to-0"),
        pytest.param(region(memory_size=1 << 63), id="M2-size-2^63"),
        pytest.param(region(memory_size=END - 1), id="M2-size-2^64-1"),
        pytest.param(region(memory_size=1 << 63, mmap_offset=1 << 63), id="M2-size-and-offset-2^63"),
        pytest.param(region(*[END - 1] * 4), id="M2-everything-2^64-1"),
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
async def test_ranges_that_cannot_be(attacker: FrontEnd, bad: MemoryRegion, place: str) -> None:
    good = region(1 << 40, userspace_addr=1 << 40)
    with memfd() as fd:
        await refused(attacker, table(*((bad, good) if place == "first" else (good, bad)), fds=[fd, fd]))


@pytest.mark.parametrize(
    "edge",
    [
        pytest.param(region(guest_phys_addr=END - SIZE), id="M2-guest_phys_addr-ends-at-2^64"),
        pytest.param(region(userspace_addr=END - SIZE), id="M2-userspace_addr-ends-at-2^64"),
        pytest.param(region(memory_size=1), id="M2-size-1"),
    ],
)
async def test_ranges_that_just_can_be(attacker: FrontEnd, edge: MemoryRegion) -> None:
    with memfd() as fd:
        await accepted(attacker, table(edge, fds=[fd]))


# ---- M3: descriptors that are no memory ------------------------------------------------------------------------------


def pair(stack: ExitStack) -> socket.socket:
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return stack.enter_context(theirs)


def opened(stack: ExitStack, path: str, flags: int) -> int:
    (fd,) = stack.enter_context(borrowed(os.open(path, flags | os.O_CLOEXEC)))
    return fd


def reopened(stack: ExitStack, flags: int) -> int:
    """A memfd with another access mode."""
    return opened(stack, f"/proc/self/fd/{stack.enter_context(memfd())}", flags)


def sealed(stack: ExitStack, seal: int) -> int:
    fd = stack.enter_context(memfd())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


def pipe_end(stack: ExitStack, end: int) -> int:
    return stack.enter_context(borrowed(*os.pipe()))[end]


def epoll(stack: ExitStack) -> int:
    return stack.enter_context(closing(select.epoll())).fileno()


def pidfd(stack: ExitStack) -> int:
    (fd,) = stack.enter_context(borrowed(os.pidfd_open(os.getpid())))
    return fd


NO_MEMORY: dict[str, Callable[[ExitStack], int]] = {
    "pipe-read-end": lambda stack: pipe_end(stack, 0),
    "pipe-write-end": lambda stack: pipe_end(stack, 1),
    "socket": lambda stack: pair(stack).fileno(),
    "directory": lambda stack: opened(stack, "/", os.O_RDONLY | os.O_DIRECTORY),
    "eventfd": lambda stack: stack.enter_context(borrowed(eventfd()))[0],
    "dev-zero": lambda stack: opened(stack, "/dev/zero", os.O_RDWR),
    "dev-null": lambda stack: opened(stack, "/dev/null", os.O_RDWR),
    "tun": lambda stack: opened(stack, "/dev/net/tun", os.O_RDWR),
    "epoll": epoll,
    "pidfd": pidfd,
    "read-only-memfd": lambda stack: reopened(stack, os.O_RDONLY),
    "write-only-memfd": lambda stack: reopened(stack, os.O_WRONLY),
    "path-only-memfd": lambda stack: reopened(stack, os.O_PATH),
    "memfd-sealed-against-writing": lambda stack: sealed(stack, fcntl.F_SEAL_WRITE),
    "proc-file": lambda stack: opened(stack, "/proc/self/mem", os.O_RDWR),
    "read-only-file": lambda stack: opened(stack, "/etc/hostname", os.O_RDONLY),
}


@pytest.mark.proves("VU-MEM-4")
@pytest.mark.parametrize("make", [pytest.param(make, id=f"M3-{name}") for name, make in NO_MEMORY.items()])
async def test_a_descriptor_that_is_no_memory(attacker: FrontEnd, make: Callable[[ExitStack], int]) -> None:
    with ExitStack() as stack:
        bad, good = make(stack), stack.enter_context(memfd())
        regions = region(), region(1 << 40, userspace_addr=1 << 40)
        await refused(attacker, table(*regions, fds=[bad, good]))
        await refused(attacker, table(*regions, fds=[good, bad]))


@pytest.mark.proves("VU-MEM-4")
@pytest.mark.parametrize("case", [pytest.param(None, id="M3-the-connections-own-socket")])
async def test_the_connections_own_socket_is_no_memory(victim: Victim, case: None) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(victim.path))
    async with FrontEnd.from_socket(sock) as front_end:
        await front_end.negotiate(0)
        await refused(front_end, table(region(), fds=[sock.fileno()]))


@pytest.mark.parametrize("case", [pytest.param(None, id="M3-a-file-that-was-deleted-and-closed")])
async def test_a_deleted_file_is_memory_as_long_as_it_is_mapped(attacker: FrontEnd, tmp_path: Path, case: None) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.truncate(SIZE)
        await accepted(attacker, table(region(), fds=[file.fileno()]))
    await talking(attacker)


# ---- M4: files that are too short, or become so ----------------------------------------------------------------------


@pytest.mark.proves("VU-MEM-3")
@pytest.mark.parametrize(
    ("size", "bad"),
    [
        pytest.param(SIZE, region(mmap_offset=1), id="M4-ends-1-byte-beyond-the-file"),
        pytest.param(SIZE, region(mmap_offset=PAGE), id="M4-ends-1-page-beyond-the-file"),
        pytest.param(SIZE - 1, region(), id="M4-the-files-last-page-is-cut"),
        pytest.param(SIZE, region(mmap_offset=SIZE), id="M4-begins-at-the-files-end"),
        pytest.param(SIZE, region(mmap_offset=1 << 40), id="M4-begins-far-beyond-the-file"),
        pytest.param(0, region(), id="M4-empty-file"),
        pytest.param(SIZE, region(memory_size=1 << 40), id="M4-a-terabyte-of-64-KiB"),
    ],
)
async def test_a_file_that_is_too_short(attacker: FrontEnd, size: int, bad: MemoryRegion) -> None:
    with memfd(size) as fd:
        await refused(attacker, table(bad, fds=[fd]))


def truncate(memory: GuestRam) -> None:
    for one in memory.regions:
        os.ftruncate(one.fd.fileno(), 0)


@pytest.mark.proves("VU-MEM-5")
@pytest.mark.parametrize("case", [pytest.param(None, id="M4-truncated-before-a-ring-starts")])
async def test_a_ring_that_starts_in_memory_that_is_gone(attacker: FrontEnd, case: None) -> None:
    with GuestRam(seals=0) as memory:
        driver = NetDriver(*rings(memory), attacker.features)
        with closing(driver):
            await attacker.set_mem_table(memory)
            truncate(memory)
            await attacker.start_ring(driver.rx)
            await signalled(driver.rx.err_fd.fileno())
            assert await attacker.stop_ring(driver.rx) == 0
            await talking(attacker)


@pytest.mark.proves("VU-MEM-5")
@pytest.mark.parametrize("case", [pytest.param(None, id="M4-truncated-then-every-request-is-still-answered")])
async def test_requests_about_rings_whose_memory_is_gone(running: Running, case: None) -> None:
    truncate(running.memory)
    for ring in (running.driver.rx, running.driver.tx):
        await running.front_end.enable_ring(ring, False)
        await running.front_end.enable_ring(ring)
        await running.front_end.request(R.SET_VRING_ADDR, running.front_end.vring_addr(ring))
        await running.front_end.request(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()])
        await signalled(ring.err_fd.fileno())
        await running.front_end.stop_ring(ring)


@pytest.mark.proves("VU-MEM-5", "VU-MEM-6")
@pytest.mark.parametrize("case", [pytest.param(None, id="M4-truncated-then-replaced-by-another-table")])
async def test_memory_that_is_gone_can_be_replaced(victim: Victim, running: Running, case: None) -> None:
    truncate(running.memory)
    os.eventfd_write(running.driver.tx.kick_fd.fileno(), 1)
    await victim.port.send(bytes(60))
    for ring in (running.driver.rx, running.driver.tx):
        await signalled(ring.err_fd.fileno())
        await running.front_end.stop_ring(ring)
    with GuestRam() as memory:
        driver = NetDriver(*rings(memory), running.front_end.features)
        with closing(driver):
            await running.front_end.set_mem_table(memory)
            driver.fill()
            for ring in (driver.rx, driver.tx):
                await running.front_end.start_ring(ring)
            await exchange(victim, driver)


def rings(memory: GuestRam) -> tuple[DriverRing, DriverRing]:
    return DriverRing(memory, 0, event_idx=True), DriverRing(memory, 1, event_idx=True)


# ---- M5: offsets and huge pages --------------------------------------------------------------------------------------


class ShiftedRam(GuestRam):
    """A guest's memory of which the table shows all but the first `shift` bytes of each region."""

    def __init__(self, shift: int, layout: tuple[tuple[int, int], ...], *, hugetlb: bool = False) -> None:
        super().__init__(layout, hugetlb=hugetlb)
        self.alloc(shift)
        self.shift = shift

    def table(self) -> MemoryTable:
        return MemoryTable(tuple(self.shifted(one) for one in super().table().regions))

    def shifted(self, one: MemoryRegion) -> MemoryRegion:
        return replace(
            one,
            guest_phys_addr=one.guest_phys_addr + self.shift,
            memory_size=one.memory_size - self.shift,
            userspace_addr=one.userspace_addr + self.shift,
            mmap_offset=one.mmap_offset + self.shift,
        )


ONE_REGION = ((0, 4 * HUGE),)
TWO_REGIONS = ((0, 2 * HUGE), (1 << 32, 2 * HUGE))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: GuestRam(ONE_REGION, mmap_offset=5 * PAGE), id="M5-offset-of-5-pages"),
        pytest.param(lambda: ShiftedRam(16, ONE_REGION), id="M5-offset-16-not-page-aligned"),
        pytest.param(lambda: ShiftedRam(PAGE + 2048, ONE_REGION), id="M5-offset-of-1.5-pages"),
        pytest.param(lambda: ShiftedRam(2 * PAGE - 16, TWO_REGIONS), id="M5-two-regions-not-page-aligned"),
    ],
)
async def test_offsets_of_any_alignment(victim: Victim, make: Callable[[], GuestRam]) -> None:
    await good_session(victim, make())


@pytest.mark.proves("VU-MEM-4")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: GuestRam(ONE_REGION, hugetlb=True), id="M5-hugetlb"),
        pytest.param(lambda: GuestRam(TWO_REGIONS, hugetlb=True), id="M5-hugetlb-two-regions"),
        pytest.param(lambda: GuestRam(ONE_REGION, mmap_offset=HUGE, hugetlb=True), id="M5-hugetlb-offset-of-1-page"),
        pytest.param(lambda: ShiftedRam(PAGE, ONE_REGION, hugetlb=True), id="M5-hugetlb-offset-of-4096-bytes"),
        pytest.param(lambda: ShiftedRam(HUGE - 16, TWO_REGIONS, hugetlb=True), id="M5-hugetlb-offset-inside-a-page"),
    ],
)
async def test_huge_pages(victim: Victim, hugepages: int, make: Callable[[], GuestRam]) -> None:
    await good_session(victim, make())


@pytest.mark.proves("VU-MEM-3")
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(region(memory_size=HUGE + 1), id="M5-hugetlb-1-byte-beyond-the-file"),
        pytest.param(region(memory_size=HUGE, mmap_offset=PAGE), id="M5-hugetlb-4096-bytes-beyond-the-file"),
    ],
)
async def test_huge_files_that_are_too_short(attacker: FrontEnd, hugepages: int, bad: MemoryRegion) -> None:
    with memfd(HUGE, os.MFD_HUGETLB) as fd:
        await refused(attacker, table(bad, fds=[fd]))


# ---- M6, M7: overlap, and slots --------------------------------------------------------------------------------------


@pytest.mark.proves("VU-MEM-7")
@pytest.mark.parametrize(
    "regions",
    [
        pytest.param((region(), region()), id="M6-same-region-twice"),
        pytest.param((region(), region(SIZE - 1, userspace_addr=1 << 40)), id="M6-guest_phys_addr-overlaps-by-1-byte"),
        pytest.param((region(SIZE, userspace_addr=1 << 40), region(0, SIZE + 1)), id="M6-the-upper-region-comes-first"),
        pytest.param(
            (region(0, 4 * PAGE), region(PAGE, PAGE, userspace_addr=1 << 40)), id="M6-guest_phys_addr-inside-another"
        ),
        pytest.param(
            (region(), region(1 << 40, userspace_addr=USERSPACE_BASE + SIZE - 1)),
            id="M6-userspace_addr-overlaps-by-1-byte",
        ),
        pytest.param((region(), region(1 << 40)), id="M6-same-userspace_addr"),
        pytest.param(
            (region(), region(1 << 40, userspace_addr=1 << 40), region(1 << 41, userspace_addr=(1 << 40) + PAGE)),
            id="M6-userspace_addr-of-the-last-two",
        ),
    ],
)
async def test_regions_that_overlap(attacker: FrontEnd, regions: tuple[MemoryRegion, ...]) -> None:
    with memfd(2 * SIZE) as fd:
        await refused(attacker, table(*regions, fds=[fd] * len(regions)))


@pytest.mark.parametrize("case", [pytest.param(None, id="M6-neighbours-do-not-overlap")])
async def test_regions_side_by_side(attacker: FrontEnd, case: None) -> None:
    with memfd() as fd:
        neighbour = region(SIZE, userspace_addr=USERSPACE_BASE + SIZE)
        await accepted(attacker, table(neighbour, region(), fds=[fd, fd]))


@pytest.mark.parametrize("case", [pytest.param(None, id="M6-one-file-in-eight-places")])
async def test_one_file_in_many_places(attacker: FrontEnd, case: None) -> None:
    regions = [region(i << 30, userspace_addr=i << 40) for i in range(8)]
    with memfd() as fd:
        await accepted(attacker, table(*regions, fds=[fd] * 8))


@pytest.mark.proves("VU-NEG-6")
@pytest.mark.parametrize(
    ("request_", "fds"),
    [
        pytest.param(R.ADD_MEM_REG, 1, id="M6-ADD_MEM_REG-is-not-offered"),
        pytest.param(R.REM_MEM_REG, 0, id="M7-REM_MEM_REG-is-not-offered"),
        pytest.param(R.REM_MEM_REG, 1, id="M7-REM_MEM_REG-with-a-descriptor-is-not-offered"),
        pytest.param(R.GET_MAX_MEM_SLOTS, 0, id="M7-GET_MAX_MEM_SLOTS-is-not-offered"),
    ],
)
async def test_memory_slots_are_not_offered(running: Running, victim: Victim, request_: R, fds: int) -> None:
    payload = b"" if request_ is R.GET_MAX_MEM_SLOTS else SingleRegion(running.memory.regions[0].message())
    with memfd() as fd:
        for _ in range(10):
            await refused(running.front_end, ask(request_, payload, [fd] * fds))
    await exchange(victim, running.driver)


# ---- M8: another table under running rings ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(None, id="M8-the-same-table-50-times-between-packets")])
async def test_the_same_table_again_and_again(victim: Victim, running: Running, case: None) -> None:
    for _ in range(50):
        await running.front_end.set_mem_table(running.memory)
        await exchange(victim, running.driver, 2)


@pytest.mark.parametrize("case", [pytest.param(None, id="M8-the-same-table-while-packets-flow")])
async def test_the_same_table_under_packets(victim: Victim, running: Running, case: None) -> None:
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def swap() -> None:
                while not done.is_set():
                    await running.front_end.set_mem_table(running.memory)

            nursery.start_soon(swap)
            await exchange(victim, running.driver, 200)
            done.set()


@pytest.mark.parametrize("case", [pytest.param(None, id="M8-a-refused-table-leaves-the-old-one-in-use")])
async def test_a_refused_table_changes_nothing(victim: Victim, running: Running, case: None) -> None:
    with memfd() as fd:
        await refused(running.front_end, table(region(), region(), fds=[fd, fd]))
        await refused(running.front_end, table(region(memory_size=2 * SIZE), fds=[fd]))
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-MEM-6")
@pytest.mark.parametrize("case", [pytest.param(None, id="M8-a-table-without-the-rings")])
async def test_a_table_that_lacks_the_rings(victim: Victim, running: Running, case: None) -> None:
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver)
    with memfd() as fd:
        await accepted(front_end, table(region(1 << 40, userspace_addr=1 << 40), fds=[fd]))
    for ring in split_rings(driver):
        await signalled(ring.err_fd.fileno())
        assert await front_end.stop_ring(ring) == ring.used_idx
    await front_end.set_mem_table(running.memory)
    for ring in split_rings(driver):
        await front_end.start_ring(ring)
    await exchange(victim, driver)


@pytest.mark.proves("VU-MEM-6")
@pytest.mark.parametrize("case", [pytest.param(None, id="M8-a-table-without-one-of-the-rings")])
async def test_a_table_that_lacks_one_ring(victim: Victim, attacker: FrontEnd, case: None) -> None:
    """The receive ring's region goes, the transmit ring with its buffers stays and goes on."""
    with GuestRam() as memory:
        rx = DriverRing(memory, 0, 16, event_idx=True, region=1)
        tx = DriverRing(memory, 1, 16, event_idx=True)
        with closing(NetDriver(rx, tx, attacker.features)) as driver:
            await attacker.set_mem_table(memory)
            for ring in (rx, tx):
                await attacker.start_ring(ring)
            await accepted(attacker, table(memory.regions[0].message(), fds=memory.fds()[:1]))
            await signalled(rx.err_fd.fileno())
            with trio.fail_after(DEADLINE):
                await driver.send(bytes(60))
                assert await victim.port.receive() == bytes(60)
            assert await attacker.stop_ring(rx) == 0


@pytest.mark.proves("VU-MEM-6")
@pytest.mark.parametrize("case", [pytest.param(None, id="M8-a-table-that-moves-the-rings")])
async def test_a_table_that_moves_the_rings(victim: Victim, running: Running, case: None) -> None:
    """The same front-end addresses, in another file: positions survive, and the new memory is what is read."""
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver)
    with GuestRam() as copy:
        for old, new in zip(running.memory.regions, copy.regions, strict=True):
            new.bytes[:] = old.bytes
        await front_end.set_mem_table(copy)
        truncate(running.memory)
        for ring in (driver.rx, driver.tx):
            ring.memory = copy
        await exchange(victim, driver)


@pytest.mark.parametrize("case", [pytest.param(None, id="M8-a-table-in-the-middle-of-the-set-up")])
async def test_a_table_between_the_requests_of_a_start(victim: Victim, attacker: FrontEnd, case: None) -> None:
    with GuestRam() as memory, memfd() as fd, closing(NetDriver(*rings(memory), attacker.features)) as driver:
        driver.fill()
        other = table(region(1 << 40, userspace_addr=1 << 40), fds=[fd])
        for ring in (driver.rx, driver.tx):
            await attacker.set_mem_table(memory)
            await attacker.request(R.SET_VRING_NUM, VringState(ring.index, ring.size))
            await attacker.request(R.SET_VRING_ADDR, attacker.vring_addr(ring))
            await accepted(attacker, other)
            await refused(attacker, ask(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()]))
        await attacker.set_mem_table(memory)
        for ring in (driver.rx, driver.tx):
            await attacker.start_ring(ring)
        await exchange(victim, driver)

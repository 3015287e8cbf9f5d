"""Rows Q of the hostile inputs: requests about rings, and the descriptors that notify.

What stands in the rings is the matter of ``test_ring_content``.
"""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

import pytest
import trio

from tests.hostile.attack import (
    REQUEST,
    Running,
    accepted,
    ask,
    borrowed,
    eventfd,
    refused,
    signalled,
    talking,
)
from tests.hostile.victim import DEADLINE, Victim, exchange
from vhostuser.errors import ConnectionClosedError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver, NetFeature
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
NUM = 256
NOTIFIERS = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)
NO_FD = 0x100
FULL = 0xFFFFFFFFFFFFFFFE
"""The largest value of an eventfd: one more has to wait."""


@pytest.fixture
async def halted(victim: Victim, attacker: FrontEnd) -> AsyncIterator[Running]:
    """Everything for two rings is there, the memory table is told, and nothing is said about the rings yet."""
    with GuestRam() as memory:
        await attacker.set_mem_table(memory)
        rx, tx = (DriverRing(memory, index, NUM, event_idx=True) for index in range(2))
        with closing(NetDriver(rx, tx, attacker.features)) as driver:
            driver.fill()
            yield Running(attacker, memory, driver)


async def packets_flow(victim: Victim, rings: Running) -> None:
    """Start whatever does not run yet, with everything right, and move packets."""
    with trio.fail_after(DEADLINE):
        for ring in (rings.driver.rx, rings.driver.tx):
            await rings.front_end.stop_ring(ring)
            await rings.front_end.start_ring(ring)
        await exchange(victim, rings.driver)


# ---- Q1: rings that there are not ------------------------------------------------------------------------------------


@pytest.mark.proves("VU-RING-7")
@pytest.mark.parametrize("index", [pytest.param(n, id=f"Q1-index-{n:x}") for n in (2, 256, 65536, 65537, 0xFFFFFFFF)])
@pytest.mark.parametrize(
    ("request_", "num"),
    [
        pytest.param(R.SET_VRING_NUM, NUM, id="SET_VRING_NUM"),
        pytest.param(R.SET_VRING_BASE, 0, id="SET_VRING_BASE"),
        pytest.param(R.GET_VRING_BASE, 0, id="GET_VRING_BASE"),
        pytest.param(R.SET_VRING_ENABLE, 1, id="SET_VRING_ENABLE"),
    ],
)
async def test_a_ring_that_does_not_exist(attacker: FrontEnd, request_: R, num: int, index: int) -> None:
    await refused(attacker, ask(request_, VringState(index, num)))


@pytest.mark.proves("VU-RING-7")
@pytest.mark.parametrize("index", [pytest.param(n, id=f"Q1-index-{n:x}") for n in (2, 256, 65536, 65537, 0xFFFFFFFF)])
async def test_addresses_of_a_ring_that_does_not_exist(halted: Running, index: int) -> None:
    addr = halted.front_end.vring_addr(halted.driver.rx)
    await refused(halted.front_end, ask(R.SET_VRING_ADDR, replace(addr, index=index)))


@pytest.mark.proves("VU-RING-7")
@pytest.mark.parametrize("index", [pytest.param(n, id=f"Q1-index-{n:x}") for n in (2, 0x80, 0xFF)])
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
async def test_notifiers_of_a_ring_that_does_not_exist(attacker: FrontEnd, request_: R, index: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(attacker, ask(request_, VringFd(index), [fd]))
    await refused(attacker, ask(request_, VringFd(index, no_fd=True)))


# ---- Q2: sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-RING-12")
@pytest.mark.parametrize(
    "num",
    [
        pytest.param(n, id=f"Q2-num-{n}")
        for n in (0, 3, 255, 257, 32767, 32769, 65535, 65536, 65537, 1 << 31, 0xFFFFFFFF)
    ],
)
async def test_a_size_that_no_ring_has(halted: Running, victim: Victim, num: int) -> None:
    await refused(halted.front_end, ask(R.SET_VRING_NUM, VringState(1, num)))
    await packets_flow(victim, halted)


@pytest.mark.proves("VU-RING-13")
@pytest.mark.parametrize(
    ("request_", "num"),
    [
        pytest.param(R.SET_VRING_NUM, 2 * NUM, id="Q2-num-doubled-while-started"),
        pytest.param(R.SET_VRING_NUM, 1, id="Q2-num-1-while-started"),
        pytest.param(R.SET_VRING_NUM, NUM, id="Q2-num-repeated-while-started"),
        pytest.param(R.SET_VRING_NUM, 32768, id="Q2-num-beyond-memory-while-started"),
        pytest.param(R.SET_VRING_BASE, 100, id="Q4-base-while-started"),
    ],
)
async def test_a_started_ring_keeps_its_size_and_position(
    victim: Victim, running: Running, request_: R, num: int
) -> None:
    for index in range(2):
        await refused(running.front_end, ask(request_, VringState(index, num)))
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-RING-21")
@pytest.mark.parametrize("case", [pytest.param(None, id="Q2-num-grows-out-of-memory-while-stopped")])
async def test_a_size_that_does_not_fit_the_addresses(victim: Victim, halted: Running, case: None) -> None:
    """The avail ring ends with the region's last byte, so a larger one has no room."""
    front_end, ring = halted.front_end, halted.driver.rx
    good = front_end.vring_addr(ring)
    last = end_of(halted.memory, 0) - (4 + 2 * NUM + 2)
    await accepted(front_end, ask(R.SET_VRING_NUM, VringState(0, NUM)))
    await accepted(front_end, ask(R.SET_VRING_ADDR, replace(good, available=last)))
    await refused(front_end, ask(R.SET_VRING_NUM, VringState(0, 2 * NUM)))
    await packets_flow(victim, halted)


# ---- Q3: addresses ---------------------------------------------------------------------------------------------------


def end_of(memory: GuestRam, region: int) -> int:
    """The front-end address behind a region."""
    return memory.regions[region].userspace_addr + memory.regions[region].memory_size


ALIGNMENT = {"descriptor": 16, "available": 2, "used": 4}
LENGTH = {"descriptor": 16 * NUM, "available": 4 + 2 * NUM + 2, "used": 4 + 8 * NUM + 2}

Misplace = Callable[[GuestRam, VringAddr, str], int]

ELSEWHERE: dict[str, Misplace] = {
    "0": lambda memory, addr, area: 0,
    "guest-physical": lambda memory, addr, area: memory.regions[1].guest_phys_addr,
    "below-the-region": lambda memory, addr, area: memory.regions[0].userspace_addr - ALIGNMENT[area],
    "behind-the-region": lambda memory, addr, area: end_of(memory, 0),
    "at-the-last-bytes": lambda memory, addr, area: end_of(memory, 0) - ALIGNMENT[area],
    "one-step-too-far": lambda memory, addr, area: fitting(memory, area) + ALIGNMENT[area],
    "wraps": lambda memory, addr, area: (1 << 64) - ALIGNMENT[area],
    "2^63": lambda memory, addr, area: 1 << 63,
}


def fitting(memory: GuestRam, area: str) -> int:
    """The last aligned address at which all of an area lies in the first region."""
    return (end_of(memory, 0) - LENGTH[area]) & -ALIGNMENT[area]


async def refused_at_any_order(halted: Running, bad: VringAddr) -> None:
    """The addresses are refused when they come last; if size and memory come after them, the start is."""
    front_end, kick = halted.front_end, halted.driver.rx.kick_fd.fileno()
    num, base, start = VringState(0, NUM), VringState(0, 0), ask(R.SET_VRING_KICK, VringFd(0), [kick])
    await accepted(front_end, ask(R.SET_VRING_ADDR, bad))  # the size is not known yet
    await refused(front_end, ask(R.SET_VRING_NUM, num))
    await accepted(front_end, ask(R.SET_VRING_ADDR, front_end.vring_addr(halted.driver.rx)))
    await accepted(front_end, ask(R.SET_VRING_NUM, num))
    await refused(front_end, ask(R.SET_VRING_ADDR, bad))
    await accepted(front_end, ask(R.SET_VRING_BASE, base))
    await accepted(front_end, start)
    await refused(front_end, ask(R.SET_VRING_ADDR, bad))  # the ring runs, and goes on at the good ones


@pytest.mark.proves("VU-RING-21")
@pytest.mark.parametrize("area", list(ALIGNMENT))
@pytest.mark.parametrize("place", [pytest.param(place, id=f"Q3-{name}") for name, place in ELSEWHERE.items()])
async def test_ring_addresses_outside_memory(victim: Victim, halted: Running, place: Misplace, area: str) -> None:
    good = halted.front_end.vring_addr(halted.driver.rx)
    await refused_at_any_order(halted, moved(good, area, place(halted.memory, good, area)))
    await packets_flow(victim, halted)


def moved(addr: VringAddr, area: str, address: int) -> VringAddr:
    match area:
        case "descriptor":
            return replace(addr, descriptor=address)
        case "available":
            return replace(addr, available=address)
    return replace(addr, used=address)


@pytest.mark.proves("VU-RING-15")
@pytest.mark.parametrize(
    ("area", "off"),
    [
        pytest.param(area, off, id=f"Q3-{area}-unaligned-by-{off}")
        for area, offs in (("descriptor", (1, 4, 8, 15)), ("available", (1,)), ("used", (1, 2, 3)))
        for off in offs
    ],
)
async def test_ring_addresses_that_are_not_aligned(victim: Victim, halted: Running, area: str, off: int) -> None:
    good = halted.front_end.vring_addr(halted.driver.rx)
    await refused(halted.front_end, ask(R.SET_VRING_ADDR, moved(good, area, getattr(good, area) + off)))
    await packets_flow(victim, halted)


@pytest.mark.proves("VU-RING-22")
@pytest.mark.parametrize(
    ("area", "onto", "off"),
    [
        pytest.param("used", "descriptor", 0, id="Q3-used-overlaps-descriptor"),
        pytest.param("used", "descriptor", 16 * NUM - 4, id="Q3-used-overlaps-the-last-descriptor"),
        pytest.param("descriptor", "used", 16 * (LENGTH["used"] // 16), id="Q3-descriptor-overlaps-the-end-of-used"),
        pytest.param("used", "available", 0, id="Q3-used-overlaps-available"),
        pytest.param("available", "used", 4 + 8 * NUM, id="Q3-available-overlaps-avail_event"),
        pytest.param("available", "descriptor", 16, id="Q3-available-overlaps-descriptor"),
    ],
)
async def test_ring_parts_that_overlap(victim: Victim, halted: Running, area: str, onto: str, off: int) -> None:
    good = halted.front_end.vring_addr(halted.driver.rx)
    await refused_at_any_order(halted, moved(good, area, (getattr(good, onto) + off) & -ALIGNMENT[area]))
    await packets_flow(victim, halted)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q3-parts-in-different-regions")])
async def test_ring_parts_in_different_regions(victim: Victim, attacker: FrontEnd, case: None) -> None:
    with GuestRam() as memory:
        await attacker.set_mem_table(memory)
        rx, tx = (DriverRing(memory, index, NUM, event_idx=True) for index in range(2))
        for ring in (rx, tx):
            ring.avail_addr = memory.alloc(LENGTH["available"], region=1)
            ring.reset()
        with closing(NetDriver(rx, tx, attacker.features)) as driver:
            driver.fill()
            await packets_flow(victim, Running(attacker, memory, driver))


@pytest.mark.parametrize("area", [pytest.param(area, id=f"Q3-{area}-ends-with-its-region") for area in ALIGNMENT])
async def test_a_ring_part_at_the_very_end_of_its_region(victim: Victim, attacker: FrontEnd, area: str) -> None:
    with GuestRam() as memory:
        await attacker.set_mem_table(memory)
        rx, tx = (DriverRing(memory, index, NUM, event_idx=True) for index in range(2))
        field = {"descriptor": "desc_addr", "available": "avail_addr", "used": "used_addr"}[area]
        setattr(rx, field, fitting(memory, area) - memory.userspace_addr(0))
        rx.reset()
        with closing(NetDriver(rx, tx, attacker.features)) as driver:
            driver.fill()
            await packets_flow(victim, Running(attacker, memory, driver))


# ---- Q4: positions ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-RING-14")
@pytest.mark.parametrize(
    "base", [pytest.param(n, id=f"Q4-base-{n:#x}") for n in (0x10000, 0x10001, 0x80000000, 0x80008000, 0xFFFFFFFF)]
)
async def test_a_position_of_more_than_sixteen_bits(victim: Victim, halted: Running, base: int) -> None:
    await refused(halted.front_end, ask(R.SET_VRING_BASE, VringState(0, base)))
    await packets_flow(victim, halted)


@pytest.mark.proves("VU-RING-23")
@pytest.mark.parametrize(
    ("base", "avail_idx"),
    [
        pytest.param(1, 0, id="Q4-base-1-ahead-of-avail"),
        pytest.param(1000, 0, id="Q4-base-1000-ahead-of-avail"),
        pytest.param(0x8000, 0, id="Q4-base-half-way-round"),
        pytest.param(0, NUM + 1, id="Q4-base-one-more-than-the-ring-behind-avail"),
        pytest.param(0xFFFF, NUM, id="Q4-base-wraps-one-too-many-behind-avail"),
    ],
)
async def test_a_position_far_from_the_avail_index(victim: Victim, halted: Running, base: int, avail_idx: int) -> None:
    ring = halted.driver.tx
    ring.avail_idx = avail_idx
    ring.base = base
    await halted.front_end.start_ring(ring)
    await signalled(ring.err_fd.fileno())
    assert await halted.front_end.stop_ring(ring) == base
    ring.reset()
    await accepted(halted.front_end, ask(R.SET_VRING_BASE, VringState(ring.index, 0)))
    await packets_flow(victim, halted)


@pytest.mark.proves("VU-NEG-4")
@pytest.mark.parametrize("case", [pytest.param(None, id="Q4-packed-rings-are-not-offered")])
async def test_packed_rings_are_not_offered(attacker: FrontEnd, case: None) -> None:
    await refused(attacker, ask(R.SET_FEATURES, U64(attacker.features | VhostFeature.RING_PACKED)))
    await refused(attacker, ask(R.SET_VRING_BASE, VringState(0, 0x80000000)))


# ---- Q5: any order ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-RING-6")
@pytest.mark.parametrize("num", [pytest.param(n, id=f"Q5-ENABLE-{n:x}") for n in (2, 0x100, 0x80000000, 0xFFFFFFFF)])
async def test_a_ring_is_enabled_or_disabled_and_nothing_else(victim: Victim, running: Running, num: int) -> None:
    for index in range(2):
        await refused(running.front_end, ask(R.SET_VRING_ENABLE, VringState(index, num)))
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-RING-11")
@pytest.mark.parametrize(
    "said",
    [
        pytest.param([], id="Q5-GET_VRING_BASE-of-a-ring-never-set"),
        pytest.param([ask(R.SET_VRING_NUM, VringState(1, NUM))], id="Q5-GET_VRING_BASE-with-only-a-size"),
        pytest.param([ask(R.SET_VRING_KICK, VringFd(1, no_fd=True))], id="Q5-GET_VRING_BASE-with-only-a-kick"),
        pytest.param([ask(R.SET_VRING_ENABLE, VringState(1, 1))], id="Q5-GET_VRING_BASE-with-only-an-enable"),
        pytest.param([ask(R.SET_VRING_BASE, VringState(1, 77))], id="Q5-GET_VRING_BASE-with-only-a-base"),
    ],
)
async def test_the_position_of_a_ring_that_does_not_run(attacker: FrontEnd, said: list[Frame]) -> None:
    for frame in said:
        await accepted(attacker, frame)
    base = 77 if said and said[0].request == R.SET_VRING_BASE else 0
    for _ in range(3):
        assert await attacker.request(R.GET_VRING_BASE, VringState(1, 0)) == VringState(1, base)


@pytest.mark.proves("VU-RING-5", "VU-RING-8")
@pytest.mark.parametrize(
    "order",
    [
        pytest.param("ENABLE MEM_TABLE NUM BASE ADDR CALL ERR KICK", id="Q5-ENABLE-first"),
        pytest.param("KICK MEM_TABLE NUM BASE ADDR CALL ERR ENABLE", id="Q5-KICK-first"),
        pytest.param("MEM_TABLE KICK ADDR CALL ERR ENABLE", id="Q5-KICK-before-ADDR"),
        pytest.param("MEM_TABLE ADDR KICK NUM CALL ERR ENABLE", id="Q5-KICK-before-NUM"),
        pytest.param("NUM BASE ADDR CALL ERR KICK ENABLE MEM_TABLE", id="Q5-KICK-before-memory"),
        pytest.param("CALL ERR KICK ENABLE MEM_TABLE KICK CALL ERR ENABLE", id="Q5-everything-twice"),
    ],
)
async def test_requests_in_an_odd_order(victim: Victim, attacker: FrontEnd, order: str) -> None:
    """Whatever a half told ring does: nothing of it is harmful, and telling it properly makes it run."""
    with GuestRam() as memory:
        rx, tx = (DriverRing(memory, index, NUM, event_idx=True) for index in range(2))
        with closing(NetDriver(rx, tx, attacker.features)) as driver:
            driver.fill()
            for word in order.split():
                for ring in (rx, tx):
                    await attacker.send_frame(told(word, attacker, memory, ring))
                    await attacker.receive_frame()
            await attacker.set_mem_table(memory)
            await packets_flow(victim, Running(attacker, memory, driver))


def told(word: str, front_end: FrontEnd, memory: GuestRam, ring: DriverRing) -> Frame:
    match word:
        case "MEM_TABLE":
            return ask(R.SET_MEM_TABLE, memory.table(), memory.fds())
        case "NUM":
            return ask(R.SET_VRING_NUM, VringState(ring.index, ring.size))
        case "BASE":
            return ask(R.SET_VRING_BASE, VringState(ring.index, ring.base))
        case "ADDR":
            return ask(R.SET_VRING_ADDR, front_end.vring_addr(ring))
        case "ENABLE":
            return ask(R.SET_VRING_ENABLE, VringState(ring.index, 1))
    fd = {"KICK": ring.kick_fd, "CALL": ring.call_fd, "ERR": ring.err_fd}[word]
    return ask(FrontendRequest[f"SET_VRING_{word}"], VringFd(ring.index), [fd.fileno()])


# ---- Q6: descriptors that do not notify, or not as expected ----------------------------------------------------------


def opened(stack: ExitStack, path: str, flags: int = os.O_RDWR) -> int:
    return stack.enter_context(borrowed(os.open(path, flags | os.O_CLOEXEC)))[0]


def regular_file(stack: ExitStack) -> int:
    return stack.enter_context(tempfile.TemporaryFile()).fileno()


def epoll(stack: ExitStack) -> int:
    return stack.enter_context(closing(select.epoll())).fileno()


NO_NOTIFIERS: dict[str, Callable[[ExitStack], int]] = {
    "regular-file": regular_file,
    "memfd": lambda stack: stack.enter_context(borrowed(os.memfd_create("hostile")))[0],
    "directory": lambda stack: opened(stack, "/", os.O_RDONLY | os.O_DIRECTORY),
    "dev-null": lambda stack: opened(stack, "/dev/null"),
    "dev-zero": lambda stack: opened(stack, "/dev/zero"),
    "tap": lambda stack: opened(stack, "/dev/net/tun"),
    "epoll": epoll,
    "pidfd": lambda stack: stack.enter_context(borrowed(os.pidfd_open(os.getpid())))[0],
    "proc-file": lambda stack: opened(stack, "/proc/self/status", os.O_RDONLY),
}


@pytest.mark.proves("VU-RING-24")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize("make", [pytest.param(make, id=f"Q6-{name}") for name, make in NO_NOTIFIERS.items()])
async def test_descriptors_that_cannot_notify(
    victim: Victim, running: Running, request_: R, make: Callable[[ExitStack], int]
) -> None:
    with ExitStack() as stack:
        fd = make(stack)
        for index in range(2):
            await refused(running.front_end, ask(request_, VringFd(index), [fd]))
    await exchange(victim, running.driver)  # what was there before still is


def pipe_end(stack: ExitStack, end: int, *, full: bool = False, alone: bool = False, flags: int = os.O_NONBLOCK) -> int:
    """One end of a pipe; `alone`: the other one is closed."""
    ends = os.pipe2(os.O_CLOEXEC | flags)
    if full:
        os.set_blocking(ends[1], False)
        with suppress(BlockingIOError):
            while True:
                os.write(ends[1], bytes(4096))
        os.set_blocking(ends[1], not flags & os.O_NONBLOCK)
    kept = stack.enter_context(borrowed(ends[end]))[0]
    if alone:
        os.close(ends[1 - end])
    else:
        stack.enter_context(borrowed(ends[1 - end]))
    return kept


def socket_of(stack: ExitStack, kind: socket.SocketKind, *, alone: bool = False, full: bool = False) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    stack.enter_context(ours)
    if full:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(8))
        ours.setblocking(True)
    if alone:
        theirs.close()
    else:
        stack.enter_context(theirs)
    return ours.fileno()


def listening(stack: ExitStack) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.bind("")  # an abstract name of the kernel's choice
    sock.listen()
    client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(sock.getsockname())
    return sock.fileno()


def an_eventfd(stack: ExitStack, value: int = 0, flags: int = os.EFD_NONBLOCK) -> int:
    fd = stack.enter_context(borrowed(eventfd(0, flags)))[0]
    if value:
        os.eventfd_write(fd, value)
    return fd


ODD_NOTIFIERS: dict[str, Callable[[ExitStack], int]] = {
    "eventfd-that-is-full": lambda stack: an_eventfd(stack, FULL),
    "eventfd-that-blocks": lambda stack: an_eventfd(stack, 0, 0),
    "eventfd-that-blocks-and-is-full": lambda stack: an_eventfd(stack, FULL, 0),
    "eventfd-semaphore": lambda stack: an_eventfd(stack, 1 << 40, os.EFD_SEMAPHORE | os.EFD_NONBLOCK),
    "eventfd-semaphore-that-blocks": lambda stack: an_eventfd(stack, FULL, os.EFD_SEMAPHORE),
    "pipe-read-end": lambda stack: pipe_end(stack, 0),
    "pipe-read-end-that-is-full": lambda stack: pipe_end(stack, 0, full=True, flags=0),
    "pipe-read-end-without-writer": lambda stack: pipe_end(stack, 0, alone=True),
    "pipe-write-end": lambda stack: pipe_end(stack, 1),
    "pipe-write-end-that-blocks-and-is-full": lambda stack: pipe_end(stack, 1, full=True, flags=0),
    "pipe-write-end-without-reader": lambda stack: pipe_end(stack, 1, alone=True),
    "stream-socket": lambda stack: socket_of(stack, socket.SOCK_STREAM),
    "stream-socket-that-is-full": lambda stack: socket_of(stack, socket.SOCK_STREAM, full=True),
    "stream-socket-without-peer": lambda stack: socket_of(stack, socket.SOCK_STREAM, alone=True),
    "datagram-socket": lambda stack: socket_of(stack, socket.SOCK_DGRAM),
    "datagram-socket-that-is-full": lambda stack: socket_of(stack, socket.SOCK_DGRAM, full=True),
    "datagram-socket-without-peer": lambda stack: socket_of(stack, socket.SOCK_DGRAM, alone=True),
    "seqpacket-socket": lambda stack: socket_of(stack, socket.SOCK_SEQPACKET),
    "listening-socket-with-a-client": listening,
}


def resting(victim: Victim, before: dict[str, int], seconds: float) -> None:
    """The data path slept and did not go round and round; a ring without kicks is looked at once a millisecond."""
    wakeups = victim.server.counters()["sleeps"] - before["sleeps"]
    assert wakeups < 100 + 2000 * seconds, f"{wakeups} turns in {seconds:.3f} s with nothing to do"


@pytest.mark.proves("VU-RING-24")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize("make", [pytest.param(make, id=f"Q6-{name}") for name, make in ODD_NOTIFIERS.items()])
async def test_notifiers_that_are_odd(
    victim: Victim, running: Running, request_: R, make: Callable[[ExitStack], int]
) -> None:
    """Packets are moved by kicks or by looking, calls are lost to who asked for it, and no request waits."""
    driver, front_end = running.driver, running.front_end
    with ExitStack() as stack, trio.fail_after(DEADLINE):
        fd = make(stack)
        await exchange(victim, driver, 2)
        for ring in (driver.rx, driver.tx):
            await accepted(front_end, ask(request_, VringFd(ring.index), [fd]))
        if request_ is R.SET_VRING_ERR:
            for ring in (driver.rx, driver.tx):
                ring.avail_idx += NUM + 1
                ring.kick(force=True)
            await victim.port.send(bytes(60))
        if request_ is R.SET_VRING_CALL:
            await driver.send(bytes(60))
            assert await victim.port.receive() == bytes(60)
            await victim.port.send(bytes(60))
        for ring in (driver.rx, driver.tx):
            await front_end.enable_ring(ring)
            await front_end.stop_ring(ring)
            await talking(front_end)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=f"Q6-{name}") for name, make in ODD_NOTIFIERS.items() if "semaphore" not in name],
)
async def test_kicks_that_never_come_cost_nothing(
    victim: Victim, running: Running, make: Callable[[ExitStack], int]
) -> None:
    with ExitStack() as stack, trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(1), [make(stack)]))
        before, start = victim.server.counters(), trio.current_time()
        for _ in range(100):
            await talking(running.front_end)
        resting(victim, before, trio.current_time() - start)


@pytest.mark.parametrize("request_", [*NOTIFIERS, R.SET_BACKEND_REQ_FD], ids=lambda request: request.name)
@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-the-connections-own-socket")])
async def test_the_connections_own_socket(victim: Victim, request_: R, case: None) -> None:
    """It must not keep a connection alive whose front-end is gone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(victim.path))
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with FrontEnd.from_socket(sock) as front_end:
            with closing(await NetDriver.start(front_end, memory)) as driver:
                features = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
                await accepted(front_end, ask(R.SET_PROTOCOL_FEATURES, U64(features)))
                payload = b"" if request_ is R.SET_BACKEND_REQ_FD else VringFd(1)
                await front_end.send_frame(ask(request_, payload, [sock.fileno()], flags=REQUEST))
                with suppress(ConnectionClosedError):
                    for _ in range(10):
                        await front_end.send_frame(ask(R.GET_FEATURES, flags=REQUEST))
                driver.tx.avail_idx += 1
                driver.tx.kick(force=True)


@pytest.mark.parametrize("end", ["stops", "vanishes"])
@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-call-eventfd-made-to-block-later")])
async def test_a_call_that_blocks_after_it_was_checked(victim: Victim, running: Running, end: str, case: None) -> None:
    """O_NONBLOCK belongs to the open file, which the peer holds too: it clears it behind our back, again and again."""
    driver = running.driver
    with borrowed(eventfd()) as (call,), trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_CALL, VringFd(1), [call]))
        for _ in range(3):
            fill(call)
            os.set_blocking(call, True)
            driver.tx.used_event = driver.tx.used_idx
            await driver.send(bytes(60))
            assert await victim.port.receive() == bytes(60)
            await running.front_end.enable_ring(driver.tx)  # the thread hangs in a write, and is fetched out of it
        if end == "stops":
            await running.front_end.stop_ring(driver.tx)
            await talking(running.front_end)
        else:
            await running.front_end.aclose()


@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-err-eventfd-made-to-block-later")])
async def test_an_err_that_blocks_after_it_was_checked(running: Running, case: None) -> None:
    ring = running.driver.tx
    with borrowed(eventfd()) as (err,), trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_ERR, VringFd(1), [err]))
        fill(err)
        os.set_blocking(err, True)
        ring.avail_idx += NUM + 1
        ring.kick(force=True)
        await running.front_end.stop_ring(ring)
        await talking(running.front_end)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-kick-eventfd-made-to-block-later")])
async def test_a_kick_that_blocks_after_it_was_checked(victim: Victim, running: Running, case: None) -> None:
    """Somebody else empties it between our look at it and our read: the test's thread tries to."""
    driver = running.driver
    kick = driver.tx.kick_fd.fileno()
    os.set_blocking(kick, True)
    with working(lambda: stolen(kick)), trio.fail_after(DEADLINE):
        for i in range(100):
            os.eventfd_write(kick, 1)
            await talking(running.front_end)
            if i % 10 == 0:
                await running.front_end.enable_ring(driver.tx)
    os.set_blocking(kick, False)
    await exchange(victim, driver)


def fill(fd: int) -> None:
    """Leave no room in an eventfd."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, FULL)


def stolen(fd: int) -> None:
    """Take a kick away from whom it was meant for."""
    with suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)


# ---- Q7: words of the notifiers --------------------------------------------------------------------------------------


@pytest.mark.proves("VU-PAY-4")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize(
    "bits",
    [pytest.param(1 << n, id=f"Q7-bit-{n}") for n in (9, 10, 16, 31, 32, 63)]
    + [pytest.param(((1 << 64) - 1) & ~0x1FF, id="Q7-bits-9-to-63")],
)
async def test_bits_above_those_of_the_index(victim: Victim, running: Running, request_: R, bits: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(running.front_end, ask(request_, U64(bits), [fd]))
    await refused(running.front_end, ask(request_, U64(bits | NO_FD)))
    await exchange(victim, running.driver, 2)


@pytest.mark.proves("VU-FD-2")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize(
    ("word", "fds"),
    [
        pytest.param(NO_FD, 1, id="Q7-no_fd-with-a-descriptor"),
        pytest.param(NO_FD, 2, id="Q7-no_fd-with-two-descriptors"),
        pytest.param(0, 0, id="Q7-no-descriptor-without-no_fd"),
        pytest.param(0, 2, id="Q7-two-descriptors-without-no_fd"),
    ],
)
async def test_no_fd_and_descriptors(victim: Victim, running: Running, request_: R, word: int, fds: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(running.front_end, ask(request_, U64(word), [fd] * fds))
    await exchange(victim, running.driver, 2)


# ---- Q8, Q9: features ------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-NEG-4")
@pytest.mark.parametrize(
    "bit",
    [
        pytest.param(1 << n, id=f"Q8-unknown-bit-{n}")
        for n in (2, 3, 16, 17, 22, 24, 26, 31, 33, 34, 35, 36, 38, 39, 40, 41, 50, 57, 58, 62, 63)
    ],
)
@pytest.mark.parametrize("state", ["before-a-start", "while-running"])
async def test_features_that_were_not_offered(attacker: FrontEnd, victim: Victim, bit: int, state: str) -> None:
    with GuestRam() as memory:
        if state == "before-a-start":
            await refused(attacker, ask(R.SET_FEATURES, U64(attacker.features | bit)))
            await refused(attacker, ask(R.SET_FEATURES, U64(bit)))
            return
        with closing(await NetDriver.start(attacker, memory)) as driver:
            await refused(attacker, ask(R.SET_FEATURES, U64(attacker.features | bit)))
            await exchange(victim, driver, 2)


@pytest.mark.proves("VU-NEG-7")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(VhostFeature.PROTOCOL_FEATURES, id="Q8-PROTOCOL_FEATURES-cleared-while-running"),
        pytest.param(NetFeature.MRG_RXBUF, id="Q8-MRG_RXBUF-toggled-while-running"),
        pytest.param(NetFeature.VERSION_1, id="Q8-VERSION_1-toggled-while-running"),
        pytest.param(NetFeature.EVENT_IDX, id="Q8-EVENT_IDX-toggled-while-running"),
        pytest.param(NetFeature.INDIRECT_DESC, id="Q8-INDIRECT_DESC-toggled-while-running"),
        pytest.param(NetFeature.CSUM, id="Q8-CSUM-toggled-while-running"),
        pytest.param(VirtioFeature.ANY_LAYOUT, id="Q8-ANY_LAYOUT-toggled-while-running"),
    ],
)
async def test_features_that_change_while_rings_run(victim: Victim, running: Running, change: int) -> None:
    front_end = running.front_end
    await refused(front_end, ask(R.SET_FEATURES, U64(front_end.features ^ change)))
    await front_end.stop_ring(running.driver.rx)
    await refused(front_end, ask(R.SET_FEATURES, U64(front_end.features ^ change)))
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features)))
    await front_end.start_ring(running.driver.rx)
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-NEG-7")
@pytest.mark.parametrize("case", [pytest.param(None, id="Q8-features-change-between-two-starts")])
async def test_features_may_change_while_all_rings_are_stopped(victim: Victim, running: Running, case: None) -> None:
    front_end = running.front_end
    await exchange(victim, running.driver, 2)
    for ring in (running.driver.rx, running.driver.tx):
        await front_end.stop_ring(ring)
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features & ~NetFeature.MRG_RXBUF)))
    for ring in (running.driver.rx, running.driver.tx):
        await front_end.start_ring(ring)
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-RING-4")
@pytest.mark.parametrize("num", [pytest.param(n, id=f"Q9-ENABLE-{n}-without-PROTOCOL_FEATURES") for n in (0, 1)])
async def test_enable_without_protocol_features(victim: Victim, halted: Running, num: int) -> None:
    """All rings are enabled then, and stay so."""
    front_end = halted.front_end
    front_end.features &= ~VhostFeature.PROTOCOL_FEATURES
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features)))
    for index in range(2):
        await refused(front_end, ask(R.SET_VRING_ENABLE, VringState(index, num)))
    await packets_flow(victim, halted)


# ---- Q10: storms of kicks --------------------------------------------------------------------------------------------


@contextmanager
def working(function: Callable[[], object]) -> Iterator[None]:
    """Call `function` over and over in another thread while the block runs."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            function()

    thread = threading.Thread(target=work, name="storm")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def kick_hard(*fds: int) -> None:
    for fd in fds * 50:
        with suppress(BlockingIOError):
            os.write(fd, (1).to_bytes(8, "little"))


async def served_all_the_same(victim: Victim, running: Running) -> None:
    """Requests are answered, those into the thread too, and packets flow both ways."""
    with trio.fail_after(DEADLINE):
        for i in range(100):
            await talking(running.front_end)
            await running.front_end.enable_ring(running.driver.tx if i & 1 else running.driver.rx)
        await exchange(victim, running.driver)
        await running.front_end.set_mem_table(running.memory)
        for ring in (running.driver.rx, running.driver.tx):
            await running.front_end.stop_ring(ring)


@pytest.mark.parametrize("which", ["rx", "tx", "both"])
@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-kicks-without-end")])
async def test_kicks_without_end(victim: Victim, running: Running, which: str, case: None) -> None:
    rings = {"rx": running.driver.rx, "tx": running.driver.tx}
    kicks = [ring.kick_fd.fileno() for name, ring in rings.items() if which in (name, "both")]
    with working(lambda: kick_hard(*kicks)):
        await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-kicks-through-a-pipe-without-end")])
async def test_kicks_through_a_pipe_without_end(victim: Victim, running: Running, case: None) -> None:
    with borrowed(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)) as (reader, writer):
        for index in range(2):
            await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index), [reader]))
        with working(lambda: kick_hard(writer)):
            await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-a-semaphore-that-always-has-one-more-kick")])
async def test_a_kick_that_cannot_be_emptied(victim: Victim, running: Running, case: None) -> None:
    with borrowed(eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)) as (fd,):
        os.eventfd_write(fd, FULL)
        for index in range(2):
            await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index), [fd]))
        await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-rings-without-kicks-are-looked-at")])
async def test_rings_that_are_polled(victim: Victim, running: Running, case: None) -> None:
    for index in range(2):
        await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index, no_fd=True)))
    before, start = victim.server.counters(), trio.current_time()
    await served_all_the_same(victim, running)
    resting(victim, before, trio.current_time() - start)

"""Rows Q of the hostile inputs: requests about rings.

The descriptors that notify (Q6, Q7, Q10) are the matter of ``test_notifiers``, what stands in the rings that of
``test_ring_content``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from tests.hostile.attack import (
    Running,
    accepted,
    ask,
    borrowed,
    eventfd,
    refused,
    signalled,
)
from tests.hostile.victim import DEADLINE, Victim, exchange, split_rings
from tests.virtio.packed import PackedDriver
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
NUM = 256
NOTIFIERS = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)


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
    _, ring = split_rings(halted.driver)
    ring.avail_idx = avail_idx
    ring.base = base
    await halted.front_end.start_ring(ring)
    await signalled(ring.err_fd.fileno())
    assert await halted.front_end.stop_ring(ring) == base
    ring.reset()
    await accepted(halted.front_end, ask(R.SET_VRING_BASE, VringState(ring.index, 0)))
    await packets_flow(victim, halted)


@pytest.mark.proves("VU-RING-33")
@pytest.mark.parametrize(
    ("request_", "value"),
    [
        pytest.param(R.SET_VRING_BASE, 0x8001_8001, id="Q4-packed-base-and-then-a-split-ring"),
        pytest.param(R.SET_VRING_NUM, NUM - 1, id="Q2-packed-num-and-then-a-split-ring"),
    ],
)
async def test_values_of_the_other_layout(victim: Victim, halted: Running, request_: R, value: int) -> None:
    """Legal when they came; the layout was changed before the ring started."""
    front_end, ring = halted.front_end, halted.driver.rx
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features | VhostFeature.RING_PACKED)))
    await accepted(front_end, ask(R.SET_VRING_NUM, VringState(0, NUM)))
    await accepted(front_end, ask(request_, VringState(0, value)))
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features)))
    await accepted(front_end, ask(R.SET_VRING_ADDR, front_end.vring_addr(ring)))
    with borrowed(eventfd()) as (kick,):
        await refused(front_end, ask(R.SET_VRING_KICK, VringFd(0), [kick]))
    await accepted(front_end, ask(R.SET_VRING_BASE, VringState(0, 0)))
    await packets_flow(victim, halted)


PACKED_BASES = pytest.mark.parametrize(
    "base",
    [
        pytest.param(base, id=f"Q4-packed-base-{base:#x}")
        for base in (NUM, 0x8000 | NUM, NUM << 16, 0x8000_8000 | NUM << 16, 0x7FFF, 0x7FFF_0000, 0xFFFF_FFFF)
    ],
)


@pytest.mark.proves("VU-PACKED-1")
@PACKED_BASES
async def test_a_packed_position_beyond_the_ring(attacker: FrontEnd, base: int) -> None:
    await accepted(attacker, ask(R.SET_FEATURES, U64(attacker.features | VhostFeature.RING_PACKED)))
    await accepted(attacker, ask(R.SET_VRING_NUM, VringState(0, NUM)))
    await refused(attacker, ask(R.SET_VRING_BASE, VringState(0, base)))
    await accepted(attacker, ask(R.SET_VRING_BASE, VringState(0, 0x8000_8000)))


@pytest.mark.proves("VU-PACKED-1")
@PACKED_BASES
async def test_a_packed_position_that_was_told_before_the_size(attacker: FrontEnd, base: int) -> None:
    """Or was left by a driver with larger rings: it is no fault until the ring shall start there."""
    with GuestRam() as memory, closing(PackedDriver(memory, 0, NUM)) as ring:
        await accepted(attacker, ask(R.SET_FEATURES, U64(attacker.features | VhostFeature.RING_PACKED)))
        await attacker.set_mem_table(memory)
        addr = attacker.vring_addr(cast(Any, ring))
        await accepted(attacker, ask(R.SET_VRING_BASE, VringState(0, base)))
        await accepted(attacker, ask(R.SET_VRING_NUM, VringState(0, NUM)))
        await accepted(attacker, ask(R.SET_VRING_ADDR, addr))
        await refused(attacker, ask(R.SET_VRING_KICK, VringFd(0), [ring.kick_fd.fileno()]))
        await accepted(attacker, ask(R.SET_VRING_BASE, VringState(0, 0x8000_8000)))
        await accepted(attacker, ask(R.SET_VRING_KICK, VringFd(0), [ring.kick_fd.fileno()]))


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


# ---- Q8, Q9: features ------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-NEG-4")
@pytest.mark.parametrize(
    "bit",
    [
        pytest.param(1 << n, id=f"Q8-unknown-bit-{n}")
        for n in (2, 3, 16, 17, 22, 24, 31, 33, 36, 38, 39, 40, 41, 50, 57, 58, 62, 63)
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
        pytest.param(DriverFeature.MRG_RXBUF, id="Q8-MRG_RXBUF-toggled-while-running"),
        pytest.param(DriverFeature.VERSION_1, id="Q8-VERSION_1-toggled-while-running"),
        pytest.param(DriverFeature.EVENT_IDX, id="Q8-EVENT_IDX-toggled-while-running"),
        pytest.param(DriverFeature.INDIRECT_DESC, id="Q8-INDIRECT_DESC-toggled-while-running"),
        pytest.param(DriverFeature.CSUM, id="Q8-CSUM-toggled-while-running"),
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
    await accepted(front_end, ask(R.SET_FEATURES, U64(front_end.features & ~DriverFeature.MRG_RXBUF)))
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

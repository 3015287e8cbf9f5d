"""What a front-end may take of us, and that it gets no more."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import accepted, ask, borrowed, closed, eventfd, refused, talking
from tests.hostile.stream import GET_FEATURES, raw, receive_answer
from tests.hostile.victim import DEADLINE, Victim, serving, unharmed
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES
from vhostuser.limits import Limits
from vhostuser.wire.frames import HEADER_SIZE
from vhostuser.wire.messages import MemoryRegion, MemoryTable, VringFd
from vhostuser.wire.requests import FrontendRequest as R


@pytest.fixture
async def small(tmp_path: Path, interrupts: None) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated, with a server that maps 32 MiB for each."""
    async with (
        serving(tmp_path / "small.sock", Limits(mapped_bytes=32 * MIB)) as victim,
        unharmed(victim),
        await victim.connect() as front_end,
    ):
        await front_end.negotiate(DRIVER_FEATURES)
        yield front_end


def table(*sizes: int) -> MemoryTable:
    return MemoryTable(tuple(MemoryRegion(i << 40, size, i << 40, 0) for i, size in enumerate(sizes)))


@pytest.mark.proves("VIO-LIMIT-4")
@pytest.mark.parametrize("sizes", [(32 * MIB + 4096,), (16 * MIB, 16 * MIB, 4096), (1 << 62, 1 << 62)], ids=str)
async def test_memory_beyond_the_limit_is_refused_whatever_its_file_says(
    small: FrontEnd, sizes: tuple[int, ...]
) -> None:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 1 << 45)
    with borrowed(fd):
        await accepted(small, ask(R.SET_MEM_TABLE, table(16 * MIB, 16 * MIB), [fd, fd]))
        await refused(small, ask(R.SET_MEM_TABLE, table(*sizes), [fd] * len(sizes)))


@pytest.mark.parametrize("rounds", [pytest.param(4, id="F12-descriptors-that-take-each-others-place")])
async def test_descriptors_that_a_connection_can_hold(victim: Victim, attacker: FrontEnd, rounds: int) -> None:
    """Three for each ring and one for the channel back, however often they are sent."""
    before = len(os.listdir("/proc/self/fd"))
    with GuestRam() as memory, borrowed(eventfd()) as (fd,), trio.fail_after(DEADLINE):
        with_ours = len(os.listdir("/proc/self/fd"))
        for _ in range(rounds):
            for index in range(victim.device.num_rings):
                for request in (R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_VRING_KICK):
                    await accepted(attacker, ask(request, VringFd(index), [fd]))
            await attacker.set_mem_table(memory)
        held = len(os.listdir("/proc/self/fd")) - with_ours
    assert before < with_ours
    assert held == 3 * victim.device.num_rings


@pytest.mark.proves("VIO-LIMIT-1")
@pytest.mark.parametrize("rate", [pytest.param(500, id="F12-slowed-down-and-not-closed")])
async def test_a_storm_is_slowed_down_and_its_neighbour_is_not(tmp_path: Path, interrupts: None, rate: int) -> None:
    """Its second second's worth takes a second. The neighbour is answered all that time."""
    limits = Limits(messages_per_second=rate)
    async with (
        serving(tmp_path / "storm.sock", limits) as stormy,
        serving(tmp_path / "other.sock", limits) as other,
        raw(stormy) as sock,
        await other.connect() as front_end,
    ):
        start = trio.current_time()
        await sock.send(GET_FEATURES * 2 * rate)
        for _ in range(rate // 2):
            await front_end.request(R.GET_FEATURES)
        await receive_answer(sock, 2 * rate * (HEADER_SIZE + 8) - HEADER_SIZE)
        assert trio.current_time() - start > 0.9


@pytest.mark.proves("VIO-LIMIT-2")
@pytest.mark.parametrize("patience", [pytest.param(0.25, id="F14-the-first-says-nothing-while-a-second-waits")])
async def test_a_silent_first_does_not_keep_a_second_waiting(tmp_path: Path, interrupts: None, patience: float) -> None:
    async with (
        serving(tmp_path / "s", Limits(first_message_timeout=patience)) as victim,
        unharmed(victim),
        await victim.connect() as first,
        await victim.connect() as second,
    ):
        await talking(second)
        await closed(first)

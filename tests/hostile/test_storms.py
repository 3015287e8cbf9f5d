"""Row F12 of the hostile inputs: very many requests, connections, tables and drivers, one after another."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import (
    REQUEST,
    Running,
    ask,
    borrowed,
    eventfd,
    signalled,
)
from tests.hostile.stream import (
    GET_FEATURES,
    SET_CALL,
    Socket,
    raw,
    receive_answer,
)
from tests.hostile.victim import DEADLINE, Victim, serving, split_rings
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.runtime.complaints import COMPLAINTS_LOGGED
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import HEADER_SIZE
from vhostuser.wire.messages import U64, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
REQUESTS = 300


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def no_more_memory(slack: int = 8 << 20) -> Iterator[None]:
    before = resident()
    yield
    assert resident() - before < slack


async def storm(sock: Socket, request: bytes, count: int, batch: int = 100) -> None:
    """Send `count` requests that are answered with 8 bytes each, many at a time, and read all answers."""
    for _ in range(count // batch):
        await sock.send(request * batch)
        await receive_answer(sock, batch * (HEADER_SIZE + 8) - HEADER_SIZE)


NEGOTIATED = ask(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK), flags=REQUEST).encode()


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        pytest.param(GET_FEATURES, 4_000, id="F12-4000-GET_FEATURES"),
        pytest.param(ask(R.SET_VRING_NUM, VringState(0, 256)).encode(), 2_000, id="F12-2000-SET_VRING_NUM"),
        pytest.param(ask(R.SET_VRING_ADDR, VringAddr(0, 0, 0, 0, 0, 0)).encode(), 1_000, id="F12-1000-SET_VRING_ADDR"),
        pytest.param(ask(99).encode(), 1_000, id="F12-1000-refused"),
        pytest.param(ask(R.GET_VRING_BASE, VringState(1, 0)).encode(), 1_000, id="F12-1000-GET_VRING_BASE"),
    ],
)
async def test_a_storm_of_requests(
    victim: Victim, request_: bytes, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "vhostuser")  # pytest would keep every line
    async with raw(victim) as sock:
        await sock.send(NEGOTIATED)
        await storm(sock, request_, 1000)
        with no_more_memory(1 << 20):
            await storm(sock, request_, count)


@pytest.mark.parametrize("case", [pytest.param(None, id="F12-a-storm-next-door")])
async def test_a_storm_does_not_keep_a_neighbour_waiting(victim: Victim, tmp_path: Path, case: None) -> None:
    """Two devices in one process: while one front-end asks without a pause, the other one has its turns."""
    answered = 0

    async def stormy(sock: Socket) -> None:
        nonlocal answered
        while True:
            await storm(sock, GET_FEATURES, 100)
            answered += 100

    async with (
        serving(tmp_path / "neighbour.sock") as neighbour,
        raw(victim) as sock,
        await neighbour.connect() as front_end,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(DEADLINE):
            nursery.start_soon(stormy, sock)
            while not answered:
                await front_end.request(FrontendRequest.GET_FEATURES)
            before = answered
            for _ in range(REQUESTS):
                await front_end.request(FrontendRequest.GET_FEATURES)
            after = answered
        nursery.cancel_scope.cancel()
    assert 0 < after - before < 10 * REQUESTS


@pytest.mark.parametrize(
    "request_", [pytest.param(r, id=f"F12-2000-{r.name}") for r in (R.SET_VRING_CALL, R.SET_VRING_ERR)]
)
async def test_a_storm_of_descriptors(attacker: FrontEnd, request_: FrontendRequest) -> None:
    with borrowed(eventfd()) as (fd,), no_more_memory(), trio.fail_after(DEADLINE):
        for i in range(2000):
            await attacker.request(request_, VringFd(i & 1), [fd])


@pytest.mark.parametrize("count", [pytest.param(500, id="F12-500-SET_MEM_TABLE")])
async def test_a_storm_of_memory_tables(attacker: FrontEnd, count: int) -> None:
    with GuestRam() as memory, no_more_memory(), trio.fail_after(DEADLINE):
        for _ in range(count):
            await attacker.set_mem_table(memory)


@pytest.mark.parametrize(
    "bytes_",
    [
        pytest.param(b"", id="F12-300-connects"),
        pytest.param(SET_CALL[:5], id="F12-300-connects-with-half-a-header"),
        pytest.param(GET_FEATURES, id="F12-300-connects-that-do-not-read-the-answer"),
    ],
)
async def test_a_storm_of_connections(victim: Victim, bytes_: bytes) -> None:
    with no_more_memory(), trio.fail_after(DEADLINE):
        for _ in range(300):
            async with raw(victim) as sock:
                if bytes_:
                    await sock.send(bytes_)


@pytest.mark.parametrize("count", [pytest.param(30, id="F12-30-drivers-that-start-and-vanish")])
async def test_a_storm_of_drivers(victim: Victim, count: int) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        for _ in range(count):
            async with await victim.connect() as front_end:
                (await NetDriver.start(front_end, memory, size=2)).close()


@pytest.mark.parametrize("count", [pytest.param(50, id="F12-50-rings-broken")])
async def test_a_storm_of_broken_rings(running: Running, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """The driver breaks its ring as soon as it was started again; the log does not grow with it."""
    _, ring = split_rings(running.driver)
    with trio.fail_after(DEADLINE):
        for _ in range(count):
            ring.avail_idx += ring.size + 1
            ring.kick(force=True)
            await signalled(ring.err_fd.fileno())
            os.eventfd_read(ring.err_fd.fileno())
            await running.front_end.stop_ring(ring)
            ring.reset()
            await running.front_end.start_ring(ring)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == COMPLAINTS_LOGGED + 1
    assert warnings[0].startswith(f"vring {ring.index} is broken and stopped: avail.idx is further ahead")
    assert warnings[-1].endswith("with -vv only")

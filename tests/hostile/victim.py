"""The back-end under attack, and the proof that an attack did no harm.

A victim is a whole server in the test's own process: device, threads, mappings and descriptors can be counted before
and after. :func:`unharmed` does that around a test and runs a good session in between, so whatever a test does to its
victim, packets flow afterwards and nothing is left behind.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.ports import PairPort
from vhostuser.devices.net.device import NetDevice
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.limits import Limits
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import Endpoint, connect, listen
from vhostuser.wire.requests import FrontendRequest

DEADLINE = 20.0
"""Seconds for what takes milliseconds: only a hang needs them."""
PACKETS = 20
"""Frames that a good session moves each way."""


@dataclass(frozen=True)
class Victim:
    """A server for a network device, in this process.

    Attributes:
        path: where it listens.
        port: the device's port; the test has the host's end.
        device: what is served.
        server: the server.
        nursery: where the server's task lives, alone.
    """

    path: Path
    port: PairPort
    device: NetDevice
    server: Server
    nursery: trio.Nursery

    async def connect(self) -> FrontEnd:
        """A front-end that has just connected."""
        return FrontEnd(await connect(self.path))

    async def alive(self) -> None:
        """Wait until the server serves a new connection: it has then let go of all earlier ones."""
        async with await self.connect() as front_end:
            await front_end.request(FrontendRequest.GET_FEATURES)


@asynccontextmanager
async def serving(
    path: Path,
    limits: Limits | None = None,
    endpoint: Endpoint | None = None,
    userfaults: OwnedFd | None = None,
    features: int = 0,
) -> AsyncIterator[Victim]:
    """Serve a network device at `path` while the block runs; `endpoint` is one that listens there already.

    Post-copy is offered if there is what makes `userfaults`; `features` besides those that it offers by itself.
    """
    port = PairPort()
    device = NetDevice(port, features)
    device.inband = True
    try:
        async with endpoint or await listen(path, limits) as origin, trio.open_nursery() as nursery:
            server = Server(device, origin, userfaults=userfaults)
            nursery.start_soon(server.run)
            yield Victim(path, port, device, server, nursery)
            nursery.cancel_scope.cancel()
    finally:
        device.close()
        port.host.close()


@asynccontextmanager
async def unharmed(victim: Victim) -> AsyncIterator[None]:
    """Whatever the block does to `victim`: afterwards packets flow, and it holds what it held before."""
    before = await held(victim)
    yield
    await good_session(victim)
    after = await held(victim)
    assert after == before, f"left behind: {after - before}, lost: {before - after}"


async def good_session(victim: Victim, memory: GuestRam | None = None, features: int = DRIVER_FEATURES) -> None:
    """A front-end that behaves: it negotiates, moves packets both ways, looks at every byte, and stops its rings."""
    with trio.fail_after(DEADLINE), memory or GuestRam() as ram:
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, ram, features=features)) as driver:
                victim.port.flush()  # what an earlier driver sent
                await exchange(victim, driver)
                for ring in (driver.rx, driver.tx):
                    await front_end.stop_ring(ring)


async def exchange(victim: Victim, driver: NetDriver, packets: int = PACKETS) -> None:
    """Move `packets` frames each way and compare every byte."""
    for i in range(packets):
        frame = frame_of(i)
        await driver.send(frame)
        assert await victim.port.receive() == frame
        await victim.port.send(frame)
        assert (await driver.receive()).frame == frame


def split_rings(driver: NetDriver) -> tuple[DriverRing, DriverRing]:
    """A driver's receive and transmit ring, which have the split layout, for tests that write their fields."""
    assert isinstance(driver.rx, DriverRing)
    assert isinstance(driver.tx, DriverRing)
    return driver.rx, driver.tx


def frame_of(number: int) -> bytes:
    """An Ethernet frame whose length and bytes follow from its number."""
    size = 60 + number * 71 % 1455
    return bytes((number + i) & 0xFF for i in range(size))


# ---- what the process holds ------------------------------------------------------------------------------------------


async def held(victim: Victim) -> Counter[str]:
    """What the process holds while an idle front-end is connected that has asked one question.

    The server takes connections one after another, so nothing of an earlier one can be left by then, rightly.
    """
    with trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            await front_end.request(FrontendRequest.GET_FEATURES)
            return Counter(
                [
                    *_open_descriptors(),
                    *_shared_mappings(),
                    *_busy_threads(),
                    *(f"task {task.name}" for task in _tasks(victim.nursery)),
                ]
            )


def _open_descriptors() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that lists them
            continue
        yield "fd " + re.sub(r"\d+", "", target)


def _shared_mappings() -> Iterator[str]:
    """Guest memory is mapped shared; the allocator's ranges, which come and go, are private."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, permissions, _, _, _, *path = line.split()
        if permissions.endswith("s"):
            yield f"mapping {' '.join(path)}"


def _busy_threads() -> Iterator[str]:
    """Threads with something to do. A thread of Trio's cache bears this name only while it waits for a next job."""
    for thread in threading.enumerate():
        if not re.fullmatch(r"Trio thread \d+", thread.name):
            yield f"thread {thread.name}"


def _tasks(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    for task in nursery.child_tasks:
        yield task
        for inner in task.child_nurseries:
            yield from _tasks(inner)

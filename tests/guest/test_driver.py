"""Our front-end and its driver against DPDK's back-end: a referee that read the specification by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.rig.image import GuestImage
from tests.rig.testpmd import Testpmd, vhost_back_end
from vhostuser.frontend.client import connect
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing

pytestmark = pytest.mark.guest

FRAMES = 700
PAIRS = 2
WINDOW = 16  # frames that are on their way at a time


@pytest.fixture(scope="module")
def mirror(image: GuestImage) -> Iterator[Path]:
    """A back-end that sends every frame back where it came from, by the same pair: its socket."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "dpdk.sock"
        with Testpmd([vhost_back_end(socket, queues=PAIRS)], queues=PAIRS) as testpmd:
            testpmd.forward("io")
            yield socket


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize(
    ("packed", "in_order"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["split", "split-in-order", "packed", "packed-in-order"],
)
async def test_frames_come_back(mirror: Path, packed: bool, in_order: bool, event_idx: bool) -> None:
    """Every frame goes through both rings, several times around."""
    features = DRIVER_FEATURES if event_idx else int(DRIVER_FEATURES) & ~int(DriverFeature.EVENT_IDX)
    with trio.fail_after(30), GuestRam() as memory:
        async with connect(mirror, negotiate=False) as front_end:
            with await NetDriver.start(
                front_end, memory, features=features, packed=packed, in_order=in_order, size=64
            ) as driver:
                assert isinstance(driver.tx, PackedDriverRing) is packed
                await exchange(driver, FRAMES)
                for ring in (driver.rx, driver.tx):
                    await front_end.stop_ring(ring)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_every_pair_has_its_own_frames(mirror: Path, packed: bool) -> None:
    with trio.fail_after(30), GuestRam() as memory, ExitStack() as stack:
        async with connect(mirror, negotiate=False) as front_end:
            drivers = await NetDriver.start_pairs(front_end, memory, PAIRS, packed=packed, size=64)
            for driver in drivers:
                stack.enter_context(driver)
            async with trio.open_nursery() as nursery:
                for number, driver in enumerate(drivers):
                    nursery.start_soon(exchange, driver, FRAMES, number + 1)


async def exchange(driver: NetDriver, count: int, step: int = 1) -> None:
    """Send frames by windows; each has to come back before the next goes."""
    frames = [bytes([n * step % 256]) * (60 + 2 * n) for n in range(count)]
    for begin in range(0, count, WINDOW):
        window = frames[begin : begin + WINDOW]
        for frame in window:
            await driver.send(frame)
        assert [(await driver.receive()).frame for _ in window] == window

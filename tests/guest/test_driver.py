"""Our front-end and its driver against DPDK's back-end: a referee that read the specification by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from tests.rig.image import GuestImage
from tests.rig.testpmd import Testpmd, vhost_back_end
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver, NetFeature
from vhostuser.frontend.packed import PackedDriverRing

pytestmark = pytest.mark.guest

FRAMES = 700
WINDOW = 16  # frames that are on their way at a time


@pytest.fixture(scope="module")
def mirror(image: GuestImage) -> Iterator[Path]:
    """A back-end that sends every frame back where it came from: its socket."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "dpdk.sock"
        with Testpmd([vhost_back_end(socket)]) as testpmd:
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
    frames = [bytes([n % 256]) * (60 + 2 * n) for n in range(FRAMES)]
    features = DRIVER_FEATURES if event_idx else int(DRIVER_FEATURES) & ~int(NetFeature.EVENT_IDX)
    with trio.fail_after(30), ExitStack() as stack:
        memory = stack.enter_context(GuestRam())
        async with await FrontEnd.connect(mirror) as front_end:
            driver = await NetDriver.start(
                front_end, memory, features=features, packed=packed, in_order=in_order, size=64
            )
            stack.enter_context(closing(driver))
            assert isinstance(driver.tx, PackedDriverRing) is packed
            for begin in range(0, FRAMES, WINDOW):
                window = frames[begin : begin + WINDOW]
                for frame in window:
                    await driver.send(frame)
                assert [(await driver.receive()).frame for _ in window] == window
            for ring in (driver.rx, driver.tx):
                await front_end.stop_ring(ring)

"""Every ring layout over a real session: packets, stops, and positions that both sides tell alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pytest
import trio

from tests.hostile.victim import DEADLINE, Victim, exchange
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing


class Layout(NamedTuple):
    """What a driver asks for."""

    packed: bool
    in_order: bool
    size: int
    features: int = DRIVER_FEATURES

    async def start(self, front_end: FrontEnd, memory: GuestRam) -> NetDriver:
        return await NetDriver.start(
            front_end, memory, features=self.features, packed=self.packed, in_order=self.in_order, size=self.size
        )


FLAGS = int(DRIVER_FEATURES) & ~int(DriverFeature.EVENT_IDX)
LAYOUTS = [
    pytest.param(Layout(packed, in_order, 7 if packed else 8, features), id=f"{name}{order}{event}")
    for packed, name in ((False, "split"), (True, "packed"))
    for in_order, order in ((False, ""), (True, "-in-order"))
    for features, event in ((DRIVER_FEATURES, ""), (FLAGS, "-flags"))
]


@pytest.fixture
def memory() -> Iterator[GuestRam]:
    with GuestRam() as ram:
        yield ram


@pytest.mark.proves("VU-RING-30")
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_packets_stops_and_starts(layout: Layout, victim: Victim, memory: GuestRam) -> None:
    async with await victim.connect() as front_end:
        with trio.fail_after(DEADLINE), closing(await layout.start(front_end, memory)) as driver:
            victim.port.flush()  # what an earlier driver sent
            for round_ in range(4):
                await exchange(victim, driver, 9)
                driver.collect_sent()
                for ring in (driver.rx, driver.tx):
                    told = await front_end.stop_ring(ring)
                    if isinstance(ring, PackedDriverRing):
                        assert told == ring.next_used.word * 0x10001
                    else:
                        assert told == 9 * (round_ + 1)
                for ring in (driver.rx, driver.tx):
                    await front_end.start_ring(ring)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_more_packets_than_the_ring_holds(layout: Layout, victim: Victim, memory: GuestRam) -> None:
    """A burst each way, without waiting: the rings fill and wrap, and sleepers on both sides are woken."""
    frames = [bytes([i]) * (60 + i) for i in range(100)]
    async with await victim.connect() as front_end:
        with trio.fail_after(DEADLINE), closing(await layout.start(front_end, memory)) as driver:
            victim.port.flush()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, driver, frames)
                assert [await victim.port.receive() for _ in frames] == frames
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_to_guest, victim, frames)
                assert [(await driver.receive()).frame for _ in frames] == frames


async def send_all(driver: NetDriver, frames: list[bytes]) -> None:
    for frame in frames:
        await driver.send(frame)


async def send_to_guest(victim: Victim, frames: list[bytes]) -> None:
    for frame in frames:
        await victim.port.send(frame)

"""A guest that runs here while its pages are elsewhere. (The interpreted edition does not offer that.)"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import ask, talking
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of, good_session, serving
from tests.runtime.test_postcopy import POSTCOPY, destination
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.postcopy import PageServer
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.userfault import open_source
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import VringState
from vhostuser.wire.requests import FrontendRequest as R

__all__ = ["destination"]

LAYOUT = ((0, 4 * MIB), (1 << 32, 4 * MIB))
FRAMES = 5
VARIANTS = {
    "split, SET_MEM_TABLE": (DriverFeature(0), ProtocolFeature(0)),
    "packed, ADD_MEM_REG": (DriverFeature.RING_PACKED, ProtocolFeature.CONFIGURE_MEM_SLOTS),
}


@dataclass(frozen=True)
class Arrival:
    """A guest with receive buffers and frames to send, all of whose memory is elsewhere.

    Its driver may touch nothing before all pages were given.
    """

    front_end: FrontEnd
    driver: NetDriver
    pages: PageServer

    async def start(self) -> None:
        """Start both rings, with what pages they need."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pages.run)
            for ring in (self.driver.rx, self.driver.tx):
                await self.front_end.enable_ring(ring)  # first, or what is found at the start is thrown away
                await self.front_end.start_ring(ring)
            nursery.cancel_scope.cancel()

    async def end(self) -> None:
        """Give all pages that are left."""
        await self.pages.end(self.front_end)


@pytest.fixture(params=VARIANTS)
async def arrival(destination: Victim, request: pytest.FixtureRequest) -> AsyncIterator[Arrival]:
    features, protocol_features = VARIANTS[request.param]
    async with await destination.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES | features, POSTCOPY | protocol_features)
        with GuestRam(LAYOUT) as memory:
            layout = PackedDriverRing if features else DriverRing
            rx, tx = (layout(memory, index, event_idx=True) for index in range(2))
            with closing(NetDriver(rx, tx, front_end.features)) as driver, trio.fail_after(DEADLINE):
                driver.fill()
                for number in range(FRAMES):
                    await driver.send(frame_of(number))
                with closing(PageServer(memory)) as pages:
                    await pages.begin(front_end)
                    yield Arrival(front_end, driver, pages)


@pytest.fixture
async def waiting(destination: Victim, arrival: Arrival) -> Arrival:
    """The same with a thread that waits for a page: a frame has come from the host."""
    await arrival.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrival.pages.run)
        for number in range(FRAMES):
            assert await destination.port.receive() == frame_of(number)
        await arrival.front_end.enable_ring(arrival.driver.tx)  # an answer that waits for a turn to end
        nursery.cancel_scope.cancel()
    await destination.port.send(frame_of(FRAMES))
    await arrival.pages.next_fault()
    return arrival


@pytest.mark.proves("VU-POST-7")
async def test_packets_flow_while_pages_come(destination: Victim, arrival: Arrival) -> None:
    driver, pages = arrival.driver, arrival.pages
    await arrival.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pages.run)
        for number in range(FRAMES):
            assert await destination.port.receive() == frame_of(number)
            await destination.port.send(frame_of(FRAMES + number))
        await trio.lowlevel.wait_readable(driver.rx.call_fd.fileno())
        nursery.cancel_scope.cancel()
    assert len(set(pages.asked)) > 3
    await arrival.end()
    for number in range(FRAMES):
        assert (await driver.receive()).frame == frame_of(FRAMES + number)
    await exchange(destination, driver)


@pytest.mark.proves("VU-POST-7")
async def test_the_front_end_is_answered_while_a_thread_waits(destination: Victim, waiting: Arrival) -> None:
    await talking(waiting.front_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.pages.run)
        waiting.pages.give(waiting.pages.asked[-1])
        await trio.lowlevel.wait_readable(waiting.driver.rx.call_fd.fileno())
        nursery.cancel_scope.cancel()
    await waiting.end()
    assert (await waiting.driver.receive()).frame == frame_of(FRAMES)


@pytest.mark.proves("VU-POST-8")
@pytest.mark.parametrize("asks", [False, True], ids=["silently", "while a request waits for the thread"])
async def test_a_front_end_that_leaves_frees_the_thread(destination: Victim, waiting: Arrival, asks: bool) -> None:
    """It keeps the userfaultfd open meanwhile, and gives no page."""
    if asks:
        await waiting.front_end.send_frame(ask(R.GET_VRING_BASE, VringState(0, 0)))
    await waiting.front_end.aclose()
    await good_session(destination)


@pytest.mark.proves("VU-POST-9")
async def test_the_end_frees_a_thread_that_waits(destination: Victim, waiting: Arrival) -> None:
    """A page that was not given is zeros then; it had a receive buffer in it."""
    await waiting.front_end.request(R.POSTCOPY_END)
    await trio.lowlevel.wait_readable(waiting.driver.rx.call_fd.fileno())
    await talking(waiting.front_end)


@pytest.mark.proves("VU-POST-8")
async def test_a_server_that_ends_frees_the_thread(tmp_path: Path) -> None:
    with open_source() as source, GuestRam(LAYOUT) as memory, trio.fail_after(DEADLINE):
        path = tmp_path / "vhost.sock"
        async with serving(path, userfaults=source) as victim, await victim.connect() as front_end:
            await front_end.negotiate(DRIVER_FEATURES, POSTCOPY)
            with closing(DriverRing(memory, 0, event_idx=True)) as ring, closing(PageServer(memory)) as pages:
                await pages.begin(front_end)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(front_end.start_ring, ring)
                    await pages.next_fault()
                    nursery.cancel_scope.cancel()
                victim.nursery.cancel_scope.cancel()


async def test_a_region_that_went_is_nobodys_at_the_end(destination: Victim) -> None:
    """Its addresses may be another's by then, and are not touched."""
    async with await destination.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, POSTCOPY | ProtocolFeature.CONFIGURE_MEM_SLOTS)
        with GuestRam(LAYOUT) as memory, closing(PageServer(memory)) as pages:
            await pages.begin(front_end)
            await front_end.rem_mem_reg(memory.regions[1])
            await pages.end(front_end)
            await front_end.add_mem_reg(memory.regions[1])

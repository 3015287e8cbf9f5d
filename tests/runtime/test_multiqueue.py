"""A device with several queue pairs: each starts, stops, breaks and waits by itself."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import accepted, ask, refused, signalled
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of, split_rings
from tests.ports import PairPort
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.features import NetFeature
from vhostuser.errors import PortError
from vhostuser.frontend.client import FrontEnd, connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.privileges import NOTHING
from vhostuser.runtime.offer import PROTOCOL_FEATURES
from vhostuser.runtime.rings import Rings
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.virtio.pump import Pump
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
PAIRS = 4
MQ = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class SeveralPorts:
    """A port of several pairs, each of which has its own other end.

    Attributes:
        attached_at_carrier: the pairs to which the host sent when the carrier was set last.
    """

    def __init__(self, queues: int) -> None:
        self.name = "several pairs"
        self.pairs = [PairPort() for _ in range(queues)]
        self.queues = queues
        self.unsupported = NetFeature(0)
        self.batching = Batching.NONE
        self.capabilities = self.mtu_capabilities = NOTHING

    @property
    def header_size(self) -> int:
        return self.pairs[0].header_size

    @header_size.setter
    def header_size(self, size: int) -> None:
        for port in self.pairs:
            port.header_size = size

    def fileno(self, pair: int = 0) -> int:
        return self.pairs[pair].fileno()

    def attach(self, pair: int, attached: bool) -> None:
        assert self.pairs[pair].attached != attached, "said twice"
        self.pairs[pair].attach(0, attached)

    def configure(self, features: int, header_size: int) -> None:
        for port in self.pairs:
            port.configure(features, header_size)

    def set_carrier(self, up: bool) -> None:
        self.attached_at_carrier = self.attached
        for port in self.pairs:
            port.set_carrier(up)

    def set_mtu(self, mtu: int) -> None:
        raise PortError("no MTU here")

    def close(self) -> None:
        for port in self.pairs:
            port.close()
            port.host.close()

    @property
    def attached(self) -> list[int]:
        """The pairs to which the host sends."""
        return [number for number, port in enumerate(self.pairs) if port.attached]


@dataclass(frozen=True)
class Server4:
    """A server for a device of four pairs, and a front-end that has negotiated.

    Attributes:
        pairs: the same server once for each pair, as the functions for a server with one pair take it.
    """

    port: SeveralPorts
    pairs: list[Victim]
    front_end: FrontEnd
    memory: GuestRam

    async def attached(self) -> list[int]:
        """The pairs to which the host sends once all that was asked so far is done."""
        await accepted(self.front_end, ask(R.SET_OWNER))
        return self.port.attached


@asynccontextmanager
async def serving_pairs(path: Path) -> AsyncIterator[Server4]:
    port = SeveralPorts(PAIRS)
    device = NetDevice(port)
    with closing(device), GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await listen(path) as origin, trio.open_nursery() as nursery:
            server = Server(device, origin)
            nursery.start_soon(server.run)
            async with connect(path, features=DRIVER_FEATURES, protocol_features=MQ, memory=memory) as front_end:
                pairs = [Victim(path, pair, device, server, nursery) for pair in port.pairs]
                yield Server4(port, pairs, front_end, memory)
            await pairs[0].alive()
            assert port.attached == [], "left attached"
            nursery.cancel_scope.cancel()


@pytest.fixture
async def served(tmp_path: Path, interrupts: None) -> AsyncIterator[Server4]:
    async with serving_pairs(tmp_path / "vhost.sock") as served:
        yield served


@asynccontextmanager
async def driving(served: Server4, *pairs: int) -> AsyncIterator[list[NetDriver]]:
    """Drivers for some of the pairs, whose rings run."""
    async with AsyncExitStack() as stack:
        drivers = []
        for pair in pairs:
            driver = await NetDriver.open_pair(served.front_end, pair, size=64)
            stack.callback(driver.close)
            drivers.append(driver)
        yield drivers


async def stop(served: Server4, driver: NetDriver) -> None:
    """Take a pair out of use."""
    for ring in (driver.rx, driver.tx):
        await served.front_end.enable_ring(ring, False)
        await served.front_end.stop_ring(ring)


def group_threads() -> int:
    """Threads of queue groups, by the name that Trio gives them."""
    return len([thread for thread in threading.enumerate() if thread.name.startswith("_main from ")])


# ---- what is negotiated ----------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-MQ-1")
async def test_the_number_of_queues_is_that_of_pairs(served: Server4) -> None:
    assert served.front_end.offered & NetFeature.MQ
    assert await served.front_end.request(R.GET_QUEUE_NUM) == U64(PAIRS)


@pytest.mark.proves("VU-MQ-1")
async def test_one_pair_offers_no_multiqueue(victim: Victim, attacker: FrontEnd) -> None:
    offered = PROTOCOL_FEATURES | ProtocolFeature.NET_MTU | ProtocolFeature.RARP | ProtocolFeature.INBAND_NOTIFICATIONS
    assert await attacker.request(R.GET_PROTOCOL_FEATURES) == U64(int(offered))
    assert not attacker.offered & NetFeature.MQ
    await refused(attacker, ask(R.GET_QUEUE_NUM))
    await refused(attacker, ask(R.SET_VRING_ENABLE, VringState(2, 1)))


# ---- pairs that come and go ------------------------------------------------------------------------------------------


async def test_every_pair_moves_its_own_packets(served: Server4) -> None:
    async with driving(served, *range(PAIRS)) as drivers, trio.open_nursery() as nursery:
        for victim, driver in zip(served.pairs, drivers, strict=True):
            nursery.start_soon(exchange, victim, driver)
    counters = served.pairs[0].server.counters()
    assert counters["rx_packets"] == counters["tx_packets"] == 20 * PAIRS
    assert [counters[f"vring{index}_chains"] for index in range(2 * PAIRS)] == [20] * 2 * PAIRS
    assert counters["chains"] == 40 * PAIRS


@pytest.mark.proves("VU-MQ-2")
async def test_a_pair_that_is_not_used_has_no_thread_and_needs_nothing(served: Server4) -> None:
    before = group_threads()
    async with driving(served, 0, 2) as (first, third):
        assert group_threads() == before + 2
        for index in (2, 3, 6, 7):
            await accepted(served.front_end, ask(R.SET_VRING_ENABLE, VringState(index, 1)))
            reply = await served.front_end.request(R.GET_VRING_BASE, VringState(index, 0))
            assert reply == VringState(index, 0)
            await accepted(served.front_end, ask(R.SET_VRING_ENABLE, VringState(index, 0)))
        assert await served.attached() == [0, 2]
        await exchange(served.pairs[0], first)
        await exchange(served.pairs[2], third)
        await stop(served, third)
        assert await served.attached() == [0]
        assert group_threads() == before + 1


@pytest.mark.proves("VIO-MQ-1")
@pytest.mark.parametrize("steps", list(permutations(("enable", "start"))), ids="-".join)
async def test_the_host_sends_to_rings_that_run(served: Server4, steps: tuple[str, ...]) -> None:
    with closing(DriverRing(served.memory, 4, 64, event_idx=True)) as ring:
        for _ in range(2):
            for step in steps:
                assert await served.attached() == []
                if step == "enable":
                    await served.front_end.enable_ring(ring)
                else:
                    await served.front_end.start_ring(ring, enable=False)
            assert await served.attached() == [2]
            await served.front_end.enable_ring(ring)
            await served.front_end.enable_ring(ring, False)
            assert await served.attached() == []
            await served.front_end.enable_ring(ring)
            assert await served.attached() == [2]
            await served.front_end.stop_ring(ring)
            assert await served.attached() == []
            await served.front_end.enable_ring(ring, False)


@pytest.mark.proves("VIO-MQ-4")
async def test_the_hosts_flows_stay_where_they_are_while_pairs_start_and_stop_one_by_one(served: Server4) -> None:
    """The carrier, with which packets begin to come, is up when all pairs are attached."""
    for index in range(2 * PAIRS):
        await accepted(served.front_end, ask(R.SET_VRING_ENABLE, VringState(index, 1)))
    assert await served.attached() == []
    async with driving(served, 0, 1, 2) as drivers:
        assert served.port.attached_at_carrier == list(range(PAIRS))
        assert await served.attached() == list(range(PAIRS))
        for driver in drivers:
            assert await served.attached() == list(range(PAIRS))
            for ring in (driver.rx, driver.tx):
                await served.front_end.stop_ring(ring)
        assert await served.attached() == []


async def test_transmit_rings_alone_attach_nothing(served: Server4) -> None:
    with closing(DriverRing(served.memory, 5, 64, event_idx=True)) as ring:
        await served.front_end.start_ring(ring)
        assert await served.attached() == []
        assert served.pairs[2].port.carrier


@pytest.mark.proves("VIO-MQ-1", "VU-RING-18")
async def test_a_reset_detaches_every_pair(served: Server4) -> None:
    async with driving(served, 0, 1, 3):
        assert await served.attached() == [0, 1, 3]
        await accepted(served.front_end, ask(R.RESET_OWNER))
        assert await served.attached() == []


async def test_pairs_come_and_go_under_packets_of_another(served: Server4) -> None:
    """The first pair's packets pass, every byte, while the others are paused, stopped and given new memory."""
    async with driving(served, 0) as (steady,), trio.open_nursery() as nursery:
        busy = trio.CancelScope()

        async def keep_busy() -> None:
            with busy:
                while True:
                    await exchange(served.pairs[0], steady, 5)
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(keep_busy)
        for _ in range(5):
            async with driving(served, 1, 2) as drivers:
                for victim, driver in zip(served.pairs[1:], drivers, strict=False):
                    await exchange(victim, driver, 3)
                    await served.front_end.enable_ring(driver.rx, False)
                    await served.front_end.enable_ring(driver.rx)
                    await served.front_end.set_mem_table(served.memory)
                    await exchange(victim, driver, 3)
                    await stop(served, driver)
        busy.cancel()


# ---- pairs in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-MQ-3")
async def test_a_broken_ring_is_its_pairs_loss_alone(served: Server4) -> None:
    async with driving(served, 0, 1) as (sound, broken):
        _, tx = split_rings(broken)
        tx.avail_idx += 1000
        os.eventfd_write(tx.kick_fd.fileno(), 1)
        await signalled(tx.err_fd.fileno())
        await exchange(served.pairs[0], sound)
        tx.avail_idx -= 1000
        await served.front_end.stop_ring(tx)
        await served.front_end.start_ring(tx)
        await exchange(served.pairs[1], broken)


@pytest.mark.proves("VIO-MQ-1")
async def test_the_host_stops_sending_to_a_pair_whose_receive_ring_broke(served: Server4) -> None:
    async with driving(served, 0, 1, 2) as (_, broken, _):
        rx, tx = split_rings(broken)
        rx.avail_idx += 1000
        await served.port.pairs[1].send(frame_of(0))  # the ring is looked at for that
        while served.port.attached != [0, 2]:
            await trio.lowlevel.checkpoint()
        rx.avail_idx -= 1000
        await served.front_end.stop_ring(rx)
        await served.front_end.start_ring(rx)
        assert await served.attached() == [0, 1, 2]
        tx.avail_idx += 1000
        os.eventfd_write(tx.kick_fd.fileno(), 1)
        await signalled(tx.err_fd.fileno())
        assert await served.attached() == [0, 1, 2]


@pytest.mark.proves("VU-MQ-3")
async def test_all_pairs_adopt_new_memory_at_once(served: Server4, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread waits in there for the others, which would be for ever if they were asked one by one."""
    meeting = threading.Barrier(PAIRS)
    adopt = Rings._adopt

    def meet(rings: Rings, number: int, pump: Pump) -> None:
        meeting.wait(DEADLINE)
        adopt(rings, number, pump)

    async with driving(served, *range(PAIRS)) as drivers:
        with monkeypatch.context() as patch:
            patch.setattr(Rings, "_adopt", meet)
            await served.front_end.set_mem_table(served.memory)
        for victim, driver in zip(served.pairs, drivers, strict=True):
            await exchange(victim, driver, 3)


async def test_a_front_end_that_vanishes_leaves_no_pair_attached(tmp_path: Path, interrupts: None) -> None:
    async with serving_pairs(tmp_path / "vhost.sock") as served, driving(served, *range(PAIRS)) as drivers:
        for driver in drivers:
            await driver.send(frame_of(1))
        await served.front_end.aclose()
        await served.pairs[0].alive()
        assert served.port.attached == []

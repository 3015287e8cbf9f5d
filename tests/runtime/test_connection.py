"""One front-end's conversation with everything real: when rings run, where they go on, what a disabled one does."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress

import pytest
import trio

from tests.hostile.attack import REQUEST, Running, accepted, ask, borrowed, eventfd, refused, signalled, talking
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of, split_rings
from vhostuser.devices.net.pump import NetPump
from vhostuser.errors import PortError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest


@asynccontextmanager
async def unstarted(victim: Victim, front_end: FrontEnd) -> AsyncIterator[Running]:
    """A driver with full receive buffers of which the back-end knows nothing yet."""
    with GuestRam() as memory:
        rx, tx = (DriverRing(memory, index, event_idx=True) for index in range(2))
        with closing(NetDriver(rx, tx, front_end.features)) as driver, trio.fail_after(DEADLINE):
            driver.fill()
            yield Running(front_end, memory, driver)


async def tell(step: str, rings: Running) -> None:
    """One step of starting both rings."""
    front_end = rings.front_end
    if step == "MEM_TABLE":
        await front_end.set_mem_table(rings.memory)
        return
    for ring in (rings.driver.rx, rings.driver.tx):
        match step:
            case "NUM":
                await front_end.request(R.SET_VRING_NUM, VringState(ring.index, ring.size))
            case "ADDR":
                await front_end.request(R.SET_VRING_ADDR, front_end.vring_addr(ring))
            case "KICK":
                await front_end.request(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()])
            case "CALL":
                await front_end.request(R.SET_VRING_CALL, VringFd(ring.index), [ring.call_fd.fileno()])
            case "ENABLE":
                await front_end.enable_ring(ring)


LEGAL_ORDERS = [
    order
    for order in itertools.permutations(("NUM", "ADDR", "KICK", "MEM_TABLE"))
    if order.index("NUM") < order.index("KICK")  # the size of a started ring cannot change
]


@pytest.mark.proves("VU-RING-8", "VU-RING-27")
@pytest.mark.parametrize("order", LEGAL_ORDERS, ids="-".join)
async def test_a_ring_runs_once_all_is_known_whatever_comes_last(
    victim: Victim, attacker: FrontEnd, order: Sequence[str]
) -> None:
    async with unstarted(victim, attacker) as rings:
        for step in ("CALL", "ENABLE", *order):
            assert not victim.port.carrier
            await tell(step, rings)
        assert victim.port.carrier
        await exchange(victim, rings.driver)


@pytest.mark.proves("VU-RING-13")
async def test_a_ring_that_was_kicked_too_early_starts_over(victim: Victim, attacker: FrontEnd) -> None:
    """With KICK before NUM the ring counts as started, so its size is refused until it was stopped."""
    async with unstarted(victim, attacker) as rings:
        for step in ("KICK", "MEM_TABLE", "ADDR", "ENABLE", "CALL"):
            await tell(step, rings)
        with pytest.raises(RefusedError):
            await tell("NUM", rings)
        for ring in (rings.driver.rx, rings.driver.tx):
            assert await attacker.stop_ring(ring) == 0
            await attacker.start_ring(ring)
        await exchange(victim, rings.driver)


@pytest.mark.proves("VU-RING-2")
async def test_rings_that_run_are_enabled_by_features_that_say_nothing_of_it(victim: Victim) -> None:
    """A front-end may kick before it sets features, as long as these are none."""
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        rings = [DriverRing(memory, index) for index in range(2)]
        with closing(NetDriver(rings[0], rings[1], features=0)) as driver:
            driver.fill()
            async with await victim.connect() as front_end:
                for step in ("NUM", "ADDR", "CALL", "MEM_TABLE", "KICK"):
                    await tell(step, Running(front_end, memory, driver))
                await driver.send(frame_of(0))
                while driver.collect_sent():
                    await driver.tx.wait_used()
                assert victim.port.flush() == 0
                await front_end.request(R.SET_FEATURES, U64(0))
                await talking(front_end)
                await exchange(victim, driver)


@pytest.mark.proves("VU-RING-28")
async def test_a_kick_that_came_before_the_start_is_not_lost(victim: Victim, attacker: FrontEnd) -> None:
    async with unstarted(victim, attacker) as rings:
        await rings.driver.send(frame_of(1))
        await attacker.set_mem_table(rings.memory)
        await attacker.enable_ring(rings.driver.tx)  # first, or what is found at the start is thrown away
        await attacker.start_ring(rings.driver.tx)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-RING-28")
async def test_chains_without_any_kick_are_found_at_the_start(victim: Victim, attacker: FrontEnd) -> None:
    async with unstarted(victim, attacker) as rings:
        await rings.driver.send(frame_of(1))
        os.eventfd_read(rings.driver.tx.kick_fd.fileno())
        await attacker.set_mem_table(rings.memory)
        await attacker.enable_ring(rings.driver.tx)  # first, or what is found at the start is thrown away
        await attacker.start_ring(rings.driver.tx)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-RING-17")
async def test_a_new_kick_descriptor_is_looked_at_once(victim: Victim, running: Running) -> None:
    """A kick may have gone to the old descriptor while the new one was on its way."""
    driver = running.driver
    await exchange(victim, driver, 2)
    with borrowed(eventfd()) as (kick,), trio.fail_after(DEADLINE):
        await running.front_end.request(R.SET_VRING_KICK, VringFd(1), [kick])
        await driver.send(frame_of(1))  # kicks the old one
        await running.front_end.request(R.SET_VRING_KICK, VringFd(1), [kick])
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-RING-17")
async def test_a_new_call_descriptor_is_signalled_once(running: Running) -> None:
    with borrowed(eventfd()) as (call,):
        await running.front_end.request(R.SET_VRING_CALL, VringFd(0), [call])
        assert os.eventfd_read(call) == 1


async def test_addresses_of_a_live_ring_may_be_told_again(victim: Victim, running: Running) -> None:
    await exchange(victim, running.driver)
    for _ in range(10):
        await tell("ADDR", running)
        await exchange(victim, running.driver, 2)


async def test_addresses_of_a_live_ring_may_change(victim: Victim, running: Running) -> None:
    """The rings move to another place in memory with what is in them; their positions go on."""
    driver, memory = running.driver, running.memory
    await exchange(victim, driver)
    for ring in (driver.rx, driver.tx):
        old = ring.desc_addr, ring.avail_addr, ring.used_addr
        sizes = 16 * ring.size, 6 + 2 * ring.size, 6 + 8 * ring.size
        new = [memory.alloc(size, region=1) for size in sizes]
        for here, there, size in zip(old, new, sizes, strict=True):
            memory.write(there, memory.read(here, size))
        ring.desc_addr, ring.avail_addr, ring.used_addr = new
        await running.front_end.request(R.SET_VRING_ADDR, running.front_end.vring_addr(ring))
        for here, size in zip(old, sizes, strict=True):
            memory.write(here, b"\xff" * size)
    await exchange(victim, driver)


async def test_addresses_that_are_refused_leave_a_live_ring_alone(victim: Victim, running: Running) -> None:
    for ring in (running.driver.rx, running.driver.tx):
        addr = running.front_end.vring_addr(ring)
        await refused(running.front_end, ask(R.SET_VRING_ADDR, type(addr)(ring.index, 0, 0, 0, 0, 0)))
    await exchange(victim, running.driver)


@pytest.mark.proves("VU-RING-10")
async def test_the_position_of_a_stopped_ring_counts_what_was_used(victim: Victim, running: Running) -> None:
    await exchange(victim, running.driver, 7)
    assert await running.front_end.stop_ring(running.driver.rx) == 7
    assert await running.front_end.stop_ring(running.driver.tx) == 7
    assert await running.front_end.stop_ring(running.driver.tx) == 7


@pytest.mark.proves("VU-REP-1", "VU-REP-2")
async def test_every_request_is_answered_once(victim: Victim) -> None:
    silent = [
        ask(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK), flags=REQUEST),
        ask(R.SET_OWNER, flags=REQUEST),
    ]
    spoken = [
        ask(R.GET_FEATURES),
        ask(R.SET_OWNER),
        ask(R.GET_VRING_BASE, VringState(0, 0)),
        ask(R.SET_FEATURES, U64(0)),
    ]
    spoken += [ask(R.GET_PROTOCOL_FEATURES, flags=REQUEST)]
    async with await victim.connect() as front_end:
        with trio.fail_after(DEADLINE):
            for frame in silent + spoken:
                await front_end.send_frame(frame)
            answers = [(await front_end.receive_frame()).request for _ in spoken]
            assert answers == [frame.request for frame in spoken]
            await talking(front_end)


@pytest.mark.proves("VU-RING-26")
@pytest.mark.parametrize("value", [1, 2, 1 << 32, (1 << 64) - 3])
async def test_whatever_number_is_added_a_kick_is_a_kick(victim: Victim, running: Running, value: int) -> None:
    def kick(*, force: bool = False) -> bool:
        os.eventfd_write(running.driver.tx.kick_fd.fileno(), value)
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.driver.tx, "kick", kick)
        with trio.fail_after(DEADLINE):
            await exchange(victim, running.driver, 2)


@pytest.mark.proves("VU-RING-29")
async def test_while_all_rings_are_stopped_nothing_is_written_or_called(victim: Victim, running: Running) -> None:
    driver, front_end, memory = running.driver, running.front_end, running.memory
    await exchange(victim, driver, 3)
    for ring in (driver.rx, driver.tx):
        await front_end.stop_ring(ring)
    await driver.send(frame_of(1))
    await victim.port.send(frame_of(2))
    for ring in (driver.rx, driver.tx):
        ring.kick(force=True)
        with suppress(BlockingIOError):
            os.eventfd_read(ring.call_fd.fileno())
    before = [bytes(region.bytes) for region in memory.regions]
    for _ in range(10):
        await front_end.set_mem_table(memory)  # the rings' threads have a part in this one
        await accepted(front_end, ask(R.SET_OWNER))
    assert [bytes(region.bytes) for region in memory.regions] == before
    for ring in (driver.rx, driver.tx):
        with pytest.raises(BlockingIOError):
            os.eventfd_read(ring.call_fd.fileno())


@pytest.mark.proves("VU-VRING-BASE-1")
async def test_what_a_stopped_ring_took_it_has_used(victim: Victim, running: Running) -> None:
    """Stopped in the middle of a burst: as much has left by the port as the answer says, and as the driver sees."""
    driver, front_end = running.driver, running.front_end
    _, tx = split_rings(driver)
    for turn in range(10):
        for i in range(250):
            assert driver.post(frame_of(i))
        tx.kick(force=True)
        told = await front_end.stop_ring(tx)
        assert tx.used_idx == told
        done = told - 250 * turn
        assert victim.port.flush() == done
        await front_end.start_ring(tx)
        with trio.fail_after(DEADLINE):
            assert [await victim.port.receive() for _ in range(done, 250)] == [frame_of(i) for i in range(done, 250)]
            while driver.collect_sent():
                await tx.wait_used()


@pytest.mark.proves("VU-RING-10", "VU-RING-27")
async def test_a_stopped_ring_is_left_alone_and_a_restart_goes_on(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    rx, tx = split_rings(driver)
    for _ in range(5):
        await exchange(victim, driver, 3)
        for ring in (rx, tx):
            await front_end.stop_ring(ring)
        used = tx.used_idx, rx.used_idx
        await driver.send(frame_of(1))
        assert (tx.used_idx, rx.used_idx) == used
        for ring in (rx, tx):
            await front_end.start_ring(ring)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-RING-30")
async def test_a_restart_may_go_on_somewhere_else(victim: Victim, running: Running) -> None:
    """As after a reset of the device in the guest: empty rings, and a position that the front-end chooses."""
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver, 3)
    for ring in (driver.rx, driver.tx):
        await front_end.stop_ring(ring)
    rx, tx = (DriverRing(running.memory, index, 64, event_idx=True) for index in range(2))
    for ring in (rx, tx):
        ring.reset(0xFFF0)
    with closing(NetDriver(rx, tx, front_end.features)) as fresh:
        fresh.fill()
        for ring in (rx, tx):
            await front_end.start_ring(ring)
        await exchange(victim, fresh, 40)
        assert await front_end.stop_ring(tx) == (0xFFF0 + 40) & 0xFFFF


@pytest.mark.proves("VU-RING-25")
async def test_a_disabled_transmit_ring_throws_packets_away(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver, 2)
    await front_end.enable_ring(driver.tx, False)
    with trio.fail_after(DEADLINE):
        for i in range(5):
            await driver.send(frame_of(i))
        while driver.collect_sent():
            await driver.tx.wait_used()
    assert victim.port.flush() == 0
    await front_end.enable_ring(driver.tx)
    await exchange(victim, driver, 2)
    assert victim.server.counters()["tx_discarded"] == 5


@pytest.mark.proves("VU-RING-25", "VU-RING-28")
async def test_a_disabled_receive_ring_yields_nothing(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    await front_end.enable_ring(driver.rx, False)
    await victim.port.send(frame_of(1))
    await driver.send(frame_of(2))
    with trio.fail_after(DEADLINE):
        assert await victim.port.receive() == frame_of(2)
        assert driver.poll() is None
        await front_end.enable_ring(driver.rx)
        assert (await driver.receive()).frame == frame_of(1)


async def test_a_broken_ring_starts_again_once_it_was_stopped(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver, 3)
    _, tx = split_rings(driver)
    tx.avail_idx += 1000
    os.eventfd_write(tx.kick_fd.fileno(), 1)
    await signalled(tx.err_fd.fileno())
    tx.avail_idx -= 1000
    await front_end.stop_ring(driver.tx)
    await front_end.start_ring(driver.tx)
    await exchange(victim, driver)


async def test_the_host_sees_a_driver_while_a_ring_is_started(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    assert victim.port.carrier
    await front_end.stop_ring(driver.rx)
    assert victim.port.carrier
    await front_end.stop_ring(driver.tx)
    await accepted(front_end, ask(R.SET_OWNER))  # what follows an answer is done before the next one
    assert not victim.port.carrier
    for ring in (driver.rx, driver.tx):
        await front_end.start_ring(ring)
    assert victim.port.carrier


@pytest.mark.proves("VU-RING-18")
async def test_reset_owner_stops_every_ring(victim: Victim, running: Running) -> None:
    driver, front_end = running.driver, running.front_end
    await exchange(victim, driver, 3)
    await accepted(front_end, ask(R.RESET_OWNER))
    await accepted(front_end, ask(R.SET_OWNER))
    assert not victim.port.carrier
    for ring in (driver.rx, driver.tx):
        assert await front_end.stop_ring(ring) == 3
        await front_end.start_ring(ring)
    await exchange(victim, driver)


async def test_a_port_that_refuses_a_driver_refuses_the_start(
    victim: Victim, attacker: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(features: int, header_size: int) -> None:
        raise PortError("the kernel refuses the offloads")

    async with unstarted(victim, attacker) as rings:
        await attacker.set_mem_table(rings.memory)
        with monkeypatch.context() as patch:
            patch.setattr(victim.port, "configure", refuse)
            with pytest.raises(RefusedError):
                await attacker.start_ring(rings.driver.rx)
        for ring in (rings.driver.rx, rings.driver.tx):
            await attacker.start_ring(ring)
        await exchange(victim, rings.driver)


async def test_a_process_out_of_descriptors_refuses_the_start(
    victim: Victim, attacker: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump = victim.device.pump

    def starved(group: int, features: int) -> NetPump:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return pump(group, features)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async with unstarted(victim, attacker) as rings:
        await attacker.set_mem_table(rings.memory)
        with monkeypatch.context() as patch:
            patch.setattr(victim.device, "pump", starved)
            with pytest.raises(RefusedError):
                await attacker.start_ring(rings.driver.rx)
        assert not victim.port.carrier
        for ring in (rings.driver.rx, rings.driver.tx):
            await attacker.start_ring(ring)
        await exchange(victim, rings.driver)


async def test_negotiated_features_reach_the_port(victim: Victim, running: Running) -> None:
    assert victim.port.header_size == 12
    assert victim.port.features == running.front_end.features

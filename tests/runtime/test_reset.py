"""The device's status, and what is left after each kind of reset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from tests.hostile.attack import Running, accepted, ask, refused
from tests.hostile.victim import Victim, exchange, frame_of
from vhostuser.frontend.client import DEFAULT_PROTOCOL_FEATURES, FrontEnd
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest as R

RESETTABLE = DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.STATUS | ProtocolFeature.RESET_DEVICE
DRIVER_OK = 0xF
RESETS = {"status 0": ask(R.SET_STATUS, U64(0)), "RESET_DEVICE": ask(R.RESET_DEVICE), "RESET_OWNER": ask(R.RESET_OWNER)}


@pytest.fixture
async def watched(victim: Victim) -> AsyncIterator[Running]:
    """A front-end that has negotiated STATUS and RESET_DEVICE, with a driver whose rings run."""
    with GuestRam() as memory:
        async with await victim.connect() as front_end:
            await front_end.negotiate(DRIVER_FEATURES, RESETTABLE)
            await front_end.set_mem_table(memory)
            with closing(await NetDriver.open_pair(front_end, 0)) as driver:
                await front_end.request(R.SET_STATUS, U64(DRIVER_OK))
                yield Running(front_end, memory, driver)


@pytest.fixture
def resets(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that the device was told of a reset."""
    told: list[str] = []
    monkeypatch.setattr(victim.device, "reset", lambda: told.append("reset"))
    return told


async def set_status(front_end: FrontEnd, value: int) -> int:
    """Set the status; the one that the device has then."""
    await accepted(front_end, ask(R.SET_STATUS, U64(value)))
    status = await front_end.request(R.GET_STATUS)
    assert isinstance(status, U64)
    return status.value


@pytest.mark.proves("VU-STATUS-1", "VU-STATUS-2")
async def test_s3_the_status_follows_the_driver(victim: Victim) -> None:
    async with await victim.connect() as front_end:
        offered = await front_end.request(R.GET_PROTOCOL_FEATURES)
        assert isinstance(offered, U64)
        await front_end.request(R.SET_PROTOCOL_FEATURES, U64(offered.value & RESETTABLE))
        front_end.protocol_features = RESETTABLE & ProtocolFeature(offered.value)
        assert await front_end.request(R.GET_STATUS) == U64(0)
        assert await set_status(front_end, 0xB) == 3
        await refused(front_end, ask(R.SET_FEATURES, U64((1 << 64) - 1)))
        assert await set_status(front_end, 0xB) == 3
        await accepted(front_end, ask(R.SET_FEATURES, U64(1 << 30)))
        for value in (0xB, 0xF, 0x4F, 0x80, 1, 0, 0xB):
            assert await set_status(front_end, value) == value
        await refused(front_end, ask(R.SET_STATUS, U64(0x100)))
        assert await front_end.request(R.GET_STATUS) == U64(0xB)


@pytest.mark.proves("VU-STATUS-3", "VU-STATUS-4")
async def test_status_0_stops_the_rings_where_they_are(victim: Victim, watched: Running) -> None:
    driver, front_end = watched.driver, watched.front_end
    await exchange(victim, driver, 5)
    await accepted(front_end, RESETS["status 0"])
    memory = [watched.memory.read(region.guest_phys_addr, region.memory_size) for region in watched.memory.regions]
    await victim.port.send(frame_of(1))
    assert await front_end.request(R.GET_STATUS) == U64(0)
    for ring in (driver.rx, driver.tx):
        assert await front_end.stop_ring(ring) == 5
    for region, before in zip(watched.memory.regions, memory, strict=True):
        assert watched.memory.read(region.guest_phys_addr, region.memory_size) == before
    assert not victim.port.carrier
    for ring in (driver.rx, driver.tx):
        await front_end.start_ring(ring, enable=False)
    await exchange(victim, driver, 5)


@pytest.mark.proves("VU-RESET-1", "VU-RING-18")
async def test_reset_device_forgets_the_rings_and_keeps_the_rest(victim: Victim, watched: Running) -> None:
    driver, front_end = watched.driver, watched.front_end
    await exchange(victim, driver, 5)
    await accepted(front_end, RESETS["RESET_DEVICE"])
    assert await front_end.request(R.GET_STATUS) == U64(0)
    old = victim.server.counters()["tx_packets"]
    rings = driver.rx, driver.tx
    positions = [ring.base for ring in rings]
    for ring in rings:
        assert await front_end.stop_ring(ring) == 0
    for ring, base in zip(rings, positions, strict=True):
        ring.base = base + 5
        await front_end.start_ring(ring)
    await exchange(victim, driver, 5)
    assert victim.server.counters()["tx_packets"] == old + 5


@pytest.mark.proves("VU-RESET-2")
@pytest.mark.parametrize("how", RESETS)
async def test_the_device_is_told_of_a_reset(victim: Victim, watched: Running, resets: list[str], how: str) -> None:
    await exchange(victim, watched.driver, 2)
    for status in (0xB, 0xF):
        await accepted(watched.front_end, ask(R.SET_STATUS, U64(status)))
    for ring in (watched.driver.rx, watched.driver.tx):
        await watched.front_end.stop_ring(ring)
    assert resets == []
    await accepted(watched.front_end, RESETS[how])
    assert resets == (["reset"] if how != "RESET_OWNER" else [])


@pytest.mark.proves("VU-NEG-6")
@pytest.mark.parametrize("request_", [R.GET_STATUS, R.SET_STATUS, R.RESET_DEVICE])
async def test_without_their_features_there_is_neither(attacker: FrontEnd, request_: R) -> None:
    with pytest.raises(RefusedError):
        await attacker.request(request_, U64(0) if request_ is R.SET_STATUS else None)

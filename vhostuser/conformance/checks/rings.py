"""The states of rings: stopped or started, disabled or enabled, and what moves them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_MIB = 1 << 20
_SKIP_DRAIN = P.INFLIGHT_SHMFD | P.GET_VRING_BASE_INFLIGHT | P.GET_VRING_BASE_SKIP_DRAIN


async def _set_up(probe: Probe, *, enable: bool) -> Driver:
    """A driver all of whose rings are told but not started."""
    driver = await probe.driver(start=False)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.set_up(ring)
        if enable:
            await driver.enable(ring)
    return driver


async def _go(driver: Driver) -> None:
    """Start all rings, which are set up, without a kick."""
    for ring in driver.rings.values():
        await driver.go(ring)


@checks("VU-RING-1")
async def rings_are_stopped_at_first(probe: Probe) -> None:
    driver = await _set_up(probe, enable=True)
    driver.give()
    await driver.left_alone()


@checks("VU-RING-1", echo=True, needs=(V.PROTOCOL_FEATURES,))
async def rings_are_disabled_at_first(probe: Probe) -> None:
    driver = await probe.driver(enable=False)
    await driver.without_effect()


@checks("VU-RING-2")
async def features_without_protocol_features_enable_all_rings(probe: Probe) -> None:
    driver = await probe.driver(by_one=False)
    await driver.served()
    if probe.offer.echo:
        await driver.effective()


@checks("VU-RING-3", needs=(V.PROTOCOL_FEATURES,))
async def features_again_disable_nothing(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    await driver.connection.accepted(R.SET_FEATURES, U64(driver.connection.features))
    await driver.served()
    if probe.offer.echo:
        await driver.effective()
    await driver.stop_all()
    await driver.connection.accepted(R.SET_FEATURES, U64(driver.connection.features))
    for ring in driver.rings.values():
        await driver.start(ring, enable=False)
    await driver.served()
    if probe.offer.echo:
        await driver.effective()


@checks("VU-RING-4", needs=(V.PROTOCOL_FEATURES,))
async def no_enabling_without_protocol_features(probe: Probe) -> None:
    connection = await probe.negotiated(by_one=False)
    await connection.rejected(connection.frame(R.SET_VRING_ENABLE, VringState(0, 1)))


@checks("VU-RING-5", needs=(V.PROTOCOL_FEATURES,))
async def a_ring_may_be_enabled_before_features(probe: Probe) -> None:
    connection = await probe.connect()
    for enable in (1, 0):
        await connection.accepted(R.SET_VRING_ENABLE, VringState(0, enable))


@checks("VU-RING-8")
async def a_kick_descriptor_starts_a_ring(probe: Probe) -> None:
    driver = await _set_up(probe, enable=True)
    driver.give()
    await driver.left_alone()
    await _go(driver)
    await driver.used(1)


@checks("VU-RING-8")
async def a_ring_without_a_kick_descriptor_is_polled(probe: Probe) -> None:
    driver = await _set_up(probe, enable=True)
    for ring in driver.rings.values():
        await driver.connection.accepted(R.SET_VRING_KICK, VringFd(ring.index, no_fd=True))
    for _ in range(3):
        driver.give()
        await driver.used(1)


@checks("VU-RING-10")
async def a_ring_stops_and_tells_its_position(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served(3)
    position = await driver.stop(driver.work)
    if position & 0xFFFF != 3:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 3 chains")
    driver.give()
    await driver.left_alone()


@checks("VU-RING-10")
async def a_ring_that_stops_stays_enabled(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    await driver.stop_all()
    for ring in driver.rings.values():
        await driver.start(ring, enable=False)
    await driver.served()
    if probe.offer.echo:
        await driver.effective()


@checks("VU-RING-10", needs=(_SKIP_DRAIN,))
async def a_ring_stops_without_draining(probe: Probe) -> None:
    driver = await probe.driver(protocol=P.REPLY_ACK | P.MQ | _SKIP_DRAIN)
    await driver.served(3)
    position = await driver.stop(driver.work, R.GET_VRING_BASE_SKIP_DRAIN)
    if position & 0xFFFF != 3:
        raise Violation(f"GET_VRING_BASE_SKIP_DRAIN: {position:#x} after 3 chains")
    driver.give()
    await driver.left_alone()
    await driver.start(driver.work, enable=False)
    await driver.used(1)


@checks("VU-RING-11")
async def a_ring_that_never_ran_has_a_position(probe: Probe) -> None:
    connection = await probe.negotiated()
    for _ in range(2):
        answer = await connection.accepted(R.GET_VRING_BASE, VringState(0, 0))
        if answer.value != VringState(0, 0):
            raise Violation(f"GET_VRING_BASE of vring 0 that was never set up: {answer.frame}")
    driver = await probe.driver()
    await driver.served(2)
    if (first := await driver.stop(driver.work)) != (second := await driver.stop(driver.work)):
        raise Violation(f"GET_VRING_BASE: {first:#x}, and of the stopped ring {second:#x}")


@checks("VU-RING-18")
async def a_reset_of_the_owner_stops_and_disables(probe: Probe) -> None:
    await _reset(await probe.driver(), R.RESET_OWNER)


@checks("VU-RING-18", needs=(P.RESET_DEVICE,))
async def a_reset_of_the_device_stops_and_disables(probe: Probe) -> None:
    await _reset(await probe.driver(protocol=P.REPLY_ACK | P.MQ | P.RESET_DEVICE), R.RESET_DEVICE)


async def _reset(driver: Driver, request: FrontendRequest) -> None:
    await driver.served()
    await driver.connection.accepted(request)
    driver.give()
    await driver.left_alone()
    # what was acknowledged stays: the next start needs no negotiation, but has to enable again
    await driver.tell_memory()
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.start(ring, enable=False)
    if driver.device.echo is not None:
        await driver.without_effect()
    for ring in driver.rings.values():
        await driver.enable(ring)
    await driver.served()


@checks("VU-RING-19")
async def calls_and_errors_start_no_ring(probe: Probe) -> None:
    connection = await probe.connect()
    fd = probe.eventfd(name="call")
    for request in (R.SET_VRING_CALL, R.SET_VRING_ERR):
        await connection.accepted(request, VringFd(0), [fd])
        await connection.accepted(request, VringFd(0, no_fd=True))
    driver = await _set_up(probe, enable=True)  # which tells both, first and last
    driver.give()
    await driver.left_alone()


@checks("VU-RING-25", "VIO-NET-7", echo=True, needs=(V.PROTOCOL_FEATURES,))
async def a_disabled_ring_is_worked_on_without_effect(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.effective()
    await driver.enable(driver.work, False)
    for _ in range(3):
        await driver.without_effect()
    await driver.enable(driver.work)
    await driver.effective()


@checks("VU-RING-25", "VIO-NET-7", echo=True, needs=(V.PROTOCOL_FEATURES,))
async def a_disabled_ring_is_given_nothing(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.effective()
    assert probe.device.echo is not None
    await driver.enable(driver.rings[probe.device.echo], False)
    await driver.served()
    if driver.received():
        raise Violation(f"vring {probe.device.echo} is disabled, and what was sent came back on it")


@checks("VU-RING-27")
async def a_stopped_ring_is_left_alone(probe: Probe) -> None:
    driver = await _set_up(probe, enable=True)
    driver.give()
    await driver.left_alone()
    await _go(driver)
    await driver.used(1)
    await driver.stop(driver.work)
    await driver.enable(driver.work, False)
    driver.give()
    await driver.left_alone()
    await driver.enable(driver.work)
    await driver.left_alone()
    await driver.start(driver.work, enable=False)
    await driver.used(1)


@checks("VU-RING-28")
async def what_was_available_before_the_start_is_served(probe: Probe) -> None:
    driver = await _set_up(probe, enable=True)
    for _ in range(3):
        driver.give()
    await _go(driver)
    await driver.used(3)


@checks("VU-RING-28", echo=True, needs=(V.PROTOCOL_FEATURES,))
async def what_was_available_before_enabling_is_served(probe: Probe) -> None:
    driver = await probe.driver(enable=False)  # the buffers to receive into are available
    assert probe.device.echo is not None
    for ring in driver.rings.values():
        await driver.enable(ring)
    await driver.effective()


@checks("VU-RING-28", needs=(V.PROTOCOL_FEATURES,))
async def a_kick_before_enabling_is_not_lost(probe: Probe) -> None:
    driver = await probe.driver(enable=False)
    driver.give()
    driver.kick(driver.work)
    await driver.until(lambda: False, probe.patience.silence)  # the kick is read by now, if it is read at all
    for ring in driver.rings.values():
        await driver.enable(ring)
    await driver.used(1)


@checks("VU-RING-29")
async def while_all_rings_are_stopped_nothing_is_touched(probe: Probe) -> None:
    driver = await probe.driver(layout=((0, _MIB), (1 << 32, _MIB)))
    await driver.served(3)
    await driver.stop_all()
    driver.give()
    for ring in driver.rings.values():
        driver.kick(ring)
        _drain(ring.call_fd.fileno())
    before = [bytes(region.bytes) for region in driver.memory.regions]
    for _ in range(3):
        await driver.tell_memory()
        await driver.connection.talks()
    if await driver.until(lambda: [bytes(r.bytes) for r in driver.memory.regions] != before, probe.patience.silence):
        raise Violation("all rings are stopped, and guest memory was written")
    for ring in driver.rings.values():
        if _drain(ring.call_fd.fileno()):
            raise Violation(f"all rings are stopped, and vring {ring.index} was called")


def _drain(fd: int) -> int:
    """Take what an eventfd has counted."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@checks("VU-RING-9", "VU-INBAND-1", needs=(P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK,))
async def a_kick_by_message_starts_a_ring(probe: Probe) -> None:
    driver = await probe.driver(protocol=P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK | P.MQ, start=False)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.set_up(ring)
        await driver.enable(ring)
    driver.give()
    await driver.left_alone()
    for ring in driver.rings.values():
        await driver.connection.accepted(R.VRING_KICK, VringState(ring.index, 0))
    await driver.used(1)
    for _ in range(2):
        driver.give()
        await driver.connection.accepted(R.VRING_KICK, VringState(driver.work.index, 0))
        await driver.used(1)

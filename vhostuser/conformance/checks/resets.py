"""The device status, and what a reset leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.probe import Probe

P, R = ProtocolFeature, FrontendRequest
_STATUS = P.REPLY_ACK | P.MQ | P.STATUS
_RESET = P.REPLY_ACK | P.MQ | P.RESET_DEVICE
_MIB = 1 << 20


async def _status(connection: Connection, status: int) -> int:
    """Set the device status; what it is then."""
    await connection.accepted(R.SET_STATUS, U64(status))
    return await connection.value(R.GET_STATUS)


@checks("VU-STATUS-1", needs=(P.STATUS,))
async def the_status_is_what_was_set_last(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATUS)
    if status := await connection.value(R.GET_STATUS):
        raise Violation(f"GET_STATUS: {status:#x} at first")
    for status in (1, 3, 0xB, 0xF, 0x4F, 0x80, 1, 0, 0xB):
        if (told := await _status(connection, status)) != status:
            raise Violation(f"SET_STATUS {status:#x}, then GET_STATUS: {told:#x}")


@checks("VU-STATUS-2", needs=(P.STATUS,))
async def features_ok_is_granted_for_features(probe: Probe) -> None:
    connection = await probe.connect()
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(_STATUS & probe.offer.protocol))
    if (told := await _status(connection, 0xB)) != 0x3:
        raise Violation(f"SET_STATUS 0xb before SET_FEATURES, then GET_STATUS: {told:#x}")
    unoffered = ~probe.offer.virtio & (probe.offer.virtio + 1)
    frame = connection.frame(R.SET_FEATURES, U64(unoffered))
    await connection.rejected(frame)
    if not connection.closed and (told := await _status(connection, 0xB)) != 0x3:
        raise Violation(f"SET_STATUS 0xb after features that were refused, then GET_STATUS: {told:#x}")
    good = await probe.negotiated(protocol=_STATUS)
    if (told := await _status(good, 0xB)) != 0xB:
        raise Violation(f"SET_STATUS 0xb after SET_FEATURES, then GET_STATUS: {told:#x}")


@checks("VU-STATUS-3", needs=(P.STATUS,))
async def status_0_stops_every_ring(probe: Probe) -> None:
    driver = await probe.driver(protocol=_STATUS, layout=((0, _MIB), (1 << 32, _MIB)))
    await driver.connection.accepted(R.SET_STATUS, U64(0xF))
    await driver.served(3)
    await driver.connection.accepted(R.SET_STATUS, U64(0))
    driver.give()
    before = [bytes(region.bytes) for region in driver.memory.regions]
    await driver.left_alone()
    if [bytes(region.bytes) for region in driver.memory.regions] != before:
        raise Violation("SET_STATUS 0: guest memory was written after it")


@checks("VU-STATUS-4", needs=(P.STATUS,))
async def after_status_0_rings_tell_their_positions(probe: Probe) -> None:
    driver = await probe.driver(protocol=_STATUS)
    await driver.connection.accepted(R.SET_STATUS, U64(0xF))
    await driver.served(3)
    await driver.connection.accepted(R.SET_STATUS, U64(0))
    position = await driver.stop(driver.work)
    if position & 0xFFFF != 3:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 3 chains and SET_STATUS 0")
    await driver.stop_all()
    for ring in driver.rings.values():
        await driver.start(ring, enable=False)
    await driver.served()
    if probe.offer.echo:
        await driver.effective()


@checks("VU-RESET-1", needs=(P.RESET_DEVICE,))
async def a_reset_forgets_the_rings(probe: Probe) -> None:
    driver = await probe.driver(protocol=_RESET)
    await driver.served(3)
    await driver.connection.accepted(R.RESET_DEVICE)
    for ring in driver.rings.values():
        base = ring.base
        if position := await driver.stop(ring):
            raise Violation(f"GET_VRING_BASE: {position:#x} after RESET_DEVICE")
        ring.base = base
    # neither size nor addresses are there any more: started anew, the ring stays where it is
    driver.give()
    await driver.go(driver.work)
    await driver.enable(driver.work)
    await driver.left_alone()


@checks("VU-RESET-1", needs=(P.RESET_DEVICE,))
async def a_reset_keeps_memory_features_and_err(probe: Probe) -> None:
    driver = await probe.driver(protocol=_RESET)
    await driver.served(3)
    await driver.connection.accepted(R.RESET_DEVICE)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.start(ring)
    await driver.served(2)


@checks("VU-RESET-1", needs=(P.RESET_DEVICE, P.STATUS))
async def a_reset_clears_the_status(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_RESET | P.STATUS)
    await _status(connection, 0xF)
    await connection.accepted(R.RESET_DEVICE)
    if status := await connection.value(R.GET_STATUS):
        raise Violation(f"GET_STATUS: {status:#x} after RESET_DEVICE")

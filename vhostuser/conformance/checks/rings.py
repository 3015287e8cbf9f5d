"""The states of rings, and the requests that change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import Violation, checks
from vhostuser.wire.messages import VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

R = FrontendRequest


@checks("VU-RING-7")
async def a_ring_that_is_not_there(probe: Probe) -> None:
    for index in (0x100, 0x10000, 0xFFFFFFFF):
        for request in (R.SET_VRING_NUM, R.SET_VRING_BASE, R.GET_VRING_BASE, R.SET_VRING_ENABLE):
            connection = await probe.negotiated()
            await connection.rejected(connection.frame(request, VringState(index, 1)))


@checks("VU-RING-10")
async def a_ring_stops_and_tells_its_position(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served(3)
    position = await driver.stop(driver.work)
    if (position & 0xFFFF) != 3:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 3 chains")
    driver.give()
    await driver.left_alone()
    await driver.start(driver.work, enable=False)
    await driver.used(1)


@checks("VU-RING-8")
async def a_kick_descriptor_starts_a_ring(probe: Probe) -> None:
    driver = await probe.driver(start=False)
    for index in range(probe.device.rings):
        ring = driver.make_ring(index)
        driver.post(ring)
        await driver.set_up(ring)
        await driver.enable(ring)
    driver.give()
    await driver.left_alone()
    for ring in driver.rings.values():
        await driver.connection.accepted(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()])
    await driver.used(1)

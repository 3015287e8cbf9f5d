"""Several queues: how many there are, and that they leave each other alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.frontend.features import DriverFeature
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe

P, R = ProtocolFeature, FrontendRequest


async def _pairs(connection: Connection) -> int:
    """How many queue pairs there are; a check of pairs needs two."""
    pairs = await connection.value(R.GET_QUEUE_NUM)
    if pairs < 2:
        raise NotApplicable(f"GET_QUEUE_NUM: {pairs}")
    return pairs


@checks("VU-MQ-1", needs=(P.MQ, P.REPLY_ACK), devices=("net",))
async def the_number_of_queues_is_that_of_pairs(probe: Probe) -> None:
    connection = await probe.negotiated()
    pairs = await connection.value(R.GET_QUEUE_NUM)
    await connection.accepted(R.SET_VRING_NUM, VringState(2 * pairs - 1, 64))
    await connection.refused(connection.frame(R.SET_VRING_NUM, VringState(2 * pairs, 64)))
    if pairs < 2:
        raise Violation(f"GET_QUEUE_NUM: MQ is offered, and there are {pairs} queue pairs")


@checks("VU-MQ-2", needs=(P.MQ,), devices=("net",))
async def a_pair_that_is_not_used_needs_nothing(probe: Probe) -> None:
    driver = await probe.driver(DriverFeature.MQ)
    await _pairs(driver.connection)
    for index in (2, 3):
        await driver.connection.accepted(R.SET_VRING_ENABLE, VringState(index, 1))
    await driver.served(2)
    for index in (2, 3):
        answer = await driver.connection.accepted(R.GET_VRING_BASE, VringState(index, 0))
        if answer.value != VringState(index, 0):
            raise Violation(f"GET_VRING_BASE of vring {index}, which is not used: {answer.frame}")
    await driver.served(2)


async def _both(probe: Probe) -> Driver:
    """A driver with two pairs that run."""
    driver = await probe.driver(DriverFeature.MQ)
    await _pairs(driver.connection)
    for index in (2, 3):
        ring = driver.make_ring(index)
        driver.post(ring)
        await driver.start(ring)
    return driver


@checks("VU-MQ-3", needs=(P.MQ,), devices=("net",))
async def a_pair_that_breaks_keeps_no_other_waiting(probe: Probe) -> None:
    driver = await _both(probe)
    second = driver.rings[3]
    await driver.served(2, second)
    await driver.served(2)
    second.memory.store_u16(second.avail_addr + 2, 0x4000)
    driver.kick(second)
    await driver.signalled(second.err_fd.fileno(), "err of vring 3, whose avail index cannot be,")
    await driver.served(2)


@checks("VU-MQ-3", needs=(P.MQ,), devices=("net",))
async def a_pair_that_is_paused_or_stopped_keeps_no_other_waiting(probe: Probe) -> None:
    driver = await _both(probe)
    second = driver.rings[3]
    await driver.enable(second, False)
    await driver.served(2)
    await driver.enable(second)
    await driver.served(2, second)
    await driver.stop(second)
    await driver.served(2)
    await driver.start(second)
    await driver.served(2, second)

"""The back-end's own channel, and what is said on it where kicks and calls are messages."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.wire.codec import encode_ack
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import VringFd, VringState
from vhostuser.wire.requests import BackendRequest, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.own_channel import OwnChannel
    from vhostuser.conformance.probe import Probe

B, P, R = BackendRequest, ProtocolFeature, FrontendRequest
_INBAND = P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK
_NEEDS = (_INBAND,)
_DUE = 5


async def _inband(probe: Probe) -> tuple[Driver, OwnChannel]:
    """A driver whose rings have no descriptors, and the channel for their calls; that of each start is answered."""
    driver = await probe.driver(protocol=_INBAND | P.MQ, start=False)
    own = await probe.own_channel(driver.connection)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.set_up(ring, descriptors=False)
        await driver.enable(ring)
        await driver.connection.accepted(R.VRING_KICK, VringState(ring.index, 0))
    await _settle(own)
    return driver, own


async def _settle(own: OwnChannel) -> None:
    """Answer what is asked until nothing more is."""
    while (message := await own.asked_in_silence()) is not None:
        await own.answer(message)


async def _work(driver: Driver) -> None:
    """Give the device a job, by messages alone."""
    driver.work.ask_for_call()
    driver.give()
    await driver.connection.accepted(R.VRING_KICK, VringState(driver.work.index, 0))
    await driver.used(1)


async def _call(driver: Driver, own: OwnChannel) -> None:
    """The call for the ring that is worked on has to come; it is answered."""
    for _ in driver.rings:  # others may be called, too
        message = await own.asked(B.VRING_CALL, "for a ring without a call descriptor")
        await own.answer(message)
        if message.payload == VringState(driver.work.index, 0):
            return
    raise Violation(f"expected VRING_CALL of vring {driver.work.index}, and others came only")


@checks("VU-INBAND-2", needs=_NEEDS)
async def calls_are_messages(probe: Probe) -> None:
    driver, own = await _inband(probe)
    for _ in range(3):
        await _work(driver)
        await _call(driver, own)
        await _settle(own)


@checks("VU-INBAND-2", "VU-BACK-1", needs=_NEEDS)
async def calls_that_are_due_while_one_is_on_its_way_are_one(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    first = await own.asked(B.VRING_CALL)
    for _ in range(_DUE):
        await _work(driver)
    await own.silent(f"a request that is not answered yet, and {_DUE} more calls are due")
    await own.answer(first)
    index = VringState(driver.work.index, 0)
    calls = 0
    while (message := await own.asked_in_silence()) is not None:
        await own.answer(message)
        calls += message.payload == index
    if not 1 <= calls < _DUE:  # the last one may have become due late
        raise Violation(f"{_DUE} calls were due while one was on its way, {calls} came after it")


@checks("VU-INBAND-3", needs=_NEEDS)
async def errors_are_messages(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    await _settle(own)
    ring = driver.work
    ring.memory.store_u16(ring.avail_addr + 2, 0x4000)
    await driver.connection.accepted(R.VRING_KICK, VringState(ring.index, 0))
    message = await own.asked(B.VRING_ERR, "for a ring whose avail index cannot be")
    await own.answer(message)
    if message.payload != VringState(ring.index, 0):
        raise Violation(f"VRING_ERR of vring {ring.index} is due, {message} came")


@checks("VU-INBAND-4", needs=_NEEDS)
async def descriptors_are_preferred(probe: Probe) -> None:
    driver = await probe.driver(protocol=_INBAND | P.MQ)
    own = await probe.own_channel(driver.connection)
    ring = driver.work
    for _ in range(2):
        ring.ask_for_call()
        await driver.served()
        await driver.signalled(ring.call_fd.fileno(), "call")
    await own.silent("rings with descriptors were called")
    await driver.connection.accepted(R.SET_VRING_KICK, VringFd(ring.index, no_fd=True))
    driver.give()
    await driver.used(1)


@checks("VU-BACK-2", needs=_NEEDS)
async def each_request_is_to_be_acknowledged(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    message = await own.asked(B.VRING_CALL)
    if not message.need_reply:
        raise Violation(f"REPLY_ACK is acknowledged, and {message.name} does not ask for an acknowledgement")
    await own.answer(message)


@checks("VU-BACK-3", needs=(P.BACKEND_REQ | P.REPLY_ACK,))
async def what_was_not_acknowledged_is_not_sent(probe: Probe) -> None:
    driver = await probe.driver(protocol=P.BACKEND_REQ | P.REPLY_ACK | P.MQ, start=False)
    own = await probe.own_channel(driver.connection)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.set_up(ring, descriptors=False)
        await driver.enable(ring)
        await driver.go(ring)
    ring = driver.work
    ring.ask_for_call()
    driver.give()
    driver.kick(ring)
    await driver.until(lambda: ring.has_used)  # whatever it makes of a ring that nobody can be called for
    ring.memory.store_u16(ring.avail_addr + 2, 0x4000)
    driver.kick(ring)
    await own.silent("INBAND_NOTIFICATIONS is not acknowledged, a call and an error are due")


@checks("VU-BACK-5", needs=_NEEDS)
async def a_wrong_answer_costs_the_channel_alone(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    await own.asked(B.VRING_CALL)
    await own.send(encode_ack(B.VRING_ERR, 0))
    await own.gone("VRING_CALL was answered with VRING_ERR")
    await _goes_on(driver)


@checks("VU-BACK-5", needs=_NEEDS)
async def a_channel_that_is_closed_costs_nothing_besides(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    await own.asked(B.VRING_CALL)
    own.close()
    await _goes_on(driver)


@checks("VU-BACK-5", needs=_NEEDS, slow=True)
async def a_request_that_is_never_answered_costs_the_channel_alone(probe: Probe) -> None:
    driver, own = await _inband(probe)
    await _work(driver)
    await own.asked(B.VRING_CALL)
    await _goes_on(driver)
    await own.gone("VRING_CALL was not answered", within=probe.patience.limit)
    await _goes_on(driver)


async def _goes_on(driver: Driver) -> None:
    await driver.connection.talks()
    await _work(driver)


@checks("VU-BACK-6", needs=(P.BACKEND_REQ,))
async def a_new_channel_takes_the_place_of_the_old_one(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.BACKEND_REQ | P.REPLY_ACK)
    first = await probe.own_channel(connection)
    await probe.own_channel(connection)
    await first.gone("SET_BACKEND_REQ_FD came with another socket")


@checks("VU-BACK-6", needs=_NEEDS)
async def requests_go_over_the_new_channel(probe: Probe) -> None:
    driver, old = await _inband(probe)
    new = await probe.own_channel(driver.connection)
    await old.gone("SET_BACKEND_REQ_FD came with another socket")
    await _work(driver)
    await _call(driver, new)


@checks("VU-BACK-7", needs=(P.BACKEND_REQ, P.REPLY_ACK))
async def what_cannot_be_a_channel_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.BACKEND_REQ | P.REPLY_ACK)
    datagram = probe.keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(), "datagram socket")
    internet = probe.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), "internet socket")
    others = (probe.memfd(4096), probe.eventfd(), probe.open("/dev/null", os.O_RDWR), datagram, internet)
    for fd in others:
        await connection.refused(connection.frame(R.SET_BACKEND_REQ_FD, None, [fd]))

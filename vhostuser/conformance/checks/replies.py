"""What is answered, and how; and that what was refused has changed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY, REQUEST
from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, DeviceState, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_ACK = (P.REPLY_ACK,)
_MIB = 1 << 20


@checks("VU-REP-1", needs=_ACK)
async def an_own_reply_and_no_acknowledgement(probe: Probe) -> None:
    connection = await probe.negotiated()
    for request, payload in (
        (R.GET_FEATURES, None),
        (R.GET_PROTOCOL_FEATURES, None),
        (R.GET_VRING_BASE, VringState(0, 0)),
    ):
        await connection.accepted(request, payload, flags=NEED_REPLY)
        await connection.talks()  # nothing came behind it


@checks("VU-REP-2", needs=_ACK)
async def what_was_done_is_acknowledged(probe: Probe) -> None:
    connection = await probe.negotiated()
    memory = probe.memory((0, _MIB))
    for request, payload, fds in (
        (R.SET_VRING_NUM, VringState(0, 64), []),
        (R.SET_VRING_BASE, VringState(0, 0), []),
        (R.SET_VRING_CALL, VringFd(0), [probe.eventfd()]),
        (R.SET_MEM_TABLE, memory.table(), memory.fds()),
        (R.SET_FEATURES, U64(connection.features), []),
        (R.SET_OWNER, None, []),
    ):
        await connection.accepted(request, payload, fds, flags=NEED_REPLY)


@checks("VU-REP-2", needs=_ACK)
async def what_failed_is_acknowledged_as_that(probe: Probe) -> None:
    for bad in (probe.pipe()[1], probe.open("/")):  # neither can be mapped
        connection = await probe.negotiated()
        memory = probe.memory((0, _MIB))
        await connection.rejected(connection.frame(R.SET_MEM_TABLE, memory.table(), [bad], flags=NEED_REPLY))


@checks("VU-REP-3")
async def without_reply_ack_nothing_is_acknowledged(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P(0))
    await connection.ignored(connection.frame(R.SET_VRING_NUM, VringState(0, 64), flags=NEED_REPLY))
    await connection.ignored(connection.frame(R.SET_FEATURES, U64(connection.features), flags=NEED_REPLY))


@checks("VU-REP-4", needs=_ACK)
async def the_new_bits_decide_about_their_acknowledgement(probe: Probe) -> None:
    connection = await probe.connect()
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK), flags=NEED_REPLY)
    await connection.ignored(connection.frame(R.SET_PROTOCOL_FEATURES, U64(0), flags=NEED_REPLY))
    await connection.ignored(connection.frame(R.SET_OWNER, flags=NEED_REPLY))
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK), flags=NEED_REPLY)


@checks("VU-REP-5")
async def a_refusal_is_an_empty_reply(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.eventfd()
    for frame in (
        connection.frame(R.GET_VRING_BASE, VringState(0xFFFF, 0)),
        connection.frame(R.GET_FEATURES, None, [fd]),
        connection.frame(R.GET_PROTOCOL_FEATURES, None, [fd]),
    ):
        answer = await connection.refused(frame)
        if answer.payload or len(answer.fds):
            raise Violation(f"{frame}: refused with {answer}, not with an empty reply")


@checks("VU-REP-6", needs=(P.LOG_SHMFD,))
async def a_log_has_a_reply_of_its_own(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.LOG_SHMFD)
    log = probe.dirty_log(_MIB)
    for flags in (REQUEST, NEED_REPLY):
        await connection.accepted(R.SET_LOG_BASE, log.message(), [log.fd.fileno()], flags=flags)
        await connection.talks()


@checks("VU-REP-8", needs=_ACK)
async def a_refusal_is_a_code_where_replies_are(probe: Probe) -> None:
    connection = await probe.negotiated()  # none of their features is acknowledged
    pipe = probe.pipe()[1]
    for frame in (
        connection.frame(R.POSTCOPY_END),
        connection.frame(R.SET_DEVICE_STATE_FD, DeviceState(0, 0), [pipe]),
        connection.frame(R.CHECK_DEVICE_STATE),
    ):
        answer = await connection.refused(frame)
        if len(answer.payload) != 8:
            raise Violation(f"{frame}: refused with {answer}, not with a code")


@checks("VU-REP-9", needs=_ACK)
async def refused_features_change_nothing(probe: Probe) -> None:
    connection = await probe.negotiated()
    unoffered = ~probe.offer.virtio & (probe.offer.virtio + 1)
    # had it been done, rings would be enabled all at once, and one by one no more
    await connection.refused(connection.frame(R.SET_FEATURES, U64(probe.device.features | unoffered)))
    if probe.offer.virtio & V.PROTOCOL_FEATURES:
        await connection.accepted(R.SET_VRING_ENABLE, VringState(0, 0))
    unoffered = ~probe.offer.protocol & (probe.offer.protocol + 1)
    word = connection.protocol & ~P.REPLY_ACK | unoffered
    await connection.ignored(connection.frame(R.SET_PROTOCOL_FEATURES, U64(word), flags=REQUEST))
    await connection.accepted(R.SET_OWNER, flags=NEED_REPLY)  # REPLY_ACK is acknowledged as before


@checks("VU-REP-9", needs=_ACK)
async def a_refused_start_starts_nothing(probe: Probe) -> None:
    driver = await probe.driver(start=False)
    driver.make_rings()
    connection, ring = driver.connection, driver.work
    for each in driver.rings.values():
        await driver.set_up(each)
        await driver.enable(each)
    no_notifier = probe.open("/")
    await connection.refused(connection.frame(R.SET_VRING_KICK, VringFd(ring.index), [no_notifier]))
    await connection.accepted(R.SET_VRING_NUM, VringState(ring.index, ring.size))  # legal while it is stopped
    for each in driver.rings.values():
        await driver.go(each)
    await connection.refused(connection.frame(R.SET_VRING_ENABLE, VringState(ring.index, 2)))
    await driver.served()
    if probe.offer.echo:
        await driver.effective()


@checks("VU-REP-10", needs=_ACK)
async def a_memory_table_is_acknowledged_like_any_request(probe: Probe) -> None:
    connection = await probe.negotiated()
    memory = probe.memory((0, _MIB))
    answer = await connection.accepted(R.SET_MEM_TABLE, memory.table(), memory.fds(), flags=NEED_REPLY)
    if answer.frame.payload != bytes(8):
        raise Violation(f"SET_MEM_TABLE outside of post-copy: {answer.frame}")
    await connection.ignored(connection.frame(R.SET_MEM_TABLE, memory.table(), memory.fds(), flags=REQUEST))

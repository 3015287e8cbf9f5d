"""What is offered, what is acknowledged, and what that makes legal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY, REQUEST
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.frontend.features import DriverFeature
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.probe import Probe

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_GATED = {
    P.MQ: R.GET_QUEUE_NUM,
    P.CONFIGURE_MEM_SLOTS: R.GET_MAX_MEM_SLOTS,
    P.STATUS: R.GET_STATUS,
    P.RESET_DEVICE: R.RESET_DEVICE,
    P.SHMEM: R.GET_SHMEM_CONFIG,
}
"""Requests without a payload, and what they belong to."""


def _unoffered(word: int) -> int:
    """The lowest bit that is not in a word."""
    return ~word & (word + 1)


@checks("VU-NEG-1")
async def features_are_told_at_any_time(probe: Probe) -> None:
    connection = await probe.connect()
    before = await connection.value(R.GET_FEATURES)
    await connection.accepted(R.SET_OWNER)
    await connection.accepted(R.SET_FEATURES, U64(before & (probe.device.features | V.PROTOCOL_FEATURES)))
    if (after := await connection.value(R.GET_FEATURES)) != before:
        raise Violation(f"GET_FEATURES: {before:#x} before negotiation, {after:#x} after it")


@checks("VU-NEG-2", needs=(V.PROTOCOL_FEATURES,))
async def protocol_features_need_an_offer_only(probe: Probe) -> None:
    connection = await probe.connect()
    offered = await connection.value(R.GET_PROTOCOL_FEATURES)
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(offered))
    await connection.accepted(R.SET_FEATURES, U64(probe.offer.virtio & probe.device.features))
    await connection.value(R.GET_PROTOCOL_FEATURES)


@checks("VU-NEG-3")
async def without_an_offer_protocol_features_are_refused(probe: Probe) -> None:
    if probe.offer.virtio & V.PROTOCOL_FEATURES:
        raise NotApplicable("PROTOCOL_FEATURES is offered")
    for spec in FRONTEND_REQUESTS.values():
        if spec.payload is None and (spec.gate or spec.virtio_gate) and spec.reply_payload is U64:
            connection = await probe.negotiated()
            await connection.rejected(connection.frame(spec.number))


@checks("VU-NEG-4", needs=(P.REPLY_ACK, V.PROTOCOL_FEATURES))
async def virtio_features_that_were_not_offered(probe: Probe) -> None:
    connection = await probe.connect()
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK))
    # without PROTOCOL_FEATURES: had it been acknowledged, rings could not be enabled one by one any more
    word = probe.device.features & probe.offer.virtio | _unoffered(probe.offer.virtio)
    await connection.refused(connection.frame(R.SET_FEATURES, U64(word)))
    await connection.accepted(R.SET_VRING_ENABLE, VringState(0, 0))


@checks("VU-NEG-5", needs=(P.REPLY_ACK,))
async def protocol_features_that_were_not_offered(probe: Probe) -> None:
    connection = await probe.connect()
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK))
    word = P.REPLY_ACK | _unoffered(probe.offer.protocol | P.REPLY_ACK)
    await connection.refused(connection.frame(R.SET_PROTOCOL_FEATURES, U64(word)))
    fresh = await probe.connect()
    await fresh.send(fresh.frame(R.SET_PROTOCOL_FEATURES, U64(word), flags=REQUEST))
    await fresh.talks()
    # not even REPLY_ACK of it was acknowledged
    await fresh.ignored(fresh.frame(R.SET_VRING_NUM, VringState(0, 64), flags=NEED_REPLY))


@checks("VU-NEG-6")
async def a_request_is_legal_once_its_features_are_acknowledged(probe: Probe) -> None:
    offered = [(feature, request) for feature, request in _GATED.items() if probe.offer.protocol & feature]
    if not offered:
        raise NotApplicable("no protocol feature is offered that has a request of its own")
    for feature, request in offered:
        connection = await probe.negotiated(protocol=P.REPLY_ACK | feature)
        await connection.accepted(request)


@checks("VU-NEG-7", needs=(P.REPLY_ACK,))
async def features_stay_while_a_ring_is_started(probe: Probe) -> None:
    driver = await probe.driver()
    connection = driver.connection
    changed = connection.features ^ _changeable(probe, connection)
    await connection.refused(connection.frame(R.SET_FEATURES, U64(changed)))
    await driver.served()
    if probe.offer.virtio & V.LOG_ALL:
        await connection.accepted(R.SET_FEATURES, U64(connection.features | V.LOG_ALL))
    await driver.stop(driver.work)


def _changeable(probe: Probe, connection: Connection) -> int:
    """A feature that was offered and not acknowledged, and changes little; else one that was."""
    for feature in (
        DriverFeature.INDIRECT_DESC,
        DriverFeature.EVENT_IDX,
        DriverFeature.MRG_RXBUF,
        DriverFeature.VERSION_1,
    ):
        if probe.offer.virtio & feature:
            return feature
    raise NotApplicable("no virtio feature is offered that could change")


@checks("VU-NEG-8")
async def features_need_not_be_asked_for(probe: Probe) -> None:
    connection = await probe.connect()
    if probe.offer.virtio & V.PROTOCOL_FEATURES:
        await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(probe.offer.protocol & (P.REPLY_ACK | P.MQ)))
    word = probe.offer.virtio & (probe.device.features | V.PROTOCOL_FEATURES)
    await connection.accepted(R.SET_FEATURES, U64(word))
    driver = probe.drive(connection, probe.memory())
    await driver.tell_memory()
    await driver.start_all()
    await driver.served()


@checks("VU-NEG-9", needs=(P.INBAND_NOTIFICATIONS,))
async def inband_notifications_without_what_they_need(probe: Probe) -> None:
    for others in (P(0), P.BACKEND_REQ, P.REPLY_ACK):
        connection = await probe.connect()
        word = P.INBAND_NOTIFICATIONS | others
        await connection.closes(connection.frame(R.SET_PROTOCOL_FEATURES, U64(word), flags=REQUEST))


@checks("VU-NEG-10")
async def an_owner_may_be_set_again(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.connection.accepted(R.SET_OWNER)
    await driver.connection.accepted(R.SET_OWNER)
    await driver.served()


@checks("VU-NEG-11", needs=(P.NET_MTU, V.NET_MTU), devices=("net",))
async def an_mtu_may_come_before_features(probe: Probe) -> None:
    connection = await probe.connect()
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(P.NET_MTU | P.REPLY_ACK & probe.offer.protocol))
    await connection.accepted(R.NET_SET_MTU, U64(1500))


@checks("VU-NEG-12", needs=(P.NET_MTU, V.NET_MTU), devices=("net",))
async def an_mtu_that_cannot_be(probe: Probe) -> None:
    connection = await probe.negotiated(probe.device.features | V.NET_MTU, P.NET_MTU | P.REPLY_ACK)
    for mtu in (0, 67, 65536, 1 << 63):
        await connection.refused(connection.frame(R.NET_SET_MTU, U64(mtu)))
    await connection.accepted(R.NET_SET_MTU, U64(1500))


@checks("VU-NEG-13", needs=(P.STATUS,))
async def a_status_has_eight_bits(probe: Probe) -> None:
    for status in (0x100, 1 << 63):
        connection = await probe.negotiated(protocol=P.STATUS | P.REPLY_ACK)
        await connection.accepted(R.SET_STATUS, U64(0x3))
        await connection.rejected(connection.frame(R.SET_STATUS, U64(status)))
        if not connection.closed and (told := await connection.value(R.GET_STATUS)) != 0x3:
            raise Violation(f"SET_STATUS {status:#x} was refused, and the status is {told:#x} after it, not 0x3")


@checks("VU-NEG-14", needs=(P.RARP,), devices=("net",))
async def an_announcement_of_no_guest(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.RARP | P.REPLY_ACK)
    for address in ("0100000000010000", "ffffffffffff0000", "5254001234560001", "5254001234560100"):
        await connection.refused(connection.frame(R.SEND_RARP, bytes.fromhex(address)))
    await connection.accepted(R.SEND_RARP, bytes.fromhex("5254001234560000"))


@checks("VU-OFFER-1", devices=("net",))
async def a_network_device_offers_nothing_of_its_own(probe: Probe) -> None:
    offered = P(probe.offer.protocol) & (P.CONFIG | P.DEVICE_STATE | P.SHARED_OBJECT | P.SHMEM)
    if offered:
        raise Violation(f"GET_PROTOCOL_FEATURES: a network device offers {offered!r}")


@checks("VU-NEVER-1")
async def what_is_never_offered_is_refused(probe: Probe) -> None:
    never = P.CROSS_ENDIAN | P.CRYPTO_SESSION | P.HOST_NOTIFIER | P.XEN_MMAP
    if offered := P(probe.offer.protocol) & never:
        raise Violation(f"GET_PROTOCOL_FEATURES: {offered!r} is offered")
    connection = await probe.negotiated()
    await connection.refused(connection.frame(R.SET_VRING_ENDIAN, VringState(0, 0)))
    await connection.refused(connection.frame(R.CLOSE_CRYPTO_SESSION, U64(0)))
    await connection.refused(connection.frame(R.GPU_SET_SOCKET, None, [probe.socketpair()[1]]))
    await connection.refused(connection.frame(R.CREATE_CRYPTO_SESSION, bytes(8)))

"""The back-end's session as playbooks: message, admission, outcome, answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.session.playbook import (
    EVERYTHING,
    WITHOUT_XEN,
    Playbook,
    ack,
    ask,
    closes,
    negotiated,
    offer,
    refusal,
    refused,
    reply,
    silence,
    started,
    status,
)
from tests.wire.payloads import PROPERTY, payloads
from vhostuser.errors import (
    FdError,
    FramingError,
    LocalProtocolError,
    NotNegotiatedError,
    PayloadError,
    PortError,
    RemoteProtocolError,
    StateError,
    UnsupportedRequestError,
)
from vhostuser.session.backend import BackendSession, Done, Failed
from vhostuser.wire.codec import decode, undecoded
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import (
    U64,
    DeviceState,
    Inflight,
    Iotlb,
    Log,
    MemoryRegion,
    MemoryTable,
    Payload,
    SingleRegion,
    VringFd,
    VringState,
    XenMmap,
)
from vhostuser.wire.requests import FRONTEND_REQUESTS, Direction, FrontendRequest, Reply, RequestSpec

R = FrontendRequest
P = ProtocolFeature
F = VhostFeature

REGION = MemoryRegion(0, 0x1000, 0, 0)


# -- features -------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-NEG-1", "VU-REP-1")
@pytest.mark.parametrize("need_reply", [False, True])
def test_get_features_is_always_answered_once(book: Playbook, need_reply: bool) -> None:
    for _ in range(2):
        book >> ask(R.GET_FEATURES, need_reply=need_reply) >> Done(U64(7)) << reply(U64(7))


@pytest.mark.proves("VU-NEG-2")
def test_protocol_features_are_legal_as_soon_as_they_are_offered(book: Playbook) -> None:
    book >> ask(R.GET_PROTOCOL_FEATURES) >> Done(U64(8)) << reply(U64(8))
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.MQ)) << silence
    book >> ask(R.SET_FEATURES, U64(0)) << silence
    book >> ask(R.GET_PROTOCOL_FEATURES) >> Done(U64(8)) << reply(U64(8))


@pytest.mark.proves("VU-NEG-3")
def test_protocol_features_that_are_not_offered() -> None:
    book = Playbook(offer(virtio_features=1 << 32))
    book >> ask(R.GET_PROTOCOL_FEATURES) << refused(UnsupportedRequestError, "PROTOCOL_FEATURES is not") << refusal
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(0)) << refused(UnsupportedRequestError, "not offered") << silence
    book >> ask(R.SET_VRING_ENABLE, VringState(0, 1)) << refused(UnsupportedRequestError, "not offered") << silence


@pytest.mark.proves("VU-NEG-4")
def test_features_that_were_not_offered_are_refused(book: Playbook) -> None:
    book >> ask(R.SET_FEATURES, U64(1 << 63)) << refused(PayloadError, "bits 0x8000000000000000") << silence
    assert book.session.features == 0


@pytest.mark.proves("VU-NEG-5")
def test_protocol_features_that_were_not_offered_are_refused() -> None:
    book = Playbook(offer(protocol_features=P.REPLY_ACK))
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(0x9)) << refused(PayloadError, "bits 0x1 of 0x9") << silence
    assert book.session.protocol_features == P(0)


@pytest.mark.proves("VU-NEG-6")
@pytest.mark.parametrize("spec", [row for row in FRONTEND_REQUESTS.values() if row.gate], ids=lambda row: row.name)
@PROPERTY
@given(data=st.data())
def test_a_gate_needs_all_of_its_bits(spec: RequestSpec, data: st.DataObject) -> None:
    assert spec.gate
    missing = data.draw(st.sampled_from(list(spec.gate)))
    payload = data.draw(payloads(spec.payload)) if spec.payload else None
    fds = len(payload.regions) if isinstance(payload, MemoryTable) else spec.fds.min
    frame = ask(spec.number, payload, fds)

    book = Playbook(offer(protocol_features=EVERYTHING & ~missing))
    answer = refusal if spec.reply is Reply.ALWAYS else silence
    book >> frame << refused(UnsupportedRequestError, f"{spec.name}: {missing.name} is not offered") << answer

    book = Playbook(offer())
    # In-band notifications cannot be acknowledged without the bits that they depend on.
    acknowledged = EVERYTHING & ~missing & ~P.INBAND_NOTIFICATIONS
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(acknowledged)) << silence
    book >> frame << refused(NotNegotiatedError, f"{spec.name}: .*{missing.name}.* is not acknowledged") << answer


@pytest.mark.proves("VU-NEG-7")
def test_only_logging_changes_while_a_ring_is_started() -> None:
    book = started()
    book >> ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES)) << silence
    book >> ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES | F.LOG_ALL)) << silence
    assert book.session.features & F.LOG_ALL
    book >> ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES | 1 << 15)) << refused(StateError, "bits 0x8000") << silence
    book >> ask(R.SET_FEATURES, U64(0)) << refused(StateError, "bits 0x40000000") << silence
    book >> ask(R.GET_VRING_BASE, VringState(0, 0)) >> Done(VringState(0, 5)) << reply(VringState(0, 5))
    book >> ask(R.SET_FEATURES, U64(1 << 15)) << silence


@pytest.mark.proves("VU-NEG-8")
def test_features_may_be_set_without_being_got(book: Playbook) -> None:
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.MQ)) << silence
    book >> ask(R.GET_QUEUE_NUM) >> Done(U64(2)) << reply(U64(2))


@pytest.mark.proves("VU-NEG-9")
@pytest.mark.parametrize("partners", [P(0), P.REPLY_ACK, P.BACKEND_REQ])
def test_in_band_notifications_without_their_partners_close(book: Playbook, partners: ProtocolFeature) -> None:
    word = U64(P.INBAND_NOTIFICATIONS | partners)
    book >> ask(R.SET_PROTOCOL_FEATURES, word) << refused(FramingError, "without BACKEND_REQ and REPLY_ACK") << closes


@pytest.mark.proves("VU-NEG-10")
def test_a_session_may_be_begun_twice(book: Playbook) -> None:
    for _ in range(2):
        book >> ask(R.SET_OWNER) << silence


@pytest.mark.proves("VU-NEG-11")
def test_the_mtu_comes_before_features_are_set(book: Playbook) -> None:
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.NET_MTU)) << silence
    book >> ask(R.NET_SET_MTU, U64(1400)) << silence


@pytest.mark.proves("VU-NEG-11")
def test_the_mtu_needs_the_virtio_feature_to_be_offered() -> None:
    book = Playbook(offer(virtio_features=F.PROTOCOL_FEATURES))
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.NET_MTU)) << silence
    book >> ask(R.NET_SET_MTU, U64(1400)) << refused(UnsupportedRequestError, "NET_MTU is not offered") << silence


@pytest.mark.proves("VU-NEG-12")
@pytest.mark.parametrize("mtu", [0, 67, 65536, 1 << 63])
def test_an_impossible_mtu_is_refused(mtu: int) -> None:
    frame = ask(R.NET_SET_MTU, U64(mtu), need_reply=True)
    negotiated() >> frame << refused(PayloadError, f"{mtu} is not in 68..65535") << ack(1)


@pytest.mark.proves("VU-NEG-13")
def test_a_device_status_has_eight_bits() -> None:
    book = negotiated()
    book >> ask(R.SET_STATUS, U64(0xFF)) << silence
    book >> ask(R.SET_STATUS, U64(0x100)) << refused(PayloadError, "0x100 is above 0xff") << silence


@pytest.mark.proves("VU-STATUS-1")
def test_the_status_is_what_was_set_last_in_any_order() -> None:
    book = negotiated()
    assert book.session.status == 0
    for value in (1, 3, 0xF, 0x80, 0xF, 2, 0, 0xF):
        book >> ask(R.SET_STATUS, U64(value)) << silence
        assert book.session.status == value


@pytest.mark.proves("VU-STATUS-2")
def test_features_ok_is_granted_for_features_that_were_accepted() -> None:
    book = Playbook(offer())
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.STATUS)) << silence
    accepted, not_offered = U64(VhostFeature.PROTOCOL_FEATURES), U64(1 << 63)
    for features, granted in ((None, 0), (accepted, 8), (not_offered, 0), (accepted, 8)):
        if features == not_offered:
            book >> ask(R.SET_FEATURES, not_offered) << refused(PayloadError, "not offered") << silence
        elif features:
            book >> ask(R.SET_FEATURES, features) << silence
        book >> ask(R.SET_STATUS, U64(0xB)) << silence
        assert book.session.status == 3 | granted


@pytest.mark.proves("VU-STATUS-3", "VU-STATUS-4")
def test_status_0_stops_every_ring_and_disables_none() -> None:
    book = started()
    book >> ask(R.SET_VRING_ENABLE, VringState(0, 1)) << silence
    book >> ask(R.SET_STATUS, U64(0)) << silence
    assert status(book) == (False, True)


@pytest.mark.proves("VU-NEG-14")
@pytest.mark.parametrize(
    ("address", "problem"),
    [("5254001234560001", "bytes 0001 follow"), ("0100000000000000", "group address")],
)
def test_a_rarp_for_no_guest_is_refused(address: str, problem: str) -> None:
    word = U64(int.from_bytes(bytes.fromhex(address), "little"))
    negotiated() >> ask(R.SEND_RARP, word) << refused(PayloadError, problem) << silence


@pytest.mark.proves("VU-NEG-14")
def test_a_rarp_for_a_guest_passes() -> None:
    negotiated() >> ask(R.SEND_RARP, U64(int.from_bytes(bytes.fromhex("525400123456"), "little"))) << silence


# -- replies --------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-REP-2")
def test_an_acknowledgement_tells_the_outcome() -> None:
    book = negotiated(P.REPLY_ACK)
    book >> ask(R.SET_OWNER, need_reply=True) << ack(0)
    book >> ask(R.SET_OWNER, need_reply=True) >> Failed(PortError("no tap")) << ack(1)
    book >> ask(R.SET_OWNER) >> Failed(PortError("no tap")) << silence


@pytest.mark.proves("VU-REP-3")
def test_need_reply_without_reply_ack_is_ignored() -> None:
    book = negotiated(P.MQ)
    book >> ask(R.SET_OWNER, need_reply=True) << silence
    book >> ask(R.SET_VRING_NUM, VringState(0, 0), need_reply=True) << refused(PayloadError, "0 is not in") << silence


@pytest.mark.proves("VU-REP-4")
def test_set_protocol_features_is_acknowledged_by_the_bits_that_it_brings(book: Playbook) -> None:
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK), need_reply=True) << ack(0)
    book >> ask(R.SET_PROTOCOL_FEATURES, U64(P.MQ), need_reply=True) << silence
    bad = U64(P.REPLY_ACK | 1 << 60)
    book >> ask(R.SET_PROTOCOL_FEATURES, bad, need_reply=True) << refused(PayloadError, "not offered") << ack(1)


@pytest.mark.proves("VU-REP-1", "VU-REP-5")
@pytest.mark.parametrize("need_reply", [False, True])
def test_a_refused_request_with_a_reply_of_its_own_gets_an_empty_one(need_reply: bool) -> None:
    book = negotiated(P.REPLY_ACK)
    frame = ask(R.GET_QUEUE_NUM, need_reply=need_reply)
    book >> frame << refused(NotNegotiatedError, "GET_QUEUE_NUM: MQ is not acknowledged") << refusal
    book >> ask(R.GET_VRING_BASE, VringState(9, 0)) << refused(PayloadError, "vring 9") << refusal


@pytest.mark.proves("VU-REP-6", "VU-FD-5")
def test_set_log_base_is_always_answered_once_the_log_is_shared() -> None:
    book = negotiated(P.LOG_SHMFD)
    log = Log(0x1000, 0)
    book >> ask(R.SET_LOG_BASE, log, fds=1) >> Done(log) << reply(log)
    book >> ask(R.SET_LOG_BASE, log, fds=1) >> Failed(FdError("short file")) << refusal
    book >> ask(R.SET_LOG_BASE, log, fds=0) << refused(FdError, "no descriptor") << refusal


@pytest.mark.proves("VU-REP-6")
def test_set_log_base_without_a_shared_log_is_refused_like_any_request() -> None:
    book = negotiated(P.REPLY_ACK)
    log = Log(0x1000, 0)
    book >> ask(R.SET_LOG_BASE, log) << refused(NotNegotiatedError, "LOG_SHMFD") << silence
    book >> ask(R.SET_LOG_BASE, log, need_reply=True) << refused(NotNegotiatedError, "LOG_SHMFD") << ack(1)


@pytest.mark.proves("VU-REP-8")
def test_replies_that_are_acknowledgements_tell_failure() -> None:
    book = negotiated()
    failed = Failed(PortError("no"))
    book >> ask(R.IOTLB_MSG, Iotlb(0, 1, 0, 3, 2)) >> Done(U64(0)) << reply(U64(0))
    book >> ask(R.IOTLB_MSG, Iotlb(0, 1, 0, 3, 2)) >> failed << reply(U64(1))
    book >> ask(R.CHECK_DEVICE_STATE) >> failed << reply(U64(1))
    book >> ask(R.POSTCOPY_END) >> failed << reply(U64(1))
    book >> ask(R.SET_DEVICE_STATE_FD, DeviceState(0, 0)) >> failed << reply(U64(0x101))


def test_replies_carry_descriptors() -> None:
    book = negotiated()
    body = Inflight(4096, 0, 2, 256)
    book >> ask(R.GET_INFLIGHT_FD, Inflight(0, 0, 2, 256)) >> Done(body, [100]) << reply(body, fds=1)


@pytest.mark.proves("VU-REP-10")
def test_a_memory_table_is_answered_with_one_only_where_there_is_one_to_tell() -> None:
    book = negotiated()
    table = MemoryTable((REGION,))
    book >> ask(R.SET_MEM_TABLE, table, fds=1, need_reply=True) << ack(0)
    book >> ask(R.SET_MEM_TABLE, table, fds=1, need_reply=True) >> Done(table) << reply(table)


@pytest.mark.proves("VU-HDR-8")
@pytest.mark.parametrize("number", [0, 46, 0xFFFFFFFF])
def test_unknown_requests_are_refused(number: int) -> None:
    book = negotiated()
    book >> ask(number) << refused(UnsupportedRequestError, f"request {number} is unknown") << silence
    book >> ask(number, need_reply=True) << refused(UnsupportedRequestError, "unknown") << ack(1)


@pytest.mark.proves("VU-REP-2", "VU-REP-5")
def test_what_the_codec_refused_is_answered_too() -> None:
    session = negotiated().session
    kick = undecoded(Direction.FRONTEND, Frame(R.SET_VRING_KICK, 9, bytes([0, 2, 0, 0, 0, 0, 0, 0])))
    answer = session.answer(kick, Failed(PayloadError("reserved bits")))
    assert answer
    assert answer.encode().hex() == "0c00000005000000080000000100000000000000"
    config = undecoded(Direction.FRONTEND, Frame(R.GET_CONFIG, 1, bytes(12 + 300)))
    answer = session.answer(config, Failed(PayloadError("config size")))
    assert answer
    assert answer.encode().hex() == "180000000500000000000000"


def test_bodies_that_a_request_does_not_have_are_our_own_error() -> None:
    session = negotiated().session
    message = decode(Direction.FRONTEND, ask(R.SET_OWNER))
    with pytest.raises(LocalProtocolError, match="no reply of its own"):
        session.answer(message, Done(U64(0)))
    with pytest.raises(LocalProtocolError, match="GET_FEATURES: reply None"):
        session.answer(decode(Direction.FRONTEND, ask(R.GET_FEATURES)), Done())
    with pytest.raises(LocalProtocolError, match="request 99: an unknown request cannot be done"):
        session.answer(decode(Direction.FRONTEND, ask(99)), Done())


# -- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-MEM-1")
@pytest.mark.parametrize("acknowledged", [False, True])
def test_regions_have_the_xen_fields_if_and_only_if_they_are_acknowledged(acknowledged: bool) -> None:
    book = negotiated(EVERYTHING if acknowledged else WITHOUT_XEN)
    plain, xen = REGION, MemoryRegion(0, 0x1000, 0, 0, XenMmap(1, 0))
    right, wrong = (xen, plain) if acknowledged else (plain, xen)
    book >> ask(R.SET_MEM_TABLE, MemoryTable((right,)), fds=1) << silence
    book >> ask(R.SET_MEM_TABLE, MemoryTable((wrong,)), fds=1) << refused(PayloadError, "XEN_MMAP") << silence
    book >> ask(R.ADD_MEM_REG, SingleRegion(wrong)) << refused(PayloadError, "ADD_MEM_REG: a region") << silence


# -- what failed has changed nothing --------------------------------------------------------------------------

FAILING: list[tuple[FrontendRequest, Payload | None]] = [
    (R.SET_FEATURES, U64(0)),
    (R.SET_PROTOCOL_FEATURES, U64(0)),
    (R.RESET_OWNER, None),
    (R.RESET_DEVICE, None),
    (R.SET_VRING_KICK, VringFd(0)),
    (R.SET_VRING_ENABLE, VringState(1, 0)),
    (R.GET_VRING_BASE, VringState(1, 0)),
]


@pytest.mark.proves("VU-REP-9")
@pytest.mark.parametrize(("request_", "payload"), FAILING, ids=lambda value: getattr(value, "name", ""))
def test_what_failed_has_changed_nothing(request_: FrontendRequest, payload: Payload | None) -> None:
    book = negotiated()
    book >> ask(R.SET_VRING_ENABLE, VringState(1, 1)) << silence
    if request_ not in (R.SET_FEATURES, R.SET_PROTOCOL_FEATURES):
        book >> ask(R.SET_VRING_KICK, VringFd(1)) << silence
    before = state_of(book.session)
    answer = refusal if FRONTEND_REQUESTS[request_].reply is Reply.ALWAYS else silence
    book >> ask(request_, payload) >> Failed(PortError("no")) << answer
    assert state_of(book.session) == before


@PROPERTY
@given(data=st.data())
def test_admission_changes_nothing_and_raises_only_what_is_documented(data: st.DataObject) -> None:
    session = started().session
    before = state_of(session)
    for spec in FRONTEND_REQUESTS.values():
        payload = data.draw(payloads(spec.payload)) if spec.payload else None
        fds = len(payload.regions) if isinstance(payload, MemoryTable) else None
        message = decode(Direction.FRONTEND, ask(spec.number, payload, fds))
        try:
            session.admit(message)
        except RemoteProtocolError as error:
            assert spec.name in str(error)  # noqa: PT017 - most do not raise, and both are right
    assert state_of(session) == before


def state_of(session: BackendSession) -> tuple[object, ...]:
    """All that a request may change."""
    vrings = [(vring.started, vring.enabled) for vring in session.vrings]
    return session.features, session.protocol_features, vrings


# -- the playbook itself --------------------------------------------------------------------------------------


def test_a_question_without_an_expectation_fails_its_test(book: Playbook) -> None:
    book >> ask(R.SET_OWNER)
    with pytest.raises(AssertionError, match="nothing was expected of SET_OWNER"):
        book.finish()
    book << silence


def test_a_refusal_that_was_not_expected_fails_its_test(book: Playbook) -> None:
    book >> ask(R.GET_QUEUE_NUM)
    with pytest.raises(AssertionError, match="not admitted"):
        book << silence

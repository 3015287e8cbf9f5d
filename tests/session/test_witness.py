"""The witness: what it blames on whom, what it learns, and that it survives anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.session.playbook import EVERYTHING, WITHOUT_XEN, ask
from tests.session.test_transcripts import TRANSCRIPTS, frame_of, load
from tests.wire.payloads import payloads
from vhostuser.errors import FramingError, VhostUserError
from vhostuser.session.backend import BackendSession, Done, Expected, Failed, Offer
from vhostuser.session.witness import MAX_DUE, Breach, Judgement, Side, Witness
from vhostuser.spec.statements import statements
from vhostuser.wire import layouts
from vhostuser.wire import messages as m
from vhostuser.wire.codec import decode, encode_ack, encode_refusal, encode_reply, undecoded
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags, LentFds
from vhostuser.wire.messages import U64, Payload, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, Direction
from vhostuser.wire.requests import FrontendRequest as R

P = ProtocolFeature
F = VhostFeature
VIRTIO = (1 << 64) - 1
REGION = m.MemoryRegion(0x1000, 0x2000, 0x7F00_0000_0000, 0)


class Trial:
    """A conversation before a witness; each step gives the rules that were broken, with who broke them."""

    def __init__(self) -> None:
        self.witness = Witness()
        self.last = Judgement("")

    def ask(self, request: Frame | R, payload: Payload | None = None, need_reply: bool = False) -> list[str]:
        """What the front-end sends."""
        frame = request if isinstance(request, Frame) else ask(request, payload, need_reply=need_reply)
        return self._told(self.witness.request(frame), Side.FRONTEND)

    def hear(self, frame: Frame) -> list[str]:
        """What the back-end sends."""
        return self._told(self.witness.reply(frame), Side.BACKEND)

    def reply(self, request: R, payload: Payload | None = None, fds: int = 0) -> list[str]:
        """A request's own reply."""
        return self.hear(encode_reply(FRONTEND_REQUESTS[request], payload, range(100, 100 + fds)))

    def ack(self, request: int, value: int = 0) -> list[str]:
        """An acknowledgement."""
        return self.hear(encode_ack(request, value))

    def _told(self, judgement: Judgement, blamed: Side) -> list[str]:
        self.last = judgement
        for breach in judgement.breaches:
            assert breach.blame is blamed
            assert breach.rule in statements(), breach
            assert breach.text
        return [breach.rule or "" for breach in judgement.breaches]


def negotiated(protocol: P = WITHOUT_XEN, features: int = F.PROTOCOL_FEATURES) -> Trial:
    """After a negotiation in which nothing was wrong."""
    trial = Trial()
    assert trial.ask(R.GET_FEATURES) == trial.reply(R.GET_FEATURES, U64((1 << 64) - 1)) == []
    assert trial.ask(R.GET_PROTOCOL_FEATURES) == trial.reply(R.GET_PROTOCOL_FEATURES, U64(WITHOUT_XEN)) == []
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(protocol)) == []
    assert trial.ask(R.SET_FEATURES, U64(features)) == []
    assert trial.witness.unanswered == 0
    return trial


@pytest.fixture
def trial() -> Trial:
    return negotiated()


# ---- what is right ---------------------------------------------------------------------------------------------------


def test_an_answer_belongs_to_its_request(trial: Trial) -> None:
    assert trial.ask(R.GET_VRING_BASE, VringState(1, 0)) == []
    assert (trial.last.name, trial.last.value, trial.last.accepted) == ("GET_VRING_BASE", VringState(1, 0), None)
    assert [message.name for message in trial.witness.pending] == ["GET_VRING_BASE"]
    assert trial.reply(R.GET_VRING_BASE, VringState(1, 7)) == []
    assert (trial.last.name, trial.last.value, trial.last.accepted) == ("GET_VRING_BASE", VringState(1, 7), True)
    assert trial.last.message is not None
    assert trial.last.message.payload == VringState(1, 0)
    assert (trial.witness.pending, trial.witness.unanswered) == ((), 0)


def test_a_refusal_breaks_no_rule(trial: Trial) -> None:
    """A back-end may fail for reasons of its own; what it refused has not been done."""
    assert trial.ask(R.SET_FEATURES, U64(0), need_reply=True) == []
    assert trial.ack(R.SET_FEATURES, 1) == []
    assert trial.last.accepted is False
    assert trial.ask(R.SET_VRING_ENABLE, VringState(0, 1)) == []  # illegal if it had been
    assert trial.ask(R.GET_VRING_BASE, VringState(0, 0)) == []
    assert trial.hear(encode_refusal(FRONTEND_REQUESTS[R.GET_VRING_BASE])) == []
    assert trial.last.accepted is False


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_nothing_is_wrong_with_recorded_conversations(path: Path) -> None:
    """Front-ends as they were recorded, with the answers that a session gives them."""
    offer, lines = load(path)
    session, trial = BackendSession(offer), Trial()
    for line in lines:
        assert trial.ask(frame_of(line)) == []
        answer = answered(session, frame_of(line), works=True)
        assert (answer is not None) == (line["answer"] is not None)
        if answer is not None:
            assert trial.hear(answer) == []
            assert trial.last.accepted
            assert trial.last.message is not None
            assert trial.last.message.name == line["request"]
        assert trial.witness.unanswered == 0


# ---- the front-end's breaches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (Frame(R.SET_OWNER, 2), "VU-HDR-2"),
        (Frame(R.SET_OWNER, VERSION | HeaderFlags.REPLY), "VU-HDR-3"),
        (Frame(99, VERSION), "VU-HDR-8"),
        (Frame(R.SET_VRING_NUM, VERSION, bytes(7)), "VU-HDR-6"),
        (Frame(R.SET_VRING_KICK, VERSION, bytes(8)), "VU-FD-2"),
        (ask(R.SET_VRING_NUM, VringState(0, 3)), "VU-RING-12"),
        (ask(R.SET_MEM_TABLE, m.MemoryTable((m.MemoryRegion(0, 1, 2, 3, m.XenMmap(0, 0)),)), fds=1), "VU-MEM-1"),
        (ask(R.SET_PROTOCOL_FEATURES, U64(P.INBAND_NOTIFICATIONS)), "VU-NEG-9"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_the_front_end_should_not_have_asked(trial: Trial, frame: Frame, rule: str) -> None:
    assert trial.ask(frame) == [rule]
    assert trial.witness.unanswered == 0


def test_what_is_not_offered_is_known_once_it_was_told() -> None:
    trial = Trial()
    assert trial.ask(R.SET_FEATURES, U64(1 << 20)) == []
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.STATUS)) == []
    assert trial.ask(R.GET_FEATURES) == trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES)) == []
    assert trial.ask(R.GET_PROTOCOL_FEATURES) == trial.reply(R.GET_PROTOCOL_FEATURES, U64(P.MQ)) == []
    assert trial.ask(R.SET_FEATURES, U64(1 << 20)) == []  # what was acknowledged was offered
    assert trial.ask(R.SET_FEATURES, U64(1 << 21)) == ["VU-NEG-4"]
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.MQ | P.STATUS)) == []
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK)) == ["VU-NEG-5"]
    assert trial.ask(R.RESET_DEVICE) == ["VU-NEG-6"]


def test_rings_beyond_those_that_were_told_are_none(trial: Trial) -> None:
    assert trial.ask(R.SET_VRING_NUM, VringState(255, 8)) == []
    assert trial.ask(R.GET_QUEUE_NUM) == trial.reply(R.GET_QUEUE_NUM, U64(2)) == []
    assert trial.ask(R.SET_VRING_NUM, VringState(3, 8)) == []  # two queues, or two pairs
    assert trial.ask(R.SET_VRING_NUM, VringState(4, 8), need_reply=True) == ["VU-RING-7"]
    assert trial.ack(R.SET_VRING_NUM) == ["VU-RING-7"]
    assert trial.ask(R.SET_VRING_KICK, VringFd(4), need_reply=True) == ["VU-RING-7"]
    assert trial.ack(R.SET_VRING_KICK) == ["VU-RING-7"]  # there is no such ring to be started


def test_a_started_ring(trial: Trial) -> None:
    assert trial.ask(R.SET_VRING_KICK, VringFd(0), need_reply=True) == trial.ack(R.SET_VRING_KICK) == []
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 8)) == ["VU-RING-13"]
    assert trial.ask(R.SET_VRING_NUM, VringState(1, 8)) == []
    assert trial.ask(R.GET_VRING_BASE, VringState(0, 0)) == trial.reply(R.GET_VRING_BASE, VringState(0, 0)) == []
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 8)) == []


# ---- the back-end's breaches -----------------------------------------------------------------------------------------


def test_a_reply_without_a_request() -> None:
    trial = Trial()
    assert trial.reply(R.GET_FEATURES, U64(0)) == ["VU-HDR-3"]
    assert trial.last.message is None
    assert trial.hear(Frame(99, 5)) == ["VU-HDR-3"]


def test_a_request_of_the_back_ends_on_this_channel(trial: Trial) -> None:
    trial.ask(R.GET_FEATURES)
    assert trial.hear(Frame(2, VERSION)) == ["VU-HDR-7"]
    assert trial.witness.unanswered == 1


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (Frame(77, 5, bytes(8)), "VU-HDR-7"),
        (Frame(R.GET_QUEUE_NUM, 1, bytes(8)), "VU-HDR-7"),
        (Frame(R.GET_QUEUE_NUM, 13, bytes(8)), "VU-HDR-7"),
        (Frame(R.GET_QUEUE_NUM, 6, bytes(8)), "VU-HDR-7"),
        (Frame(R.GET_QUEUE_NUM, 5, bytes(7)), "VU-PAY-1"),
        (Frame(R.GET_QUEUE_NUM, 5, bytes(8), LentFds([3])), "VU-FD-1"),
    ],
    ids=["number", "request", "need-reply", "version", "size", "descriptors"],
)
def test_a_bad_answer_is_one_to_the_request_that_waits(trial: Trial, frame: Frame, rule: str) -> None:
    trial.ask(R.GET_QUEUE_NUM)
    assert trial.hear(frame) == [rule]
    assert (trial.last.name, trial.last.value, trial.last.accepted) == ("GET_QUEUE_NUM", None, None)
    assert trial.last.message is not None
    assert trial.last.message.request == R.GET_QUEUE_NUM
    assert trial.witness.unanswered == 0


def test_what_a_known_offer_lacks_is_refused_without_a_word() -> None:
    trial = Trial()
    trial.witness = Witness(Offer(F.PROTOCOL_FEATURES, P.REPLY_ACK | P.STATUS, 2))
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.STATUS)) == []
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.CONFIG)) == ["VU-NEG-5"]
    assert trial.ask(R.SET_STATUS, U64(0), need_reply=True) == []
    assert trial.ack(R.SET_STATUS) == []
    assert trial.ask(R.SET_VRING_NUM, m.VringState(2, 8), need_reply=True) == ["VU-RING-7"]


def test_what_may_be_answered_and_need_not_be_is_open(trial: Trial) -> None:
    assert not trial.witness.open
    trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.MQ), need_reply=True)  # takes REPLY_ACK back
    assert trial.witness.open
    assert trial.witness.unanswered == 0
    assert trial.ask(R.GET_FEATURES) == trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES)) == []
    assert not trial.witness.open


def test_an_acknowledgement_that_nobody_asked_for(trial: Trial) -> None:
    trial.ask(R.SET_OWNER)
    assert trial.ack(R.SET_OWNER) == ["VU-REP-2"]
    without = negotiated(P.MQ)
    without.ask(R.SET_OWNER, need_reply=True)
    assert without.ack(R.SET_OWNER) == ["VU-REP-3"]


def test_features_that_end_acknowledgements_are_acknowledged_or_not(trial: Trial) -> None:
    """The specification leaves it open; that those which begin them are, is a choice."""
    for word, answers in ((0, True), (P.REPLY_ACK, True), (0, False)):
        assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(word), need_reply=True) == []
        assert trial.witness.unanswered == bool(word)
        if answers:
            assert trial.ack(R.SET_PROTOCOL_FEATURES) == []
    assert trial.ask(R.SET_OWNER, need_reply=True) == []
    assert trial.ack(R.SET_OWNER) == ["VU-REP-3"]
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK), need_reply=True) == trial.ask(R.GET_FEATURES) == []
    assert trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES)) == ["VU-REP-4"]


def test_an_answer_that_comes_twice(trial: Trial) -> None:
    trial.ask(R.SET_OWNER, need_reply=True)
    trial.ask(R.GET_FEATURES)
    assert trial.ack(R.SET_OWNER) == []
    assert trial.ack(R.SET_OWNER) == ["VU-REP-2"]
    assert trial.reply(R.GET_FEATURES, U64(0)) == []
    assert trial.reply(R.GET_FEATURES, U64(0)) == ["VU-REP-1"]


def test_a_later_request_is_answered_first(trial: Trial) -> None:
    trial.ask(R.SET_OWNER, need_reply=True)
    trial.ask(R.GET_VRING_BASE, VringState(0, 0))
    trial.ask(R.GET_FEATURES)
    assert trial.witness.unanswered == 3
    assert trial.reply(R.GET_FEATURES, U64(0)) == ["VU-REP-2", "VU-REP-1"]
    assert [breach.text.partition(",")[0] for breach in trial.last.breaches] == [
        "SET_OWNER was not answered",
        "GET_VRING_BASE was not answered",
    ]
    assert trial.witness.unanswered == 0


@pytest.mark.parametrize(
    ("frame", "rule", "kind"),
    [
        (ask(R.SET_VRING_NUM, VringState(0, 3), need_reply=True), "VU-RING-12", "must"),
        (ask(R.NET_SET_MTU, U64(1), need_reply=True), "VU-NEG-12", "choice"),
        (Frame(R.SET_VRING_KICK, 9, bytes(8)), "VU-FD-2", "must"),
        (Frame(R.SET_OWNER, 10), "VU-HDR-2", "must"),
        (Frame(99, 9), "VU-HDR-8", "choice"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_a_rule_forbids_was_accepted(trial: Trial, frame: Frame, rule: str, kind: str) -> None:
    assert trial.ask(frame) == [rule]
    assert trial.ack(frame.request) == [rule]
    (breach,) = trial.last.breaches
    assert " was accepted: " in breach.text
    assert breach.rule is not None
    assert statements()[breach.rule].kind == kind, "who reads it can tell rules from choices of this project"


def test_a_value_in_place_of_an_empty_reply_accepts(trial: Trial) -> None:
    assert trial.ask(R.GET_CONFIG, m.Config(0, 0, b"x")) == []
    assert trial.ask(R.SET_DEVICE_STATE_FD, m.DeviceState(0, 0)) == []
    trial = negotiated()
    assert trial.ask(R.SET_VRING_KICK, VringFd(0), need_reply=True) == trial.ack(R.SET_VRING_KICK) == []
    assert trial.ask(R.SET_DEVICE_STATE_FD, m.DeviceState(0, 0)) == ["VU-RING-20"]
    assert trial.witness.unanswered == 0, "nobody but this project promises an answer"
    assert trial.reply(R.SET_DEVICE_STATE_FD, U64(0x100)) == ["VU-RING-20"]


def test_what_is_no_acknowledgement(trial: Trial) -> None:
    trial.ask(R.SET_OWNER, need_reply=True)
    assert trial.hear(Frame(R.SET_OWNER, 5)) == ["VU-REP-2"]
    table = ask(R.SET_MEM_TABLE, m.MemoryTable((REGION,)), fds=1, need_reply=True)
    assert trial.ask(table) == []
    assert trial.reply(R.SET_MEM_TABLE, m.MemoryTable((REGION,))) == ["VU-REP-10"]
    assert trial.ask(Frame(99, 9)) == ["VU-HDR-8"]
    assert trial.hear(Frame(99, 5, bytes(4))) == ["VU-REP-2"]


# ---- the state is what the back-end says -----------------------------------------------------------------------------


def test_nothing_follows_from_a_breach(trial: Trial) -> None:
    """What a back-end took against a rule counts from then on."""
    trial.ask(R.GET_FEATURES)
    trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES))
    word = U64(F.PROTOCOL_FEATURES | F.RING_PACKED)
    assert trial.ask(R.SET_FEATURES, word, need_reply=True) == trial.ack(R.SET_FEATURES) == ["VU-NEG-4"]
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 3)) == []
    assert trial.ask(R.SET_FEATURES, word) == []


def test_nobody_is_blamed_over_what_was_not_answered(trial: Trial) -> None:
    """A ring may not have started; features may have been taken, though they were not offered."""
    trial.ask(R.SET_VRING_KICK, VringFd(0))
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 8), need_reply=True) == ["VU-RING-13"]
    assert trial.ack(R.SET_VRING_NUM) == []
    trial = negotiated()
    trial.ask(R.GET_FEATURES)
    trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES))
    assert trial.ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES | F.RING_PACKED)) == ["VU-NEG-4"]
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 3), need_reply=True) == ["VU-RING-12"]
    assert trial.ack(R.SET_VRING_NUM) == []
    assert trial.ask(Frame(R.SET_VRING_KICK, 9, bytes(8))) == ["VU-FD-2"]
    assert trial.ack(R.SET_VRING_KICK) == ["VU-FD-2"], "whatever was acknowledged"
    assert trial.ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES), need_reply=True) == trial.ack(R.SET_FEATURES) == []
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 3), need_reply=True) == ["VU-RING-12"]
    assert trial.ack(R.SET_VRING_NUM) == ["VU-RING-12"]


def test_a_front_end_that_does_not_wait() -> None:
    """Requests that follow at once meet the state that those before them make."""
    trial = Trial()
    assert trial.ask(R.GET_FEATURES) == []
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.STATUS), need_reply=True) == []
    assert trial.ask(R.SET_STATUS, U64(1), need_reply=True) == []
    assert trial.ask(R.SET_VRING_KICK, VringFd(0)) == []
    assert trial.ask(R.SET_VRING_NUM, VringState(0, 8), need_reply=True) == ["VU-RING-13"]
    assert trial.witness.unanswered == 4
    assert trial.reply(R.GET_FEATURES, U64(F.PROTOCOL_FEATURES)) == []
    assert trial.ack(R.SET_PROTOCOL_FEATURES) == trial.ack(R.SET_STATUS) == trial.ack(R.SET_VRING_NUM, 1) == []
    assert trial.witness.unanswered == 0


def test_a_front_end_that_does_not_wait_and_is_refused() -> None:
    """Then nobody owes it what its features would have promised."""
    trial = Trial()
    assert trial.ask(R.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.STATUS), need_reply=True) == []
    assert trial.ask(R.SET_OWNER, need_reply=True) == []
    assert trial.ask(R.GET_STATUS) == []
    assert trial.ack(R.SET_PROTOCOL_FEATURES, 1) == []
    assert trial.witness.pending == ()
    assert trial.reply(R.GET_STATUS, U64(0)) == ["VU-NEG-6"]
    assert trial.ack(R.SET_OWNER) == ["VU-REP-3"]


def test_requests_under_way_are_bounded(trial: Trial) -> None:
    for _ in range(MAX_DUE + 10):
        trial.ask(R.GET_FEATURES)
    assert trial.witness.unanswered == MAX_DUE


def test_addresses_are_acknowledged_in_postcopy(trial: Trial) -> None:
    """By what would be malformed as a request."""
    trial.ask(R.POSTCOPY_LISTEN, need_reply=True)
    trial.ack(R.POSTCOPY_LISTEN)
    table = m.MemoryTable((REGION,))
    for _ in range(2):
        assert trial.ask(ask(R.SET_MEM_TABLE, table, fds=1)) == trial.reply(R.SET_MEM_TABLE, table) == []
        assert trial.ask(Frame(R.SET_MEM_TABLE, VERSION, bytes(8))) == []
        assert (trial.last.name, trial.last.value) == ("SET_MEM_TABLE", None)
        assert trial.ask(Frame(R.SET_MEM_TABLE, VERSION, bytes(8))) == ["VU-PAY-3"]
        assert trial.reply(R.SET_MEM_TABLE, table) == ["VU-PAY-3"]


# ---- anything --------------------------------------------------------------------------------------------------------

frames = st.builds(
    Frame,
    st.one_of(st.sampled_from([*R]), st.integers(0, 60), st.integers(0, 2**32 - 1)),
    st.one_of(st.sampled_from([1, 5, 9, 13]), st.integers(0, 2**32 - 1)),
    st.one_of(st.sampled_from([b"", bytes(8), b"\xff" * 8, bytes(40), b"\1" + bytes(39)]), st.binary(max_size=60)),
    st.lists(st.integers(3, 9), max_size=2).map(LentFds),
    st.sampled_from([None, None, None, 0, 8, 2**32 - 1]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), frames), max_size=60))
def test_it_survives_anything(said: list[tuple[bool, Frame]]) -> None:
    witness = Witness()
    for by_front_end, frame in said:
        judgement = witness.request(frame) if by_front_end else witness.reply(frame)
        assert judgement.name
        for breach in judgement.breaches:
            assert isinstance(breach, Breach)
            assert breach.blame is (Side.FRONTEND if by_front_end else Side.BACKEND)
            assert breach.rule in statements()
        assert witness.unanswered == len(witness.pending)


def body_of_done(session: BackendSession, message: m.Message) -> Payload | None:
    """A body of a request's own reply."""
    assert message.spec is not None
    kind = message.spec.reply_payload
    match message.request:
        case R.GET_FEATURES:
            return U64(session.offer.virtio_features)
        case R.GET_PROTOCOL_FEATURES:
            return U64(session.offer.protocol_features)
    if kind is None:
        return None
    if isinstance(message.payload, Payload) and type(message.payload) is kind:
        return message.payload
    return layouts.parse(kind, bytes(min(layouts.legal_sizes(kind))))


def answered(session: BackendSession, frame: Frame, works: bool) -> Frame | None:
    """What a back-end says whose handlers do nothing; those that are answered fail if it does not work.

    Raises FramingError.
    """
    message = undecoded(Direction.FRONTEND, frame)
    outcome: Done | Failed = Failed(VhostUserError("out of order"))
    try:
        message = decode(Direction.FRONTEND, frame)
        session.admit(message)
        expected = session.expected(message)
        if works or expected is Expected.NOTHING:
            own = expected is Expected.REPLY
            assert message.spec is not None
            fds = range(message.spec.reply_fds.min) if own else ()
            outcome = Done(body_of_done(session, message) if own else None, fds)
    except VhostUserError as error:
        outcome = Failed(error)
    return session.answer(message, outcome)


@st.composite
def requests(draw: st.DrawFn) -> Frame:
    """What the table allows, but for post-copy, in which more than requests come."""
    spec = draw(st.sampled_from([row for row in FRONTEND_REQUESTS.values() if row.number != R.POSTCOPY_LISTEN]))
    payload = draw(payloads(spec.payload)) if spec.payload else None
    if isinstance(payload, VringState | VringFd | m.VringAddr):
        payload = replace(payload, index=draw(st.integers(0, 3)))
    if spec.number == R.SET_PROTOCOL_FEATURES:
        payload = U64(draw(st.sampled_from([0, WITHOUT_XEN, P.REPLY_ACK, P.MQ | P.STATUS])))
    if spec.number == R.SET_FEATURES:
        payload = U64(draw(st.sampled_from([0, F.PROTOCOL_FEATURES, F.RING_PACKED])))
    fds = len(payload.regions) if isinstance(payload, m.MemoryTable) else None
    return ask(spec.number, payload, fds, draw(st.booleans()))


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.one_of(requests(), requests(), frames), st.booleans(), st.booleans()), max_size=40))
def test_a_back_end_that_goes_by_the_rules_breaks_none(said: list[tuple[Frame, bool, bool]]) -> None:
    """Whether its answers are waited for or not, whether it can do what it is asked or not."""
    trial = Trial()
    offer = Offer(VIRTIO, EVERYTHING, 256)
    session = BackendSession(offer)
    late: list[Frame] = []
    for frame, works, waits in said:
        trial.witness.request(frame)
        try:
            answer = answered(session, frame, works)
        except FramingError:
            break
        late += [answer] if answer else []
        for frame_heard in late if waits else ():
            assert trial.hear(frame_heard) == []
        late = [] if waits else late
    for frame_heard in late:
        assert trial.hear(frame_heard) == []
    assert trial.witness.unanswered == 0

"""A conversation through decoder and session, with handlers that do or fail what the fuzzer likes.

Input::

    offer    virtio features u64, protocol features u64, number of rings u8
    then, for each message:
    fds      u8: how many descriptors come with it
    outcome  u8: 0 the handler does it; else how it fails, if it was admitted
    frame    as on the socket

Each message is decoded and admitted, or refused with an error that blames the peer; then it is answered. Findings are
every other exception, and whatever contradicts the session's rules: a message changes nothing before it is answered,
and nothing at all if it was refused or failed; one that was done changes only what its kind may change, and
acknowledges nothing that was not offered; who waits for an answer gets one, and the front-end's decoder reads from it
what was meant; who waits for none gets none.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

from fuzzing import protocol
from fuzzing.engine import fuzz
from fuzzing.feed import FIRST_FD, Feed
from vhostuser.errors import FramingError, PayloadError, RemoteProtocolError
from vhostuser.session.backend import BackendSession, Done, Failed, Offer, Outcome
from vhostuser.wire import layouts
from vhostuser.wire.codec import decode, decode_reply, undecoded
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags, LentFds
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, RequestSpec

R = FrontendRequest
FAILURES = (None, PayloadError("a wrong value"), OSError(5, "input/output error"), FramingError("out of step"))
"""What comes of carrying a request out; None: it is done."""
CHANGING = {
    *(R.SET_FEATURES, R.SET_PROTOCOL_FEATURES, R.SET_STATUS, R.RESET_OWNER, R.RESET_DEVICE),
    *(R.SET_VRING_KICK, R.VRING_KICK, R.SET_VRING_ENABLE, R.GET_VRING_BASE, R.GET_VRING_BASE_SKIP_DRAIN),
}
"""Requests that may change what a session shows of its state."""
LISTENING = {R.POSTCOPY_ADVISE: False, R.POSTCOPY_LISTEN: True, R.POSTCOPY_END: False}
"""Whether memory tables are answered by tables after these."""
words = protocol.words


class State(NamedTuple):
    """What a session shows of its state."""

    features: int
    protocol_features: int
    status: int
    vrings: list[tuple[bool, bool]]


class Answer(Enum):
    """What the sender of a request waits for."""

    NOTHING = auto()
    ACK = auto()
    REPLY = auto()


def one_input(data: bytes) -> None:
    """Talk until the input ends or the connection closes."""
    feed = Feed(data)
    conversation = Conversation(Offer(feed.number(8), ProtocolFeature(feed.number(8)), feed.number(1)))
    while feed and not conversation.closed:
        fds, outcome = feed.number(1), feed.number(1)
        conversation.say(feed.frame(fds), FAILURES[outcome % len(FAILURES)])


class Conversation:
    """A session, and those of its rules that are told here a second time."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.session = BackendSession(offer)
        self.listening = False
        self.closed = False

    def say(self, frame: Frame, failure: Exception | None) -> None:
        """Have a frame decoded, admitted, carried out and answered."""
        before = self.state()
        message, outcome = self.carry_out(frame, failure)
        waits = self.waits_for(message)
        assert self.state() == before, f"{message} changed something before it was answered"
        try:
            answer = self.session.answer(message, outcome)
        except FramingError as error:
            self.closed = True
            check_closing(message, outcome, error)
        else:
            check_answer(message, outcome, waits, answer)
        self.check_state(message, outcome, before)

    def carry_out(self, frame: Frame, failure: Exception | None) -> tuple[Message, Outcome]:
        """A frame's message, and what came of it."""
        try:
            message = decode(Direction.FRONTEND, frame)
        except RemoteProtocolError as error:
            return undecoded(Direction.FRONTEND, frame), Failed(error)
        try:
            self.session.admit(message)
        except RemoteProtocolError as error:
            return message, Failed(error)
        return message, Failed(failure) if failure else self.done(message)

    def done(self, message: Message) -> Done:
        """What a handler returns."""
        spec = message.spec
        assert spec is not None, f"{message} was admitted"
        if not self.has_own_reply(spec):
            return Done()
        fds = range(FIRST_FD, FIRST_FD + spec.reply_fds.max)
        if spec.reply_payload is None:
            return Done(None, fds)
        if isinstance(message.payload, spec.reply_payload):
            return Done(message.payload, fds)
        return Done(layouts.parse(spec.reply_payload, protocol.payload_of(spec.reply_payload)), fds)

    def has_own_reply(self, spec: RequestSpec) -> bool:
        """Whether a request is answered by a reply of its own now."""
        if spec.reply is Reply.GATED:
            return spec.gate is not None and not spec.gate & ~self.session.protocol_features
        return spec.reply is Reply.ALWAYS or (spec.reply is Reply.POSTCOPY and self.listening)

    def waits_for(self, message: Message) -> Answer:
        """What the sender of a message waits for."""
        if message.spec and self.has_own_reply(message.spec):
            return Answer.REPLY
        features = int(self.session.protocol_features)
        if message.request == R.SET_PROTOCOL_FEATURES and isinstance(message.payload, U64):
            features = message.payload.value
        return Answer.ACK if message.need_reply and features & ProtocolFeature.REPLY_ACK else Answer.NOTHING

    def state(self) -> State:
        """What the session shows now."""
        session = self.session
        vrings = [(vring.started, vring.enabled) for vring in session.vrings]
        return State(session.features, int(session.protocol_features), session.status, vrings)

    def check_state(self, message: Message, outcome: Outcome, before: State) -> None:
        """Hold a change to what the message may change."""
        after = self.state()
        if isinstance(outcome, Failed) or message.request not in CHANGING:
            assert after == before, f"{message}, {outcome}: {before} became {after}"
        if isinstance(outcome, Done):
            self.listening = LISTENING.get(R(message.request), self.listening)
        assert not after.features & ~self.offer.virtio_features, f"{after.features:#x} was not all offered"
        assert not after.protocol_features & ~int(self.offer.protocol_features), f"{after} was not all offered"
        assert len(after.vrings) == self.offer.vrings


def check_closing(message: Message, outcome: Outcome, error: FramingError) -> None:
    """Hold the end of a connection to its reason."""
    assert isinstance(outcome, Failed), f"{message} was done, and closes: {error!r}"
    assert outcome.error is error, f"{message}: {outcome.error!r} became {error!r}"


def check_answer(message: Message, outcome: Outcome, waits: Answer, answer: Frame | None) -> None:
    """Hold an answer to what its receiver waits for."""
    if waits is Answer.NOTHING or answer is None:
        assert waits is Answer.NOTHING, f"{message} is not answered"
        assert answer is None, f"{message} is answered by {answer}"
        return
    assert (answer.request, answer.flags) == (message.request, VERSION | HeaderFlags.REPLY), f"{message}: {answer}"
    body = decode_reply(message.spec, answer) if message.spec else layouts.parse(U64, answer.payload)
    if isinstance(outcome, Done):
        wanted = outcome.body if waits is Answer.REPLY else U64(0)
        assert body == wanted, f"{message}: {body} instead of {wanted}"
    else:
        refused = body is None or (isinstance(body, U64) and body.value != 0)
        assert refused, f"{message} failed, and is answered by {body}"


def seeds() -> Iterator[bytes]:
    """The recorded conversations; and one in which everything is negotiated, then asked, with each outcome."""
    for recorded in protocol.conversations():
        yield opening(recorded.virtio_features, recorded.protocol_features, recorded.vrings) + b"".join(
            said(frame) for frame in recorded.frames
        )
    virtio_features = (1 << 40) - 1
    protocol_features = ((1 << 24) - 1) & ~ProtocolFeature.XEN_MMAP
    begin = opening(virtio_features, protocol_features, 2)
    begin += said(asking(R.SET_PROTOCOL_FEATURES, U64(protocol_features)))
    begin += said(asking(R.SET_FEATURES, U64(int(VhostFeature.PROTOCOL_FEATURES))))
    for outcome in range(len(FAILURES)):
        asked = [frame for spec, frame in protocol.requests() if spec.direction is Direction.FRONTEND]
        yield begin + b"".join(said(frame, outcome) for frame in asked)
    listen = (R.POSTCOPY_ADVISE, R.POSTCOPY_LISTEN, R.SET_MEM_TABLE, R.ADD_MEM_REG, R.POSTCOPY_END)
    in_postcopy = [frame for request in listen for spec, frame in protocol.requests() if spec.number is request]
    yield begin + b"".join(map(said, in_postcopy))


def opening(virtio_features: int, protocol_features: int, vrings: int) -> bytes:
    """The offer with which an input begins."""
    return virtio_features.to_bytes(8, "little") + protocol_features.to_bytes(8, "little") + bytes((vrings,))


def said(frame: Frame, outcome: int = 0) -> bytes:
    """The part of an input that stands for a message."""
    return bytes((len(frame.fds), outcome)) + frame.encode()


def asking(request: FrontendRequest, payload: Payload) -> Frame:
    """A request without descriptors that asks for an acknowledgement."""
    return Frame(request, protocol.ASKS, layouts.build(payload), LentFds(()))


if __name__ == "__main__":
    fuzz(one_input)

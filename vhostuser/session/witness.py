"""A witness of a conversation: sees both sides' messages and says who broke which rule.

Must not know: sockets, memory, what descriptors are of.

How: a session (``backend``) is kept that follows the conversation. What it and the codec would refuse, the front-end
should not have asked; what was asked decides what the back-end has to answer. The offer is learned from the answers;
until then everything counts as offered. A request takes effect when it is answered well, or at once if nothing is
answered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from vhostuser.errors import FdError, FramingError, StateError, VhostUserError
from vhostuser.session.backend import BackendSession, Expected, Offer
from vhostuser.wire.codec import decode, decode_reply, undecoded
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, spec_of

_EVERYTHING = (1 << 64) - 1
_ALL_RINGS = 256
_ACK_SIZE = 8
_STARTS = frozenset({FrontendRequest.SET_VRING_KICK, FrontendRequest.VRING_KICK})
_FEATURES = frozenset({FrontendRequest.SET_FEATURES, FrontendRequest.SET_PROTOCOL_FEATURES})


class Side(Enum):
    """Who is to blame."""

    FRONTEND = "front-end"
    BACKEND = "back-end"


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that was broken.

    Attributes:
        blame: By whom.
        rule: The statement's identifier, where there is one.
        text: What happened.
    """

    blame: Side
    rule: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a message is, and what is wrong with it.

    Attributes:
        name: The request's name; of a reply, the request's that it answers.
        value: Its payload; None for an empty one, and for what cannot be read.
        message: Of a reply, the request that it answers; None if there is none.
        accepted: Of a reply: whether the back-end says that it did as it was asked.
        breaches: The rules that it broke.
    """

    name: str
    value: Payload | bytes | None = None
    message: Message | None = None
    accepted: bool | None = None
    breaches: tuple[Breach, ...] = ()


@dataclass(frozen=True, slots=True)
class _Due:
    """A request whose answer has not come.

    Attributes:
        message: The request.
        error: Why it should have been refused, if it should.
        promised: Whether the rules promise an answer.
    """

    message: Message
    error: VhostUserError | None
    promised: bool


class Witness:
    """Follows one connection's main channel from outside."""

    def __init__(self) -> None:
        self._session = BackendSession(Offer(_EVERYTHING, ProtocolFeature(_EVERYTHING), _ALL_RINGS))
        self._due: deque[_Due] = deque()
        # What nobody answers may have been done or not: a ring need not start for reasons that only the back-end knows.
        self._rings_doubtful = self._features_doubtful = False
        self._unanswerable: set[int] = set()  # requests that were made so that nothing has to answer them

    @property
    def unanswered(self) -> int:
        """How many answers are to come that the rules promise."""
        return sum(due.promised for due in self._due)

    def request(self, frame: Frame) -> Judgement:
        """Judge what the front-end sent. Never raises."""
        message = undecoded(Direction.FRONTEND, frame)
        try:
            message = decode(Direction.FRONTEND, frame)
            self._session.admit(message)
        except VhostUserError as error:
            self._expect(message, error)
            breach = Breach(Side.FRONTEND, error.rule, error.text)
            return Judgement(message.name, message.payload or None, breaches=(breach,))
        self._expect(message, None)
        return Judgement(message.name, message.payload)

    def _expect(self, message: Message, error: VhostUserError | None) -> None:
        if isinstance(error, FramingError):
            return  # the connection closes
        expected = self._session.expected(message)
        if expected is not Expected.NOTHING:
            # what is refused with a reply of its own gets an empty one here; elsewhere perhaps none
            self._due.append(_Due(message, error, promised=error is None or expected is Expected.ACK))
            return
        self._unanswerable.add(message.request)
        if error is None:
            self._session.commit(message)
            self._rings_doubtful |= message.request in _STARTS
        else:
            self._features_doubtful |= message.request in _FEATURES

    def reply(self, frame: Frame) -> Judgement:
        """Judge what the back-end sent. Never raises."""
        due, skipped = self._answered(frame)
        if due is None:
            return _unasked(frame)
        breaches = tuple(
            Breach(Side.BACKEND, "VU-REP-1", f"{other.message.name} was not answered")
            for other in skipped
            if other.promised
        )
        return self._judge_answer(due, frame, breaches)

    def _judge_answer(self, due: _Due, frame: Frame, breaches: tuple[Breach, ...]) -> Judgement:
        name = due.message.name
        try:
            value, accepted = _read(due.message, frame)
        except VhostUserError as error:
            return Judgement(name, None, due.message, None, (*breaches, Breach(Side.BACKEND, error.rule, error.text)))
        if accepted and due.error is not None:
            if not self._doubts(due.error):
                text = f"{name} was accepted: {due.error.text}"
                breaches = (*breaches, Breach(Side.BACKEND, due.error.rule, text))
        elif accepted:
            self._session.commit(due.message)
            self._learn(due.message.request, value)
        return Judgement(name, value, due.message, accepted, breaches)

    def _doubts(self, error: VhostUserError) -> bool:
        """Whether what was refused on good grounds here may have been legal for the back-end."""
        if isinstance(error, StateError):
            return self._rings_doubtful
        return self._features_doubtful and not isinstance(error, FdError)

    def _answered(self, frame: Frame) -> tuple[_Due | None, list[_Due]]:
        """The request that a frame answers, and those before it that stay unanswered.

        It is the first that has its number. If none has, and it is not about a request that wants no answer, it is
        taken for a bad answer to the first that waits for one.
        """
        numbers = [due.message.request for due in self._due]
        if frame.request not in numbers and frame.request in self._unanswerable:
            return None, []
        at = numbers.index(frame.request) if frame.request in numbers else 0
        skipped = [self._due.popleft() for _ in range(at)]
        return (self._due.popleft() if self._due else None), skipped

    def _learn(self, request: int, value: Payload | None) -> None:
        """Take up what the back-end told of itself."""
        offer = self._session.offer
        match request, value:
            case FrontendRequest.GET_FEATURES, U64(word):
                self._session.offer = Offer(word, offer.protocol_features, offer.vrings)
            case FrontendRequest.GET_PROTOCOL_FEATURES, U64(word):
                self._session.offer = Offer(offer.virtio_features, ProtocolFeature(word), offer.vrings)


def _unasked(frame: Frame) -> Judgement:
    """What is said of an answer to nothing."""
    spec = spec_of(Direction.FRONTEND, frame.request)
    name = spec.name if spec else f"request {frame.request}"
    acked = spec is None or spec.reply is not Reply.ALWAYS
    rule, text = ("VU-REP-3", "acknowledged unasked") if acked else ("VU-REP-1", "answered unasked, or again")
    return Judgement(name, breaches=(Breach(Side.BACKEND, rule, f"{name} was {text}: {frame.describe(name)}"),))


def _read(message: Message, frame: Frame) -> tuple[Payload | None, bool]:
    """An answer's value, and whether it says yes. Raises VhostUserError for what is no answer to the request."""
    spec = message.spec
    if spec is None:
        if frame.flags != VERSION | HeaderFlags.REPLY or len(frame.payload) != _ACK_SIZE:
            raise FramingError(f"{message.name}: {frame.describe()} is no acknowledgement", rule="VU-REP-2")
        value: Payload | None = U64(int.from_bytes(frame.payload, "little"))
        return value, not any(frame.payload)
    value = decode_reply(spec, frame)
    return value, spec.accepts(value, len(frame.fds))

"""A witness of a conversation: sees both sides' messages and says who broke which rule.

Must not know: sockets, memory, what descriptors are of, the back-end's own channel.

How: a session (``backend``) is kept that follows the conversation. What it and the codec would refuse, the front-end
should not have asked; what was asked decides what the back-end has to answer. The offer is learned from the answers;
until then everything counts as offered, unless who calls knows better.

Theory. The state is what the back-end says that it is.

1. A request takes effect when it is answered well, rule or no rule, or at once if nothing is answered. Its breach is
   told once, and what follows from it is none.
2. A front-end need not wait for answers. A request that comes while others are under way is judged as if all of these
   were done as they have to be; if one is not, those behind it are judged anew.
3. Answers come in the order of their requests. One that is about a later request leaves those before it unanswered.
4. What is legal and not answered, because nobody promised an answer, counts as done, though a ring may not have
   started; what is illegal does not, though features may have been taken. Where only that makes an answer a breach,
   nobody is blamed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from vhostuser.errors import FdError, FramingError, StateError, VhostUserError
from vhostuser.session.backend import BackendSession, Expected, Offer
from vhostuser.session.vrings import vring_index
from vhostuser.wire import layouts
from vhostuser.wire.codec import decode, decode_reply, is_postcopy_ack, undecoded
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags
from vhostuser.wire.messages import U64, MemoryTable, Message, Payload, SingleRegion
from vhostuser.wire.requests import Direction, FrontendRequest, Reply

MAX_DUE = 4096
"""Requests under way that are remembered; of more, the oldest are forgotten."""

ALL_RINGS = 256
"""As many as a device can have."""

_EVERYTHING = (1 << 64) - 1
_RINGS_A_QUEUE = 2  # at most: for a network device GET_QUEUE_NUM tells pairs
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
        rule: The statement's identifier, where there is one. Its kind says whether the specification asks for it, or
            whether it is a choice of this project that others need not share (``spec.statements``).
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
        number: Of such a reply, how many requests came before that one.
        accepted: Of a reply: whether the back-end says that it did as it was asked.
        breaches: The rules that it broke.
    """

    name: str
    value: Payload | bytes | None = None
    message: Message | None = None
    number: int | None = None
    accepted: bool | None = None
    breaches: tuple[Breach, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what is to become of it.

    Attributes:
        message: The request.
        number: How many came before it.
        syntax: What the codec refuses it for.
        error: What codec or session refuse it for.
        expected: What it is answered with.
        optional: Whether it may be answered though nothing is expected.
    """

    message: Message
    number: int
    syntax: VhostUserError | None
    error: VhostUserError | None
    expected: Expected
    optional: bool

    @property
    def answerable(self) -> bool:
        """Whether an answer may be about it; to what should close the connection it is one that should not be."""
        return self.expected is not Expected.NOTHING or self.optional or isinstance(self.error, FramingError)

    @property
    def promised(self) -> bool:
        """Whether the rules promise an answer. To what is refused with a reply of its own, only this project does."""
        if isinstance(self.error, FramingError):
            return False
        return self.expected is Expected.ACK or (self.expected is Expected.REPLY and self.error is None)


class Witness:
    """Follows one connection's main channel from outside. Never raises over what it sees.

    Args:
        offer: What the back-end offers, where that is known before it says so.
    """

    def __init__(self, offer: Offer | None = None) -> None:
        self._session = BackendSession(offer or Offer(_EVERYTHING, ProtocolFeature(_EVERYTHING), ALL_RINGS))
        self._due: deque[_Asked] = deque(maxlen=MAX_DUE)  # from the first that waits for an answer on
        self._ahead: BackendSession | None = None  # the state after all of these, if somebody wanted to know
        self._requests = 0
        self._known: set[int] = set()  # requests of the table that were made
        self._doubted: set[int] = set()  # those of them that nobody answered, whose outcome matters
        self._addresses_told = False  # in post-copy, and not acknowledged

    @property
    def pending(self) -> tuple[Message, ...]:
        """The requests whose answers are to come, as the rules promise."""
        return tuple(asked.message for asked in self._due if asked.promised)

    @property
    def unanswered(self) -> int:
        """How many these are."""
        return sum(asked.promised for asked in self._due)

    @property
    def open(self) -> bool:
        """Whether one is under way that may be answered, and need not be: who asks the same again cannot tell which
        of the two an answer is for."""
        return any(asked.optional and not asked.promised for asked in self._due)

    def request(self, frame: Frame) -> Judgement:
        """Judge what the front-end sent. Never raises."""
        message, syntax = undecoded(Direction.FRONTEND, frame), None
        if self._addresses_told and is_postcopy_ack(frame):
            self._addresses_told = False
            self._requests += 1
            return Judgement(message.name)
        try:
            message = decode(Direction.FRONTEND, frame)
        except VhostUserError as error:
            syntax = error
        asked = self._judged(message, self._requests, syntax)
        self._requests += 1
        self._take(asked)
        if message.spec is not None:
            self._known.add(message.request)
        if asked.error is None:
            return Judgement(message.name, message.payload)
        breach = Breach(Side.FRONTEND, asked.error.rule, asked.error.text)
        return Judgement(message.name, message.payload or None, breaches=(breach,))

    def reply(self, frame: Frame) -> Judgement:
        """Judge what the back-end sent. Never raises."""
        place = self._place_of(frame)
        if place is None:
            return self._unasked(frame)
        skipped = [self._due.popleft() for _ in range(place)]
        asked = self._due.popleft()
        for other in skipped:
            self._settle(other)
        missing = tuple(_unanswered(other) for other in skipped if other.promised)
        judgement = self._answered(asked, frame)
        while self._due and not self._due[0].answerable:
            self._settle(self._due.popleft())
        return replace(judgement, breaches=missing + judgement.breaches)

    # -- requests -------------------------------------------------------------------------------------------

    def _judged(self, message: Message, number: int, syntax: VhostUserError | None) -> _Asked:
        """A request in the state that it meets."""
        state, error = self._state(), syntax
        if error is None:
            try:
                state.admit(message)
            except VhostUserError as refusal:
                error = refusal
        # The specification does not say whether the features before this request or those that it brings count here.
        asks = message.need_reply and ProtocolFeature.REPLY_ACK in state.protocol_features
        optional = asks and message.request == FrontendRequest.SET_PROTOCOL_FEATURES
        return _Asked(message, number, syntax, error, state.expected(message), optional)

    def _state(self) -> BackendSession:
        """What the next request meets."""
        if not self._due:
            return self._session
        if self._ahead is None:
            self._ahead = self._session.copy()
            for asked in self._due:
                if asked.error is None:
                    self._ahead.commit(asked.message)
        return self._ahead

    def _take(self, asked: _Asked) -> None:
        if not self._due and not asked.answerable:
            self._settle(asked)
            return
        if not self._due:
            self._ahead = None
        self._due.append(asked)
        if self._ahead is not None and asked.error is None:
            self._ahead.commit(asked.message)

    def _settle(self, asked: _Asked) -> None:
        """Take over what is not answered, or was not."""
        request = asked.message.request
        if asked.error is None:
            self._session.commit(asked.message)
        if request in (_STARTS if asked.error is None else _FEATURES):
            # a ring need not start for reasons that only the back-end knows; features may be taken against a rule
            self._doubted.add(request)

    # -- answers --------------------------------------------------------------------------------------------

    def _place_of(self, frame: Frame) -> int | None:
        """Where the request waits that a frame answers; None if it answers none.

        It is the first that has its number. If none has, and it is not about another request that was made, it is taken
        for a bad answer to the first that waits for one.
        """
        places = [place for place, asked in enumerate(self._due) if asked.answerable]
        for place in places:
            if self._due[place].message.request == frame.request:
                return place
        if not frame.is_reply or frame.request in self._known:
            return None
        return next((place for place in places if self._due[place].promised), None)

    def _answered(self, asked: _Asked, frame: Frame) -> Judgement:
        message = asked.message
        try:
            value, accepted = _read(message, frame)
        except VhostUserError as error:
            self._settle(asked)
            breach = Breach(Side.BACKEND, error.rule, error.text)
            return Judgement(message.name, None, message, asked.number, breaches=(breach,))
        breaches = tuple(self._breaches(asked, value, accepted))
        if accepted:
            self._commit(message, value)
        if accepted is not (asked.error is None):
            self._judge_anew()
        return Judgement(message.name, value, message, asked.number, accepted, breaches)

    def _breaches(self, asked: _Asked, value: Payload | None, accepted: bool) -> list[Breach]:
        name, error = asked.message.name, asked.error
        found = []
        if asked.expected is Expected.ACK and not isinstance(value, U64):
            rule = "VU-REP-2" if value is None else "VU-REP-10"
            found.append(Breach(Side.BACKEND, rule, f"{name}: {value or 'an empty reply'} is no acknowledgement"))
        if accepted and error is not None and not self._doubts(asked):
            found.append(Breach(Side.BACKEND, error.rule, f"{name} was accepted: {error.text}"))
        return found

    def _doubts(self, asked: _Asked) -> bool:
        """Whether what is illegal here may have been legal for the back-end."""
        if asked.syntax is not None or isinstance(asked.error, FdError):
            return False
        return not self._doubted.isdisjoint(_STARTS if isinstance(asked.error, StateError) else _FEATURES)

    def _commit(self, message: Message, value: Payload | None) -> None:
        """Take over what the back-end says that it did, and what it told of itself."""
        session = self._session
        if (vring_index(message.payload) or 0) < len(session.vrings):
            session.commit(message)
        self._doubted.discard(message.request)
        self._addresses_told |= isinstance(value, MemoryTable | SingleRegion)
        offer = session.offer
        match message.request, value:
            case FrontendRequest.GET_FEATURES, U64(word):
                offer = replace(offer, virtio_features=word)
            case FrontendRequest.GET_PROTOCOL_FEATURES, U64(word):
                offer = replace(offer, protocol_features=ProtocolFeature(word))
            case FrontendRequest.GET_QUEUE_NUM, U64(number) if number:
                offer = replace(offer, vrings=min(_RINGS_A_QUEUE * number, len(session.vrings)))
        for state in filter(None, (session, self._ahead)):
            # what was acknowledged, and accepted, was offered
            state.offer = replace(
                offer,
                virtio_features=offer.virtio_features | state.features,
                protocol_features=offer.protocol_features | state.protocol_features,
            )
            del state.vrings[offer.vrings :]

    def _judge_anew(self) -> None:
        """Something did not go as it had to: judge what was asked after it once more."""
        later = list(self._due)
        self._due.clear()
        self._ahead = None
        for asked in later:
            self._take(self._judged(asked.message, asked.number, asked.syntax))

    def _unasked(self, frame: Frame) -> Judgement:
        """What is said of an answer to nothing."""
        message = undecoded(Direction.FRONTEND, frame)
        name, spec = message.name, message.spec
        if not frame.is_reply:
            rule, text = "VU-HDR-7", "was sent by the back-end, which has replies to send here"
        elif frame.request not in self._known:
            rule, text = "VU-HDR-3", "was answered, and not asked"
        elif spec is None or spec.reply is not Reply.ALWAYS:
            asks = ProtocolFeature.REPLY_ACK in self._state().protocol_features
            rule, text = "VU-REP-2" if asks else "VU-REP-3", "was acknowledged unasked, or again"
        else:
            rule, text = "VU-REP-1", "was answered again"
        return Judgement(name, breaches=(Breach(Side.BACKEND, rule, f"{name} {text}: {frame.describe(name)}"),))


def _unanswered(asked: _Asked) -> Breach:
    rule = "VU-REP-2" if asked.expected is Expected.ACK else "VU-REP-1"
    if asked.message.request == FrontendRequest.SET_PROTOCOL_FEATURES:
        rule = "VU-REP-4"  # it goes by the bits that it brings
    return Breach(Side.BACKEND, rule, f"{asked.message.name} was not answered, and a later request was")


def _read(message: Message, frame: Frame) -> tuple[Payload | None, bool]:
    """An answer's value, and whether it says yes. Raises VhostUserError for what is no answer to the request."""
    if message.spec is None:
        if frame.flags != VERSION | HeaderFlags.REPLY or len(frame.payload) not in layouts.legal_sizes(U64):
            raise FramingError(f"{message.name}: {frame.describe()} is no acknowledgement", rule="VU-REP-2")
        word = layouts.parse(U64, frame.payload)
        return word, not word.value
    value = decode_reply(message.spec, frame)
    return value, message.spec.accepts(value, len(frame.fds))

"""What a back-end answers that does all it is asked, in words only: nothing is mapped and no ring is turned.

Must not know: sockets; who plays the back-end, and where it departs from this.

How: a session (``session.backend``) judges what is asked and decides how it is answered; bodies come from the table of
requests, filled with what the back-end offers and with what it was told. What it has once said of itself it says again.
"""

from __future__ import annotations

from vhostuser.errors import FramingError, NotNegotiatedError, UnsupportedRequestError, VhostUserError
from vhostuser.session.backend import VIRTIO_GATE_RULES, BackendSession, Done, Expected, Failed, Offer, Outcome
from vhostuser.transcript.entries import Descriptor, Kind, Said, Side
from vhostuser.wire.codec import decode, decode_reply, undecoded
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame, HeaderFlags, LentFds
from vhostuser.wire.messages import U64, Inflight, Message, Payload, ShmemConfig, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, Direction, Reply
from vhostuser.wire.requests import FrontendRequest as R

_SLOTS = 32
_NO_FD = 0x100  # in the reply to SET_DEVICE_STATE_FD: success, and no other descriptor to use
_INFLIGHT = Descriptor("inflight", Kind.MEMORY, size=1 << 18)
_ANY = Descriptor("answer", Kind.EVENTFD)


class Answers:
    """The answers of one back-end, connection after connection.

    Args:
        offer: What it offers.
    """

    def __init__(self, offer: Offer) -> None:
        self._said: dict[int, Payload] = {
            R.GET_FEATURES: U64(offer.virtio_features),
            R.GET_PROTOCOL_FEATURES: U64(int(offer.protocol_features)),
            R.GET_QUEUE_NUM: U64(offer.vrings),
            R.GET_MAX_MEM_SLOTS: U64(_SLOTS),
        }
        self._offer = offer
        self.connect()

    def connect(self) -> None:
        """A new connection: nothing is acknowledged, no ring has a position."""
        self._session = BackendSession(self._offer)
        self._bases: dict[int, int] = {}

    def to(self, frame: Frame) -> Said | None:
        """What a request is answered with; None for silence. The request is taken for done, or for refused."""
        message = undecoded(Direction.FRONTEND, frame)
        outcome: Outcome
        fds: tuple[Descriptor, ...] = ()
        try:
            message = decode(Direction.FRONTEND, frame)
            self._session.admit(message)
            outcome, fds = self._done(message)
        except FramingError:
            return None
        except VhostUserError as error:
            outcome = Failed(error)
        reply = self._session.answer(message, outcome)
        if reply is None:
            return None
        return Said(Side.BACKEND, reply.request, reply.flags, reply.payload, fds=fds)

    def check_own(self, frame: Frame) -> None:
        """Judge whether the back-end may say a message on its own channel now.

        Raises:
            VhostUserError: The message is wrong, or what it belongs to is not acknowledged.
        """
        spec = decode(Direction.BACKEND, frame).spec
        if spec is None:
            raise UnsupportedRequestError(f"request {frame.request} is unknown", rule="VU-HDR-8")
        missing = int(spec.gate or 0) & ~int(self._session.protocol_features)
        if missing:
            words = f"{spec.name}: {ProtocolFeature(missing).name} is not acknowledged"
            raise NotNegotiatedError(words, rule="VU-NEG-6")
        if spec.virtio_gate and not spec.virtio_gate & self._session.features:
            words = f"{spec.name}: {spec.virtio_gate.name} is not acknowledged"
            raise NotNegotiatedError(words, rule=VIRTIO_GATE_RULES[spec.virtio_gate])

    def is_answered(self, flags: int) -> bool:
        """Whether a message on the back-end's own channel with these flags, if it may be said, is answered."""
        return bool(flags & HeaderFlags.NEED_REPLY) and ProtocolFeature.REPLY_ACK in self._session.protocol_features

    def stick_to(self, said: Said) -> None:
        """Something was said in place of an answer: where it tells of the back-end itself, it is told from now on."""
        spec = FRONTEND_REQUESTS.get(said.request)
        if spec is None or spec.payload is not None or spec.reply is not Reply.ALWAYS or not said.whole:
            return
        try:
            value = decode_reply(spec, said.frame())
        except VhostUserError:
            return
        if value is not None:
            self._said[said.request] = value
            self._take_up(said.request, value)

    def _take_up(self, request: int, value: Payload) -> None:
        match request, value:
            case R.GET_FEATURES, U64(word):
                self._offer = Offer(word, self._offer.protocol_features, self._offer.vrings)
            case R.GET_PROTOCOL_FEATURES, U64(word):
                self._offer = Offer(self._offer.virtio_features, ProtocolFeature(word), self._offer.vrings)
        self._session.offer = self._offer

    def _done(self, message: Message) -> tuple[Outcome, tuple[Descriptor, ...]]:
        """That it is done, with a body where there is one, and descriptors like those that go with it."""
        spec = message.spec
        assert spec is not None  # it was admitted
        if message.request == R.SET_VRING_BASE and isinstance(message.payload, VringState):
            self._bases[message.payload.index] = message.payload.num
        body = self._body(message)
        fds = (_ANY,) * spec.reply_fds.min
        if isinstance(body, Inflight):
            fds = (_INFLIGHT,)
        return Done(body, LentFds(range(len(fds)))), fds

    def _body(self, message: Message) -> Payload | None:
        spec = message.spec
        assert spec is not None
        if self._session.expected(message) is not Expected.REPLY:
            return None
        match message.request, message.payload:
            case R.GET_STATUS, _:
                return U64(self._session.status)
            case R.SET_DEVICE_STATE_FD, _:
                return U64(_NO_FD)
            case R.GET_VRING_BASE | R.GET_VRING_BASE_SKIP_DRAIN, VringState(index):
                return VringState(index, self._bases.get(index, 0))
            case _, Inflight(_, _, num_queues, queue_size):
                return Inflight(_INFLIGHT.size, 0, num_queues, queue_size)
        if message.request in self._said:
            return self._said[message.request]
        if spec.reply_payload is ShmemConfig:
            return ShmemConfig(0, (0,) * 256)
        if isinstance(message.payload, Payload) and type(message.payload) is spec.reply_payload:
            return message.payload
        return U64(0) if spec.reply_payload is U64 else None

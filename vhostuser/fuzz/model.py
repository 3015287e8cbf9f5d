"""What a generated conversation has led to so far, if the peer keeps to the rules: the fuzzer's map.

Must not know: sockets, what the peer really did.

How: the session's own rules judge each message that is about to be said. One that they admit is taken for done, any
other for refused; so at every point it is known which requests are legal, which rule a message breaks, and in which
state the session is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vhostuser.errors import VhostUserError
from vhostuser.session.backend import BackendSession, Done, Offer
from vhostuser.transcript.entries import Closed, Entry, Said
from vhostuser.wire.codec import decode
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import LentFds
from vhostuser.wire.messages import U64, Message, Payload, ShmemConfig, VringState
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, RequestSpec


class State(Enum):
    """What a session has come to."""

    FRESH = "fresh"
    NEGOTIATED = "negotiated"
    MAPPED = "mapped"
    RUNNING = "running"
    SUSPENDED = "suspended"


@dataclass(frozen=True)
class Known:
    """What a peer offers, as it said itself.

    Attributes:
        features, protocol_features: The words that it offers.
        vrings: How many rings it has.
    """

    features: int
    protocol_features: int
    vrings: int

    def offer(self) -> Offer:
        """The same for a session."""
        return Offer(self.features, ProtocolFeature(self.protocol_features), self.vrings)


class Model:
    """The session on one side of which the fuzzer stands.

    Attributes:
        session: Its state as far as the rules say; a new one after each closing.
        mapped: Whether memory was told.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._begin()

    def _begin(self) -> None:
        self.session = BackendSession(self._known.offer())
        self.mapped = self._negotiated = self._ran = False

    @property
    def state(self) -> State:
        """Where the session is."""
        if not self.session.suspended:
            return State.RUNNING
        if self._ran:
            return State.SUSPENDED
        if self.mapped:
            return State.MAPPED
        return State.NEGOTIATED if self._negotiated else State.FRESH

    @property
    def packed(self) -> bool:
        """Whether rings are packed."""
        return bool(self.session.features & VhostFeature.RING_PACKED)

    def judge(self, said: Said) -> VhostUserError | None:
        """What is wrong with a message in this state; None if it is legal."""
        try:
            self.session.admit(_message(said))
        except VhostUserError as error:
            return error
        return None

    def opens(self, spec: RequestSpec) -> bool:
        """Whether a request gets past the gate: all that it belongs to was acknowledged, or offered."""
        gate, virtio_gate = spec.gate or ProtocolFeature(0), spec.virtio_gate or VhostFeature(0)
        return gate in self.session.protocol_features and not int(virtio_gate) & ~self._known.features

    def follow(self, entry: Entry) -> None:
        """Take an entry for done, if it is legal."""
        if isinstance(entry, Closed):
            self._begin()
        elif isinstance(entry, Said) and entry.whole and self.judge(entry) is None:
            message = _message(entry)
            self.session.answer(message, Done(*_body(message)))
            self._note(message.request)

    def _note(self, request: int) -> None:
        match request:
            case FrontendRequest.SET_FEATURES:
                self._negotiated = True
            case FrontendRequest.SET_MEM_TABLE | FrontendRequest.ADD_MEM_REG:
                self.mapped = True
        self._ran = self._ran or not self.session.suspended


def _message(said: Said) -> Message:
    return decode(Direction.FRONTEND, said.frame(LentFds(range(len(said.fds)))))


def _body(message: Message) -> tuple[Payload | None, LentFds]:
    """A body that a reply could have, and its descriptors."""
    spec = message.spec
    assert spec is not None  # it was admitted
    fds = LentFds(range(spec.reply_fds.min))
    if spec.reply is Reply.ACK or spec.reply_payload is None:
        return None, fds
    made: dict[type[Payload], Payload] = {
        U64: U64(0),
        VringState: VringState(0, 0),
        ShmemConfig: ShmemConfig(0, (0,) * 256),
    }
    if isinstance(message.payload, spec.reply_payload):
        return message.payload, fds
    return made.get(spec.reply_payload), fds

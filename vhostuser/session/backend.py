"""The back-end's side of one vhost-user connection: what may be asked now, and what is answered.

Must not know: sockets, Trio, guest memory, rings, or how any request is carried out.

How: for each message the runtime asks :meth:`BackendSession.admit`, which applies the gates of the request's
row and the rules below; then it carries the request out; then :meth:`BackendSession.answer` turns the outcome
into a frame or into silence. State changes in ``answer`` alone, and only for an outcome of :class:`Done`:
what failed has changed nothing. Requests come one at a time and in order.

Theory. There is no automaton here. A session is a store of two acknowledged feature words and of two bits for
each ring, and every rule reads those.

1. Acknowledged bits decide, never asked ones: a front-end may set features without getting them first
   (cloud-hypervisor does after a restore). What an acknowledged word holds was offered.
2. PROTOCOL_FEATURES has to be *offered* for the protocol feature requests; nobody has to acknowledge it.
3. SET_VRING_ENABLE is illegal once features were set without PROTOCOL_FEATURES, because every ring is then
   enabled for good. QEMU sends it before it sets any features, which is legal here.
4. NEED_REPLY counts where REPLY_ACK is acknowledged. SET_PROTOCOL_FEATURES is judged by the bits it brings.
5. A request with a reply of its own always gets one, so that nobody waits for ever; refused, mostly an empty
   one.
6. The device status is the driver's word, which the front-end passes on, with one bit that we decide about:
   FEATURES_OK is not granted while the features asked for last were refused. It is what a refusal leaves behind.
"""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from vhostuser.errors import (
    FdError,
    FramingError,
    LocalProtocolError,
    NotNegotiatedError,
    PayloadError,
    StateError,
    UnsupportedRequestError,
)
from vhostuser.session.vrings import MAX_VRING_NUM, VringStatus, check_vring_values, vring_index
from vhostuser.wire.codec import encode_ack, encode_refusal, encode_reply
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import (
    U64,
    DeviceStatus,
    MemoryTable,
    Message,
    Payload,
    SingleRegion,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FrontendRequest, LegalState, Reply, RequestSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostuser.fds import FdBundle
    from vhostuser.wire.frames import Frame

_R = FrontendRequest
_MTU_RANGE = range(68, 65536)  # RFC 791's smallest; the largest length field of an IP packet
_MAX_STATUS = 0xFF
_FEATURES_OK = int(DeviceStatus.FEATURES_OK)
_INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
#: Statements that refuse a request whose virtio feature is not offered.
VIRTIO_GATE_RULES = {
    VhostFeature.PROTOCOL_FEATURES: "VU-NEG-3",
    VhostFeature.NET_MTU: "VU-NEG-11",
    VhostFeature.ACCESS_PLATFORM: "VU-IOTLB-4",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What this back-end offers to a front-end.

    Attributes:
        virtio_features: The word that GET_FEATURES tells.
        protocol_features: The word that GET_PROTOCOL_FEATURES tells.
        vrings: How many rings the device has.
        max_vring_num: Largest ring that is accepted, in descriptors.
    """

    virtio_features: int
    protocol_features: ProtocolFeature
    vrings: int
    max_vring_num: int = MAX_VRING_NUM


@dataclass(frozen=True, slots=True)
class Done:
    """A request was carried out.

    Attributes:
        body: Payload of its own reply, where it has one.
        fds: Descriptors of that reply; a bundle changes its owner, numbers are lent.
    """

    body: Payload | None = None
    fds: FdBundle | Iterable[int] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A request was refused, or could not be carried out."""

    error: Exception


Outcome = Done | Failed


class Expected(Enum):
    """What a request is answered with."""

    NOTHING = "nothing"
    ACK = "an acknowledgement"
    REPLY = "a reply of its own"


class BackendSession:
    """The state of one connection, as the requests so far have made it.

    Attributes:
        offer: What was offered; fixed.
        features: The acknowledged virtio feature word; 0 at first.
        protocol_features: The acknowledged protocol features; none at first.
        vrings: The state bits of each ring.
        status: The device status as GET_STATUS answers it; 0 at first.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self.vrings = [VringStatus() for _ in range(offer.vrings)]
        self.status = 0
        self._features_came = self._features_granted = False
        self._listening = False  # for post-copy

    def copy(self) -> BackendSession:
        """Another session in the same state."""
        other = copy(self)
        other.vrings = [replace(vring) for vring in self.vrings]
        return other

    @property
    def suspended(self) -> bool:
        """Whether all rings are stopped."""
        return not any(vring.started for vring in self.vrings)

    def admit(self, message: Message) -> None:
        """Judge whether a message may be carried out now. Changes nothing.

        Raises:
            UnsupportedRequestError: The request is unknown, or the back-end does not offer what it belongs
                to.
            NotNegotiatedError: The feature that it belongs to is not acknowledged.
            PayloadError: A value is illegal.
            FdError: A descriptor is missing.
            StateError: It is legal, though not now.
            FramingError: The connection has to close.
        """
        if message.spec is None:
            raise UnsupportedRequestError(f"request {message.request} is unknown", rule="VU-HDR-8")
        self._check_gates(message.spec)
        self._check_vring(message.spec, message.payload)
        self._check_values(message)

    def answer(self, message: Message, outcome: Outcome) -> Frame | None:
        """Decide what is sent back, and take over the state that a request which was done has set.

        Args:
            message: What was asked; one that the codec refused comes from ``codec.undecoded``.
            outcome: How it went; ``Failed`` for what :meth:`admit` or the codec refused, too.

        Returns:
            The reply, or None where nothing is sent.

        Raises:
            Exception: The error of an outcome after which the connection has to close (FramingError).
            LocalProtocolError: The outcome's body or descriptors are not what the reply has.
        """
        if isinstance(outcome, Failed):
            if isinstance(outcome.error, FramingError):
                raise outcome.error
            return self._refuse(message)
        reply = self._acknowledge(message, outcome)
        self.commit(message)
        return reply

    # -- gates ----------------------------------------------------------------------------------------------

    def _check_gates(self, spec: RequestSpec) -> None:
        gate = spec.gate or ProtocolFeature(0)
        if spec.virtio_gate and _beyond(spec.virtio_gate, self.offer.virtio_features):
            words = f"{spec.name}: {spec.virtio_gate.name} is not offered"
            raise UnsupportedRequestError(words, rule=VIRTIO_GATE_RULES[spec.virtio_gate])
        if missing := _beyond(gate, self.offer.protocol_features):
            words = f"{spec.name}: {ProtocolFeature(missing).name} is not offered"
            raise UnsupportedRequestError(words, rule="VU-NEG-6")
        if missing := _beyond(gate, self.protocol_features):
            words = f"{spec.name}: {ProtocolFeature(missing).name} is not acknowledged"
            raise NotNegotiatedError(words, rule="VU-NEG-6")
        if spec.number is _R.SET_VRING_ENABLE and not self._enable_is_legal():
            raise NotNegotiatedError("SET_VRING_ENABLE: PROTOCOL_FEATURES is not acknowledged", rule="VU-RING-4")
        if spec.state is LegalState.ALL_RINGS_STOPPED and not self.suspended:
            started = [index for index, vring in enumerate(self.vrings) if vring.started]
            raise StateError(f"{spec.name}: vrings {started} are started", rule="VU-RING-20")

    def _enable_is_legal(self) -> bool:
        return not self._features_came or bool(self.features & VhostFeature.PROTOCOL_FEATURES)

    def _check_vring(self, spec: RequestSpec, payload: object) -> None:
        index = vring_index(payload)
        if index is None:
            return
        if index >= len(self.vrings):
            words = f"{spec.name}: vring {index} does not exist, there are {len(self.vrings)}"
            raise PayloadError(words, rule="VU-RING-7")
        if spec.state is LegalState.RING_STOPPED and self.vrings[index].started:
            raise StateError(f"{spec.name}: vring {index} is started", rule="VU-RING-13")

    # -- values ---------------------------------------------------------------------------------------------

    def _check_values(self, message: Message) -> None:
        match message.request, message.payload:
            case _R.SET_FEATURES, U64(word):
                self._check_features(word)
            case _R.SET_PROTOCOL_FEATURES, U64(word):
                self._check_protocol_features(word)
            case _R.SET_STATUS, U64(status) if status > _MAX_STATUS:
                raise PayloadError(f"SET_STATUS: {status:#x} is above {_MAX_STATUS:#x}", rule="VU-NEG-13")
            case _R.NET_SET_MTU, U64(mtu) if mtu not in _MTU_RANGE:
                words = f"NET_SET_MTU: {mtu} is not in {_MTU_RANGE.start}..{_MTU_RANGE.stop - 1}"
                raise PayloadError(words, rule="VU-NEG-12")
            case _R.SEND_RARP, U64(word):
                _check_rarp(word)
            case _R.SET_LOG_BASE, _ if not len(message.fds):
                raise FdError("SET_LOG_BASE: no descriptor, LOG_SHMFD is acknowledged", rule="VU-FD-5")
            case (_, MemoryTable() | SingleRegion() as payload):
                self._check_regions(message.name, payload)
            case (_, Payload() as payload):
                packed = bool(self.features & VhostFeature.RING_PACKED)
                check_vring_values(message.request, payload, packed, self.offer.max_vring_num)

    def _check_features(self, word: int) -> None:
        if unoffered := _beyond(word, self.offer.virtio_features):
            words = f"SET_FEATURES: bits {unoffered:#x} of {word:#x} are not offered"
            raise PayloadError(words, rule="VU-NEG-4")
        changed = _beyond(word ^ self.features, VhostFeature.LOG_ALL)
        if changed and not self.suspended:
            words = f"SET_FEATURES: bits {changed:#x} cannot change while a vring is started"
            raise StateError(words, rule="VU-NEG-7")

    def _check_protocol_features(self, word: int) -> None:
        if unoffered := _beyond(word, self.offer.protocol_features):
            words = f"SET_PROTOCOL_FEATURES: bits {unoffered:#x} of {word:#x} are not offered"
            raise PayloadError(words, rule="VU-NEG-5")
        features = ProtocolFeature(word)
        if ProtocolFeature.INBAND_NOTIFICATIONS in features and _INBAND_NEEDS not in features:
            # The specification asks to close the connection, not to refuse.
            words = f"SET_PROTOCOL_FEATURES: {word:#x} has INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK"
            raise FramingError(words, rule="VU-NEG-9")

    def _check_regions(self, name: str, payload: MemoryTable | SingleRegion) -> None:
        regions = payload.regions if isinstance(payload, MemoryTable) else (payload.region,)
        xen = ProtocolFeature.XEN_MMAP in self.protocol_features
        if any((region.xen is not None) != xen for region in regions):
            wanted = "has to have" if xen else "cannot have"
            raise PayloadError(f"{name}: a region {wanted} the fields of XEN_MMAP", rule="VU-MEM-1")

    # -- answers --------------------------------------------------------------------------------------------

    def _refuse(self, message: Message) -> Frame | None:
        spec = message.spec
        if message.request == _R.SET_FEATURES:
            self._features_granted = False
        if spec and self._has_own_reply(spec):
            return encode_refusal(spec)
        return encode_ack(message.request, 1) if self._wants_ack(message) else None

    def _acknowledge(self, message: Message, done: Done) -> Frame | None:
        spec = message.spec
        if spec is None:
            raise LocalProtocolError(f"{message.name}: an unknown request cannot be done")
        if self._has_own_reply(spec) or (spec.reply is Reply.POSTCOPY and done.body is not None):
            return encode_reply(spec, done.body, done.fds)
        if done.body is not None:
            raise LocalProtocolError(f"{spec.name}: body {done.body!r}, it has no reply of its own")
        return encode_ack(spec, 0) if self._wants_ack(message) else None

    def _has_own_reply(self, spec: RequestSpec) -> bool:
        if spec.reply is Reply.GATED:
            return spec.gate is not None and spec.gate in self.protocol_features
        if spec.reply is Reply.POSTCOPY:
            return self._listening
        return spec.reply is Reply.ALWAYS

    def expected(self, message: Message) -> Expected:
        """What the rules promise the front-end as an answer to a request, whatever becomes of it."""
        if message.spec is not None and self._has_own_reply(message.spec):
            return Expected.REPLY
        return Expected.ACK if self._wants_ack(message) else Expected.NOTHING

    def _wants_ack(self, message: Message) -> bool:
        acknowledged = self.protocol_features
        if message.request == _R.SET_PROTOCOL_FEATURES and isinstance(message.payload, U64):
            acknowledged = ProtocolFeature(message.payload.value)
        return message.need_reply and ProtocolFeature.REPLY_ACK in acknowledged

    # -- state ----------------------------------------------------------------------------------------------

    def commit(self, message: Message) -> None:
        """Take over the state that an admitted request sets; :meth:`answer` does, for one that was done."""
        match message.request, message.payload:
            case _R.SET_FEATURES, U64(word):
                self._commit_features(word)
            case _R.SET_PROTOCOL_FEATURES, U64(word):
                self.protocol_features = ProtocolFeature(word)
            case _R.RESET_OWNER | _R.RESET_DEVICE, _:
                self.status = 0
                for vring in self.vrings:
                    vring.started = vring.enabled = False
            case _R.SET_STATUS, U64(status):
                self._commit_status(status)
            case ((_R.POSTCOPY_ADVISE | _R.POSTCOPY_LISTEN | _R.POSTCOPY_END), _):
                self._listening = message.request == _R.POSTCOPY_LISTEN
            case _R.SET_VRING_KICK, VringFd(index):
                self.vrings[index].started = True
            case _R.VRING_KICK, VringState(index):
                self.vrings[index].started = True
            case ((_R.GET_VRING_BASE | _R.GET_VRING_BASE_SKIP_DRAIN), VringState(index)):
                self.vrings[index].started = False
            case _R.SET_VRING_ENABLE, VringState(index, num):
                self.vrings[index].enabled = num == 1

    def _commit_features(self, word: int) -> None:
        self.features = word
        self._features_came = self._features_granted = True
        # With the bit, rings stay as they are: setting it again must never disable a ring that is running.
        if not word & VhostFeature.PROTOCOL_FEATURES:
            for vring in self.vrings:
                vring.enabled = True

    def _commit_status(self, status: int) -> None:
        self.status = status if self._features_granted else status & ~_FEATURES_OK
        # A reset stops all rings. It does not disable any: that is between front-end and back-end, not the driver's.
        if status == 0:
            for vring in self.vrings:
                vring.started = False


def _beyond(word: int, allowed: int) -> int:
    """Bits of a word that are not allowed. Plain integers: ``~`` of an IntFlag forgets bits above those it knows."""
    return int(word) & ~int(allowed)


def _check_rarp(word: int) -> None:
    address = word.to_bytes(8, sys.byteorder)
    mac, rest = address[:6], address[6:]
    if any(rest):
        raise PayloadError(f"SEND_RARP: bytes {rest.hex()} follow the address {mac.hex(':')}", rule="VU-NEG-14")
    if mac[0] & 1:
        raise PayloadError(f"SEND_RARP: {mac.hex(':')} is a group address, no guest has one", rule="VU-NEG-14")

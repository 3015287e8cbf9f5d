"""Conversations with a BackendSession, written as they happen.

    book = Playbook(offer())
    book >> ask(R.SET_OWNER) << silence
    book >> ask(R.GET_FEATURES) >> Done(U64(5)) << reply(U64(5))
    book >> ask(R.SET_VRING_NUM, VringState(0, 3), need_reply=True) << refused(PayloadError, "power of two") << ack(1)

``>> ask`` sends a request through the codec and asks for admission. ``>> Done`` or ``>> Failed`` says how carrying it
out went; left out, it is a plain ``Done``. ``<< refused`` states that it was not admitted, and what for. ``<< reply``,
``<< ack``, ``<< refusal`` and ``<< silence`` state what is answered; ``<< closes`` that the connection ends. Every
``ask`` needs one of them, or its test fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from vhostuser.errors import FramingError, RemoteProtocolError
from vhostuser.session.backend import BackendSession, Done, Failed, Offer
from vhostuser.wire.codec import decode, encode, encode_ack, encode_refusal, encode_reply
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags
from vhostuser.wire.messages import U64, Message, Payload, VringFd
from vhostuser.wire.requests import Direction, FrontendRequest, RequestSpec, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

EVERYTHING = ProtocolFeature((1 << 24) - 1)
"""Every protocol feature that the specification has."""

WITHOUT_XEN = EVERYTHING & ~ProtocolFeature.XEN_MMAP
"""With XEN_MMAP memory regions look different."""

_VIRTIO = 1 << 32 | 1 << 15 | VhostFeature.NET_MTU | VhostFeature.LOG_ALL | VhostFeature.PROTOCOL_FEATURES


def offer(
    virtio_features: int = _VIRTIO | VhostFeature.RING_PACKED | VhostFeature.ACCESS_PLATFORM,
    protocol_features: ProtocolFeature = EVERYTHING,
    vrings: int = 4,
    max_vring_num: int = 32768,
) -> Offer:
    """An offer that holds nearly everything, unless told otherwise."""
    return Offer(virtio_features, protocol_features, vrings, max_vring_num)


def ask(request: int, payload: Payload | None = None, fds: int | None = None, need_reply: bool = False) -> Frame:
    """The frame of a request; it has as many descriptors as its row demands, unless told otherwise.

    A request without a row is a header with nothing behind it.
    """
    spec = spec_of(Direction.FRONTEND, request)
    if spec is None:
        return Frame(request, VERSION | (HeaderFlags.NEED_REPLY if need_reply else 0))
    if fds is None:
        fds = int(not payload.no_fd) if isinstance(payload, VringFd) else spec.fds.min
    return encode(Direction.FRONTEND, request, payload, range(100, 100 + fds), need_reply)


@dataclass(frozen=True)
class Expected:
    """An answer, made from the row of the request that it answers; None for none."""

    make: Callable[[int, RequestSpec | None], Frame | None]


@dataclass(frozen=True)
class Refused:
    """A refusal to admit: the class of the error, and what its text has to match."""

    error: type[RemoteProtocolError]
    match: str


def reply(payload: Payload | None = None, fds: int = 0) -> Expected:
    """The request's own reply."""
    return Expected(lambda _, spec: encode_reply(spec, payload, range(100, 100 + fds)) if spec else None)


def ack(value: int) -> Expected:
    """An acknowledgement."""
    return Expected(lambda request, _: encode_ack(request, value))


refusal = Expected(lambda _, spec: encode_refusal(spec) if spec else None)
silence = Expected(lambda _, __: None)
closes = Expected(lambda _, __: None)
refused = Refused


class Playbook:
    """One session and the conversation with it; see the module for how to write one."""

    written: ClassVar[list[Playbook]] = []
    """All books of the running test, for the fixture that looks whether each was finished."""

    def __init__(self, what: Offer) -> None:
        self.session = BackendSession(what)
        self._message: Message | None = None
        self._refusal: Exception | None = None
        self._outcome: Done | Failed = Done()
        Playbook.written.append(self)

    def finish(self) -> None:
        """Fail if something was asked and nothing expected of it."""
        assert self._message is None, f"nothing was expected of {self._message}"

    def __rshift__(self, step: Frame | Done | Failed) -> Playbook:
        if isinstance(step, Frame):
            self._begin(step)
        else:
            assert self._refusal is None, f"{self._message}: not admitted: {self._refusal!r}"
            self._outcome = step
        return self

    def __lshift__(self, step: Refused | Expected) -> Playbook:
        if isinstance(step, Refused):
            error = self._refusal
            assert type(error) is step.error, f"{self._message}: expected {step.error.__name__}, got {error!r}"
            assert re.search(step.match, str(error)), f"{step.match!r} is not in {str(error)!r}"
            self._outcome, self._refusal = Failed(error), None
        else:
            self._end(step)
        return self

    def _begin(self, frame: Frame) -> None:
        self.finish()
        self._message = decode(Direction.FRONTEND, frame)
        self._refusal = None
        self._outcome = Done()
        try:
            self.session.admit(self._message)
        except RemoteProtocolError as error:
            self._refusal = error

    def _end(self, expected: Expected) -> None:
        message, self._message = self._message, None
        assert message is not None, "nothing was asked"
        assert self._refusal is None, f"{message}: not admitted: {self._refusal!r}"
        if expected is closes:
            with pytest.raises(FramingError):
                self.session.answer(message, self._outcome)
            return
        answer = self.session.answer(message, self._outcome)
        wanted = expected.make(message.request, message.spec)
        assert _shown(answer) == _shown(wanted), f"{message}: wrong answer"


def negotiated(
    protocol_features: ProtocolFeature = WITHOUT_XEN, virtio_features: int = VhostFeature.PROTOCOL_FEATURES
) -> Playbook:
    """A conversation after negotiation."""
    book = Playbook(offer())
    book >> ask(FrontendRequest.SET_PROTOCOL_FEATURES, U64(protocol_features)) << silence
    book >> ask(FrontendRequest.SET_FEATURES, U64(virtio_features)) << silence
    return book


def started(index: int = 0) -> Playbook:
    """A conversation with one ring started."""
    book = negotiated()
    book >> ask(FrontendRequest.SET_VRING_KICK, VringFd(index)) << silence
    return book


def status(book: Playbook, index: int = 0) -> tuple[bool, bool]:
    """Started, enabled."""
    vring = book.session.vrings[index]
    return vring.started, vring.enabled


def _shown(frame: Frame | None) -> str:
    return f"{frame.encode().hex()} fds {frame.fds.filenos()}" if frame else "silence"

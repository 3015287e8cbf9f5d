"""One connection to the back-end: what is said on it, and whether the answer is as it has to be.

Must not know: which statement is at stake.

How: every frame, either way, goes into the record. What is expected is said by the method: :meth:`Connection.accepted`,
:meth:`~Connection.refused`, :meth:`~Connection.ignored`, :meth:`~Connection.closes`; anything else that comes, or that
nothing comes in time, is a violation. That nothing comes is shown by a question behind it, which is answered first.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.violation import NotApplicable, Violation, about
from vhostuser.errors import ConnectionClosedError, FramingError, ProtocolError
from vhostuser.transcript.entries import Kind, Side
from vhostuser.wire import layouts
from vhostuser.wire.codec import decode_reply, describe
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags, LentFds
from vhostuser.wire.messages import U64, Payload
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, RequestSpec, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import ExitStack

    from vhostuser.conformance.record import Record
    from vhostuser.transport.channel import Channel

REQUEST = int(VERSION)
NEED_REPLY = VERSION | HeaderFlags.NEED_REPLY
REPLY = VERSION | HeaderFlags.REPLY

_WORD = 8
_NO_FD = 0x100  # in the reply to SET_DEVICE_STATE_FD: success, and no other descriptor to use


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds.

    Attributes:
        answer: For an answer, a closing, a used chain: a back-end that takes longer is taken for one that hangs.
        silence: For what must not happen; the longer, the surer.
        limit: For what a back-end may put up with for a while, such as a message that does not end.
    """

    answer: float = 3.0
    silence: float = 0.1
    limit: float = 40.0


@dataclass(frozen=True)
class Answer:
    """What came for a request.

    Attributes:
        frame: As it came.
        value: What its payload says; None for an empty one.
        fds: Descriptors that came along; they are closed with the probe.
    """

    frame: Frame
    value: Payload | None
    fds: Sequence[int] = field(default=())


class Connection:
    """A connection.

    Args:
        channel: Owned from now on.
        record: Where everything is written down.
        patience: How long is waited.
        kept: What closes the descriptors that are received.

    Attributes:
        features: Virtio features that were acknowledged on it.
        protocol: Protocol features likewise.
        strict: Whether an answer needs the flags of a reply and no others; without, those that some back-ends copy
            from the request are overlooked, so that they fail the one statement about them and no other.
        listening: Whether the back-end was told to wait for pages (post-copy).
        closed: Whether either side has closed it.
    """

    def __init__(self, channel: Channel, record: Record, patience: Patience, kept: ExitStack) -> None:
        self.channel = channel
        self.strict = False
        self.features = 0
        self.protocol = ProtocolFeature(0)
        self.listening = False
        self.closed = False
        self._record = record
        self._patience = patience
        self._kept = kept
        record.name(channel.fileno(), Kind.CONNECTION.value)

    # ---- saying --------------------------------------------------------------------------------------------------

    def frame(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        flags: int | None = None,
        size: int | None = None,
    ) -> Frame:
        """A request's frame, right or wrong.

        Args:
            request: Its number.
            payload: A value, or bytes.
            fds: Descriptors to pass; they stay the caller's.
            flags: The header's flags; None: with NEED_REPLY where that asks for an acknowledgement.
            size: What the header claims, if not the payload's length.
        """
        data = layouts.build(payload) if isinstance(payload, Payload) else payload or b""
        if flags is None:
            own = self._has_own_reply(spec_of(Direction.FRONTEND, request))
            asks = ProtocolFeature.REPLY_ACK in self.protocol and not own
            flags = NEED_REPLY if asks else REQUEST
        return Frame(request, flags, data, LentFds(fds), size)

    async def send(self, frame: Frame, *, pieces: Sequence[int] = (), cut: int | None = None) -> None:
        """Send a frame.

        Args:
            frame: It.
            pieces: Lengths of pieces that it is sent in, one after the other; what is left follows in one.
            cut: How many of its bytes are sent; None for all.
        """
        self._record.frame(Side.FRONTEND, frame, pieces=pieces, cut=cut)
        rest, fds = frame.encode()[:cut], LentFds(frame.fds.filenos())
        try:
            for length in (*pieces, len(rest)):
                piece, rest = rest[:length], rest[length:]
                if piece:
                    await self.channel.send_bytes(piece, fds)
                    fds = LentFds(())
        except ConnectionClosedError:
            self._ended(Side.BACKEND)
            raise Violation(f"the connection was closed before {_told(frame)} could be sent") from None
        except FramingError as error:
            raise Violation(f"{_told(frame)}: {error}") from None

    async def send_joined(self, *frames: Frame) -> None:
        """Send frames without descriptors as one piece."""
        for frame in frames:
            self._record.frame(Side.FRONTEND, frame)
        try:
            await self.channel.send_bytes(b"".join(frame.encode() for frame in frames), LentFds(()))
        except ConnectionClosedError:
            self._ended(Side.BACKEND)
            raise Violation("the connection was closed before anything could be sent") from None
        except FramingError as error:
            raise Violation(str(error)) from None

    async def send_raw(self, data: bytes, fds: LentFds) -> None:
        """Send what is no frame, its descriptors on the first byte, if it is still open; it is not in the record."""
        try:
            if not self.closed:
                await self.channel.send_bytes(data, fds)
        except ConnectionClosedError:
            self._ended(Side.BACKEND)

    async def hear(self, expected: str) -> Frame:
        """The next frame. Raises Violation if none comes; `expected` is for its text."""
        frame = await self._next(self._patience.answer)
        if frame is None:
            how = "the connection was closed" if self.closed else f"nothing came in {self._patience.answer:g} s"
            raise Violation(f"expected {expected}, but {how}")
        return frame

    async def anything(self) -> Frame | None:
        """What comes by itself in a while, if anything does; None also if the connection was closed."""
        return await self._next(self._patience.silence / 10)

    async def overhear(self, seconds: float) -> None:
        """Enter into the record what comes by itself, for so long."""
        with trio.move_on_after(seconds), suppress(Violation):
            while not self.closed:
                await self._next(seconds)

    async def _next(self, within: float) -> Frame | None:
        """The next frame; None if the connection closes, or nothing comes within so many seconds."""
        with trio.move_on_after(within):
            try:
                frame = await self.channel.receive()
            except ConnectionClosedError:
                self._ended(Side.BACKEND)
                return None
            except FramingError as error:
                raise Violation(f"what came is no message: {error}") from None
            self._record.frame(Side.BACKEND, frame)
            self._kept.callback(frame.fds.close)
            return frame
        return None

    # ---- what is expected ----------------------------------------------------------------------------------------

    async def accepted(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        flags: int | None = None,
    ) -> Answer:
        """Send a request that has to be accepted, and show that it is as far as the back-end tells."""
        frame = self.frame(request, payload, fds, flags=flags)
        before = self.protocol
        if request == FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(payload, U64):
            self.protocol = ProtocolFeature(payload.value)  # the new bits decide about the acknowledgement
        await self.send(frame)
        try:
            if self._is_answered(frame):
                answer = self._judged(frame, await self.hear(f"an answer to {_told(frame)}"))
            else:
                answer = Answer(await self.talks(frame), None)
        except Violation:
            self.protocol = before
            raise
        if request == FrontendRequest.SET_FEATURES and isinstance(payload, U64):
            self.features = payload.value
        return answer

    async def value(self, request: int, payload: Payload | bytes | None = None) -> int:
        """The word that answers a request."""
        answer = await self.accepted(request, payload)
        if not isinstance(answer.value, U64):
            raise Violation(f"{_name(request)}: expected a word of 64 bits, came {answer.frame}")
        return answer.value.value

    async def refused(self, frame: Frame) -> Frame:
        """Send a frame that has to be refused by an answer that says so, which is returned; the connection lives on.

        Raises:
            NotApplicable: A refusal would not be told: REPLY_ACK is not acknowledged.
        """
        answer = await self._refusal(frame)
        if answer is None:
            raise Violation(f"{_told(frame)}: expected a refusal, but {self._what_instead()}")
        await self.talks(frame)
        return answer

    async def rejected(self, frame: Frame) -> None:
        """The same, or the back-end closes the connection: what the specification asks of most wrong requests."""
        expected = "a refusal or the end of the connection"
        if await self._refusal(frame, expected) is not None:
            await self.talks(frame)
        elif not self.closed:
            raise Violation(f"{_told(frame)}: expected {expected}, but {self._what_instead()}")

    async def closes(self, frame: Frame | None = None) -> None:
        """The back-end has to close the connection, after a frame if there is one."""
        if frame is not None:
            await self.send(frame)
        if self.closed:
            return
        told = _told(frame) if frame else "the connection"
        answer = await self._next(self._patience.silence)
        if answer is None and not self.closed:
            # is it slow, or does it go on?
            answer = await self._asked_on()
        if answer is not None:
            raise Violation(f"{told}: expected the back-end to close, but it goes on with {answer}")
        if not self.closed:
            raise Violation(f"{told}: expected the back-end to close, but it does not in {self._patience.answer:g} s")

    async def closes_in_time(self, what: str) -> None:
        """The back-end has to close the connection without being asked anything more, within the time for that."""
        answer = await self._next(self._patience.limit)
        if not self.closed:
            instead = f"{answer} came" if answer else f"it does not in {self._patience.limit:g} s"
            raise Violation(f"{what}: expected the back-end to close, but {instead}")

    async def ignored(self, frame: Frame) -> None:
        """Send a frame that must not be answered; the connection lives on."""
        await self.send(frame)
        await self.talks(frame)

    async def unanswered(self, frame: Frame) -> None:
        """Send a frame that must not be answered for now."""
        await self.send(frame)
        if (answer := await self._next(self._patience.silence)) is not None:
            raise Violation(f"{_told(frame)}: expected nothing for now, came {answer}")
        if self.closed:
            raise Violation(f"{_told(frame)}: expected nothing for now, but the connection was closed")

    async def talks(self, after: Frame | None = None) -> Frame:
        """The next thing that comes is the answer to a question that is asked now."""
        with about(f"after {_told(after)}") if after else nullcontext():
            question = self.frame(FrontendRequest.GET_FEATURES, flags=REQUEST)
            await self.send(question)
            answer = await self.hear("the answer to GET_FEATURES and nothing before it")
            if (answer.request, len(answer.payload)) != (question.request, 8) or not self._replies(answer):
                raise Violation(f"expected the answer to GET_FEATURES and nothing before it, came {answer}")
            return answer

    async def _asked_on(self) -> Frame | None:
        try:
            await self.send(self.frame(FrontendRequest.GET_FEATURES, flags=REQUEST))
        except Violation:
            return None
        return await self._next(self._patience.answer)

    async def _refusal(self, frame: Frame, expected: str = "a refusal") -> Frame | None:
        """Send a frame; the answer if it is a refusal. Raises Violation for another answer."""
        spec = spec_of(Direction.FRONTEND, frame.request)
        if not self._is_answered(frame):
            raise NotApplicable(f"{_name(frame.request)}: without REPLY_ACK a refusal is not told")
        await self.send(frame)
        answer = await self._next(self._patience.answer)
        if answer is None:
            return None
        if answer.request != frame.request or not self._replies(answer):
            raise Violation(f"{_told(frame)}: expected {expected}, came {answer}")
        if not _is_refusal(spec if self._has_own_reply(spec) else None, frame, answer):
            raise Violation(f"{_told(frame)}: expected {expected}, came {_shown(spec, answer)}")
        return answer

    def _judged(self, frame: Frame, answer: Frame) -> Answer:
        """An answer that has to say yes."""
        spec = spec_of(Direction.FRONTEND, frame.request)
        own = self._has_own_reply(spec)
        if spec is None:
            raise Violation(f"{_told(frame)}: unknown, and answered with {answer}")
        try:
            value = decode_reply(spec, replace(answer, flags=REPLY) if self._replies(answer) else answer)
        except ProtocolError as error:
            raise Violation(f"{_told(frame)}: {error}") from None
        if _is_refusal(spec if own else None, frame, answer):
            raise Violation(f"{_told(frame)}: refused with {_shown(spec, answer)}")
        return Answer(answer, value, tuple(answer.fds.filenos()))

    def _replies(self, answer: Frame) -> bool:
        """Whether its flags are those of a reply."""
        return answer.flags == REPLY if self.strict else answer.flags & REPLY == REPLY

    def _is_answered(self, frame: Frame) -> bool:
        spec = spec_of(Direction.FRONTEND, frame.request)
        return self._has_own_reply(spec) or (frame.need_reply and ProtocolFeature.REPLY_ACK in self.protocol)

    def _has_own_reply(self, spec: RequestSpec | None) -> bool:
        if spec is None:
            return False
        if spec.reply is Reply.GATED:
            return spec.gate is not None and spec.gate in self.protocol
        if spec.reply is Reply.POSTCOPY:
            return self.listening
        return spec.reply is Reply.ALWAYS

    def _what_instead(self) -> str:
        return "the connection was closed" if self.closed else f"nothing came in {self._patience.answer:g} s"

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close it at our end."""
        if not self.closed:
            self._ended(Side.FRONTEND)

    def _ended(self, side: Side) -> None:
        if not self.closed:
            self.closed = True
            self._record.closed(side)
        self.channel.close()


def _is_refusal(own: RequestSpec | None, frame: Frame, answer: Frame) -> bool:
    """Whether an answer says no; `own` is the request's row if the answer is a reply of its own."""
    value = int.from_bytes(answer.payload, "little")
    if frame.request == FrontendRequest.SET_LOG_BASE:
        # back-ends say yes with an empty body, with zero, and with all or the first word of the request's
        return len(answer.payload) == _WORD and value != 0 and not frame.payload.startswith(answer.payload)
    if own is None or own.refusal is not None:
        # an acknowledgement, or a reply that is one in all but name
        return bool(value & ~_NO_FD) if own is not None else value != 0
    without = not answer.payload and own.reply_payload is not None
    return without or len(answer.fds) < own.reply_fds.min


def _name(request: int) -> str:
    spec = spec_of(Direction.FRONTEND, request)
    return spec.name if spec else f"request {request}"


def _told(frame: Frame) -> str:
    return describe(Direction.FRONTEND, frame)


def _shown(spec: RequestSpec | None, answer: Frame) -> str:
    return answer.describe(spec.name if spec else None)

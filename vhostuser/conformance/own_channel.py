"""The back-end's own channel (SET_BACKEND_REQ_FD) at the front-end's end: what the back-end asks on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.violation import Violation
from vhostuser.errors import ConnectionClosedError, FramingError, ProtocolError
from vhostuser.transcript.entries import Side
from vhostuser.wire.codec import decode, describe, encode_ack
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import Message
from vhostuser.wire.requests import Direction

if TYPE_CHECKING:
    from contextlib import ExitStack

    from vhostuser.conformance.connection import Patience
    from vhostuser.conformance.record import Record
    from vhostuser.transport.channel import Channel
    from vhostuser.wire.requests import BackendRequest


class OwnChannel:
    """Our end of it; the arguments are those of :class:`Connection <vhostuser.conformance.connection.Connection>`.

    Attributes:
        closed: Whether the back-end was found to have closed it.
    """

    def __init__(self, channel: Channel, record: Record, patience: Patience, kept: ExitStack) -> None:
        self.closed = False
        self._channel = channel
        self._record = record
        self._patience = patience
        self._kept = kept

    async def asked(self, request: BackendRequest, why: str = "") -> Message:
        """The next request, which has to be this one and is not answered yet; `why` is for the violation's text."""
        told = f"{request.name} on the back-end's channel" + (f" {why}" if why else "")
        frame = await self._next(self._patience.answer)
        if frame is None:
            how = "it was closed" if self.closed else f"nothing came in {self._patience.answer:g} s"
            raise Violation(f"expected {told}, but {how}")
        if frame.request != request:
            raise Violation(f"expected {told}, came {describe(Direction.BACKEND, frame)}")
        return self._decoded(frame)

    async def answer(self, message: Message, value: int = 0) -> None:
        """Acknowledge a request if it asks for that: 0 for done, anything else for failed."""
        if message.need_reply:
            await self.send(encode_ack(message.request, value))

    async def send(self, frame: Frame) -> None:
        """Send any frame."""
        self._record.frame(Side.FRONTEND, frame, own_channel=True)
        try:
            await self._channel.send(frame)
        except (ConnectionClosedError, FramingError) as error:
            raise Violation(f"the back-end's channel: {error}") from None

    async def asked_in_silence(self) -> Message | None:
        """The next request if there is one; None if nothing is asked for a while."""
        frame = await self._next(self._patience.silence)
        return None if frame is None else self._decoded(frame)

    async def silent(self, why: str) -> None:
        """Nothing may be asked for now."""
        frame = await self._next(self._patience.silence)
        if frame is not None:
            raise Violation(
                f"{why}: expected nothing on the back-end's channel, came {describe(Direction.BACKEND, frame)}"
            )

    async def gone(self, why: str, within: float | None = None) -> None:
        """The back-end has to close it, in the time for an answer unless told otherwise."""
        with trio.move_on_after(within or self._patience.answer):
            await self._channel.wait_hangup()
            return
        raise Violation(f"{why}: expected the back-end to close its channel, and it does not")

    def close(self) -> None:
        """Close our end."""
        self._channel.close()

    def _decoded(self, frame: Frame) -> Message:
        try:
            return decode(Direction.BACKEND, frame)
        except ProtocolError as error:
            raise Violation(f"the back-end's channel: {error}") from None

    async def _next(self, within: float) -> Frame | None:
        with trio.move_on_after(within):
            try:
                frame = await self._channel.receive()
            except ConnectionClosedError:
                self.closed = True
                return None
            except FramingError as error:
                raise Violation(f"the back-end's channel: {error}") from None
            self._record.frame(Side.BACKEND, frame, own_channel=True)
            self._kept.callback(frame.fds.close)
            return frame
        return None

"""One connection as a front-end uses it: requests with their answers, and frames as they are.

Must not know: which requests belong together (``client`` does), memory, rings.

How: :meth:`Conversation.request` reads from the table of requests whether an answer follows, waits for it, and
raises if the back-end refused. Frames that no table allows go through :meth:`Conversation.send_frame`.

An answer that does not come leaves the stream in a state that nobody can tell, and so does cancellation
while one is awaited; every later request fails then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhostuser.errors import FramingError, LocalProtocolError, VhostUserError
from vhostuser.fds import FdBundle
from vhostuser.wire.codec import decode_reply, encode
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, Payload
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, RequestSpec, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostuser.transport.channel import Channel
    from vhostuser.wire.frames import Frame

REPLY_TIMEOUT = 30.0
"""How long an answer may take unless told otherwise, in seconds: a request may have to wait for a device."""


class RefusedError(VhostUserError):
    """The back-end refused a request: a non-zero acknowledgement, or an empty reply where one has a payload."""


class Conversation(trio.abc.AsyncResource):
    """What is said on one connection to a back-end.

    Args:
        channel: The connection, owned from now on.
        reply_timeout: How long to wait for an answer, in seconds.

    Attributes:
        channel: The connection, for those who want to receive themselves.
        protocol_features: Protocol features that were acknowledged: they decide what is answered.
        listening: Whether the back-end was told to wait for pages, so that it answers with its own addresses.
    """

    def __init__(self, channel: Channel, reply_timeout: float = REPLY_TIMEOUT) -> None:
        self.channel = channel
        self.protocol_features = ProtocolFeature(0)
        self.listening = False
        self._reply_timeout = reply_timeout
        self._turn = trio.Lock()
        self._unanswered = ""

    async def aclose(self) -> None:
        """Close the connection."""
        await self.channel.aclose()

    async def request(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        need_reply: bool | None = None,
    ) -> Payload | None:
        """Send a request and wait for its answer, if it has one. Descriptors of the answer are closed.

        Args:
            request: A :class:`FrontendRequest`, or a number that the specification does not know.
            payload: Its value; bytes for an unknown number.
            fds: Descriptors to pass; they stay the caller's.
            need_reply: Whether to set NEED_REPLY. None: where it makes a difference.

        Returns:
            The value of the reply, the acknowledgement (``U64(0)``), or None where nothing is answered.

        Raises:
            RefusedError: The back-end refused.
            FramingError: The answer is none to this request, or did not come in time.
            ConnectionClosedError: The back-end is gone.
            LocalProtocolError: The payload or the descriptors are not what the request has.
        """
        value, passed = await self.request_with_fds(request, payload, fds, need_reply=need_reply)
        passed.close()
        return value

    async def request_with_fds(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        need_reply: bool | None = None,
    ) -> tuple[Payload | None, FdBundle]:
        """As :meth:`request`, but return the answer's descriptors too; they are the caller's."""
        spec = spec_of(Direction.FRONTEND, request)
        if need_reply is None:
            own_reply = spec is not None and spec.reply is Reply.ALWAYS
            need_reply = ProtocolFeature.REPLY_ACK in self.protocol_features and not own_reply
        frame = encode(Direction.FRONTEND, request, payload, fds, need_reply)
        async with self._turn:
            if self._unanswered:
                raise FramingError(f"the answer to {self._unanswered} is still outstanding")
            if not self._is_answered(spec, need_reply, payload):
                await self.channel.send(frame)
                return None, FdBundle()
            answer = await self._exchange(frame, spec.name if spec else f"request {request}")
        try:
            return _judge(spec, request, answer), answer.fds
        except VhostUserError:
            answer.fds.close()
            raise

    async def word(self, request: FrontendRequest) -> int:
        """Ask a question that has no payload and is answered by one 64-bit word, as GET_FEATURES is.

        Raises:
            LocalProtocolError: The request is not one of these. What :meth:`request` raises, besides.
        """
        reply = await self.request(request)
        if not isinstance(reply, U64):
            raise LocalProtocolError(f"{request.name}: answered by {reply!r}, not by a word")
        return reply.value

    async def send_frame(self, frame: Frame) -> None:
        """Send any frame, however wrong. If an answer follows, the caller has to receive it."""
        await self.channel.send(frame)

    async def receive_frame(self) -> Frame:
        """Receive a frame as it is; its descriptors are the caller's.

        Raises:
            ConnectionClosedError: The back-end closed the connection instead.
        """
        return await self.channel.receive()

    async def _exchange(self, frame: Frame, name: str) -> Frame:
        self._unanswered = name
        await self.channel.send(frame)
        with trio.move_on_after(self._reply_timeout):
            answer = await self.channel.receive()
            self._unanswered = ""
            return answer
        raise FramingError(f"{name}: no answer after {self._reply_timeout:g} s")

    def _is_answered(self, spec: RequestSpec | None, need_reply: bool, payload: object) -> bool:
        if spec is None:
            return need_reply and ProtocolFeature.REPLY_ACK in self.protocol_features
        if spec.reply is Reply.ALWAYS:
            return True
        if spec.reply is Reply.GATED and spec.gate is not None and spec.gate in self.protocol_features:
            return True
        if spec.reply is Reply.POSTCOPY and self.listening:
            return True
        acknowledged = self.protocol_features
        if spec.number is FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(payload, U64):
            acknowledged = ProtocolFeature(payload.value)  # the new bits decide about their own acknowledgement
        return need_reply and ProtocolFeature.REPLY_ACK in acknowledged


def _judge(spec: RequestSpec | None, request: int, answer: Frame) -> Payload | None:
    """The value of an answer. Raises RefusedError when it says that the request was refused."""
    if spec is None:
        refused = any(answer.payload)
        if refused or answer.request != request:
            raise RefusedError(f"request {request}: {answer}")
        return None
    value = decode_reply(spec, answer)
    if spec.accepts(value, len(answer.fds)):
        return value
    if isinstance(value, U64):
        raise RefusedError(f"{spec.name}: refused with {value.value:#x}")
    raise RefusedError(f"{spec.name}: refused with an empty reply")

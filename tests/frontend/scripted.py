"""A back-end that follows a script: it records every message and answers by the table, or as a test says."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from vhostuser.errors import ConnectionClosedError
from vhostuser.fds import FdBundle
from vhostuser.frontend.client import FrontEnd
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import listen
from vhostuser.wire.codec import decode, encode_ack, encode_reply
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, Message, Payload, VringState
from vhostuser.wire.requests import Direction, FrontendRequest, Reply

FEATURES = VhostFeature.PROTOCOL_FEATURES | (1 << 32) | (1 << 29) | (1 << 15)
PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ


@dataclass
class ScriptedBackEnd:
    """Answers a front-end until it leaves.

    Attributes:
        replies: Bodies for requests with a reply of their own.
        answers: Frames to send instead of what the table says; None for silence.
        acks: Values of acknowledgements that are not 0.
        seen: One line for each message.
        kept: The descriptors of each message, for those that a test asks to keep.
        keep: Requests whose descriptors are kept.
        leaves_after: The request on which it closes the connection.
        left: Whether the front-end closed the connection.
    """

    replies: dict[FrontendRequest, Payload | None] = field(default_factory=lambda: default_replies())
    answers: dict[int, Frame | None] = field(default_factory=dict)
    acks: dict[FrontendRequest, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    keep: set[FrontendRequest] = field(default_factory=set)
    kept: dict[FrontendRequest, FdBundle] = field(default_factory=dict)
    leaves_after: FrontendRequest | None = None
    acknowledged: ProtocolFeature = field(default_factory=lambda: ProtocolFeature(0))
    left: bool = False

    def names(self) -> list[str]:
        """The requests that came."""
        return [line.partition(" ")[0] for line in self.seen]

    async def run(self, channel: Channel) -> None:
        while True:
            try:
                frame = await channel.receive()
            except ConnectionClosedError:
                self.left = True
                return
            message = decode(Direction.FRONTEND, frame)
            self.seen.append(str(message))
            if message.request in self.keep:
                self.kept[FrontendRequest(message.request)] = frame.fds
            else:
                frame.fds.close()
            if message.request == self.leaves_after:
                await channel.aclose()
                return
            if (answer := self._answer(message)) is not None:
                await channel.send(answer)

    def _answer(self, message: Message) -> Frame | None:
        if message.request in self.answers:
            return self.answers[message.request]
        if message.spec is None:
            return encode_ack(message.request, 1) if message.need_reply else None
        request = FrontendRequest(message.request)
        if request is FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(message.payload, U64):
            self.acknowledged = ProtocolFeature(message.payload.value)
        if message.spec.reply is Reply.ALWAYS:
            return encode_reply(message.spec, self.replies[request])
        if message.need_reply and ProtocolFeature.REPLY_ACK in self.acknowledged:
            return encode_ack(message.spec, self.acks.get(request, 0))
        return None


def default_replies() -> dict[FrontendRequest, Payload | None]:
    return {
        FrontendRequest.GET_FEATURES: U64(FEATURES),
        FrontendRequest.GET_PROTOCOL_FEATURES: U64(PROTOCOL_FEATURES),
        FrontendRequest.GET_QUEUE_NUM: U64(4),
        FrontendRequest.GET_VRING_BASE: VringState(0, 17),
    }


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[tuple[FrontEnd, ScriptedBackEnd]]:
    """A front-end and the scripted back-end that it is connected to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = Channel(trio.socket.from_stdlib_socket(theirs))
    back_end = ScriptedBackEnd(**options)  # type: ignore[arg-type]
    async with FrontEnd.from_socket(ours) as front_end, channel, trio.open_nursery() as nursery:
        nursery.start_soon(back_end.run, channel)
        yield front_end, back_end
        nursery.cancel_scope.cancel()
    for bundle in back_end.kept.values():
        bundle.close()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[ScriptedBackEnd]:
    """A scripted back-end for the first front-end that comes to a path."""
    back_end = ScriptedBackEnd()

    async def serve() -> None:
        async with await listener.accept() as channel:
            await back_end.run(channel)

    async with await listen(path) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield back_end

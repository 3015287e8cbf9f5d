"""Plays a front-end's part of a conversation to a live back-end, with fresh memory and descriptors.

Must not know: where entries come from, or what anybody makes of what came back.

How: entries are done in order. A message that has an answer coming is followed by a wait for it; what comes unasked is
heard all the same. An answer that does not come in time is missed; then a question that every back-end answers at any
time shows whether it still listens; the same question ends the play, so that nothing is missed. If it is not answered,
the play ends there. Where the back-end closed, what was still to be said on that connection is left out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.session.witness import Breach, Judgement, Witness
from vhostuser.transcript.descriptors import Props
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Resized, Said, Side, Signalled, Wrote
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import encode_ack
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.requests import FrontendRequest

QUESTION = Said(Side.FRONTEND, FrontendRequest.GET_FEATURES)
"""What every back-end answers at any time."""

Connect = Callable[[], Awaitable[Channel]]


@dataclass(frozen=True)
class Heard:
    """A message of the back-end.

    Attributes:
        after: Number of the entry after which it came.
        frame: What it was; its descriptors are closed by now.
        fds: How many descriptors came with it.
        own_channel: Whether it came on the back-end's own channel.
        judgement: What the witness says of it; None on the back-end's own channel.
    """

    after: int
    frame: Frame
    fds: int
    own_channel: bool = False
    judgement: Judgement | None = None


@dataclass
class Performance:
    """How a play went.

    Attributes:
        heard: What the back-end said.
        breaches: Rules that were broken, each with the number of the entry after which.
        missed: Numbers of the entries whose answers did not come.
        closed: Numbers of the entries after which the back-end closed the connection.
        hung: Number of the entry after which it neither answered nor closed; None if it always did.
        unreachable: Number of the entry for which there was no connection to be had; None if there always was.
        played: How many entries were done.
    """

    heard: list[Heard] = field(default_factory=list)
    breaches: list[tuple[int, Breach]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    hung: int | None = None
    unreachable: int | None = None
    played: int = 0


async def play(
    entries: Sequence[Entry],
    connect: Connect,
    *,
    patience: float = 1.0,
    awaited: Callable[[int], bool] = lambda number: False,
) -> Performance:
    """Play the front-end's part.

    Args:
        entries: The conversation; what a back-end did in it is not looked at.
        connect: Opens a connection to the back-end; called for the first message, and for the next after each closing.
        patience: Seconds to wait for an answer, and for the connection to close where the transcript says so.
        awaited: Whether an answer to the entry of this number is waited for though the rules do not promise one.

    A play ends where `connect` raises a VhostUserError.
    """
    performance = Performance()
    with Props() as props:
        async with trio.open_nursery() as nursery:
            stage = _Stage(nursery, props, connect, performance, patience, awaited)
            try:
                await stage.play(entries)
            finally:
                stage.over = True
                nursery.cancel_scope.cancel()
                await stage.close()
    return performance


class _Stage:
    """A play under way."""

    def __init__(
        self,
        nursery: trio.Nursery,
        props: Props,
        connect: Connect,
        performance: Performance,
        patience: float,
        awaited: Callable[[int], bool],
    ) -> None:
        self.over = False  # threads look at it
        self._nursery = nursery
        self._props = props
        self._connect = connect
        self._performance = performance
        self._patience = patience
        self._awaited = awaited
        self._number = 0
        self._channel: Channel | None = None
        self._witness = Witness()
        self._gone = trio.Event()  # the back-end closed this connection
        self._lost = False  # the two sides do not agree any more where messages begin
        self._news = trio.Event()

    async def play(self, entries: Sequence[Entry]) -> None:
        for self._number, entry in enumerate(entries):
            await self._do(entry)
            if self._performance.unreachable is not None:
                return
            self._performance.played = self._number + 1
            if self._performance.hung is not None:
                return
        await self._settle()

    async def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    async def _do(self, entry: Entry) -> None:
        match entry:
            case Said(side=Side.FRONTEND, own_channel=False):
                await self._say(entry)
            case Closed(side=side):
                await self._end_connection(side)
            case Wrote():
                await self._write(entry)
            case Resized(memory, size):
                if (fd := self._props.named(memory)) is not None:
                    with suppress(OSError):  # a seal forbids it
                        os.ftruncate(fd, size)
            case Signalled(name):
                if (fd := self._props.named(name)) is not None:
                    _signal(fd, self._props.other_end(name))
            case Paused(seconds):
                await trio.sleep(seconds)

    # ---- messages ----------------------------------------------------------------------------------------------------

    async def _say(self, said: Said) -> None:
        if self._channel is None and not await self._open():
            return
        assert self._channel is not None
        if self._gone.is_set():
            return
        frame = said.frame(LentFds(map(self._descriptor, said.fds)))
        self._lost = self._lost or not said.whole
        if not self._lost:
            self._judge(self._witness.request(frame))
        try:
            await self._send(self._channel, said, frame)
        except (ConnectionClosedError, FramingError):
            await self._wait_gone()
            return
        self._open_own_channel(said)
        if not self._lost and (self._witness.unanswered or self._awaited(self._number)):
            await self._wait_answer()

    async def _open(self) -> bool:
        """Open a connection; whether there is one."""
        try:
            self._channel = await self._connect()
        except VhostUserError:
            self._performance.unreachable = self._number
            return False
        self._witness, self._gone, self._lost = Witness(), trio.Event(), False
        self._nursery.start_soon(self._hear, self._channel, self._gone)
        return True

    async def _send(self, channel: Channel, said: Said, frame: Frame) -> None:
        data = frame.encode()[: said.cut]
        fds: LentFds = LentFds(frame.fds.filenos())
        for length in said.pieces:
            piece, data = data[:length], data[length:]
            if piece:
                await channel.send_bytes(piece, fds)
                fds = LentFds(())
                await trio.lowlevel.checkpoint()
        if data:
            await channel.send_bytes(data, fds)

    def _descriptor(self, told: Descriptor) -> int:
        if told.kind is Kind.CONNECTION and self._channel is not None:
            return self._channel.fileno()
        return self._props.of(told)

    async def _wait_answer(self) -> None:
        """Wait for what is to come; ask whether anybody is there when it does not come."""
        if await self._answered():
            return
        self._performance.missed.append(self._number)
        await self._settle()

    async def _settle(self) -> None:
        """Ask what is always answered: when the answer is there, so is all that was said before it."""
        if self._channel is None or self._lost or self._gone.is_set():
            return
        frame = QUESTION.frame()
        self._judge(self._witness.request(frame))
        with suppress(ConnectionClosedError, FramingError):
            await self._channel.send(frame)
        if not await self._answered():
            self._performance.hung = self._number

    async def _answered(self) -> bool:
        """Whether everything was answered, or the connection closed, in time."""
        heard = len(self._performance.heard)
        with trio.move_on_after(self._patience):
            while not self._gone.is_set():
                if not self._witness.unanswered and (
                    len(self._performance.heard) > heard or not self._awaited(self._number)
                ):
                    return True
                self._news = trio.Event()
                await self._news.wait()
        return self._gone.is_set()

    async def _hear(self, channel: Channel, gone: trio.Event) -> None:
        """Everything that the back-end says on a connection."""
        try:
            while True:
                frame = await channel.receive()
                with frame.fds:
                    judgement = self._witness.reply(frame)
                    if not self._lost:
                        self._judge(judgement)
                    self._note(Heard(self._number, frame, len(frame.fds), judgement=judgement))
        except (ConnectionClosedError, FramingError, trio.ClosedResourceError):
            if channel is self._channel:
                self._performance.closed.append(self._number)
            gone.set()
            self._news.set()

    def _note(self, heard: Heard) -> None:
        self._performance.heard.append(heard)
        self._news.set()

    def _judge(self, judgement: Judgement) -> None:
        self._performance.breaches += [(self._number, breach) for breach in judgement.breaches]

    async def _end_connection(self, side: Side) -> None:
        if self._channel is None:
            return
        if side is Side.BACKEND:
            await self._wait_gone()
        channel, self._channel = self._channel, None
        channel.close()

    async def _wait_gone(self) -> None:
        with trio.move_on_after(self._patience):
            await self._gone.wait()

    # ---- the back-end's own channel ----------------------------------------------------------------------------------

    def _open_own_channel(self, said: Said) -> None:
        if said.request == FrontendRequest.SET_BACKEND_REQ_FD and said.fds and said.fds[0].kind is Kind.SOCKET:
            ours = self._props.other_end(said.fds[0].name)
            if ours is not None:
                self._nursery.start_soon(self._answer_back_end, ours)

    async def _answer_back_end(self, ours: OwnedFd) -> None:
        """Say yes to all that the back-end asks on its own channel."""
        async with Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=ours.detach()))) as channel:
            with suppress(VhostUserError):
                while True:
                    frame = await channel.receive()
                    with frame.fds:
                        self._note(Heard(self._number, frame, len(frame.fds), own_channel=True))
                        if frame.need_reply:
                            await channel.send(encode_ack(frame.request, 0))

    # ---- memory ------------------------------------------------------------------------------------------------------

    async def _write(self, wrote: Wrote) -> None:
        fd = self._props.named(wrote.memory)
        if fd is None:
            return
        if wrote.seconds:
            self._nursery.start_soon(trio.to_thread.run_sync, self._keep_writing, fd, wrote)
        else:
            _put(fd, wrote.data[0], wrote.offset)

    def _keep_writing(self, fd: int, wrote: Wrote) -> None:
        """Write one after the other, again and again, while the back-end reads; in a thread."""
        end = time.monotonic() + wrote.seconds
        while not self.over and time.monotonic() < end:
            for data in wrote.data:
                _put(fd, data, wrote.offset)


def _put(fd: int, data: bytes, offset: int) -> None:
    with suppress(OSError):  # a seal forbids growth
        os.pwrite(fd, data, offset)


def _signal(fd: int, other_end: OwnedFd | None) -> None:
    with suppress(OSError):  # full, or not for writing
        if other_end is not None:
            os.write(other_end.fileno(), b"\x01")
            other_end.close()
        else:
            os.write(fd, (1).to_bytes(8, "little"))

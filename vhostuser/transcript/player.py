"""Plays a front-end's part of a conversation to a live back-end, with fresh memory and descriptors.

Must not know: where entries come from, or what anybody makes of what came back.

How: entries are done in order. A message that has an answer coming is followed by a wait for it; what comes unasked is
heard all the same. An answer that does not come in time is missed; then a question that every back-end answers at any
time shows whether it still listens; the same question ends the play, so that nothing is missed. If it is not answered,
or the back-end no longer reads, the play ends there. Where the back-end closed, what was still to be said on that
connection is left out. Its own requests are answered as the front-end answered them in the conversation, and with a
yes where it did not.
"""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, VhostUserError
from vhostuser.fds import FdBundle, OwnedFd
from vhostuser.session.backend import Offer
from vhostuser.session.witness import Breach, Judgement, Witness
from vhostuser.transcript.descriptors import Props, describe
from vhostuser.transcript.entries import (
    Closed,
    Descriptor,
    Entry,
    Kind,
    Paused,
    Resized,
    Said,
    Saw,
    Side,
    Signalled,
    Wrote,
)
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import encode_ack
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.requests import BACKEND_REQUESTS, FrontendRequest, Reply

_LOOK = 0.001  # seconds between two looks into memory
QUESTION = Said(Side.FRONTEND, FrontendRequest.GET_FEATURES)
"""What every back-end answers at any time."""

Connect = Callable[[], Awaitable[Channel]]


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of the back-end.

    Attributes:
        after: Number of the entry after which it came.
        answers: Number of the entry that it answers; None if it answers none.
        frame: What it was; its descriptors are closed by now.
        fds: The descriptors that came with it.
        own_channel: Whether it came on the back-end's own channel.
        judgement: What the witness says of it; None on the back-end's own channel.
    """

    after: int
    frame: Frame
    fds: tuple[Descriptor, ...]
    own_channel: bool = False
    judgement: Judgement | None = None
    answers: int | None = None


@dataclass
class Performance:
    """How a play went.

    Attributes:
        heard: What the back-end said.
        breaches: Rules that were broken, each with the number of the entry after which.
        missed: Numbers of the entries whose answers did not come.
        closed: Numbers of the entries after which the back-end closed the connection, or said what is no message.
        hung: Number of the entry after which it neither answered nor closed; None if it always did.
        differing: Numbers of the entries whose memory was not found as it was seen.
        unreachable: Number of the entry for which there was no connection to be had; None if there always was.
        played: How many entries were done.
    """

    heard: list[Heard] = field(default_factory=list)
    breaches: list[tuple[int, Breach]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    hung: int | None = None
    differing: list[int] = field(default_factory=list)
    unreachable: int | None = None
    played: int = 0


async def play(
    entries: Sequence[Entry],
    connect: Connect,
    *,
    patience: float = 1.0,
    awaited: Callable[[int], bool] = lambda number: False,
    offer: Offer | None = None,
) -> Performance:
    """Play the front-end's part.

    Args:
        entries: The conversation; of what a back-end did in it, only where it closed the connection matters.
        connect: Opens a connection to the back-end; called for the first message, and for the next after each closing.
        patience: Seconds to wait for an answer, and for the connection to close where the transcript says so.
        awaited: Whether an answer to the entry of this number is waited for though the rules do not promise one.
        offer: What the back-end offers, where that is known: what it does not offer it refuses, often without a word.

    A play ends where `connect` raises a VhostUserError.

    Raises:
        OSError: there are no more descriptors to be had.
    """
    performance, failure = Performance(), None
    with Props() as props:
        async with trio.open_nursery() as nursery:
            stage = _Stage(nursery, props, connect, performance, patience, awaited, offer)
            try:
                await stage.play(entries)
            except OSError as error:
                failure = error  # raised out here it would be in a group
            finally:
                stage.close()
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
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
        offer: Offer | None,
    ) -> None:
        self._over = False  # threads look at it
        self._nursery = nursery
        self._props = props
        self._connect = connect
        self._performance = performance
        self._patience = patience
        self._awaited = awaited
        self._number = 0
        self._channel: Channel | None = None
        self._offer = offer
        self._witness = Witness(offer)
        self._numbers: list[int] = []  # of the entries that the witness was told of
        self._asking = False  # whether it still listens
        self._gone = trio.Event()  # this connection is no more
        self._lost = False  # the two sides do not agree any more where messages begin
        self._news = trio.Event()
        self._kept = ExitStack()
        self._own_answers: defaultdict[int, deque[Said]] = defaultdict(deque)

    async def play(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, Said) and entry.own_channel and entry.from_front_end:
                self._own_answers[entry.request].append(entry)
        for self._number, entry in enumerate(entries):
            await self._do(entry)
            if self._performance.unreachable is not None:
                return
            self._performance.played = self._number + 1
            if self._performance.hung is not None:
                return
        await self._settle()

    def close(self) -> None:
        self._over = True
        self._kept.close()
        if self._channel is not None:
            self._channel.close()

    async def _do(self, entry: Entry) -> None:
        match entry:
            case Said(side=Side.FRONTEND, own_channel=False):
                await self._say(entry)
            case Closed(side=side):
                await self._end_connection(side)
            case Wrote():
                self._write(entry)
            case Saw():
                await self._look(entry)
            case Resized(memory, size):
                self._props.resize(memory, size)
            case Signalled(name):
                self._props.signal(name)
            case Paused(seconds):
                await trio.sleep(seconds)

    # ---- messages ----------------------------------------------------------------------------------------------------

    async def _say(self, said: Said) -> None:
        channel = await self._connected()
        if channel is None or self._gone.is_set():
            return
        frame = said.frame(LentFds(self._descriptor(told, channel) for told in said.fds))
        self._lost = self._lost or not said.whole
        if not self._lost:
            self._ask(frame)
        if said.request == FrontendRequest.SET_BACKEND_REQ_FD:
            self._open_own_channel(said)
        heard = len(self._performance.heard)
        if not await self._send(channel, frame, said.pieces, said.cut):
            return
        awaited = self._awaited(self._number)
        if self._lost:
            return
        if (self._witness.unanswered or awaited) and not await self._answered(heard + awaited):
            self._performance.missed.append(self._number)
            await self._settle()
        elif self._witness.open:
            await self._settle()

    async def _connected(self) -> Channel | None:
        """The connection; a new one if there is none, None if there is none to be had."""
        if self._channel is None:
            try:
                self._channel = await self._connect()
            except VhostUserError:
                self._performance.unreachable = self._number
                return None
            self._witness, self._gone, self._lost, self._numbers = Witness(self._offer), trio.Event(), False, []
            self._nursery.start_soon(self._hear, self._channel, self._gone)
        return self._channel

    def _descriptor(self, told: Descriptor, channel: Channel) -> int:
        return channel.fileno() if told.kind is Kind.CONNECTION else self._props.of(told)

    async def _send(self, channel: Channel, frame: Frame, pieces: Sequence[int] = (), cut: int | None = None) -> bool:
        """Send a frame, in pieces or not to its end; False if the back-end is gone or does not read."""
        try:
            with trio.move_on_after(self._patience):
                await send_pieces(channel, frame.encode()[:cut], frame.fds, pieces)
                return True
        except (ConnectionClosedError, FramingError, trio.ClosedResourceError):
            await self._wait_gone()
            return False
        if not self._lost:
            self._performance.hung = self._number
        return False

    async def _answered(self, heard: int) -> bool:
        """Whether, in time, everything was answered and so much was heard, or the connection closed."""
        with trio.move_on_after(self._patience):
            while not self._gone.is_set() and (self._witness.unanswered or len(self._performance.heard) < heard):
                self._news = trio.Event()
                await self._news.wait()
            return True
        return False

    async def _settle(self) -> None:
        """Ask what is always answered: when the answer is there, so is all that was said before it."""
        if self._channel is None or self._lost or self._gone.is_set():
            return
        frame = QUESTION.frame()
        self._numbers.append(self._number)
        self._witness.request(frame)
        self._asking = True
        if await self._send(self._channel, frame) and not await self._answered(0):
            self._performance.hung = self._number
        self._asking = False

    async def _hear(self, channel: Channel, gone: trio.Event) -> None:
        """Everything that the back-end says on a connection."""
        try:
            while True:
                frame = await channel.receive()
                self._kept.callback(frame.fds.close)  # as a front-end keeps them: what depends on them goes on
                if self._channel not in (channel, None):
                    break  # it came before we left, and is heard only now: another witness is at work
                judgement = self._witness.reply(frame)
                if not self._lost:
                    self._judge(judgement, self._answered_entry(judgement))
                if not (self._asking and frame.request == QUESTION.request and not self._witness.unanswered):
                    self._note(frame, judgement)
                self._news.set()
        except ConnectionClosedError:
            self._performance.closed.append(self._number)
        except FramingError as error:
            self._performance.breaches.append((self._number, Breach(Side.BACKEND, error.rule, error.text)))
            self._performance.closed.append(self._number)
            channel.close()
        except trio.ClosedResourceError:
            pass
        gone.set()
        self._news.set()

    def _note(self, frame: Frame, judgement: Judgement | None = None, own_channel: bool = False) -> None:
        fds = tuple(describe(fd, f"answer {self._number}.{at}") for at, fd in enumerate(frame.fds.filenos()))
        answers = None if judgement is None else self._answered_entry(judgement)
        self._performance.heard.append(Heard(self._number, frame, fds, own_channel, judgement, answers))

    def _ask(self, frame: Frame) -> None:
        """Tell the witness of a request."""
        self._numbers.append(self._number)
        self._judge(self._witness.request(frame), self._number)

    def _answered_entry(self, judgement: Judgement) -> int | None:
        return None if judgement.number is None else self._numbers[judgement.number]

    def _judge(self, judgement: Judgement, number: int | None) -> None:
        at = self._number if number is None else number
        self._performance.breaches += [(at, breach) for breach in judgement.breaches]

    async def _end_connection(self, side: Side) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            if side is Side.BACKEND:
                await self._wait_gone()
            channel.close()

    async def _wait_gone(self) -> None:
        with trio.move_on_after(self._patience):
            await self._gone.wait()

    # ---- the back-end's own channel ----------------------------------------------------------------------------------

    def _open_own_channel(self, said: Said) -> None:
        ours = self._props.other_end(said.fds[0].name) if said.fds else None
        if ours is not None and said.fds[0].kind is Kind.SOCKET:
            self._nursery.start_soon(self._serve_back_end, ours)

    async def _serve_back_end(self, ours: OwnedFd) -> None:
        """Answer what the back-end asks on its own channel."""
        async with Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=ours.detach()))) as channel:
            with suppress(VhostUserError, OSError):  # it went away, or there are no descriptors for the answer
                while True:
                    frame = await channel.receive()
                    with frame.fds:
                        self._note(frame, own_channel=True)
                    self._news.set()
                    answer = self._own_answer(frame)
                    if answer is not None:
                        await channel.send(answer)

    def _own_answer(self, frame: Frame) -> Frame | None:
        if answers := self._own_answers[frame.request]:
            said = answers.popleft()
            return said.frame(LentFds(map(self._props.of, said.fds)))
        spec = BACKEND_REQUESTS.get(frame.request)
        own_reply = spec is not None and spec.reply is Reply.ALWAYS
        return encode_ack(frame.request, 0) if frame.need_reply or own_reply else None

    # ---- memory ------------------------------------------------------------------------------------------------------

    def _write(self, wrote: Wrote) -> None:
        fd = self._props.named(wrote.memory)
        if fd is None:
            return
        if wrote.seconds:
            self._nursery.start_soon(trio.to_thread.run_sync, self._keep_writing, fd, wrote)
        else:
            _put(fd, wrote.data[0], wrote.offset)

    async def _look(self, saw: Saw) -> None:
        """Wait until memory is as it was seen, as long as for an answer."""
        fd = self._props.named(saw.memory)
        with trio.move_on_after(self._patience):
            while fd is not None and os.pread(fd, len(saw.data), saw.offset) != saw.data:  # noqa: ASYNC110 - memory tells nobody
                await trio.sleep(_LOOK)
            if fd is not None:
                return
        self._performance.differing.append(self._number)

    def _keep_writing(self, fd: int, wrote: Wrote) -> None:
        """Write one after the other, again and again, while the back-end reads; in a thread."""
        end = time.monotonic() + wrote.seconds
        while not self._over and time.monotonic() < end:
            for data in wrote.data:
                _put(fd, data, wrote.offset)


def _put(fd: int, data: bytes, offset: int) -> None:
    with suppress(OSError):  # a seal forbids growth
        os.pwrite(fd, data, offset)


async def send_pieces(channel: Channel, data: bytes, fds: FdBundle, pieces: Sequence[int]) -> None:
    """Send bytes in pieces of these lengths; what is left follows in one. Raises as ``Channel.send_bytes`` does."""
    for length in (*pieces, len(data)):
        piece, data = data[:length], data[length:]
        if piece:
            await channel.send_bytes(piece, fds)
            fds = LentFds(())

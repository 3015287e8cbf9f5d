"""Plays a back-end's part of a conversation to a live front-end.

Must not know: where entries come from, or what anybody makes of what the front-end did.

How: a message of the front-end in the conversation is a cue. When the front-end says a message of that request, what
the back-end does next in the conversation is done, up to the next cue; whatever else the front-end says is answered as
a back-end does that carries everything out (``answers``). So is a cue, after what follows it, unless that holds a
message of the back-end on this channel or closes the connection: then it has this in place of its answer. A message of
which nothing is sent (``cut`` 0) is silence. A cue whose ``answer`` is told is answered well at once, before what
follows. So the k-th message of a request is the k-th cue of it, and a conversation of which only a part is left still
can be played.

Front-ends come again: what is left of the conversation goes on with the next connection. Where the front-end closed in
it, the end of what it has to say is waited for, by its leaving or by its silence.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.session.witness import Breach, Witness
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.descriptors import Props, can_be_channel
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Resized, Said, Side, Signalled, Wrote
from vhostuser.transcript.passed import Passed
from vhostuser.transcript.player import send_pieces
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import decode, decode_reply
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import BACKEND_REQUESTS, Direction

Accept = Callable[[], Awaitable[Channel]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A message of the front-end.

    Attributes:
        after: Number of the entry that was done last when it came, -1 for none; its own, if it was a cue.
        said: What it was, and when, in seconds since the connection began; its descriptors are not told.
        good: What a back-end answers that does as it is asked; None for nothing.
        cue: Whether the conversation had it.
    """

    after: int
    said: Said
    good: Said | None
    cue: bool


@dataclass(frozen=True, slots=True)
class _OwnRequest:
    """A request of the back-end's that was not answered yet.

    Attributes:
        number: Its entry's.
        request: What it is, by its number.
        error: Why it has to be refused, if it has to.
        due: Whether an answer is promised.
    """

    number: int
    request: int
    error: VhostUserError | None
    due: bool


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """What the front-end said on the back-end's own channel.

    Attributes:
        after: Number of the entry that was done last when it came.
        request: The request that it is about.
        value: The answer's value; None for what is no answer.
    """

    after: int
    request: int
    value: int | None


@dataclass
class Counterplay:
    """How a play went.

    Attributes:
        asked: What the front-end said.
        own_answers: What it said on the back-end's own channel.
        breaches: Rules that were broken, each with the number of the entry that was done last.
        own_breaches: Likewise, by the front-end on the back-end's own channel.
        missed: Numbers of the back-end's own requests that were not answered, though the front-end had the time.
        closed: Numbers of the entries after which the front-end closed the connection.
        unreachable: Number of the entry after which no front-end came; None if there always was one.
        played: How many entries were done.
    """

    asked: list[Asked] = field(default_factory=list)
    own_answers: list[OwnAnswer] = field(default_factory=list)
    breaches: list[tuple[int, Breach]] = field(default_factory=list)
    own_breaches: list[tuple[int, Breach]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    unreachable: int | None = None
    played: int = 0


async def play_back_end(entries: Sequence[Entry], accept: Accept, answers: Answers, *, quiet: float) -> Counterplay:
    """Play the back-end's part.

    Args:
        entries: The conversation.
        accept: Takes the front-end's next connection.
        answers: How what is not in the conversation is answered.
        quiet: Seconds without a message after which the front-end is taken to have nothing more to say.

    A play ends when the front-end is quiet, or closed the connection after the last entry or when nothing of them could
    be done on it, or where `accept` raises a VhostUserError. The connection is closed then.

    Raises:
        OSError: There are no more descriptors to be had.
    """
    counterplay = Counterplay()
    with Props() as props:
        part = _Part(entries, answers, props, counterplay, quiet)
        while True:
            try:
                channel = await accept()
            except VhostUserError:
                counterplay.unreachable = counterplay.played - 1
                return counterplay
            before = counterplay.played
            async with channel:
                goes_on = await part.serve(channel)
            if not goes_on or counterplay.played == before:
                return counterplay


def is_cue(entry: Entry) -> bool:
    """Whether an entry waits for a message of the front-end."""
    return isinstance(entry, Said) and entry.from_front_end and not entry.own_channel


class _Part:
    """A play under way.

    What has no underscore lasts as long as the play, the rest as long as a connection.
    """

    def __init__(
        self, entries: Sequence[Entry], answers: Answers, props: Props, counterplay: Counterplay, quiet: float
    ) -> None:
        self.entries = entries
        self.answers = answers
        self.props = props
        self.counterplay = counterplay
        self.quiet = quiet

    async def serve(self, channel: Channel) -> bool:
        """Play on one connection; whether there is something left for another one."""
        self._channel = channel
        self._begin = trio.current_time()
        self._witness = Witness()
        self._own: Channel | None = None
        self._own_asked: list[_OwnRequest] = []
        self.answers.connect()
        failure = None
        with Passed() as self._passed:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._converse()
                except OSError as error:
                    failure = error  # raised out here it would be in a group
                self._nursery.cancel_scope.cancel()
            channel.hang_up()  # it may have been passed to the front-end
            if self._own is not None:
                self._own.close()
        if failure is not None:
            raise failure
        return self._over and self.counterplay.played < len(self.entries)

    async def _converse(self) -> None:
        self._over = await self._act()
        while not self._over:
            with trio.move_on_after(self.quiet) as patience:
                try:
                    frame = await self._channel.receive()
                except (ConnectionClosedError, FramingError) as error:
                    self._left(error)
                    return
            if patience.cancelled_caught:
                self._end_quietly()
                return
            with frame.fds:
                self._over = await self._hear(frame)

    def _end_quietly(self) -> None:
        """The front-end has nothing more to say: that is as good as if it closed."""
        self.counterplay.missed += [own.number for own in self._own_asked if own.due]
        if isinstance(self._coming, Closed):
            self.counterplay.played += 1
            self._over = True

    def _left(self, error: VhostUserError) -> None:
        """The front-end closed, or said what is no message."""
        self._over = True
        if isinstance(error, FramingError):
            self._note_breaches((Breach(Side.FRONTEND, error.rule, error.text),))
        self.counterplay.closed.append(self._done)
        if isinstance(self._coming, Closed):
            self.counterplay.played += 1

    @property
    def _done(self) -> int:
        """Number of the entry that was done last."""
        return self.counterplay.played - 1

    @property
    def _coming(self) -> Entry | None:
        """The entry that is to be done next."""
        played = self.counterplay.played
        return self.entries[played] if played < len(self.entries) else None

    def _note_breaches(self, breaches: Sequence[Breach]) -> None:
        self.counterplay.breaches += [(self._done, breach) for breach in breaches]

    # ---- messages ----------------------------------------------------------------------------------------------------

    async def _hear(self, frame: Frame) -> bool:
        """Answer a message; whether the connection is to be closed."""
        breaches = self._witness.request(frame).breaches
        good = self.answers.to(frame)
        with suppress(VhostUserError):
            self._passed.take(decode(Direction.FRONTEND, frame))
        cue = self._coming
        if cue is None or not _is_cue_for(cue, frame):
            self._note(frame, good, breaches, cue=False)
            await self._say(good)
            return False
        assert isinstance(cue, Said)
        self.counterplay.played += 1
        self._note(frame, good, breaches, cue=True)
        if cue.answer:
            await self._say(good)
            return await self._act()
        instead = any(map(_is_instead, self._following()))
        over = await self._act()
        if not instead:
            await self._say(good)
        return over

    def _note(self, frame: Frame, good: Said | None, breaches: Sequence[Breach], *, cue: bool) -> None:
        said = Said(Side.FRONTEND, frame.request, frame.flags, frame.payload, time=trio.current_time() - self._begin)
        self.counterplay.asked.append(Asked(self._done, said, good, cue))
        self._note_breaches(breaches)

    async def _say(self, said: Said | None) -> None:
        """Say something on the front-end's channel; it may be gone."""
        if said is None or said.cut == 0:
            return
        frame = self._frame(said)
        self.answers.stick_to(said)
        if said.whole:
            self._note_breaches(self._witness.reply(frame).breaches)
        await _send(self._channel, said, frame)

    def _frame(self, said: Said) -> Frame:
        return said.frame(LentFds(map(self._descriptor, said.fds)))

    def _descriptor(self, told: Descriptor) -> int:
        return self._channel.fileno() if told.kind is Kind.CONNECTION else self.props.of(told)

    # ---- what the back-end does by itself ----------------------------------------------------------------------------

    def _following(self) -> Iterator[Entry]:
        """What is to be done before the front-end's next turn."""
        for entry in self.entries[self.counterplay.played :]:
            if is_turn(entry):
                return
            yield entry

    async def _act(self) -> bool:
        """Do that; whether the connection is to be closed."""
        for entry in list(self._following()):
            self.counterplay.played += 1
            match entry:
                case Closed():
                    return True
                case Said(side=Side.BACKEND, own_channel=True):
                    await self._ask(entry)
                case Said(side=Side.BACKEND):
                    await self._say(entry)
                case Wrote(seconds=0.0):
                    self._passed.write(entry.memory, entry.offset, entry.data[0])
                case Wrote():
                    self._nursery.start_soon(self._keep_writing, entry)
                case Resized(memory, size):
                    self.props.resize(memory, size)
                case Signalled(name):
                    self._passed.signal(name)
                case Paused(seconds):
                    await trio.sleep(seconds)
        return False

    async def _keep_writing(self, wrote: Wrote) -> None:
        """Write one after the other, again and again, while the front-end reads."""
        with trio.move_on_after(wrote.seconds):
            while True:
                for data in wrote.data:
                    self._passed.write(wrote.memory, wrote.offset, data)
                    await trio.lowlevel.checkpoint()

    # ---- its own channel ---------------------------------------------------------------------------------------------

    async def _ask(self, said: Said) -> None:
        """Ask the front-end something, if there is a channel for that."""
        if (fresh := self._passed.take_own_channel()) is not None:
            self._open_own(fresh)
        if self._own is None:
            return
        frame = self._frame(said)
        if said.whole:
            self._own_asked.append(self._own_request(frame))
        await _send(self._own, said, frame)

    def _own_request(self, frame: Frame) -> _OwnRequest:
        error = None
        try:
            self.answers.check_own(frame)
        except VhostUserError as wrong:
            error = wrong
        due = error is None and self.answers.is_answered(frame.flags)
        return _OwnRequest(self._done, frame.request, error, due)

    def _open_own(self, fd: OwnedFd) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None
        with fd:
            if not can_be_channel(fd.fileno()):
                return
            sock = trio.socket.from_stdlib_socket(socket.socket(fileno=fd.detach()))
        self._own = Channel(sock, self._channel.limits)
        self._own_asked.clear()
        self._nursery.start_soon(self._hear_own, self._own)

    async def _hear_own(self, channel: Channel) -> None:
        """All that the front-end says on a channel of ours."""
        with suppress(ConnectionClosedError, FramingError, trio.ClosedResourceError):
            while True:
                frame = await channel.receive()
                with frame.fds:
                    self._take_own_answer(frame)

    def _take_own_answer(self, frame: Frame) -> None:
        asked = next((own for own in self._own_asked if own.request == frame.request), None)
        spec, value = BACKEND_REQUESTS.get(frame.request), None
        try:
            if spec is not None and isinstance(payload := decode_reply(spec, frame), U64):
                value = payload.value
        except VhostUserError as error:
            self._note_own_breach(error, error.text)
        if asked is not None:
            self._own_asked.remove(asked)
            if value == 0 and spec is not None and asked.error is not None:
                self._note_own_breach(asked.error, f"{spec.name} was accepted: {asked.error.text}")
        self.counterplay.own_answers.append(OwnAnswer(self._done, frame.request, value))

    def _note_own_breach(self, error: VhostUserError, text: str) -> None:
        self.counterplay.own_breaches.append((self._done, Breach(Side.FRONTEND, error.rule, text)))


def is_turn(entry: Entry) -> bool:
    """Whether it is the front-end who has to do something."""
    return is_cue(entry) or (isinstance(entry, Closed) and entry.side is Side.FRONTEND)


def _is_cue_for(entry: Entry, frame: Frame) -> bool:
    return is_cue(entry) and isinstance(entry, Said) and entry.request == frame.request


def _is_instead(entry: Entry) -> bool:
    """Whether an entry takes the place of an answer."""
    return isinstance(entry, Closed) or (isinstance(entry, Said) and not entry.own_channel)


async def _send(channel: Channel, said: Said, frame: Frame) -> None:
    """Send a message, in pieces or not to its end; whoever should get it may be gone, or not read."""
    with suppress(ConnectionClosedError, FramingError, trio.ClosedResourceError):
        await send_pieces(channel, frame.encode()[: said.cut], frame.fds, said.pieces)

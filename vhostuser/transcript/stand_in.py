"""A stand-in for the back-end of a recording: it answers a live front-end as that one did.

Must not know: what anybody makes of what the front-end says.

How: for each message of the front-end the next one like it, of the same request and ring, is looked for in the
recording, and answered as there; what the back-end asked by itself after that follows on its own channel. A message
that the recording has no more is answered as the last one like it, and one that it never had as any back-end would
(``answers``): no front-end has to wait for ever. Rings are not served.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, VhostUserError
from vhostuser.session.backend import Offer
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.descriptors import Props, can_be_channel
from vhostuser.transcript.entries import Closed, Entry, Said, Side, Transcript
from vhostuser.transcript.exchanges import Exchange, Key, exchanges, is_traffic
from vhostuser.transcript.file import TranscriptError
from vhostuser.transcript.names import Names
from vhostuser.transcript.wording import ACK, kind_of
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Endpoint
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.requests import Direction, FrontendRequest

_EVERYTHING = (1 << 64) - 1  # until the recording tells
_ALL_RINGS = 256


class StandIn:
    """Plays a recording's back-end.

    Args:
        transcript: The recording.
        patience: Seconds that a front-end which came has to go on, or to come again.

    Attributes:
        heard: What the front-end said and did, as entries.
        came: Whether there was a front-end.

    Raises:
        TranscriptError: The recording has not what the back-end said.
    """

    def __init__(self, transcript: Transcript, patience: float = math.inf) -> None:
        if not any(isinstance(entry, Said) and not entry.from_front_end for entry in transcript.entries):
            raise TranscriptError("the recording has not what the back-end said, so nobody can play it")
        self.heard: list[Entry] = []
        self.came = False
        self._patience = patience
        self._parts = list(_parts(transcript.entries))

    async def serve(self, endpoint: Endpoint) -> None:
        """Play to the front-ends that come, until the recording is at its end or patience is.

        The first one is waited for however long it takes.
        """
        known = {exchange.key: exchange for part in self._parts for exchange in part.exchanges}
        answers = Answers(Offer(_EVERYTHING, ProtocolFeature(_EVERYTHING), _ALL_RINGS))
        with Names() as names, Props() as props:
            stage = _Stage(known, answers, names, props, self.heard, self._patience)
            for part in self._parts:
                channel = None
                with trio.move_on_after(self._patience if self.came else math.inf):
                    channel = await endpoint.next_channel()
                if channel is None:
                    return
                self.came = True
                answers.connect()
                async with channel:
                    if not await _Scene(stage, part, channel).play():
                        return


@dataclass(frozen=True)
class _Stage:
    """What lasts from one connection to the next.

    Attributes:
        known: The last exchange of each kind.
        answers: What is said where there is none.
        names: Of the descriptors that the front-end passes.
        props: What is passed to it.
        heard: What it said and did.
        patience: Seconds that it has to go on.
    """

    known: Mapping[Key, Exchange]
    answers: Answers
    names: Names
    props: Props
    heard: list[Entry]
    patience: float


class _Part:
    """What was said on one connection.

    Attributes:
        exchanges: The front-end's messages with their answers.
        own: What the back-end said on its own channel, after how many of these.
        closer: Who closed it.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.exchanges = exchanges(entries)
        self.closer = entries[-1].side if isinstance(entries[-1], Closed) else None
        self.own: list[tuple[int, Said]] = []
        asked = 0
        for entry in entries:
            if isinstance(entry, Said) and entry.from_front_end and not entry.own_channel:
                asked += 1
            elif isinstance(entry, Said) and entry.own_channel and not entry.from_front_end and not is_traffic(entry):
                self.own.append((asked, entry))


def _parts(entries: Sequence[Entry]) -> Iterator[_Part]:
    begin = 0
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, Closed) or number == len(entries):
            yield _Part(entries[begin:number])
            begin = number


class _Scene:
    """A connection of a live front-end."""

    def __init__(self, stage: _Stage, part: _Part, channel: Channel) -> None:
        self._stage = stage
        self._part = part
        self._channel = channel
        self._at = 0  # how many of the part's exchanges are over
        self._own: Channel | None = None

    async def play(self) -> bool:
        """Answer until one side closes, or the recording breaks off; False if the front-end falls silent before."""
        silent = False
        async with trio.open_nursery() as nursery:
            try:
                while self._part.closer is Side.FRONTEND or self._at < len(self._part.exchanges):
                    with trio.fail_after(self._stage.patience):
                        frame = await self._channel.receive()
                    with frame.fds:
                        await self._answer(frame, nursery)
            except trio.TooSlowError:
                silent = True
            except (ConnectionClosedError, FramingError):
                self._stage.heard.append(Closed(Side.FRONTEND))
            else:
                self._stage.heard.extend([Closed(Side.BACKEND)] if self._part.closer else [])
            if self._own is not None:
                self._own.close()
            nursery.cancel_scope.cancel()
        return not silent

    async def _answer(self, frame: Frame, nursery: trio.Nursery) -> None:
        said = self._said(frame)
        self._stage.heard.append(said)
        if said.request == FrontendRequest.SET_BACKEND_REQ_FD:
            self._open_own_channel(frame, nursery)
        for reply in self._replies(said, frame):
            await self._channel.send(reply)
        while self._own is not None and self._part.own and self._part.own[0][0] <= self._at:
            asked = self._part.own.pop(0)[1]
            self._stage.heard.append(asked)
            with suppress(VhostUserError):  # the front-end closed it
                await self._own.send(self._frame(asked))

    def _said(self, frame: Frame, own_channel: bool = False) -> Said:
        direction = Direction.BACKEND if own_channel else Direction.FRONTEND
        fds = self._stage.names.describe(direction, frame)
        return Said(Side.FRONTEND, frame.request, frame.flags, frame.payload, fds=fds, own_channel=own_channel)

    def _replies(self, said: Said, frame: Frame) -> Iterator[Frame]:
        """What is recorded, and where nothing is, what any back-end says; an acknowledgement if one is asked for."""
        other = self._stage.answers.to(frame)
        exchange = self._like(said)
        answers = exchange.answers if exchange is not None else ()
        recorded = [answer for answer in answers if frame.need_reply or kind_of(answer) != ACK]
        for answer in recorded or filter(None, [other]):
            self._stage.answers.stick_to(answer)
            yield self._frame(answer)

    def _like(self, said: Said) -> Exchange | None:
        """The recorded exchange that a message is answered by."""
        key = Exchange(0, said).key
        for at in range(self._at, len(self._part.exchanges)):
            if self._part.exchanges[at].key == key:
                self._at = at + 1
                return self._part.exchanges[at]
        return self._stage.known.get(key)

    def _frame(self, said: Said) -> Frame:
        return said.frame(LentFds(map(self._stage.props.of, said.fds)))

    def _open_own_channel(self, frame: Frame, nursery: trio.Nursery) -> None:
        if len(frame.fds) != 1 or not can_be_channel(*frame.fds.filenos()):
            return
        if self._own is not None:
            self._own.close()
        self._own = Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=frame.fds.take().detach())))
        nursery.start_soon(self._hear_own, self._own)

    async def _hear_own(self, channel: Channel) -> None:
        """What the front-end answers on the back-end's own channel."""
        with suppress(VhostUserError, trio.ClosedResourceError):
            while True:
                frame = await channel.receive()
                with frame.fds:
                    self._stage.heard.append(self._said(frame, own_channel=True))

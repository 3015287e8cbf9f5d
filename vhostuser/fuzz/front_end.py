"""A front-end under test: how its back-end is played, and what became of it.

Must not know: where conversations come from, what is done about findings.

What counts. A front-end has habits, learned while it was answered well. One that comes again when its back-end has left
has to do so, and to speak, whatever it was answered; one that ends has to end: else it hangs. Of one that just stays
nobody can tell. While it starts a front-end may end itself over a bad answer, or go on without a back-end: that is how
programs refuse. Once a ring has run it may do neither; it may never die by a signal or of an assertion.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from random import Random
from types import TracebackType
from typing import Self

import trio

from vhostuser.fuzz.leaks import leaks
from vhostuser.fuzz.target import UnreachableError
from vhostuser.fuzz.verdict import Examined, Finding, Trouble, of_breach, of_death, request_name
from vhostuser.peer.footprint import Footprint
from vhostuser.peer.program import Program
from vhostuser.session.backend import Offer
from vhostuser.session.witness import Breach, Side
from vhostuser.spec.statements import statements
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.counterpart import Asked, Counterplay, play_back_end
from vhostuser.transcript.entries import Closed, Entry
from vhostuser.transport.channel import Channel
from vhostuser.wire.features import ProtocolFeature as P
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.requests import FrontendRequest

OFFER = Offer(
    # what the first bits are depends on the device, VERSION_1 to IN_ORDER and those of the rings' layout do not
    (1 << 17) - 1 | 0b11 << 28 | VhostFeature.LOG_ALL | VhostFeature.PROTOCOL_FEATURES | 0b1101 << 32,
    P(0xFF_FFFF) & ~P.INBAND_NOTIFICATIONS & ~P.XEN_MMAP & ~P.GPA_ADDRESSES,
    64,
)
"""What a well-behaved back-end offers: all that does not change what everything else means."""

UNKNOWN = 10.0
"""Seconds of silence after which a conversation counts as over, and for whatever else, when nothing is known yet."""

_STARTING = 30.0  # seconds until a program connects
_DYING = 0.5  # seconds from the last sign of life to the end of a process that writes a core
_BUSY = 2.0  # seconds that one needs at most to come again, or to end, besides what it needed when nothing was wrong
_DUMPING = 2.0  # seconds more for the core of one that hangs
_COLD = 0.25  # of all targets are told something wrong from their first message on
_AT_ONCE = 0.1  # seconds that a busy machine may put between two messages that come at once
_MOST = 0.8  # of all messages of a conversation: what follows is not waited for
_SHALLOW = 6  # conversations in a row that do not get far, before a target is exchanged


class Parting(Enum):
    """What a front-end does when its back-end leaves."""

    RETURNS = "comes again"
    ENDS = "ends"
    STAYS = "stays"


@dataclass(frozen=True)
class Tempo:
    """How a conversation goes that is answered well.

    Attributes:
        silence: Seconds that may pass between two messages, until most have been said.
        messages: How many these are.
    """

    silence: float = UNKNOWN
    messages: int = 0

    @classmethod
    def of(cls, asked: Sequence[Asked]) -> Self:
        """That of one that went to its end."""
        times = [0.0, *(question.said.time for question in asked)]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        for silence in sorted(max(gap, _AT_ONCE) for gap in gaps):
            messages = next((at for at, gap in enumerate(gaps) if gap > silence), len(gaps))
            if messages >= _MOST * len(gaps):
                return cls(silence, messages)
        return cls()


@dataclass(frozen=True)
class Habits:
    """How a front-end is towards a back-end that does as it is asked.

    Attributes:
        parting: What it does when the back-end leaves.
        absence: Seconds until it has done that.
        first, later: How its first conversation goes, and those when it has come again.
        last_words: What is known of its end, if it ends.
        introduction: A conversation that it is answered well in, up to where most of it has been said.
    """

    parting: Parting = Parting.STAYS
    absence: float = 0.0
    first: Tempo = Tempo()
    later: Tempo = Tempo()
    last_words: str = ""
    introduction: tuple[Entry, ...] = ()


def introduction(asked: Sequence[Asked], messages: int) -> tuple[Entry, ...]:
    """A conversation that is answered well, and closed after so many of the messages that came."""
    if not messages:
        return ()
    cue = replace(asked[messages - 1].said, time=0.0)
    passed = sum(question.said.request == cue.request for question in asked[: messages - 1])
    return (*[cue] * passed, replace(cue, answer="reply"), Closed(Side.BACKEND))


class FrontEnd:
    """A front-end on which conversations are tried. Close it at the end.

    Args:
        program: Its program.
        arrive: Waits for its next connection.
        habits: How it is, as far as known.

    Attributes:
        habits: Those given.
    """

    def __init__(self, program: Program, arrive: Callable[[], Awaitable[Channel]], habits: Habits) -> None:
        self._program = program
        self._arrive = arrive
        self.habits = habits
        self._next: Channel | None = None  # it has said something that nobody has read
        self._came = False  # whether it ever came
        self._lost = False  # whether it did not come when it should have
        self._plays = 0
        self._ran = False  # whether a ring has run
        self._talk = deque[int](maxlen=_SHALLOW)

    @property
    def alive(self) -> bool:
        """Whether it runs, comes again, and still gets far in a conversation."""
        shallow = len(self._talk) == _SHALLOW and max(self._talk) <= self.habits.later.messages // 2
        returns = self._plays == 0 or (self.habits.parting is Parting.RETURNS and not self._lost)
        return self._program.alive and returns and not shallow

    async def why_silent(self) -> str:
        """Why it has said nothing, as far as that can be told."""
        if await self._program.ended(_DYING):
            return f"it ended before it said anything: {await self._program.death()}"
        return f"the front-end says nothing; it printed:\n{self._program.output}"

    async def introduce(self, random: Random) -> Footprint | None:
        """Mostly answer it well once; what it holds then. Else it is for the first conversation to begin."""
        return None if random.random() < _COLD else await self.settled()

    async def settled(self) -> Footprint | None:
        """What it holds when it has come again after it was answered well."""
        if self.habits.parting is not Parting.RETURNS:
            return None
        if self._plays == 0:
            await self.play(self.habits.introduction, self._quiet(0.0))
        if not await self._come(self.habits.absence + UNKNOWN):
            return None
        return await self._holds()

    async def _holds(self) -> Footprint | None:
        try:
            return await self._program.footprint()
        except OSError:
            return None

    def resident(self) -> int:
        """Bytes of memory that it has in use."""
        try:
            return self._program.resident
        except OSError:
            return 0

    async def play(self, entries: Sequence[Entry], quiet: float) -> Counterplay:
        """Play its back-end, until it is quiet for so many seconds."""
        counterplay = await play_back_end(entries, self._accept, Answers(OFFER), quiet=quiet)
        self._plays += 1
        kicked = any(question.said.request == FrontendRequest.SET_VRING_KICK for question in counterplay.asked)
        begun = not counterplay.closed or len(counterplay.asked) > self.habits.first.messages
        self._ran |= kicked and begun
        return counterplay

    def _quiet(self, patience: float) -> float:
        tempo = self.habits.later if self._plays else self.habits.first
        return max(patience, 2 * tempo.silence)

    async def examine(
        self, entries: Sequence[Entry], patience: float, before: Footprint | None = None
    ) -> Examined[Counterplay]:
        """Play its back-end and look what became of it."""
        counterplay = await self.play(entries, self._quiet(patience))
        self._talk.append(len(counterplay.asked))
        findings = [*_broken_rules(entries, counterplay)]
        fatal = await self._fate(entries, counterplay, _BUSY + 10 * self.habits.absence + 2 * patience)
        if fatal is not None:
            return Examined(counterplay, (fatal, *findings))
        if before is not None:
            findings += await leaks(before, self._now, self._holds)
        return Examined(counterplay, tuple(findings))

    # ---- its comings and goings --------------------------------------------------------------------------------------

    async def part(self, within: float) -> tuple[Parting, float, str]:
        """What it does within so many seconds now that its back-end has left, after how many, and its last words."""
        begin = trio.current_time()
        if await self._come(within):
            return Parting.RETURNS, trio.current_time() - begin, ""
        if not self._program.alive:
            return Parting.ENDS, trio.current_time() - begin, of_death(await self._program.death(), 0).signature
        return Parting.STAYS, within, ""

    async def _accept(self) -> Channel:
        """Its next connection. Raises UnreachableError."""
        within = 3 * self.habits.absence + 1.0 if self._came else _STARTING
        if not await self._come(within):
            raise UnreachableError(f"no front-end comes within {within:g} s")
        assert self._next is not None
        channel, self._next, self._came = self._next, None, True
        return channel

    async def _come(self, within: float) -> bool:
        """Whether it comes within so many seconds, and says something or is gone again; not if it ends before."""
        if self._next is not None:
            return True
        spoke = False
        with trio.move_on_after(within):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_its_end, nursery.cancel_scope)
                self._next = await self._arrive()
                await trio.lowlevel.wait_readable(self._next.fileno())
                spoke = True
                nursery.cancel_scope.cancel()
        if not spoke:
            self.close()
        return spoke

    async def _until_its_end(self, scope: trio.CancelScope) -> None:
        await self._program.ended(math.inf)
        scope.cancel()

    def close(self) -> None:
        """Close the connection that nobody served."""
        if self._next is not None:
            self._next.close()
            self._next = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what became of it -------------------------------------------------------------------------------------------

    async def _fate(self, entries: Sequence[Entry], counterplay: Counterplay, within: float) -> Finding | None:
        """Whether it keeps to its habits, and what happened to it if not."""
        if await self._is_well(within):
            return None
        self._lost, last = True, max(counterplay.played - 1, 0)
        if not await self._program.ended(_DYING):
            told = f"after {request_name(entries, last)} it no longer {self.habits.parting.value} within {within:g} s"
            return await self._hang(told, last) if self._ran else None
        finding = of_death(await self._program.death(), last)
        orderly = finding.signature == self.habits.last_words or not self._ran
        return None if orderly and finding.trouble is Trouble.EXIT else finding

    async def _hang(self, told: str, last: int) -> Finding:
        """That it lives and does not keep to its habits; where its first thread is tells one hang from another."""
        death = await self._program.aborted(_DYING + _DUMPING)
        place = death.frames[0] if death is not None and death.frames else "a place unknown"
        return Finding(Trouble.HANG, f"in {place}", f"{told}\n{death or ''}".rstrip(), last)

    async def _is_well(self, within: float) -> bool:
        match self.habits.parting:
            case Parting.RETURNS:
                return await self._come(within)
            case Parting.ENDS:
                await self._program.ended(within)
                return False  # how it ended is still to be seen
            case Parting.STAYS:
                return not await self._program.ended(_DYING)

    def _now(self) -> Footprint | None:
        try:
            return Footprint.of(self._program.pid)
        except OSError:
            return None


def _broken_rules(entries: Sequence[Entry], counterplay: Counterplay) -> list[Finding]:
    """The rules of the specification that the front-end broke, each once.

    Of its requests only the first counts that breaks one, and that only as long as the back-end broke none: afterwards
    the two need not agree on what was asked, answered and acknowledged.
    """
    found = [of_breach(breach, number, Trouble.WRONG_REQUEST) for number, breach in counterplay.breaches[:1]
             if breach.blame is Side.FRONTEND and _is_must(breach)]  # fmt: skip
    found += [of_breach(breach, number, Trouble.WRONG_REPLY) for number, breach in counterplay.own_breaches
              if _is_must(breach)]  # fmt: skip
    findings = {finding.name: finding for finding in reversed(found)}
    for number in counterplay.missed:
        signature = f"no answer to {request_name(entries, number)}"
        findings.setdefault(signature, Finding(Trouble.WRONG_REPLY, signature, signature, number))
    return list(findings.values())


def _is_must(breach: Breach) -> bool:
    """Whether the specification itself says so."""
    return breach.rule is not None and statements()[breach.rule].kind == "must"

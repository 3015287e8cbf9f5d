"""Back-ends as what a campaign is aimed at: what is said to them, and what became of them.

Must not know: what is done about findings.

How: conversations are courses (``course``), spliced and broken; the model of the session says what each message of them
meant. A back-end is well if a next front-end is served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.avoidance import Avoidance
from vhostuser.fuzz.breaking import broken
from vhostuser.fuzz.course import Course
from vhostuser.fuzz.leaks import leaks
from vhostuser.fuzz.model import Known
from vhostuser.fuzz.reached import Reached
from vhostuser.fuzz.target import Range, Target
from vhostuser.fuzz.verdict import Examined, Finding, Trouble, is_open, of_breach, of_death, request_name
from vhostuser.peer.footprint import Footprint
from vhostuser.session.backend import Offer
from vhostuser.session.witness import ALL_RINGS, Side
from vhostuser.transcript.entries import Entry, Transcript
from vhostuser.transcript.player import Performance, play
from vhostuser.wire.codec import encode
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import Direction, FrontendRequest

_DYING = 0.5  # seconds from the last sign of life to the end of a process that writes a core
_NOBODY = Known(0, 0, 0)


class BackEnds:
    """Where back-ends come from, and what is said to them.

    Args:
        targets: Where they come from.
    """

    plural = "back-ends"
    trials = 200
    introduction: tuple[Entry, ...] = ()

    def __init__(self, targets: Range) -> None:
        self._targets = targets
        self._known = _NOBODY
        self._avoidance = Avoidance(_NOBODY)
        self.reached = Reached()

    async def ask(self) -> None:
        """Learn what a back-end offers. Raises VhostUserError if it does not say so."""
        async with self._targets.target() as target:
            features = await target.features()
            if features is None:
                raise VhostUserError("the target does not answer GET_FEATURES")
            protocol = await target.features(FrontendRequest.GET_PROTOCOL_FEATURES) or 0
            # some tell pairs and some tell rings; twice as many as the one are enough for the other
            queues = U64(protocol & ProtocolFeature.MQ)
            first = encode(Direction.FRONTEND, FrontendRequest.SET_PROTOCOL_FEATURES, queues)
            rings = await target.features(FrontendRequest.GET_QUEUE_NUM, [first])
        self._known = Known(features, protocol, 2 * min(max(rings or 1, 1), 128))
        self._avoidance = Avoidance(self._known)

    @asynccontextmanager
    async def target(self) -> AsyncIterator[BackEnd]:
        """A back-end, alive at first. Raises ProgramError if it cannot be started."""
        async with self._targets.target() as target:
            # how many rings there are is asked in the conversation, or not known: not all devices tell
            yield BackEnd(target, replace(self._known.offer(), vrings=ALL_RINGS))

    def conversation(self, random: Random, kept: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]:
        """A course, or two halves of what was kept; mostly broken."""
        match random.random():
            case luck if luck < 0.25 and kept:
                entries = _spliced(random, random.choice(kept), random.choice(kept))
            case _:
                entries = tuple(Course(random, self._known, self.reached.rarity).entries())
        if random.random() < 0.75:
            entries = broken(random, entries)
        return self._avoidance.spared(random, entries)

    def learn(self, entries: tuple[Entry, ...], examined: Examined[Performance]) -> set[tuple[object, ...]]:
        """Count where a conversation has been."""
        return self.reached.add(self._known, entries, examined.performance)

    def avoid(self, entries: Sequence[Entry]) -> None:
        """Mostly leave out the last message of this conversation."""
        self._avoidance.learn(entries)

    def transcript(self, entries: tuple[Entry, ...], scene: str = "") -> Transcript:
        """A conversation as a transcript."""
        return Transcript(entries, front_end="vhostuser fuzz", scene=scene)


class BackEnd:
    """A back-end on which conversations are tried.

    Args:
        target: The back-end.
        offer: What it said that it offers.
    """

    def __init__(self, target: Target, offer: Offer) -> None:
        self._target = target
        self._offer = offer

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as can be told."""
        return self._target.alive

    async def introduce(self, random: Random) -> Footprint | None:
        """What it holds before the first conversation."""
        return await self.settled()

    async def settled(self) -> Footprint | None:
        """What it holds once it has served somebody."""
        await self._target.serves()
        return await self._target.settled()

    def resident(self) -> int:
        """Bytes of memory that it has in use."""
        return self._target.resident()

    async def examine(
        self, entries: Sequence[Entry], patience: float, before: Footprint | None = None
    ) -> Examined[Performance]:
        """Say it and look what became of the back-end."""
        performance = await play(entries, self._target.connect, patience=patience, offer=self._offer)
        findings = [*_replies(entries, performance)]
        fatal = await self._fate(entries, performance)
        if fatal is not None:
            return Examined(performance, (fatal, *findings))
        if before is not None:
            findings += await leaks(before, self._target.footprint, self._target.settled)
        return Examined(performance, tuple(findings))

    async def _fate(self, entries: Sequence[Entry], performance: Performance) -> Finding | None:
        """Whether it still serves, and what happened to it if not."""
        last = performance.hung if performance.hung is not None else max(performance.played - 1, 0)
        asked = request_name(entries, last)
        if performance.hung is None and await self._target.serves():
            return None
        death = await self._target.death(_DYING)
        if death is not None:
            # a core takes its time: what follows the fatal message may still have been sent
            return of_death(death, (performance.closed or [last])[-1])
        if performance.hung is not None:
            return Finding(Trouble.HANG, f"after {asked}", "it neither answers nor closes the connection", last)
        return Finding(Trouble.STARVED, f"after {asked}", "the next front-end is not served", last)


def _replies(entries: Sequence[Entry], performance: Performance) -> list[Finding]:
    """The rules that its answers broke, each once."""
    findings: dict[str, Finding] = {}
    for number, breach in performance.breaches:
        if breach.blame is Side.BACKEND and not is_open(breach.rule):
            finding = of_breach(breach, number, Trouble.WRONG_REPLY)
            findings.setdefault(finding.name, finding)
    for number in performance.missed:
        if performance.hung is None and not performance.closed:
            signature = f"no answer to {request_name(entries, number)}"
            findings.setdefault(signature, Finding(Trouble.WRONG_REPLY, signature, signature, number))
    return list(findings.values())


def _spliced(random: Random, one: tuple[Entry, ...], other: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The beginning of one conversation and the end of another."""
    return (*one[: random.randint(1, len(one))], *other[random.randrange(len(other)) :])

"""A campaign: conversations for as long as was asked for, and of each finding the smallest one that shows it.

Must not know: what findings look like on a screen.

How: each worker has a target, and a stream of chance that the seed and its number determine. It makes a conversation,
tries it, and keeps it if it did something new. A finding is made smaller (``establish``); the messages that lead to it
are then mostly left out, so that the search gets further.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import trio

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.avoidance import Avoidance
from vhostuser.fuzz.breaking import broken
from vhostuser.fuzz.corpus import Corpus
from vhostuser.fuzz.course import Course
from vhostuser.fuzz.establish import CONFIRMATIONS, Found, establish, settled
from vhostuser.fuzz.memory import MemoryWatch
from vhostuser.fuzz.model import Known
from vhostuser.fuzz.reached import Reached
from vhostuser.fuzz.target import Range, Target
from vhostuser.fuzz.verdict import Examined, Finding, Trouble, examine
from vhostuser.transcript.entries import Entry, Transcript
from vhostuser.transcript.file import save
from vhostuser.wire.requests import FrontendRequest

_REMEMBERED = 6  # conversations on one target that a finding may depend on
_ATTEMPTS = 3  # to show a finding again, each with the conversation that met it
_LIFE = 2000  # conversations until a target is exchanged for a fresh one


@dataclass(frozen=True)
class Settings:
    """What a campaign is told.

    Attributes:
        duration: Seconds.
        seed: Of all chance.
        workers: Targets at the same time.
        patience: Seconds to wait for an answer, in the search.
        corpus: Folder of conversations that are worth another try.
        findings: Folder for transcripts of what was found.
    """

    duration: float
    seed: int = 0
    workers: int = 1
    patience: float = 0.5
    corpus: Path | None = None
    findings: Path | None = None


@dataclass
class Progress:
    """How far a campaign has come.

    Attributes:
        conversations: How many were tried.
        messages: How many messages were said in them.
        targets: How many targets were used.
        found: What was found, by name.
        reached: Where it has been.
        corpus: How many conversations are kept.
    """

    conversations: int = 0
    messages: int = 0
    targets: int = 0
    found: dict[str, Found] = field(default_factory=dict)
    reached: Reached = field(default_factory=Reached)
    corpus: int = 0


class Campaign:
    """One run of the fuzzer.

    Args:
        targets: Where targets come from.
        settings: What it is told.
        news: Called after each conversation, and when something was found.
    """

    def __init__(
        self, targets: Range, settings: Settings, news: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self._targets = targets
        self._settings = settings
        self._news = news
        self._end = 0.0
        self._begin = 0.0
        self.progress = Progress()

    async def run(self) -> Progress:
        """Fuzz until the time is over, and finish with what was found by then.

        Raises:
            VhostUserError: the target cannot be started, or does not say what it offers.
        """
        async with self._targets.target() as target:
            known = await _ask(target)
        self._begin = time.monotonic()
        self._end = self._begin + self._settings.duration
        corpus = Corpus(self._settings.corpus)
        if self._settings.findings is not None:
            self._settings.findings.mkdir(parents=True, exist_ok=True)
        avoidance = Avoidance(known)
        async with trio.open_nursery() as nursery:
            for number in range(self._settings.workers):
                worker = _Worker(self, known, corpus, avoidance, number)
                nursery.start_soon(worker.run)
        return self.progress

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() >= self._end

    def count(self, known: Known, entries: Sequence[Entry], examined: Examined) -> set[tuple[object, ...]]:
        """Count a conversation that was tried, and tell what it did."""
        self.progress.conversations += 1
        self.progress.messages += examined.performance.played
        self._news(self.progress)
        return self.progress.reached.add(known, entries, examined.performance)

    def claim(self, finding: Finding, entries: tuple[Entry, ...]) -> Found | None:
        """A finding that is new belongs to whoever's asks first; so does one that has not shown again yet.

        None for what is known, or was tried often enough.
        """
        found = self.progress.found.get(finding.name)
        if found is None:
            found = Found(finding, entries, seconds=time.monotonic() - self._begin)
            self.progress.found[finding.name] = found
            self._news(self.progress)
            return found
        found.seen += 1
        if found.busy or found.confirmed == CONFIRMATIONS or found.attempts == _ATTEMPTS:
            return None
        found.finding, found.entries = finding, entries
        return found

    async def establish(self, found: Found, before: Sequence[tuple[Entry, ...]]) -> None:
        """Make the conversation that shows a finding as small as can be, show it again, and keep it."""
        await establish(found, self._targets, self._settings.patience, before)
        if self._settings.findings is not None:
            found.path = self._settings.findings / f"{_file_name(found.finding)}.jsonl"
            save(Transcript(found.entries, "vhostuser fuzz", scene=found.finding.name), found.path)
        self._news(self.progress)


class _Worker:
    """One target after the other, and what is learned from them."""

    def __init__(self, campaign: Campaign, known: Known, corpus: Corpus, avoidance: Avoidance, number: int) -> None:
        self._campaign = campaign
        self._known = known
        self._corpus = corpus
        self._avoidance = avoidance
        self._numbers = count()
        self._name = f"{campaign._settings.seed}/{number}"
        self._seen: set[tuple[object, ...]] = set()

    async def run(self) -> None:
        while not self._campaign.over:
            async with self._campaign._targets.target() as target:
                self._campaign.progress.targets += 1
                await self._use(target)

    async def _use(self, target: Target) -> None:
        """Try conversations on a target until it is of no use, or old."""
        before = await settled(target)
        watch = MemoryWatch(target)
        last: deque[tuple[Entry, ...]] = deque(maxlen=_REMEMBERED)
        for _ in range(_LIFE):
            if self._campaign.over:
                return
            entries = self._next(Random(f"{self._name}/{next(self._numbers)}"))
            examined = await examine(entries, target, self._campaign._settings.patience, before)
            watch.note(entries)
            self._learn(entries, examined)
            leaked = any(finding.trouble is Trouble.FD_LEAK for finding in examined.findings)
            await self._establish(examined.findings, entries, list(last))
            if examined.fatal or leaked:
                return
            last.append(entries)
        suspects = [Finding(Trouble.MEMORY_LEAK, name, detail) for name, detail in watch.suspects()]
        for suspect, entries in zip(suspects, watch.worst(), strict=False):
            await self._establish((suspect,), entries, [])

    def _next(self, random: Random) -> tuple[Entry, ...]:
        """The next conversation."""
        kept = self._corpus.conversations
        match random.random():
            case luck if luck < 0.25 and kept:
                entries = _spliced(random, random.choice(kept), random.choice(kept))
            case _:
                entries = tuple(Course(random, self._known, self._campaign.progress.reached.rarity).entries())
        if random.random() < 0.75:
            entries = broken(random, entries)
        return self._avoidance.spared(random, entries)

    def _learn(self, entries: tuple[Entry, ...], examined: Examined) -> None:
        behaviour = self._campaign.count(self._known, entries, examined)
        if behaviour - self._seen and not examined.fatal:
            self._corpus.add(entries)
            self._campaign.progress.corpus = len(self._corpus.conversations)
        self._seen |= behaviour

    async def _establish(
        self, findings: Sequence[Finding], entries: tuple[Entry, ...], before: list[tuple[Entry, ...]]
    ) -> None:
        for finding in findings:
            found = self._campaign.claim(finding, entries)
            if found is not None:
                await self._campaign.establish(found, before)
                self._avoidance.learn(found.entries)


async def _ask(target: Target) -> Known:
    """What a target offers. Raises VhostUserError if it does not say so."""
    features = await target.features()
    if features is None:
        raise VhostUserError("the target does not answer GET_FEATURES")
    protocol = await target.features(FrontendRequest.GET_PROTOCOL_FEATURES) or 0
    # some tell pairs and some tell rings; twice as many as the one are enough for the other
    rings = await target.features(FrontendRequest.GET_QUEUE_NUM)
    return Known(features, protocol, 2 * min(max(rings or 1, 1), 128))


def _spliced(random: Random, one: tuple[Entry, ...], other: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The beginning of one conversation and the end of another."""
    return (*one[: random.randint(1, len(one))], *other[random.randrange(len(other)) :])


def _file_name(finding: Finding) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in finding.name)[:100].strip("-")

"""A campaign: conversations for as long as was asked for, and of each finding the smallest one that shows it.

Must not know: what findings look like on a screen.

How: each worker has a target, and a stream of chance that the seed and its number determine. It has a conversation
made, tries it, and keeps it if it did something new. A finding is made smaller (``establish``); what leads to it is
then mostly left out, so that the search gets further.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import trio

from vhostuser.fuzz.aim import Aim, Subject
from vhostuser.fuzz.corpus import Corpus
from vhostuser.fuzz.establish import CONFIRMATIONS, Found, establish
from vhostuser.fuzz.memory import MemoryWatch
from vhostuser.fuzz.reached import Map
from vhostuser.fuzz.verdict import Examined, Finding, Trouble
from vhostuser.transcript.entries import Entry
from vhostuser.transcript.file import save

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
        conversations: How many, at most.
    """

    duration: float
    seed: int = 0
    workers: int = 1
    patience: float = 0.5
    corpus: Path | None = None
    findings: Path | None = None
    conversations: float = math.inf


@dataclass
class Progress:
    """How far a campaign has come.

    Attributes:
        plural: What targets are.
        reached: Where it has been.
        conversations: How many were tried.
        messages: How many messages were said in them.
        targets: How many targets were used.
        found: What was found, by name.
        corpus: How many conversations are kept.
    """

    plural: str
    reached: Map
    conversations: int = 0
    messages: int = 0
    targets: int = 0
    found: dict[str, Found] = field(default_factory=dict)
    corpus: int = 0


class Campaign:
    """One run of the fuzzer.

    Args:
        aim: Where targets come from, and what is said to them.
        settings: What it is told.
        news: Called after each conversation, and when something was found.
    """

    def __init__(
        self, aim: Aim[Any], settings: Settings, news: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        self._aim = aim
        self._settings = settings
        self._news = news
        self._end = 0.0
        self._begin = 0.0
        self.progress = Progress(aim.plural, aim.reached)

    async def run(self) -> Progress:
        """Fuzz until the time is over, and finish with what was found by then.

        Raises:
            VhostUserError: the target cannot be started, or does not say what it offers.
        """
        await self._aim.ask()
        self._begin = time.monotonic()
        self._end = self._begin + self._settings.duration
        corpus = Corpus(self._settings.corpus, self._aim.transcript)
        if self._settings.findings is not None:
            self._settings.findings.mkdir(parents=True, exist_ok=True)
        async with trio.open_nursery() as nursery:
            for number in range(self._settings.workers):
                nursery.start_soon(_Worker(self, self._aim, self._settings, corpus, number).run)
        return self.progress

    @property
    def over(self) -> bool:
        """Whether the time is, or as many conversations were tried as there may be."""
        return time.monotonic() >= self._end or self.progress.conversations >= self._settings.conversations

    def stop(self) -> None:
        """Let the time be over."""
        self._end = time.monotonic()

    def count(self, entries: tuple[Entry, ...], examined: Examined[Any]) -> set[tuple[object, ...]]:
        """Count a conversation that was tried, and tell what it did."""
        self.progress.conversations += 1
        self.progress.messages += examined.performance.played
        self._news(self.progress)
        return self._aim.learn(entries, examined)

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
        try:
            await establish(found, self._aim, self._settings.patience, before)
        finally:  # whoever ends the campaign meanwhile has the conversation as it was met
            self._keep(found)
        self._news(self.progress)

    def _keep(self, found: Found) -> None:
        if self._settings.findings is not None:
            path = self._settings.findings / f"{_file_name(found.finding)}.jsonl"
            save(self._aim.transcript(found.entries, found.finding.name), path)
            found.path = path


class _Worker:
    """One target after the other, and what is learned from them."""

    def __init__(self, campaign: Campaign, aim: Aim[Any], settings: Settings, corpus: Corpus, number: int) -> None:
        self._campaign = campaign
        self._aim = aim
        self._patience = settings.patience
        self._corpus = corpus
        self._numbers = count()
        self._name = f"{settings.seed}/{number}"
        self._seen: set[tuple[object, ...]] = set()

    async def run(self) -> None:
        while not self._campaign.over:
            async with self._aim.target() as target:
                self._campaign.progress.targets += 1
                await self._use(target)

    async def _use(self, target: Subject[Any]) -> None:
        """Try conversations on a target until it is of no use, or old."""
        before = await target.introduce(self._chance())
        watch = MemoryWatch(target)
        last = deque[tuple[Entry, ...]](maxlen=_REMEMBERED)
        for _ in range(_LIFE):
            if self._campaign.over:
                return
            if not target.alive:
                break
            entries = self._aim.conversation(self._chance(), self._corpus.conversations)
            examined = await target.examine(entries, self._patience, before)
            watch.note(entries)
            self._learn(entries, examined)
            leaked = any(finding.trouble is Trouble.FD_LEAK for finding in examined.findings)
            await self._establish(examined.findings, entries, [self._aim.introduction, *last])
            if examined.fatal or leaked:
                return
            last.append(entries)
        suspects = [Finding(Trouble.MEMORY_LEAK, name, detail) for name, detail in watch.suspects()]
        for suspect, entries in zip(suspects, watch.worst(), strict=False):
            await self._establish((suspect,), entries, [])

    def _chance(self) -> Random:
        """What decides next; nothing that happened before changes it."""
        return Random(f"{self._name}/{next(self._numbers)}")

    def _learn(self, entries: tuple[Entry, ...], examined: Examined[Any]) -> None:
        behaviour = self._campaign.count(entries, examined)
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
                self._aim.avoid(found.entries)


def _file_name(finding: Finding) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in finding.name)[:100].strip("-")

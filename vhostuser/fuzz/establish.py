"""From something that happened once to a finding: shown again, as small as can be, three times out of three.

Must not know: how conversations are made, campaigns.

How: what ends a target or stays in it needs a fresh one for each trial; what only draws a bad answer is tried on one
target all the time, which is faster. Minimising has the patience of the search; the last trials have more. What does
not show alone is tried again behind the conversations that came before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.aim import Aim, Subject
from vhostuser.fuzz.memory import MemoryWatch
from vhostuser.fuzz.minimise import minimise
from vhostuser.fuzz.verdict import DEADLY, FATAL, Finding, Trouble
from vhostuser.peer.footprint import Footprint
from vhostuser.transcript.entries import Closed, Entry

CONFIRMATIONS = 3
"""How often a finding has to show at the end, of as many times."""

_PATIENT = 8  # times the patience of the search
_FEWER_TRIALS = 40
_GROWING = frozenset({Trouble.FD_LEAK, Trouble.MEMORY_LEAK})


@dataclass
class Found:
    """A finding, and the conversation that shows it.

    Attributes:
        finding: What happened.
        entries: The smallest conversation that shows it.
        confirmed: How often it showed when it was tried again at the end.
        attempts: How often it was tried to make it small.
        seen: How often the search met it.
        seconds: When, since the beginning of the search.
        path: Where its transcript is.
        busy: Whether it is being made small right now.
    """

    finding: Finding
    entries: tuple[Entry, ...]
    confirmed: int = 0
    attempts: int = 0
    seen: int = 1
    seconds: float = 0.0
    path: Path | None = None
    busy: bool = False

    @property
    def certain(self) -> bool:
        """Whether it is more than a suspicion: it showed again, or the target died. Else time may have been short."""
        return self.confirmed > 0 or self.finding.trouble in DEADLY


async def establish(found: Found, aim: Aim[Any], patience: float, before: Sequence[tuple[Entry, ...]]) -> None:
    """Make the conversation that shows a finding as small as can be, and show it again.

    Args:
        found: What the search met; its conversation and its confirmations are changed.
        aim: Where targets come from.
        patience: Seconds to wait for an answer while it is made smaller.
        before: The conversations that the target had before: the one by which it was made ready, then the latest.
    """
    found.confirmed, found.busy = 0, True
    found.attempts += 1
    try:
        async with _trials(aim, found.finding, patience) as shows:
            whole = await _reproduced(shows, found, before)
            if whole is None:
                return
            trials = min(_FEWER_TRIALS, aim.trials) if found.finding.trouble in _GROWING else aim.trials
            found.entries = await minimise(whole, shows, trials=trials)
        found.confirmed = await confirm(found.finding, found.entries, aim, _PATIENT * patience)
    finally:
        found.busy = False


async def confirm(finding: Finding, entries: tuple[Entry, ...], aim: Aim[Any], patience: float) -> int:
    """How many times of :data:`CONFIRMATIONS` a conversation shows a finding."""
    async with _trials(aim, finding, patience) as shows:
        return sum([await shows(entries) for _ in range(CONFIRMATIONS)])


async def _reproduced(shows: _Trials, found: Found, before: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...] | None:
    """A conversation that shows it again: its begin, the whole one, or one behind the first or all of those before."""
    entries, at = found.entries, found.finding.entry
    begin = entries if at is None else entries[: at + 1]
    for candidate in dict.fromkeys((begin, entries, _joined([*before[:1], entries]), _joined([*before, entries]))):
        if await shows(candidate):
            return candidate
    return None


def _joined(conversations: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]:
    """One after the other, each on a connection of its own."""
    joined: tuple[Entry, ...] = ()
    for conversation in conversations:
        ended = not joined or isinstance(joined[-1], Closed)
        joined = (*joined, *conversation) if ended else (*joined, Closed(), *conversation)
    return joined


@asynccontextmanager
async def _trials(aim: Aim[Any], finding: Finding, patience: float) -> AsyncIterator[_Trials]:
    async with AsyncExitStack() as stack:
        yield _Trials(aim, finding, patience, stack)


class _Trials:
    """Whether conversations show a finding."""

    def __init__(self, aim: Aim[Any], finding: Finding, patience: float, stack: AsyncExitStack) -> None:
        self._aim = aim
        self._finding = finding
        self._patience = patience
        self._stack = stack
        self._target: Subject[Any] | None = None

    async def __call__(self, entries: tuple[Entry, ...]) -> bool:
        """Whether this one does. A target that cannot be started shows nothing."""
        try:
            if self._finding.trouble in FATAL | _GROWING:
                async with self._aim.target() as target:
                    return await self._shows(target, entries)
            return await self._shows(await self._lasting(), entries)
        except VhostUserError:
            return False

    async def _lasting(self) -> Subject[Any]:
        """A target that has not been spoiled yet."""
        if self._target is None or not self._target.alive:
            await self._stack.aclose()
            self._target = await self._stack.enter_async_context(self._aim.target())
        return self._target

    async def _shows(self, target: Subject[Any], entries: tuple[Entry, ...]) -> bool:
        match self._finding.trouble:
            case Trouble.MEMORY_LEAK:
                return await MemoryWatch(target).grows_by(entries, self._patience)
            case Trouble.FD_LEAK:
                return all([await self._once(target, entries, await target.settled()) for _ in range(CONFIRMATIONS)])
        return await self._once(target, entries, None)

    async def _once(self, target: Subject[Any], entries: tuple[Entry, ...], before: Footprint | None) -> bool:
        examined = await target.examine(entries, self._patience, before)
        if examined.fatal:
            self._target = None
        return any(finding.name == self._finding.name for finding in examined.findings)

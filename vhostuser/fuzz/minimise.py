"""The smallest conversation that still shows the same.

Must not know: what the entries are, or what is looked for.

How: delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input"): leave out ever
smaller parts, as long as what is left still shows it. A trial costs a fresh program, so their number is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from vhostuser.transcript.entries import Entry, Said

Shows = Callable[[tuple[Entry, ...]], Awaitable[bool]]


class _ExhaustedError(Exception):
    """No more trials."""


async def minimise(entries: Sequence[Entry], shows: Shows, *, trials: int = 200) -> tuple[Entry, ...]:
    """Leave out what is not needed.

    Args:
        entries: A conversation that shows it.
        shows: Whether another one does.
        trials: How often that may be asked.

    Returns:
        A conversation of which no single entry can be left out, or the smallest that was found in so many trials.
    """
    search = _Search(tuple(entries), shows, trials)
    try:
        await search.leave_out()
        await search.plain()
    except _ExhaustedError:
        pass
    return search.best


class _Search:
    def __init__(self, entries: tuple[Entry, ...], shows: Shows, trials: int) -> None:
        self.best = entries
        self._shows = shows
        self._left = trials

    async def leave_out(self) -> None:
        size = max(len(self.best) // 2, 1)
        while True:
            shorter = await self._without_parts(size)
            if size == 1 and not shorter:
                return
            size = max(size // 2, 1) if not shorter else min(size, max(len(self.best) // 2, 1))

    async def _without_parts(self, size: int) -> bool:
        """Try to leave out each part of that size, the last first: what follows the fatal entry goes at once."""
        before = len(self.best)
        at = (before - 1) // size * size
        while at >= 0:
            await self._try(self.best[:at] + self.best[at + size :])
            at -= size
        return len(self.best) < before

    async def plain(self) -> None:
        """Send in one piece what need not be split, and no descriptors where they are of no matter."""
        for at in range(len(self.best)):
            for plainer in (_in_one_piece, _without_fds):
                entry = self.best[at]
                if isinstance(entry, Said):
                    await self._try((*self.best[:at], plainer(entry), *self.best[at + 1 :]))

    async def _try(self, entries: tuple[Entry, ...]) -> None:
        if not entries or entries == self.best:
            return
        if not self._left:
            raise _ExhaustedError
        self._left -= 1
        if await self._shows(entries):
            self.best = entries


def _in_one_piece(said: Said) -> Said:
    return replace(said, pieces=())


def _without_fds(said: Said) -> Said:
    return replace(said, fds=())

"""Memory that a target takes and does not give back.

Must not know: what conversations are about.

A process grows for good reasons at first, and an allocator gives back late. What counts is growth that goes on: a
conversation leaks if playing it again and again makes the process larger in the second half as it did in the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vhostuser.fuzz.aim import Subject
from vhostuser.fuzz.verdict import request_name
from vhostuser.transcript.entries import Entry

ALLOWED = 32 << 20
"""Bytes that a target may grow in its life."""
_EACH = 16 << 10
"""Bytes that one play of a leaking conversation takes at least."""
_PLAYS = 40
_WORST = 3  # conversations that are suspected when a target grew


class MemoryWatch:
    """Watches a target grow.

    Args:
        target: The target, just started.
    """

    def __init__(self, target: Subject[Any]) -> None:
        self._target = target
        self._first = self._last = target.resident()
        self._grown: list[tuple[int, tuple[Entry, ...]]] = []

    def note(self, entries: tuple[Entry, ...]) -> None:
        """A conversation is over: how much did the target grow?"""
        now = self._target.resident()
        if now > self._last:
            self._grown = sorted([*self._grown, (now - self._last, entries)], key=lambda item: -item[0])[:_WORST]
        self._last = now

    def worst(self) -> list[tuple[Entry, ...]]:
        """The conversations after which it grew most; none if it did not grow more than it may."""
        return [entries for _, entries in self._grown] if self._last - self._first > ALLOWED else []

    def suspects(self) -> Iterator[tuple[str, str]]:
        """For each of them a signature, and what happened."""
        for entries in self.worst():
            grown = self._last - self._first
            yield (
                f"after {request_name(entries, len(entries) - 1)}",
                f"the target grew by {grown >> 10} KiB in its life",
            )

    async def grows_by(self, entries: tuple[Entry, ...], patience: float) -> bool:
        """Whether the target grows on and on while a conversation is played again and again."""
        sizes = []
        for _ in range(2):
            for _ in range(_PLAYS // 2):
                if (await self._target.examine(entries, patience)).fatal:
                    return False
            sizes.append(self._target.resident())
        return sizes[0] - self._first > _PLAYS // 2 * _EACH and sizes[1] - sizes[0] > _PLAYS // 2 * _EACH

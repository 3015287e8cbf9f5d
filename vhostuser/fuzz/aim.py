"""What a campaign knows of what it is aimed at: back-ends, or front-ends.

Must not know: which of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Protocol, TypeVar

from vhostuser.fuzz.reached import Map
from vhostuser.fuzz.verdict import Examined, Played
from vhostuser.peer.footprint import Footprint
from vhostuser.transcript.entries import Entry, Transcript

P = TypeVar("P", bound=Played)


class Subject(Protocol[P]):
    """A target, on which conversations are tried one after the other."""

    @property
    def alive(self) -> bool:
        """Whether it is of use."""

    async def introduce(self, random: Random) -> Footprint | None:
        """Make it ready for conversations; what it holds then, None if leaks are not to be looked for."""

    async def examine(self, entries: Sequence[Entry], patience: float, before: Footprint | None = None) -> Examined[P]:
        """Play a conversation to it and look what became of it.

        Args:
            entries: The conversation.
            patience: Seconds to wait for an answer.
            before: What it held; None if leaks are not looked for.
        """

    async def settled(self) -> Footprint | None:
        """What it holds once somebody has talked to it, as it has to; None if that cannot be told."""

    def resident(self) -> int:
        """Bytes of memory that it has in use; 0 if that cannot be told."""


class Aim(Protocol[P]):
    """Where targets come from, and what is said to them.

    Attributes:
        plural: What they are, for who reads of it.
        trials: How often a conversation may be tried to make it smaller; each trial may cost a fresh target.
    """

    plural: str
    trials: int

    @property
    def introduction(self) -> tuple[Entry, ...]:
        """The conversation by which a target is made ready for others."""

    @property
    def reached(self) -> Map:
        """Where conversations have been so far."""

    async def ask(self) -> None:
        """Learn from a target what there is to say to it. Raises VhostUserError if that fails."""

    def target(self) -> AbstractAsyncContextManager[Subject[P]]:
        """A target, alive at first. Raises ProgramError if it cannot be started."""

    def conversation(self, random: Random, kept: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]:
        """The next conversation: a new one, or one that grows from some that were kept."""

    def learn(self, entries: tuple[Entry, ...], examined: Examined[P]) -> set[tuple[object, ...]]:
        """Count a conversation that was tried, and tell what it did: something new there is worth another try."""

    def avoid(self, entries: Sequence[Entry]) -> None:
        """Mostly leave out from now on what led to this finding; the conversation shows it and no more than that."""

    def transcript(self, entries: tuple[Entry, ...], scene: str = "") -> Transcript:
        """A conversation as a transcript that says who made it."""

"""Where a campaign has been: each request in each state of the session, how often, and what came back.

Must not know: targets, chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vhostuser.fuzz.model import Known, Model, State
from vhostuser.transcript.entries import Entry, Said
from vhostuser.transcript.player import Performance
from vhostuser.wire.requests import FRONTEND_REQUESTS

Place = tuple[int, State]
"""A request's number, and the state in which it was said."""


class Map(Protocol):
    """Where a campaign has been, as a table.

    Attributes:
        title: What its cells count, in words.
        columns: The names of its columns.
    """

    title: str
    columns: tuple[str, ...]

    def rows(self) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
        """Each row's name, and for each column what was counted there: first of all, the visits."""

    def unvisited(self) -> list[str]:
        """The places without a visit, each in words."""


@dataclass
class Visits:
    """What happened at a place.

    Attributes:
        sent: How often it was said.
        answered: How often that was answered with a yes, or with what it asked for.
        refused: How often it was refused.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0


class Reached:
    """A place for each request of the specification in each state; other numbers share one row."""

    title = "Reached: sent / answered / refused, by state"
    columns = tuple(state.value for state in State)

    def __init__(self) -> None:
        self._visits: dict[Place, Visits] = defaultdict(Visits)

    def __getitem__(self, place: Place) -> Visits:
        return self._visits[place]

    def rarity(self, request: int, state: State) -> float:
        """How seldom a request was said in a state: 1 for never, towards 0."""
        return 1.0 / (1.0 + self._visits[request, state].sent)

    def rows(self) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
        """Each request of the specification, by its name, with its visits by state."""
        for number, spec in FRONTEND_REQUESTS.items():
            visits = (self._visits[number, state] for state in State)
            yield spec.name, tuple((v.sent, v.answered, v.refused) for v in visits)

    def unvisited(self) -> list[str]:
        """The requests that were never said in some state, with it."""
        return [
            f"{name} ({state})" for name, row in self.rows()
            for state, (sent, *_) in zip(self.columns, row, strict=True) if not sent
        ]  # fmt: skip

    def add(self, known: Known, entries: Sequence[Entry], performance: Performance) -> set[tuple[object, ...]]:
        """Count a conversation, as far as it was said.

        Returns:
            What it did: each place with what came back. Something new there is worth another try.
        """
        model, behaviour = Model(known), set[tuple[object, ...]]()
        answers: dict[int, str] = {}
        for heard in performance.heard:
            if heard.answers is not None and heard.judgement is not None and heard.judgement.accepted is not None:
                answers[heard.answers] = "answered" if heard.judgement.accepted else "refused"
        for number, entry in enumerate(entries[: performance.played]):
            if isinstance(entry, Said):
                place = entry.request, model.state
                self._count(place, answers.get(number))
                legal = model.judge(entry) is None
                # what is refused may be answered or not, and soon or late: that is nothing new
                behaviour.add((*place, legal, answers.get(number) if legal else None))
            model.follow(entry)
        return behaviour

    def _count(self, place: Place, answer: str | None) -> None:
        visits = self._visits[place]
        visits.sent += 1
        visits.answered += answer == "answered"
        visits.refused += answer == "refused"

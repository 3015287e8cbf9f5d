"""What a measurement is, and running its contenders in turn.

Must not know what is measured. A measurement has contenders, of which the first is ours; running one once gives values
by metric. Rounds go A B C A B C; a ratio is ours over a peer's in the same round, so that a machine that slows down
slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.rig.process import RigError

Values = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """One column of a measurement.

    Attributes:
        unit: what its values count.
        more: whether more is better; None when it is neither.
    """

    unit: str
    more: bool | None = None


@dataclass(frozen=True)
class Measurement:
    """Contenders and what they are measured by.

    Attributes:
        name: what to ask for it by.
        title: what a reader sees.
        metrics: by name; a contender may leave some out. The first is the one that matters most.
        contenders: what measures each of them once.
    """

    name: str
    title: str
    metrics: Mapping[str, Metric]
    contenders: Mapping[str, Callable[[], Values]]


class Spread(NamedTuple):
    """The middle and the ends of some values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Outcome:
    """What came of a measurement.

    Attributes:
        measurement: which.
        rounds: one entry a round: the values by contender. One that failed has none.
        errors: sentences about contenders that failed.
    """

    measurement: Measurement
    rounds: list[dict[str, Values]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def values(self, contender: str, metric: str) -> list[float]:
        """A contender's values in order, rounds without left out."""
        return [values[contender][metric] for values in self.rounds if metric in values.get(contender, {})]

    def ratios(self, contender: str, metric: str) -> list[float]:
        """The first contender's value over this one's, of each round that has both and does not divide by zero."""
        first = next(iter(self.measurement.contenders))
        found = []
        for values in self.rounds:
            ours, theirs = (values.get(name, {}).get(metric) for name in (first, contender))
            if ours is not None and theirs:
                found.append(ours / theirs)
        return found

    def as_json(self) -> dict[str, Any]:
        """For the results file, whose schema :mod:`scripts.benchmark.report` describes."""
        return {
            "name": self.measurement.name,
            "title": self.measurement.title,
            "errors": self.errors,
            "metrics": {name: self._metric_as_json(name) for name in self.measurement.metrics},
        }

    def _metric_as_json(self, metric: str) -> dict[str, Any]:
        about = self.measurement.metrics[metric]
        first, *others = self.measurement.contenders
        return {
            "unit": about.unit,
            "better": {True: "more", False: "less", None: None}[about.more],
            "contenders": {name: _spread(self.values(name, metric)) for name in (first, *others)},
            "ratios": {name: _spread(self.ratios(name, metric)) for name in others},
        }


def alternate(measurement: Measurement, rounds: int, tell: Callable[[str], None]) -> Outcome:
    """Run every contender once a round. One that fails once is not tried again.

    Args:
        measurement: what to run.
        rounds: how often.
        tell: gets a line about what goes on.
    """
    outcome = Outcome(measurement)
    failed: set[str] = set()
    for number in range(1, rounds + 1):
        values: dict[str, Values] = {}
        for name, run in measurement.contenders.items():
            if name in failed:
                continue
            tell(f"{measurement.name}: round {number} of {rounds}, {name}")
            try:
                values[name] = run()
            except (RigError, OSError) as error:
                failed.add(name)
                outcome.errors.append(f"{name}, round {number}: {error}")
        outcome.rounds.append(values)
    return outcome


def _spread(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    spread = Spread.of(values)
    return {"median": spread.median, "min": spread.low, "max": spread.high, "values": values}

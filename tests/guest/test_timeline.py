"""``scripts/timeline`` with a real guest."""

from __future__ import annotations

from click.testing import CliRunner

from scripts import timeline
from scripts.timeline import LEGS, Moment, Trip, with_moments


def moments(*told: tuple[int, str, int]) -> list[Moment]:
    return [Moment(time, what, ring, 0) for time, what, ring in told]


USUAL = moments(
    (10, "wake", 0), (11, "port", 0), (13, "received", 0), (14, "call", 0), (18, "called", 0), (19, "received", 0),
    (20, "sleep", 0), (90, "wake", 0), (92, "kick", 1), (99, "sent", 1), (101, "no-call", 1),
)  # fmt: skip


def test_the_legs_of_a_usual_trip_are_all_of_it() -> None:
    trip = Trip(5, 105, USUAL)
    assert trip.legs() == [5, 3, 1, 4, 72, 2, 7, 6]
    assert sum(trip.legs() or []) == trip.nanoseconds


def test_a_trip_with_other_work_in_between_has_no_legs() -> None:
    assert Trip(5, 105, USUAL[:-2]).legs() is None
    assert Trip(5, 105, [*USUAL[:7], *moments((30, "wake", 0), (31, "sleep", 0)), *USUAL[7:]]).legs() is None


def test_trips_get_the_moments_in_between() -> None:
    trips = [Trip(0, 2), Trip(4, 5), Trip(6, 95), Trip(106, 110)]
    found = list(with_moments(trips, [*moments((1, "sleep", 0), (5, "wake", 0)), *USUAL]))
    assert [(trip.sent, len(trip.moments)) for trip in found] == [(4, 1), (6, len(USUAL)), (106, 0)]
    # the answer was read at 95, before the write had returned at 99
    assert found[1].legs() == [4, 3, 1, 4, 72, 2, 3, 0]


def test_every_leg_of_a_real_round_trip_is_shown() -> None:
    result = CliRunner().invoke(timeline.main, ["--guest", "uml", "--count", "100", "--slowest", "1"])
    assert result.exit_code == 0, result.output
    assert "100 round trips" in result.output
    assert all(leg in result.output for leg, _ in LEGS)
    assert "a trip of" in result.output

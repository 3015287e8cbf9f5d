"""Generated conversations: the right ones are right, the broken ones are any, and each follows from its seed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostuser.fuzz.breaking import broken
from vhostuser.fuzz.course import Course
from vhostuser.fuzz.model import Known, Model, State
from vhostuser.transcript.entries import Entry, Said, Transcript
from vhostuser.transcript.file import lines_of, parse
from vhostuser.wire.requests import FRONTEND_REQUESTS

KNOWN = Known(0x1_7460_800B | 1 << 33 | 1 << 34 | 1 << 26, (1 << 24) - 1 & ~(1 << 17), 2)
seeds = st.integers(0, 2**32)


def course(seed: int) -> tuple[Entry, ...]:
    return tuple(Course(Random(seed), KNOWN, lambda request, state: 1.0).entries())


@settings(deadline=None, max_examples=15)
@given(seeds)
def test_the_same_seed_makes_the_same_course(seed: int) -> None:
    assert course(seed) == course(seed)
    assert broken(Random(seed), course(seed)) == broken(Random(seed), course(seed))


@settings(deadline=None, max_examples=15)
@given(seeds)
def test_whatever_is_generated_can_be_kept(seed: int) -> None:
    entries = broken(Random(seed), course(seed))
    assert parse("\n".join(lines_of(Transcript(entries)))).entries == entries


def test_most_of_a_course_is_legal_and_it_gets_everywhere() -> None:
    legal, total, states, requests = 0, 0, set(), set()
    said: Counter[tuple[int, State]] = Counter()
    for seed in range(80):
        model = Model(KNOWN)
        for entry in Course(Random(seed), KNOWN, lambda *place: 1 / (1 + said[place])).entries():
            if isinstance(entry, Said):
                said[entry.request, model.state] += 1
                total += 1
                legal += model.judge(entry) is None
                states.add(model.state)
                requests.add(entry.request)
            model.follow(entry)
    assert legal > 0.8 * total
    assert states == set(State)
    assert requests == set(FRONTEND_REQUESTS)


@pytest.mark.parametrize("seed", range(3))
def test_broken_conversations_break_rules(seed: int) -> None:
    random, refused = Random(seed), 0
    for number in range(40):
        model = Model(KNOWN)
        for entry in broken(random, course(number)):
            refused += isinstance(entry, Said) and (not entry.whole or model.judge(entry) is not None)
            model.follow(entry)
    assert refused > 40

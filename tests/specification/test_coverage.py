"""What no test proves is noticed, unless the register says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from runpy import run_path

import pytest

COVERAGE = run_path(str(Path(__file__).parents[2] / "scripts" / "spec-coverage"))

Faults = Callable[[list[dict[str, str]], dict[str, list[str]]], Iterator[str]]
faults: Faults = COVERAGE["faults"]

PROVEN = {"id": "TEA-1", "kind": "must", "text": "Water boils."}
UNPROVEN = {"id": "TEA-2", "kind": "should", "text": "Cups are warm.", "unproven": "no thermometer"}
PROOFS = {"TEA-1": ["tests/test_tea.py::test_water"]}


def test_a_register_in_which_each_statement_has_a_test_or_a_reason() -> None:
    assert list(faults([PROVEN, UNPROVEN], PROOFS)) == []


@pytest.mark.parametrize(
    ("rows", "proofs", "fault"),
    [
        ([PROVEN], {}, "TEA-1 (must) is not proven: Water boils."),
        ([PROVEN, PROVEN], PROOFS, "TEA-1 is given to two statements"),
        ([], PROOFS, "TEA-1 is no statement, but named by tests/test_tea.py::test_water"),
        (
            [UNPROVEN],
            {"TEA-2": ["tests/test_tea.py::test_cups"]},
            "TEA-2 is said to be unproven (no thermometer), but named by tests/test_tea.py::test_cups",
        ),
        (
            [PROVEN | {"seen": "kitchen"}],
            PROOFS,
            "TEA-1 is seen at 'kitchen', which is none of socket, front-end, device, program, host, inside",
        ),
    ],
)
def test_what_is_wrong_with_a_register(rows: list[dict[str, str]], proofs: dict[str, list[str]], fault: str) -> None:
    assert list(faults(rows, proofs)) == [fault]


def test_marks_are_found_in_the_source() -> None:
    found = COVERAGE["proofs"]()
    here = "tests/specification/test_coverage.py::test_marks_are_found_in_the_source"
    assert not any(here in tests for tests in found.values())
    assert "tests/session/test_vrings.py::test_rings_are_stopped_and_disabled_at_first" in found["VU-RING-1"]

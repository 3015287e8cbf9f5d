"""What the benchmark makes of values: turns, ratios within a round, its results file and its tables."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from scripts.benchmark import report
from scripts.benchmark.runs import Measurement, Metric, Outcome, Values, alternate
from tests.rig.process import RigError

METRICS = {"packets": Metric("packets/s", more=True), "cpu": Metric("CPU s", more=False)}
MACHINE = {"cpu": "a processor", "cores": 2, "virtual": True, "kernel": "6.1"}
SETTINGS = {"rounds": 2, "seconds": 1.0}


def outcome(*rounds: dict[str, Values]) -> Outcome:
    """What came of two contenders."""
    return Outcome(Measurement("tx", "Frames out", METRICS, dict.fromkeys(("ours", "peer"), dict)), list(rounds))


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str) -> Values:
        order.append(name)
        return {"packets": len(order)}

    contenders = {name: lambda name=name: contender(name) for name in ("ours", "peer")}
    found = alternate(Measurement("tx", "", METRICS, contenders), 2, lambda line: None)
    assert order == ["ours", "peer", "ours", "peer"]
    assert found.values("ours", "packets") == [1, 3]
    assert found.values("peer", "packets") == [2, 4]


def test_a_contender_that_fails_is_told_once_and_left_out() -> None:
    calls = []

    def fails() -> Values:
        calls.append(1)
        raise RigError("no frame came")

    contenders = {"ours": lambda: {"packets": 1.0}, "peer": fails}
    found = alternate(Measurement("tx", "", METRICS, contenders), 3, lambda line: None)
    assert calls == [1]
    assert found.errors == ["peer, round 1: no frame came"]
    assert found.values("ours", "packets") == [1, 1, 1]
    assert found.as_json()["metrics"]["packets"]["contenders"]["peer"] is None


def test_ratios_are_taken_within_a_round() -> None:
    """The machine becomes ten times slower between the rounds; the ratio of medians would say 1.5."""
    found = outcome(
        {"ours": {"packets": 100}, "peer": {"packets": 100}},
        {"ours": {"packets": 20}, "peer": {"packets": 10}},
        {"ours": {"packets": 30}, "peer": {"packets": 10}},
    )
    assert found.ratios("peer", "packets") == [1, 2, 3]
    metric = found.as_json()["metrics"]["packets"]
    assert metric["ratios"] == {"peer": {"median": 2, "min": 1, "max": 3, "values": [1, 2, 3]}}
    assert metric["contenders"]["ours"] == {"median": 30, "min": 20, "max": 100, "values": [100, 20, 30]}


def test_rounds_without_a_value_or_with_zero_have_no_ratio() -> None:
    found = outcome({"ours": {"cpu": 1}}, {"ours": {"cpu": 1}, "peer": {"cpu": 0}}, {"peer": {"cpu": 1}})
    assert found.ratios("peer", "cpu") == []
    assert found.as_json()["metrics"]["cpu"]["ratios"] == {"peer": None}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (7.0, "7"), (123.4, "123"), (9999.0, "9,999"), (1e6, "1,000 k")],
)
def test_figures_have_no_more_digits_than_they_deserve(value: float, text: str) -> None:
    assert report.number(value) == text


def test_a_table_shows_medians_ends_and_ratios() -> None:
    stream = io.StringIO()
    peer = {"packets": 10.0}
    found = outcome({"ours": {"packets": 20}, "peer": peer}, {"ours": {"packets": 30}, "peer": peer})
    found.errors.append("peer, round 2: it ended")
    report.show(Console(file=stream, width=120), found.as_json())
    assert "25 (20..30)" in stream.getvalue()
    assert "first / it: 2.5 (2..3)" in stream.getvalue()
    assert "CPU s" not in stream.getvalue()  # nobody has it
    assert "failed peer, round 2: it ended" in stream.getvalue()


def test_the_readme_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    found = report.results(MACHINE, SETTINGS, [outcome({"ours": {"packets": 20}, "peer": {"packets": 10}})])
    report.update_readme(readme, report.readme_block(found, ["docs/benchmark/tx.svg"]))
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "| Frames out, packets/s | ours | 20 |  |\n|  | peer | 10 | 2 |" in text
    assert "![tx](docs/benchmark/tx.svg)" in text
    assert "old" not in text


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n")
    with pytest.raises(ValueError, match="no lines"):
        report.update_readme(readme, "block")
    assert readme.read_text() == "before\n"

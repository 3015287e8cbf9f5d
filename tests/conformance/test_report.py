"""What results say of statements, and how that is shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from vhostuser.conformance.check import Check
from vhostuser.conformance.harm import DIED
from vhostuser.conformance.probe import Probe
from vhostuser.conformance.report import Report, Verdict, as_json, as_junit, show_row, show_totals
from vhostuser.conformance.suite import Outcome, Result
from vhostuser.spec.statements import Statement

STATEMENTS = {
    statement.id: statement
    for statement in (
        Statement("VU-A-1", "must", "A", "A front-end is answered."),
        Statement("VU-A-2", "choice", "A", "An answer is short."),
        Statement("VU-B-1", "should", "B", "A ring is fast."),
        Statement("VU-B-2", "must", "B", "A program has a name.", seen="program"),
    )
}


async def nothing(probe: Probe) -> None:
    """Is not called."""


def result(outcome: Outcome, text: str = "", *statements: str, name: str = "area.check", harm: str = "") -> Result:
    return Result(Check(name, statements or ("VU-A-1",), nothing), outcome, text, harm, seconds=0.5)


def report(*results: Result) -> Report:
    """With these, all of which are registered."""
    told = Report(STATEMENTS, [result.check for result in results])
    for each in results:
        told.add(each)
    return told


PASS = result(Outcome.PASS)
FAIL = result(Outcome.FAIL, "nothing came", name="area.other")


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([Outcome.PASS, Outcome.PASS], Verdict.PASS),
        ([Outcome.PASS, Outcome.FAIL], Verdict.FAIL),
        ([Outcome.NOT_APPLICABLE, Outcome.PASS], Verdict.PASS),
        ([Outcome.NOT_APPLICABLE, Outcome.FAIL], Verdict.FAIL),
        ([Outcome.NOT_APPLICABLE], Verdict.NOT_APPLICABLE),
    ],
)
def test_the_worst_is_the_verdict(outcomes: list[Outcome], verdict: Verdict) -> None:
    told = report(*(result(outcome, "why", name=str(number)) for number, outcome in enumerate(outcomes)))
    (row,) = told.rows
    assert (row.verdict, row.seconds) == (verdict, 0.5 * len(outcomes))
    assert told.failed is (verdict is Verdict.FAIL)


def test_who_chooses_otherwise_differs_unless_it_does_harm() -> None:
    both = ("VU-A-1", "VU-A-2")
    assert [row.verdict for row in report(result(Outcome.FAIL, "long", *both)).rows] == [Verdict.FAIL, Verdict.DIFFERS]
    harmful = report(result(Outcome.FAIL, "died", *both, harm=DIED))
    assert [row.verdict for row in harmful.rows] == [Verdict.FAIL, Verdict.FAIL]
    assert not report(result(Outcome.FAIL, "long", "VU-A-2")).failed


def test_the_totals_are_of_statements() -> None:
    absent = result(Outcome.NOT_APPLICABLE, "MQ not offered", "VU-B-1")
    assert report(PASS, FAIL, absent).totals == {
        "statements": 4,
        "seen_at_the_socket": 3,
        "with_a_check": 2,
        "run": 1,
    }


def shown(told: Report, *, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, highlight=False, force_terminal=terminal, width=40)
    for row in told.rows:
        show_row(console, row)
    show_totals(console, told)
    return file.getvalue()


MIXED = report(
    PASS,
    FAIL,
    result(Outcome.FAIL, "it is [bold] long", "VU-A-2"),
    result(Outcome.NOT_APPLICABLE, "MQ not offered", "VU-B-1"),
)


def test_text_on_a_pipe_is_whole_lines_without_colours() -> None:
    assert shown(MIXED).splitlines() == [
        "fail              VU-A-1            A front-end is answered.",
        "    area.other: nothing came",
        "differs by choice VU-A-2            An answer is short.",
        "    area.check: it is [bold] long",
        "not applicable    VU-B-1            A ring is fast. (MQ not offered)",
        "4 statements, 3 seen at the socket, 3 of them have a check; 2 were run: 0 pass, 1 fail, 1 differs by choice; "
        "1 not applicable",
    ]


def test_text_on_a_terminal_has_colours_and_short_lines_where_all_is_well() -> None:
    lines = shown(MIXED, terminal=True).splitlines()
    assert lines[0].startswith("\x1b[1;31mfail")
    assert lines[4].endswith("…")


def test_what_is_known_and_what_was_saved_is_told() -> None:
    told = Report(STATEMENTS, [FAIL.check])
    told.add(replace(FAIL, otherwise=""), "slow-start: it sleeps first", "saved/area.other.jsonl")
    assert shown(told).splitlines()[2:4] == [
        "    known: slow-start: it sleeps first",
        "    transcript: saved/area.other.jsonl; played again, it went the same way",
    ]
    again = Report(STATEMENTS, [FAIL.check])
    again.add(replace(FAIL, otherwise="it closed"), "", "x.jsonl")
    assert "    transcript: x.jsonl; played again, it went otherwise: it closed" in shown(again)


def test_json_has_all_of_it() -> None:
    told = json.loads(as_json(MIXED, "a peer"))
    assert told["peer"] == "a peer"
    assert told["totals"] == {
        "statements": 4,
        "seen_at_the_socket": 3,
        "with_a_check": 3,
        "run": 2,
        "fail": 1,
        "differs by choice": 1,
        "pass": 0,
        "not applicable": 1,
    }
    first = told["results"][0]
    assert first == {
        "statement": "VU-A-1",
        "kind": "must",
        "text": "A front-end is answered.",
        "verdict": "fail",
        "seconds": 1.0,
        "findings": [
            {"check": "area.check", "verdict": "pass"},
            {"check": "area.other", "verdict": "fail", "text": "nothing came"},
        ],
    }


def test_junit_has_a_case_a_statement() -> None:
    told = as_junit(report(PASS, FAIL, result(Outcome.FAIL, "long", "VU-A-2")), "peer <&\x1b> \udcff")
    suite = ElementTree.fromstring(told)
    assert suite.attrib["name"] == "vhostuser conform peer <&?> ?"
    assert [suite.attrib[name] for name in ("tests", "failures", "skipped")] == ["2", "1", "1"]
    first, second = suite
    assert (first.attrib["classname"], first.attrib["name"]) == ("VU-A", "VU-A-1 A front-end is answered.")
    assert [(child.tag, child.text) for child in first] == [("failure", "area.other: nothing came")]
    assert [(child.tag, child.get("message")) for child in second] == [("skipped", "differs by choice: long")]


def test_what_xml_does_not_have_is_replaced() -> None:
    told = as_junit(report(result(Outcome.FAIL, "died: \x1b[31m\0\ud800é\U0001f600")), "peer")
    ((failure,),) = ElementTree.fromstring(told.encode())
    assert failure.attrib["message"] == "fail: died: ?[31m??é\U0001f600"

"""The results of a run, by statement: as lines for a terminal or a pipe, as JSON, as JUnit XML.

Must not know: how checks are run.

How: a statement's verdict is the worst that any of its checks found. A back-end that does otherwise than a statement of
kind ``choice`` says has not failed, it differs; one that dies, hangs or leaks in the check has failed all the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from vhostuser.conformance.check import Check
from vhostuser.conformance.suite import Outcome, Result
from vhostuser.spec.statements import Statement


class Verdict(Enum):
    """What came of a statement, the worst first."""

    FAIL = "fail"
    DIFFERS = "differs by choice"
    PASS = "pass"
    NOT_APPLICABLE = "not applicable"


_STYLES = {
    Verdict.FAIL: "bold red",
    Verdict.DIFFERS: "yellow",
    Verdict.PASS: "green",
    Verdict.NOT_APPLICABLE: "dim",
}
_WORST_FIRST = list(Verdict)


@dataclass(frozen=True)
class Finding:
    """What a check found about a statement.

    Attributes:
        check: The check's name.
        verdict: For this statement.
        text: Why, unless it passed.
        quirk: What is known of the peer that explains it; empty if nothing is.
        transcript: Where the conversation was saved, if it was.
        again: How it went when that was played again, in words.
    """

    check: str
    verdict: Verdict
    text: str
    quirk: str = ""
    transcript: str = ""
    again: str = ""


@dataclass
class Row:
    """A statement and what was found.

    Attributes:
        statement: The statement.
        findings: One a check.
        seconds: How long its checks took.
    """

    statement: Statement
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst that was found."""
        return min((finding.verdict for finding in self.findings), key=_WORST_FIRST.index)

    @property
    def told(self) -> list[Finding]:
        """Those findings that make the verdict, if there is more to say than that it passed."""
        return [] if self.verdict is Verdict.PASS else [f for f in self.findings if f.verdict is self.verdict]


class Report:
    """The results as they come in.

    Args:
        statements: All of them.
        checks: All that there are.
    """

    def __init__(self, statements: Mapping[str, Statement], checks: Sequence[Check]) -> None:
        self._statements = statements
        self._checked = {name for check in checks for name in check.statements}
        self._rows: dict[str, Row] = {}

    def add(self, result: Result, quirk: str = "", transcript: str = "") -> None:
        """Enter a result."""
        for name in result.check.statements:
            row = self._rows.setdefault(name, Row(self._statements[name]))
            verdict = _verdict(result, row.statement)
            row.findings.append(Finding(result.check.name, verdict, result.text, quirk, transcript, _again(result)))
            row.seconds += result.seconds

    @property
    def rows(self) -> list[Row]:
        """The statements of which something was found, in the register's order."""
        return [self._rows[name] for name in self._statements if name in self._rows]

    @property
    def counts(self) -> Counter[Verdict]:
        """How many statements came to which verdict."""
        return Counter(row.verdict for row in self.rows)

    @property
    def failed(self) -> bool:
        """Whether any statement failed."""
        return self.counts[Verdict.FAIL] > 0

    @property
    def totals(self) -> dict[str, int]:
        """Numbers of statements: all, those seen at the socket, and those that have a check."""
        seen = [statement for statement in self._statements.values() if statement.at_the_socket]
        return {
            "statements": len(self._statements),
            "seen_at_the_socket": len(seen),
            "with_a_check": sum(statement.id in self._checked for statement in seen),
            "run": sum(self.counts[verdict] for verdict in Verdict if verdict is not Verdict.NOT_APPLICABLE),
        }


def _again(result: Result) -> str:
    if result.otherwise is None:
        return ""
    return f"went otherwise: {result.otherwise}" if result.otherwise else "went the same way"


def _verdict(result: Result, statement: Statement) -> Verdict:
    match result.outcome:
        case Outcome.PASS:
            return Verdict.PASS
        case Outcome.NOT_APPLICABLE:
            return Verdict.NOT_APPLICABLE
        case Outcome.FAIL:
            return Verdict.DIFFERS if statement.choice and not result.harm else Verdict.FAIL


# ---- text ------------------------------------------------------------------------------------------------------------


def show_row(console: Console, row: Row) -> None:
    """A statement's verdict in a line, and in more what there is to say."""
    line = Text.assemble(
        (f"{row.verdict.value:18}", _STYLES[row.verdict]), f"{row.statement.id:18}", row.statement.text
    )
    short = row.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE)
    if short and row.told:
        line.append(f" ({row.told[0].text})")
    if short and console.is_terminal:
        line.truncate(console.width, overflow="ellipsis")
    console.print(line, soft_wrap=True)
    if short:
        return
    for finding in row.told:
        console.print(Text(f"    {finding.check}: {finding.text}"), soft_wrap=True)
        if finding.quirk:
            console.print(Text(f"    known: {finding.quirk}"), soft_wrap=True)
        if finding.transcript:
            again = f"; played again, it {finding.again}" if finding.again else ""
            console.print(Text(f"    transcript: {finding.transcript}{again}"), soft_wrap=True)


def show_totals(console: Console, report: Report) -> None:
    """The closing numbers."""
    totals, counts = report.totals, report.counts
    console.print(
        f"{totals['statements']} statements, {totals['seen_at_the_socket']} seen at the socket, "
        f"{totals['with_a_check']} of them have a check; {totals['run']} were run: "
        + ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.DIFFERS))
        + f"; {counts[Verdict.NOT_APPLICABLE]} not applicable",
        soft_wrap=True,
        highlight=False,
    )


# ---- JSON and JUnit --------------------------------------------------------------------------------------------------


def as_json(report: Report, peer: str) -> str:
    """The report as JSON."""
    rows = [
        {
            "statement": row.statement.id,
            "kind": row.statement.kind,
            "text": row.statement.text,
            "verdict": row.verdict.value,
            "seconds": round(row.seconds, 3),
            "findings": [_found(finding) for finding in row.findings],
        }
        for row in report.rows
    ]
    counts = {verdict.value: report.counts[verdict] for verdict in Verdict}
    return json.dumps({"peer": peer, "totals": report.totals | counts, "results": rows}, indent=1) + "\n"


def _found(finding: Finding) -> dict[str, Any]:
    told = {"check": finding.check, "verdict": finding.verdict.value, "text": finding.text}
    more = {"quirk": finding.quirk, "transcript": finding.transcript, "again": finding.again}
    return {key: value for key, value in (told | more).items() if value}


def as_junit(report: Report, peer: str) -> str:
    """The report as JUnit XML, a test case a statement: what differs by choice counts as skipped, with its text."""
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(f"vhostuser conform {peer}"),
        tests=str(len(report.rows)),
        failures=str(report.counts[Verdict.FAIL]),
        skipped=str(report.counts[Verdict.DIFFERS] + report.counts[Verdict.NOT_APPLICABLE]),
        errors="0",
        time=f"{sum(row.seconds for row in report.rows):.3f}",
    )
    for row in report.rows:
        area = row.statement.id.rpartition("-")[0]
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=area,
            name=f"{row.statement.id} {row.statement.text}",
            time=f"{row.seconds:.3f}",
        )
        if row.verdict is not Verdict.PASS:
            kind = "failure" if row.verdict is Verdict.FAIL else "skipped"
            lines = [f"{finding.check}: {finding.text}" for finding in row.told]
            told = ElementTree.SubElement(case, kind, message=_clean(f"{row.verdict.value}: {row.told[0].text}"))
            told.text = _clean("\n".join(lines))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Without the characters that XML does not have, which a program may print."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)

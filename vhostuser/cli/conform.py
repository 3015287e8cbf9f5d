"""``vhostuser conform``: does a back-end do what the statements of ``protocol-spec/`` say?"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from vhostuser.cli.interruption import end_by, run_until_signal
from vhostuser.cli.options import Seconds
from vhostuser.cli.terminal import Terminal
from vhostuser.cli.tools import Tool, make_folder
from vhostuser.conformance import checks as _register  # noqa: F401 - it is filled by the import
from vhostuser.conformance.check import Check, all_checks
from vhostuser.conformance.connection import Patience
from vhostuser.conformance.devices import DEVICES, Device
from vhostuser.conformance.quirks import PEERS, Quirk
from vhostuser.conformance.report import Report, Verdict, as_json, as_junit, show_row, show_totals
from vhostuser.conformance.suite import Outcome, Result, offer_of, run_checks
from vhostuser.conformance.target import Kept, Listening, Spawned, Target
from vhostuser.spec.statements import statements
from vhostuser.transcript.file import save


@click.command("conform", cls=Tool)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--spawn", metavar="COMMAND", help="Start a back-end for each check; {socket} stands for its path.")
@click.option("--keep", is_flag=True, help="Keep those that were started until a check fails: faster.")
@click.option(
    "--device",
    type=click.Choice(list(DEVICES)),
    default="net",
    show_default=True,
    help="What kind of device it is; net: its port sends back what it gets.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Statements or checks alone: VU-RING-*, packed.*")
@click.option("--peer", type=click.Choice(list(PEERS)), help="Name what is known of this peer where it fails.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "junit"]),
    default="text",
    show_default=True,
    help="How results are shown.",
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the conversation of each check that fails to DIR, as a transcript, and play it again.",
)
@click.option("--first", is_flag=True, help="End with the first statement that fails.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=2 * (os.cpu_count() or 1),
    show_default="two a processor",
    metavar="N",
    help="With --spawn: how many back-ends at a time; 1 for one that polls.",
)
@click.option(
    "--patience",
    type=Seconds(0.1, 60),
    default=Patience.answer,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
def command(
    path: Path | None,
    spawn: str | None,
    keep: bool,
    device: str,
    only: tuple[str, ...],
    peer: str | None,
    form: str,
    save: Path | None,
    first: bool,
    jobs: int,
    patience: float,
) -> None:
    """Hold a back-end to the statements of the specification.

    It listens at PATH, or is started by --spawn, anew for each check. A statement is shown when all of its checks are
    done: of one that fails, what was asked, and what came of it. The numbers are at the end. What differs from a choice
    of this project's is shown likewise, and is no failure.

    Status 0: no statement fails, 1: some do, 2: it could not be done. SIGINT and SIGTERM end it with what was done so
    far, and status 130 or 143.

    \b
    Example: vhostuser conform --spawn 'vhostuser net --loop --socket-path={socket}'
    """
    target = _target(path, spawn, keep)
    chosen = _chosen(only)
    make_folder("--save", save)
    run = _Run(chosen, PEERS[peer] if peer else (), save, Terminal(highlight=False) if form == "text" else None, first)
    with run.status:
        came = run_until_signal(partial(_run, target, chosen, DEVICES[device], run, Patience(patience), jobs))
    run.finish()
    if form != "text":
        click.echo((as_json if form == "json" else as_junit)(run.report, target.name), nl=False)
    if came is not None:
        end_by(came)
    raise SystemExit(1 if run.report.failed else 0)


def _target(path: Path | None, spawn: str | None, keep: bool) -> Target:
    if (path is None) == (spawn is None):
        raise click.UsageError("exactly one of PATH and --spawn is needed")
    if spawn is None:
        if keep:
            raise click.UsageError("--keep needs --spawn")
        assert path is not None
        return Listening(path)
    return (Kept if keep else Spawned)(spawn)


def _chosen(patterns: Sequence[str]) -> list[Check]:
    """The checks that some pattern names, or all."""
    for pattern in patterns:
        if not any(_named(check, pattern) for check in all_checks()):
            raise click.UsageError(f"--only {pattern}: no statement that has a check, and no check, is called so")
    return [check for check in all_checks() if not patterns or any(_named(check, pattern) for pattern in patterns)]


def _named(check: Check, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (check.name, *check.statements))


class _Run:
    """Takes results as they come: into the report, into files, and onto the screen.

    Args:
        chosen: What is run.
        quirks: What is known of the peer.
        folder: Where the conversations of checks that fail go.
        console: Where statements are shown when all of their checks are done; None: nowhere.
        first: Whether the first statement that fails is enough.

    Attributes:
        report: What came of it so far.
        status: A line on a terminal that tells how far it has come, as long as it is entered.
    """

    def __init__(
        self,
        chosen: Sequence[Check],
        quirks: Sequence[Quirk],
        folder: Path | None,
        console: Console | None,
        first: bool = False,
    ) -> None:
        self.report = Report(statements(), all_checks())
        self._total = len(chosen)
        self._quirks = quirks
        self._folder = folder
        self._console = console
        self._first = first
        self.saves = folder is not None
        self._done = 0
        self._left = Counter(name for check in chosen for name in check.statements)
        watched = console if console is not None and console.is_terminal else Terminal(stderr=True)
        self.status = watched.status("connecting")

    def told(self, result: Result) -> None:
        """Take a result."""
        self._done += 1
        failed = result.outcome is Outcome.FAIL
        quirk = next((f"{quirk.name}: {quirk.text}" for quirk in self._quirks if failed and quirk.explains(result)), "")
        self.report.add(result, quirk, self._saved(result))
        self._left.subtract(result.check.statements)
        self._show({name for name in result.check.statements if not self._left[name]})
        failures = self.report.counts[Verdict.FAIL]
        self.status.update(f"{self._done} of {self._total} checks, {failures} statements failed")

    def enough(self) -> bool:
        """Whether nothing more is wanted."""
        return self._first and self.report.failed

    def finish(self) -> None:
        """Show the statements whose checks were not all done, and the numbers."""
        self._show({name for name, left in self._left.items() if left})
        if self._console is not None:
            show_totals(self._console, self.report)

    def _show(self, names: Collection[str]) -> None:
        """Show those statements of which something was found."""
        if self._console is not None:
            for row in self.report.rows:
                if row.statement.id in names:
                    show_row(self._console, row)

    def _saved(self, result: Result) -> str:
        if self._folder is None or result.transcript is None:
            return ""
        path = self._folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', result.check.name)}.jsonl"
        save(result.transcript, path)
        return str(path)


async def _run(
    target: Target, chosen: Sequence[Check], device: Device, run: _Run, patience: Patience, jobs: int
) -> None:
    try:
        offer = await offer_of(target, device, patience)
        await run_checks(
            target, chosen, device, offer, run.told, patience=patience, jobs=jobs, again=run.saves, enough=run.enough
        )
    finally:
        await target.aclose()

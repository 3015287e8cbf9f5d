"""``vhostuser conform``: does a back-end do what the statements of ``protocol-spec/`` say?"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.status import Status

from vhostuser.conformance import checks as _register  # noqa: F401 - it is filled by the import
from vhostuser.conformance.check import Check, all_checks
from vhostuser.conformance.connection import Patience
from vhostuser.conformance.devices import DEVICES, Device
from vhostuser.conformance.quirks import PEERS, Quirk
from vhostuser.conformance.report import Report, Verdict, as_json, as_junit, show_row, show_totals
from vhostuser.conformance.suite import Outcome, Result, offer_of, run_checks
from vhostuser.conformance.target import Kept, Listening, Spawned, Target
from vhostuser.errors import VhostUserError
from vhostuser.spec.statements import statements
from vhostuser.transcript.file import save


@click.command("conform")
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
    type=click.FloatRange(0.1, 60),
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
    jobs: int,
    patience: float,
) -> None:
    """Hold a back-end to the statements of the specification.

    It listens at PATH, or is started by --spawn, anew for each check. What was asked, and what came of it, is shown
    for each statement that fails, and the numbers at the end; the exit status is 1 if there is one. What differs from
    a choice of this project's is shown likewise, and is no failure.

    \b
    Example: vhostuser conform --spawn 'vhostuser net --loop --socket-path={socket}'
    """
    target = _target(path, spawn, keep)
    chosen = _chosen(only)
    report = Report(statements(), all_checks())
    screen = Console(stderr=True)
    with screen.status("connecting") if screen.is_terminal else _Silent() as status:
        run = _Run(report, status, PEERS[peer] if peer else (), save)
        try:
            trio.run(partial(_run, target, chosen, DEVICES[device], run, Patience(patience), jobs))
        except* VhostUserError as errors:
            raise click.UsageError(str(_first(errors))) from None
    _show(report, form, target.name)
    raise SystemExit(1 if report.failed else 0)


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


class _Silent:
    """No status line, where there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _Run:
    """Takes results as they come: into the report, into files, and onto the status line."""

    def __init__(self, report: Report, status: Status | None, quirks: Sequence[Quirk], folder: Path | None) -> None:
        self._report = report
        self._status = status
        self._quirks = quirks
        self._folder = folder
        self.saves = folder is not None
        self._done = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def told(self, total: int, result: Result) -> None:
        self._done += 1
        failed = result.outcome is Outcome.FAIL
        quirk = next((f"{quirk.name}: {quirk.text}" for quirk in self._quirks if failed and quirk.explains(result)), "")
        self._report.add(result, quirk, self._saved(result))
        if self._status is not None:
            failures = self._report.counts[Verdict.FAIL]
            self._status.update(f"{self._done} of {total} checks, {failures} statements failed")

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
        told = partial(run.told, len(chosen))
        await run_checks(target, chosen, device, offer, told, patience=patience, jobs=jobs, again=run.saves)
    finally:
        await target.aclose()


def _show(report: Report, form: str, name: str) -> None:
    if form == "text":
        console = Console(highlight=False)
        for row in report.rows:
            show_row(console, row)
        show_totals(console, report)
    else:
        click.echo((as_json if form == "json" else as_junit)(report, name), nl=False)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

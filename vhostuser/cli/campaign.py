"""What the fuzzing tools share: options, what they show meanwhile, and what they say at the end.

Must not know: what is fuzzed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vhostuser.cli.interruption import end_by, run_until_signal
from vhostuser.cli.options import Seconds
from vhostuser.cli.terminal import Terminal
from vhostuser.cli.tools import make_folder, naming
from vhostuser.errors import VhostUserError, first_of
from vhostuser.fuzz.aim import Aim
from vhostuser.fuzz.campaign import Campaign, Settings
from vhostuser.fuzz.campaign import Progress as Come
from vhostuser.fuzz.establish import CONFIRMATIONS, Found
from vhostuser.fuzz.report import messages_of, ordered, report

_FOUND = 1  # exit status
_PIPE_WIDTH = 1000
_LINE_EACH = 10.0  # seconds, where nobody watches

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--duration", type=Seconds(min=1), default=60.0, show_default=True, metavar="SECONDS"),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of all chance; with one worker it repeats a run."
    ),
    click.option(
        "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Programs at the same time."
    ),
    click.option(
        "--corpus",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Keep conversations that did something new, and begin with those that are there.",
    ),
    click.option(
        "--findings",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        default="findings",
        show_default=True,
        help="Where the transcript of each finding goes.",
    ),
    click.option(
        "--patience",
        type=Seconds(min=0.01),
        default=0.5,
        show_default=True,
        metavar="SECONDS",
        help="How long the program may be silent when it has something to say; a finding is confirmed with eight times "
        "as much.",
    ),
    click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write the report as JSON, too.",
    ),
)


def campaign_options(command: Command) -> Command:
    """Add the options that :func:`run_campaign` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def run_campaign(aim: Aim[Any], settings: Settings, json_file: Path | None) -> None:
    """Fuzz, show how it goes and what was found, and end the program.

    Status 0: nothing was found, but for what did not show again; 1: something was; 128 and the number of the signal
    that ended it. What was done so far is shown in any case.

    Args:
        aim: What is fuzzed.
        settings: What the options say.
        json_file: Where the report goes, too.

    Raises:
        VhostUserError, OSError, ImpossibleError: it could not be done, or not to its end.
    """
    make_folder("--findings", settings.findings)
    make_folder("--corpus", settings.corpus)
    if json_file is not None:
        with naming("--json", json_file):
            json_file.open("a").close()
    console = _console()
    came, failure = None, None
    begin = time.monotonic()
    with _watched(console, settings.duration) as news:
        campaign = Campaign(aim, settings, news)
        try:
            came = run_until_signal(campaign.run)
        except* (VhostUserError, OSError) as errors:
            failure = first_of(errors)
    if failure is None or campaign.progress.conversations:
        told = report(campaign.progress, settings, time.monotonic() - begin)
        try:
            _show(console, campaign.progress, told["seconds"])
        finally:
            if json_file is not None:
                with naming("--json", json_file):
                    json_file.write_text(json.dumps(told, indent=2) + "\n")
    if failure is not None:
        raise failure
    if came is not None:
        end_by(came)
    raise SystemExit(_FOUND if any(found.certain for found in campaign.progress.found.values()) else 0)


def _console() -> Console:
    """The terminal; on a pipe, lines long enough for the tables."""
    console = Terminal()
    return console if console.is_terminal else Terminal(width=_PIPE_WIDTH)


# ---- meanwhile -------------------------------------------------------------------------------------------------------


@contextmanager
def _watched(console: Console, duration: float) -> Iterator[Callable[[Come], None]]:
    """What shows how far it has come: a bar on a terminal, else a line now and then."""
    begin = time.monotonic()
    if not console.is_terminal:
        yield _Lines(begin)
        return
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("", total=duration)
    with Live(bar, console=console, refresh_per_second=4):

        def news(come: Come) -> None:
            seconds = time.monotonic() - begin
            bar.update(task, completed=min(seconds, duration), description=_line(come, seconds))

        yield news


class _Lines:
    """Progress as plain lines."""

    def __init__(self, begin: float) -> None:
        self._begin = self._last = begin

    def __call__(self, come: Come) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EACH:
            self._last = now
            click.echo(f"{now - self._begin:.0f} s: {_line(come, now - self._begin)}")


def _line(come: Come, seconds: float) -> str:
    rate = come.conversations / max(seconds, 1e-3)
    return (
        f"{come.conversations} conversations ({rate:.0f}/s), {come.messages} entries, {come.targets} {come.plural}, "
        f"{come.corpus} kept, {sum(found.certain for found in come.found.values())} found"
    )


# ---- at the end ------------------------------------------------------------------------------------------------------


def _show(console: Console, progress: Come, seconds: float) -> None:
    console.print(_line(progress, seconds), highlight=False)
    console.print(_reached(progress))
    if missing := progress.reached.unvisited():
        console.print(f"not reached: {len(missing)} of the places above", highlight=False)
    met = ordered(progress)
    if found := [one for one in met if one.certain]:
        console.print(_table("Findings", found))
    else:
        console.print("nothing was found")
    if suspicions := [one for one in met if not one.certain]:
        console.print(_table("Met, but not shown again", suspicions))


def _table(title: str, some: Iterable[Found]) -> Table:
    table = Table("kind", "signature", "messages", "confirmed", "seen", "after", title=title)
    table.add_column("transcript", overflow="fold")
    for found in some:
        table.add_row(
            found.finding.trouble.value,
            Text(found.finding.signature),  # what is in brackets is no markup
            str(messages_of(found)),
            f"{found.confirmed} of {CONFIRMATIONS}",
            str(found.seen),
            f"{found.seconds:.0f} s",
            found.path.name if found.path else "-",
        )
    return table


def _reached(progress: Come) -> Table:
    table = Table("request", *progress.reached.columns, title=progress.reached.title)
    for name, row in progress.reached.rows():
        if not any(cell[0] for cell in row):
            continue
        table.add_row(name, *(" / ".join(map(str, cell)) if cell[0] else "-" for cell in row))
    return table

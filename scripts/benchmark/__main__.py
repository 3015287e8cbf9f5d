"""The benchmark's command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from scripts.benchmark import frames, growth, guests, machine, report, start
from scripts.benchmark.revision import checked_out
from scripts.benchmark.runs import Measurement, alternate
from scripts.benchmark.subjects import Ours
from tests.rig import debian
from tests.rig.image import GuestImage, guest_image
from tests.rig.process import RigError

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = ("tx", "rx", "start", "uml")
WITH_GUESTS = ("qemu", "uml")
FRAMES = ("tx", "rx", "rx-flood", "tx-64k", "rx-64k", "queues-2", "queues-4")
NAMES = (*FRAMES, *WITH_GUESTS, "start", "growth")

console = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        names: measurements.
        rounds: how often each contender runs.
        seconds: how long a window is.
        against: another revision, too.
    """

    names: tuple[str, ...]
    rounds: int
    seconds: float
    against: str | None

    def measurements(self, ours: list[Ours], image: GuestImage | None) -> Iterator[Measurement]:
        """The measurements, in the order of ``NAMES``."""
        known = [*frames.measurements(ours, self.seconds)]
        if image is not None:
            known += guests.measurements(ours, image, self.seconds)
        known += [*start.measurements(ours), *growth.measurements(ours, self.seconds)]
        return (measurement for measurement in known if measurement.name in self.names)


def tell(line: str) -> None:
    """Say what goes on."""
    console.print(line, style="dim", highlight=False)


def run(plan: Plan) -> dict[str, Any]:
    """Run a plan and show each measurement when it is done."""
    outcomes = []
    with ExitStack() as stack:
        image = guest_image() if set(plan.names) & set(WITH_GUESTS) else None
        where = machine.describe(image)
        ours = [Ours("vhostuser", ROOT)]
        if plan.against is not None:
            ours.append(stack.enter_context(checked_out(plan.against)))
        for measurement in plan.measurements(ours, image):
            outcome = alternate(measurement, plan.rounds, tell)
            report.show(console, outcome.as_json())
            outcomes.append(outcome)
    for name in set(plan.names) - {outcome.measurement.name for outcome in outcomes}:
        tell(f"{name}: left out, this revision cannot do it")
    return report.results(where, {"rounds": plan.rounds, "seconds": plan.seconds, "against": plan.against}, outcomes)


def publish(found: dict[str, Any], folder: Path, plots: bool, readme: Path | None) -> None:
    """Write what a run found: results.json, pictures, the README's block."""
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / "results.json", found)
    pictures: list[Path] = []
    if plots:
        from scripts.benchmark.plots import draw  # the extra `bench` may not be installed

        pictures = draw(found, folder)
    if readme is not None:
        seen = [os.path.relpath(picture, readme.parent) for picture in pictures]
        report.update_readme(readme, report.readme_block(found, seen))
    console.print(f"written to {folder}")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds of all contenders.")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Length of each window.")
@click.option("--short", is_flag=True, help=f"One round of 1 s of {', '.join(SHORT)}: under three minutes.")
@click.option("--against", metavar="REV", help="Measure another revision of this repository, too.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/benchmark"),
    show_default=True,
    help="Where results.json and the pictures go.",
)
@click.option("--plots/--no-plots", default=True, help="Draw pictures (needs the extra `bench`).")
@click.option("--readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Update its table.")
def main(
    names: tuple[str, ...],
    repeats: int,
    seconds: float,
    short: bool,
    against: str | None,
    output: Path,
    plots: bool,
    readme: Path | None,
) -> None:
    """Measure this back-end and its peers in turn: all measurements, or those that are named."""
    if short:
        names, repeats, seconds = names or SHORT, 1, 1.0
    if os.geteuid() != 0:
        raise click.ClickException("needs root for network namespaces and taps")
    if len(os.sched_getaffinity(0)) < 2:
        raise click.ClickException("needs two cores: one for back-ends, one for drivers")
    # whatever ends us, everything that we started is ended in order
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        debian.install(debian.PEERS)
        found = run(Plan(names or NAMES, repeats, seconds, against))
        publish(found, output, plots, readme)
    except (RigError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    sys.exit(1 if any(measurement["errors"] for measurement in found["measurements"]) else 0)


if __name__ == "__main__":
    main()

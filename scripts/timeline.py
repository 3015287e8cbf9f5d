"""Where the time of a datagram's round trip goes: host, back-end, guest, back-end, host.

Runs as ``scripts/timeline``. A requester in the tap's network namespace sends one datagram at a time to a real guest,
which sends it back. It notes when it sent and when it had the answer; the back-end notes its own moments
(``--timeline``) on the same clock. What lies between the back-end's call and its next kick is the guest's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scripts.benchmark.guests import Boot, Machine, attached, boot_qemu, boot_uml, own_tap
from scripts.benchmark.subjects import Ours
from tests.rig import debian
from tests.rig.acceptance import GUEST_ADDRESS
from tests.rig.image import GuestImage, guest_image
from tests.rig.netns import Netns
from tests.rig.process import RigError, wait_until

ROOT = Path(__file__).resolve().parent.parent
PORT = 7007
PATIENCE = 2.0  # seconds until an answer is given up
RECEIVE, TRANSMIT = range(2)  # the rings of the one queue pair

#: The moments of a usual trip, in order; the thread sleeps before each "wake".
USUAL = (
    ("wake", RECEIVE),
    ("received", RECEIVE),
    ("call", RECEIVE),
    ("called", RECEIVE),
    ("wake", RECEIVE),
    ("kick", TRANSMIT),
    ("sent", TRANSMIT),
)
#: The ways between them, from the request to the answer, and whose they are.
LEGS = (
    ("request sent → thread awake", "host"),
    ("→ frame read from the tap", "back-end"),
    ("→ frame in the ring", "back-end"),
    ("→ driver called", "kernel"),
    ("→ thread awake with the driver's kick", "guest"),
    ("→ kick consumed", "back-end"),
    ("→ frame written to the tap", "back-end, host"),
    ("→ answer read", "host"),
)

console = Console()
if not console.is_terminal:
    console.width = 120


@dataclass(frozen=True)
class Moment:
    """A line of the back-end's timeline; times in nanoseconds."""

    time: int
    what: str
    ring: int
    packets: int


@dataclass(frozen=True)
class Trip:
    """One round trip.

    Attributes:
        sent, answered: when the requester sent, and when it had the answer; nanoseconds.
        moments: the back-end's, until the next request.
    """

    sent: int
    answered: int
    moments: Sequence[Moment] = ()

    @property
    def nanoseconds(self) -> int:
        """How long it took."""
        return self.answered - self.sent

    def legs(self) -> list[int] | None:
        """Nanoseconds of each of :data:`LEGS`; None for a trip that was not usual."""
        rest = iter(self.moments)
        # each is looked for behind the one before
        found = [next((moment.time for moment in rest if (moment.what, moment.ring) == usual), 0) for usual in USUAL]
        wakes = [moment for moment in self.moments if moment.what == "wake" and moment.time < found[-1]]
        if len(wakes) != USUAL.count(("wake", RECEIVE)):
            return None
        # the requester may read on its processor before the write on ours has returned
        marks = [self.sent, *found[:-1], min(found[-1], self.answered), self.answered]
        return [later - earlier for earlier, later in pairwise(marks)]


def request(netns: Netns, count: int, interval: float) -> list[Trip]:
    """Send datagrams one at a time, with `interval` seconds in between. Raises RigError when most get lost."""
    trips: list[Trip] = []
    with netns.inside(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as requester:
        requester.connect((GUEST_ADDRESS, PORT))
        requester.settimeout(PATIENCE)
        for number in range(count):
            payload = number.to_bytes(64)
            sent = time.monotonic_ns()
            requester.send(payload)
            try:
                while requester.recv(2048) != payload:
                    pass
            except TimeoutError:
                continue
            trips.append(Trip(sent, time.monotonic_ns()))
            time.sleep(interval)
    if len(trips) < count / 2:
        raise RigError(f"{len(trips)} of {count} datagrams came back")
    return trips


def measure(machine: Machine, image: GuestImage, count: int, interval: float) -> list[Trip]:
    """Start the guest's echo, warm up, and make round trips."""
    echo = machine.guest.start(f"traffic udp-echo {PORT}")
    try:
        echo.wait_for_output("ready")
        request(machine.netns, 20, 0)
        return request(machine.netns, count, interval)
    finally:
        echo.kill()


def with_moments(trips: Sequence[Trip], moments: Sequence[Moment]) -> Iterator[Trip]:
    """The trips with their moments, but for those of which no moment is known any more."""
    times = [moment.time for moment in moments]
    starts = [bisect_left(times, trip.sent) for trip in trips]
    for trip, start, end in zip(trips, starts, [*starts[1:], None], strict=True):
        if start > 0:
            yield Trip(trip.sent, trip.answered, moments[start:end])


def read_moments(machine: Machine, file: Path) -> list[Moment]:
    """Have the back-end write its timeline. Raises RigError."""
    assert machine.back_end is not None
    file.unlink(missing_ok=True)
    os.kill(machine.back_end, signal.SIGUSR1)
    wait_until(file.exists, 10, f"the timeline in {file}")
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return [Moment(line["time"], line["what"], line["ring"], line["packets"]) for line in lines]


# ---- showing ---------------------------------------------------------------------------------------------------------


def show(name: str, trips: Sequence[Trip], slowest: int) -> None:
    """Print the whole, the legs where they are known, and the slowest trips moment by moment."""
    table = Table(title=f"{name}: {len(trips)} round trips, µs", title_justify="left", box=None)
    for column in ("", "whose", "median", "99 %", "longest"):
        table.add_column(column, justify="left" if column in ("", "whose") else "right")
    known = [legs for trip in trips if (legs := trip.legs()) is not None]
    for leg, times in zip(LEGS, zip(*known, strict=True), strict=False):
        table.add_row(*leg, *_figures(times))
    table.add_row("whole", "", *_figures([trip.nanoseconds for trip in trips]))
    console.print(table)
    if known:
        other = len(trips) - len(known)
        console.print(f"{other} trips count for the whole alone: the thread did not sleep, or had other work")
    for trip in sorted(trips, key=lambda trip: -trip.nanoseconds)[:slowest]:
        _show_trip(trip)


def _figures(times: Sequence[int]) -> tuple[str, str, str]:
    ordered = sorted(times)
    figures = statistics.median(ordered), ordered[len(ordered) * 99 // 100], ordered[-1]
    return tuple(f"{figure / 1000:.1f}" for figure in figures)  # type: ignore[return-value]


def _show_trip(trip: Trip) -> None:
    console.print(f"a trip of {trip.nanoseconds / 1000:.1f} µs; since the request was sent:")
    for moment in trip.moments:
        what = f"{moment.what:9}ring {moment.ring}" + (f", {moment.packets}" if moment.packets else "")
        console.print(f"{(moment.time - trip.sent) / 1000:12.1f}  {what}", highlight=False)


# ---- the command -----------------------------------------------------------------------------------------------------


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option(
    "--guest",
    type=click.Choice(["qemu", "uml", "qemu-tap"]),
    default="qemu",
    show_default=True,
    help="QEMU, user-mode Linux, or QEMU with the tap as its own, of which the whole is known alone.",
)
@click.option("--count", type=click.IntRange(1, 8000), default=2000, show_default=True, help="Round trips.")
@click.option(
    "--interval-ms", type=click.FloatRange(0, 1000), default=0, show_default=True, help="Wait so long after each."
)
@click.option("--slowest", type=click.IntRange(0), default=3, show_default=True, help="Show so many of the slowest.")
@click.argument("options", nargs=-1)  # fmt: skip
def main(guest: str, count: int, interval_ms: float, slowest: int, options: tuple[str, ...]) -> None:
    """Measure and print; OPTIONS, after --, are the back-end's."""
    if os.geteuid() != 0:
        raise click.UsageError("root is needed: network namespaces, taps")
    debian.install(debian.GUEST)
    image = guest_image()
    with tempfile.TemporaryDirectory(prefix="vhu-timeline-") as folder:
        file = Path(folder) / "timeline"
        boot: Boot = boot_uml if guest == "uml" else boot_qemu
        ours = Ours("vhostuser", ROOT, ("--timeline", str(file), *options))
        place = own_tap(boot, image) if guest == "qemu-tap" else attached(ours.start, boot, image)
        with place as machine:
            trips = measure(machine, image, count, interval_ms / 1000)
            if machine.back_end is not None:
                trips = list(with_moments(trips, read_moments(machine, file)))
        show(guest, trips, slowest)


if __name__ == "__main__":
    main()

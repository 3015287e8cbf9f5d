"""``vhostuser fuzz``: what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vhostuser.cli.campaign import campaign_options, run_campaign
from vhostuser.cli.tools import Tool
from vhostuser.fuzz.back_end import BackEnds
from vhostuser.fuzz.campaign import Settings
from vhostuser.fuzz.target import Range


@click.command("fuzz", cls=Tool)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--spawn", metavar="COMMAND", help="Start the back-end by this command; {socket} stands for its socket.")
@campaign_options
def command(path: Path | None, spawn: str | None, json_file: Path | None, **told: Any) -> None:
    """Fuzz a back-end: whole conversations, right ones and broken ones, rings, descriptors and timing.

    PATH is where a back-end listens. With --spawn it is started afresh whenever it died, and what it holds, how it
    died and what it leaks can be seen, too.

    Status 0: nothing was found, 1: something was, 2: it could not be done. SIGINT and SIGTERM end it with what was
    done so far, and status 130 or 143.

    \b
    Example: vhostuser fuzz --duration 600 --spawn 'vhost-user-net --loop
        --socket-path={socket}'
    """
    if (path is None) == (spawn is None):
        raise click.UsageError("exactly one of PATH and --spawn is needed")
    settings = Settings(**told)
    run_campaign(BackEnds(Range(spawn, path, max(1.0, 2 * settings.patience))), settings, json_file)

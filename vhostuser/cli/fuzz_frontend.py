"""``vhostuser fuzz-frontend``: what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vhostuser.cli.campaign import campaign_options, run_campaign
from vhostuser.cli.tools import Tool
from vhostuser.fuzz.campaign import Settings
from vhostuser.fuzz.front_ends import FrontEnds


@click.command("fuzz-frontend", cls=Tool)
@click.option(
    "--spawn", metavar="COMMAND", required=True, help="Start the front-end by this command; {socket} is its socket."
)
@click.option("--connect", "connects", is_flag=True, help="Connect to the socket: the front-end listens.")
@campaign_options
def command(spawn: str, connects: bool, json_file: Path | None, **told: Any) -> None:
    """Fuzz a front-end: a back-end that answers it wrongly, late, twice, with wrong descriptors, or leaves.

    The program is started afresh whenever it died. One that connects again by itself is tried again and again, which
    is much faster, and shows what it leaks, too.

    Status 0: nothing was found, 1: something was, 2: it could not be done. SIGINT and SIGTERM end it with what was
    done so far, and status 130 or 143.

    \b
    Example: vhostuser fuzz-frontend --duration 600 --spawn 'qemu-system-x86_64
        -object memory-backend-memfd,id=m,size=64M,share=on
        -machine q35,memory-backend=m -m 64 -nodefaults -display none
        -chardev socket,id=c,path={socket},reconnect=1
        -netdev vhost-user,id=n,chardev=c
        -device virtio-net-pci,netdev=n,vectors=0'
    """
    run_campaign(FrontEnds(spawn, connects), Settings(**told), json_file)

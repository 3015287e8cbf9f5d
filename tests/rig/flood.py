"""A host that floods a guest which takes nothing: it must cost the back-end nothing.

The guest is our own front-end. Its few receive buffers are full soon, and it gives no others. From then on the tap has
something to read all the time and nobody to read it for, so a back-end that waited for the tap would spin.
"""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress
from typing import Any

import trio

from tests.rig.acceptance import activity, settled
from tests.rig.backend import Backend
from tests.rig.netns import Netns
from tests.rig.process import RigError, wait_until
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver

FRAME = bytes.fromhex("ffffffffffff02000000000188b5").ljust(60, b"\0")
BURST = 64
BUFFERS = 16


def flood_without_buffers(seconds: float, *, packed: bool = False) -> dict[str, Any]:
    """Flood the tap of a guest without receive buffers for so long.

    Raises:
        RigError: a thread of the back-end ran, or the tap was never full.
    """
    with Netns(quiet=True) as netns, Backend(netns) as backend:
        return trio.run(_flood, netns, backend, seconds, packed)


async def _flood(netns: Netns, backend: Backend, seconds: float, packed: bool) -> dict[str, Any]:
    tap, pid = backend.tap, backend.program.pid
    assert tap is not None
    with GuestRam() as memory, netns.packet_socket(tap) as host:
        async with connect(backend.socket, negotiate=False) as front_end:
            with closing(await NetDriver.start(front_end, memory, packed=packed, size=BUFFERS)):
                wait_until(lambda: _send(host) and _dropped(netns, tap) > 0, 20, "a full tap")
                before, dropped = settled(lambda: activity(pid)), _dropped(netns, tap)
                end, offered = time.monotonic() + seconds, 0
                while time.monotonic() < end:
                    offered += _send(host)
                after, dropped = activity(pid), _dropped(netns, tap) - dropped
    if dropped != offered:
        raise RigError(f"of {offered} frames for a guest without buffers the tap dropped only {dropped}")
    if after != before:
        raise RigError(f"the back-end ran while {offered} frames found no room: {before}, then {after}")
    return {"seconds": seconds, "frames": offered, "dropped": dropped, "threads": len(after)}


def _send(host: socket.socket) -> int:
    """Send a burst; how many frames the interface took. It takes none before the driver is there."""
    taken = 0
    with suppress(OSError):
        for _ in range(BURST):
            host.send(FRAME)
            taken += 1
    return taken


def _dropped(netns: Netns, tap: str) -> int:
    """Frames for which the tap's queue had no room."""
    return int(netns.link(tap)["stats64"]["tx"]["dropped"])

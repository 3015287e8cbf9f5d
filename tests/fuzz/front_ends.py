"""Front-ends whose faults are known, and what they are told."""

from __future__ import annotations

import sys
from pathlib import Path

from vhostuser.fuzz.front_ends import FrontEnds
from vhostuser.transcript.entries import Entry, Said, Side
from vhostuser.wire.codec import encode_ack

GULLIBLE = Path(__file__).with_name("gullible.py")


def command(*faults: str) -> str:
    """The command line of a front-end with these faults."""
    return f"{sys.executable} -I -S {GULLIBLE} {{socket}} {' '.join(faults)}"


def gullible(*faults: str) -> FrontEnds:
    """Such front-ends, for a campaign."""
    return FrontEnds(command(*faults), asking=0.4)


def cue(request: int, answer: str | None = None) -> Said:
    """A request that is waited for, and the kind of answer that it gets."""
    return Said(Side.FRONTEND, request, answer=answer)


def refused(request: int) -> list[Entry]:
    """A request that is refused."""
    return [cue(request), Said(Side.BACKEND, request, 5, encode_ack(request, 1).payload)]

"""A campaign finds what is wrong with a front-end, makes it small, and finds nothing where nothing is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vhostuser.fuzz.campaign import Campaign, Progress, Settings
from vhostuser.fuzz.establish import CONFIRMATIONS, Found
from vhostuser.fuzz.front_ends import FrontEnds
from vhostuser.fuzz.verdict import Trouble
from vhostuser.transcript.file import load

GULLIBLE = Path(__file__).with_name("gullible.py")
LONG_ENOUGH = 60.0


def gullible(*faults: str) -> FrontEnds:
    """A front-end with these faults."""
    return FrontEnds(f"{sys.executable} -I -S {GULLIBLE} {{socket}} {' '.join(faults)}", asking=0.5)


def found_of(progress: Progress, kind: Trouble) -> list[Found]:
    return [
        found for found in progress.found.values() if found.finding.trouble is kind and found.confirmed == CONFIRMATIONS
    ]


async def campaign(folder: Path, targets: FrontEnds, wanted: Trouble) -> Progress:
    """Fuzz until a finding of a kind is confirmed."""
    settings = Settings(LONG_ENOUGH, 1, findings=folder, patience=0.1)

    def news(progress: Progress) -> None:
        if found_of(progress, wanted):
            run.stop()

    run = Campaign(targets, settings, news)
    return await run.run()


@pytest.mark.parametrize(
    ("fault", "kind", "signature", "entries"),
    [
        ("dies", Trouble.CRASH, "SIGKILL: ", 3),
        ("hangs", Trouble.HANG, "in ", 4),
        ("leaks", Trouble.FD_LEAK, "", 3),
        ("exits", Trouble.EXIT, "exit status 1: ring # cannot be enabled", 4),
        ("believes", Trouble.CRASH, "SIGKILL: ", 5),
        ("agrees", Trouble.ACCEPTED, "", 3),
        ("invents", Trouble.WRONG_REQUEST, "VU-NEG-4", 1),
    ],
)
async def test_a_fault_is_found_and_made_small(
    tmp_path: Path, fault: str, kind: Trouble, signature: str, entries: int
) -> None:
    progress = await campaign(tmp_path, gullible(fault), kind)
    (found, *_) = found_of(progress, kind)
    assert found.finding.signature.startswith(signature)
    assert len(found.entries) <= entries
    assert found.path is not None
    assert load(found.path).entries == found.entries

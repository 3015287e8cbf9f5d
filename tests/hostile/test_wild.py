"""Random inputs in short form; ``scripts/soak hostile`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig import wild_rings
from tests.rig.wild_frames import wild_frames
from vhostuser import edition


@pytest.mark.proves("VIO-HOSTILE-1")
@pytest.mark.parametrize("seed", [pytest.param(1, id="F5-2000-random-frames")])
def test_random_and_mutated_frames(seed: int) -> None:
    outcome = wild_frames(2000, seed)
    assert outcome["good conversations"] >= 2
    assert outcome["closed by the back-end"] > 0


@pytest.mark.proves("VIO-HOSTILE-2")
@pytest.mark.parametrize("layout", [pytest.param(name, id=f"V9-random-{name}-rings") for name in wild_rings.LAYOUTS])
def test_random_rings_that_change_meanwhile(layout: str, tmp_path: Path) -> None:
    operations = 50_000 if edition.compiled() else 2_000
    outcome = wild_rings.wild_rings(operations, layout, 1, tmp_path / "log")
    assert outcome["operations"] >= operations
    assert outcome["rings broken"]
    assert outcome["packets sent"] > 0

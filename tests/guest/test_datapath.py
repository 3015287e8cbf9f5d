"""Checked frames both ways while the memory table and the port change: the short form of ``scripts/soak datapath``."""

from __future__ import annotations

import pytest

from tests.rig.datapath import Frames, Judge, Plan, datapath
from tests.rig.process import RigError

pytestmark = pytest.mark.guest

SECONDS, TABLES, SWAPS = 2.5, 10, 5  # about so many


@pytest.mark.proves("VIO-PORT-5")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_nothing_is_lost_but_what_is_counted(packed: bool) -> None:
    result = datapath(Plan(SECONDS, packed, table_every=SECONDS / TABLES, swap_every=SECONDS / SWAPS))
    assert result["ports swapped"] > 0
    assert result["memory tables"] > 0
    assert result["frames to the guest"]["received"] > 0
    assert result["frames to the host"]["received"] > 0


def frames(count: int) -> list[bytes]:
    source, made = Frames(0), []
    for _ in range(count):
        made.append(source.peek())
        source.advance()
    return made


def test_the_judge_is_content_with_gaps() -> None:
    judge = Judge()
    for frame in frames(100)[::3]:
        judge.look_at(frame)
    assert (judge.received, judge.next) == (34, 100)


@pytest.mark.parametrize("flaw", ["twice", "overtaken", "cut", "longer", "changed", "number changed"])
def test_the_judge_finds(flaw: str) -> None:
    first, second, third = frames(3)
    wrong = {
        "twice": second,
        "overtaken": first,
        "cut": third[:-1],
        "longer": b"\0" + third,
        "changed": third[:20] + bytes([third[20] ^ 1]) + third[21:],
        "number changed": third[:-10] + b"\1" + third[-9:],
    }[flaw]
    judge = Judge()
    judge.look_at(first)
    judge.look_at(second)
    with pytest.raises(RigError, match=r"^frame [01] after frame 1$|bytes after frame 1 are none"):
        judge.look_at(wrong)

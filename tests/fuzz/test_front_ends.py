"""A campaign finds what is wrong with a front-end, makes it small, and shows it again."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.test_front_end import cue, gullible, refused
from vhostuser.fuzz.campaign import Campaign, Progress, Settings
from vhostuser.fuzz.conduct import Way
from vhostuser.fuzz.establish import CONFIRMATIONS, Found
from vhostuser.fuzz.front_ends import FrontEnds, shape_of
from vhostuser.fuzz.report import report
from vhostuser.fuzz.verdict import Trouble
from vhostuser.transcript.entries import Entry, Said, Side
from vhostuser.transcript.file import load
from vhostuser.wire.requests import FrontendRequest as R

LONG_ENOUGH = 60.0


def found_of(progress: Progress, kind: Trouble) -> list[Found]:
    return [
        found for found in progress.found.values() if found.finding.trouble is kind and found.confirmed == CONFIRMATIONS
    ]


async def campaign(folder: Path, targets: FrontEnds, wanted: Trouble, seed: int) -> Progress:
    """Fuzz until a finding of a kind is confirmed."""
    settings = Settings(LONG_ENOUGH, seed, findings=folder, patience=0.05)

    def news(progress: Progress) -> None:
        if found_of(progress, wanted):
            run.stop()

    run = Campaign(targets, settings, news)
    return await run.run()


@pytest.mark.parametrize(("fault", "kind", "seed"), [("dies", Trouble.CRASH, 12), ("agrees", Trouble.ACCEPTED, 1)])
async def test_a_fault_is_found_and_made_small(tmp_path: Path, fault: str, kind: Trouble, seed: int) -> None:
    progress = await campaign(tmp_path, gullible(fault), kind, seed)
    (found, *_) = found_of(progress, kind)
    assert len(found.entries) == 2, "what the front-end says, and what it is told"
    assert found.path is not None
    transcript = load(found.path)
    assert transcript.entries == found.entries
    assert transcript.back_end == "vhostuser fuzz-frontend"


async def test_the_report_has_each_request_and_each_way_to_answer_it(tmp_path: Path) -> None:
    settings = Settings(LONG_ENOUGH, 3, corpus=tmp_path / "corpus", patience=0.05, conversations=4)
    progress = await Campaign(gullible(), settings).run()
    told = report(progress, settings, 1.0)
    assert (told["conversations"], told["findings"]) == (4, [])
    assert told["reached"]["GET_FEATURES"][Way.WELL.value][0] > 0
    assert all(list(row) == [way.value for way in Way] for row in told["reached"].values())
    assert told["corpus"] == len(list((tmp_path / "corpus").iterdir())) > 0


async def test_a_kept_conversation_is_tried_before_anything_grows_from_it() -> None:
    targets = gullible()
    await targets.ask()
    kept = tuple(refused(R.SET_MEM_TABLE))
    assert any(targets.conversation(Random(seed), [kept]) == kept for seed in range(20))
    async with targets.target() as target:
        targets.learn(kept, await target.examine(kept, 0.1))
    grown = [targets.conversation(Random(seed), [kept]) for seed in range(20)]
    assert kept not in grown
    assert any(set(kept) < set(entries) for entries in grown)


async def test_what_led_to_a_finding_is_mostly_left_out() -> None:
    targets = gullible()
    await targets.ask()

    def how_many() -> int:
        made = [targets.conversation(Random(seed), []) for seed in range(150)]
        return sum(any(isinstance(entry, Said) and entry.cut == 0 for entry in entries) for entries in made)

    before = how_many()
    for request in (R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.SET_BACKEND_REQ_FD, R.SET_MEM_TABLE, R.SET_VRING_ENABLE):
        targets.avoid([cue(request), Said(Side.BACKEND, request, 5, bytes(8), cut=0)])
    assert 0 <= how_many() < before / 2


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (Said(Side.BACKEND, 1, 5, b"12345678"), Said(Side.BACKEND, 1, 5, b"87654321"), True),
        (Said(Side.BACKEND, 1, 5, b"12345678"), Said(Side.BACKEND, 1, 5, b"1234567"), False),
        (Said(Side.BACKEND, 1, 5, b"12345678"), Said(Side.BACKEND, 2, 5, b"12345678"), False),
        (Said(Side.BACKEND, 3, 5, own_channel=True), Said(Side.BACKEND, 4, 5, own_channel=True), False),
    ],
)
def test_shapes_tell_what_was_done_but_for_values(one: Entry, other: Entry, alike: bool) -> None:
    assert (shape_of(1, [one]) == shape_of(1, [other])) is alike

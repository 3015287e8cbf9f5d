"""A campaign finds what is wrong with a back-end, makes it small, and finds nothing where nothing is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest
import trio

from vhostuser.fuzz.back_end import BackEnds
from vhostuser.fuzz.campaign import Campaign, Progress, Settings
from vhostuser.fuzz.establish import CONFIRMATIONS, Found
from vhostuser.fuzz.model import State
from vhostuser.fuzz.report import messages_of, report
from vhostuser.fuzz.target import Range
from vhostuser.fuzz.verdict import Finding, Trouble
from vhostuser.transcript.entries import Said, Side
from vhostuser.transcript.file import load
from vhostuser.wire.requests import FRONTEND_REQUESTS, Reply

SPOILED = Path(__file__).with_name("spoiled.py")
LONG_ENOUGH = 60.0


def spoiled(*faults: str) -> BackEnds:
    """A back-end with these faults."""
    own_replies = json.dumps([int(n) for n, spec in FRONTEND_REQUESTS.items() if spec.reply is Reply.ALWAYS])
    return BackEnds(Range(f"{sys.executable} -I -S {SPOILED} {{socket}} '{own_replies}' {' '.join(faults)}", None, 2.0))


def ours() -> BackEnds:
    """Ours, with no faults that are known."""
    return BackEnds(Range(f"{sys.executable} -m vhostuser net --loop --socket-path={{socket}}", None, 5.0))


async def found_in(folder: Path, targets: BackEnds, kind: Trouble, signature: str) -> Found:
    """Fuzz until a finding of a kind is confirmed whose signature begins so. A busy machine may show others, too."""
    settings = Settings(LONG_ENOUGH, 1, findings=folder / "findings", patience=0.5)

    def confirmed(progress: Progress) -> list[Found]:
        return [
            found
            for found in progress.found.values()
            if found.finding.name.startswith(f"{kind.value}: {signature}") and found.confirmed == CONFIRMATIONS
        ]

    def news(progress: Progress) -> None:
        if confirmed(progress):
            run.stop()

    run = Campaign(targets, settings, news)
    return confirmed(await run.run())[0]


@pytest.mark.parametrize(
    ("fault", "kind", "signature", "messages"),
    [
        ("dies", Trouble.CRASH, "SIGKILL: ", 1),
        ("hangs", Trouble.HANG, "after SET_VRING_", 2),
        ("leaks", Trouble.FD_LEAK, "", 1),
        ("lies", Trouble.WRONG_REPLY, "VU-HDR-7", 1),
    ],
)
async def test_a_fault_is_found_and_made_small(
    tmp_path: Path, fault: str, kind: Trouble, signature: str, messages: int
) -> None:
    found = await found_in(tmp_path, spoiled(fault), kind, signature)
    assert messages_of(found) <= messages
    assert found.path is not None
    assert load(found.path).entries == found.entries


async def test_nothing_is_found_in_ours(tmp_path: Path) -> None:
    settings = Settings(5.0, 5, findings=tmp_path / "findings", patience=2.0)
    progress = await Campaign(ours(), settings).run()
    assert progress.conversations > 2
    assert [found.finding for found in progress.found.values()] == []
    assert list((tmp_path / "findings").iterdir()) == []


async def test_the_report_has_a_row_for_each_request_and_a_column_for_each_state(tmp_path: Path) -> None:
    settings = Settings(1.0, 1, corpus=tmp_path / "corpus")
    progress = await Campaign(spoiled(), settings).run()
    told = report(progress, settings, 1.0)
    assert list(told["reached"]) == [spec.name for spec in FRONTEND_REQUESTS.values()]
    assert all(list(row) == [state.value for state in State] for row in told["reached"].values())
    assert told["reached"]["GET_FEATURES"]["fresh"][0] > 0
    assert told["corpus"] == len(list((tmp_path / "corpus").iterdir())) > 0


async def test_the_same_chance_and_corpus_make_the_same_conversation() -> None:
    aim = ours()
    await aim.ask()
    kept = [aim.conversation(Random(number), []) for number in range(4)]
    for seed in range(20):
        assert aim.conversation(Random(seed), kept) == aim.conversation(Random(seed), kept)


async def test_a_finding_that_was_not_made_small_any_more_is_kept_as_it_was_met(tmp_path: Path) -> None:
    campaign = Campaign(spoiled(), Settings(LONG_ENOUGH, findings=tmp_path))
    entries = (Said(Side.FRONTEND, 3), Said(Side.FRONTEND, 3))
    found = campaign.claim(Finding(Trouble.CRASH, "SIGSEGV: here"), entries)
    assert found is not None
    with trio.CancelScope() as ended:
        ended.cancel()
        await campaign.establish(found, [])
    assert found.path is not None
    assert (load(found.path).entries, found.confirmed) == (entries, 0)

"""What became of a front-end: each verdict, on one whose faults are known."""

from __future__ import annotations

import shlex
import struct
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.fuzz.front_ends import command, cue, refused
from vhostuser.errors import VhostUserError
from vhostuser.fuzz.front_end import FrontEnd, Habits, Parting, Tempo
from vhostuser.fuzz.front_ends import FrontEnds
from vhostuser.fuzz.verdict import Finding, Trouble
from vhostuser.peer.program import started
from vhostuser.transcript.counterpart import Asked
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Said, Side, Wrote
from vhostuser.transport.endpoints import listen
from vhostuser.wire.requests import BackendRequest, FrontendRequest

R = FrontendRequest
LONG = 5.0  # of no matter: every conversation here has an end that is not waited for
PIPE = Descriptor("pipe", Kind.PIPE_READ)
ENDS = Closed(Side.BACKEND)


def used(index: int, ring: int) -> list[Entry]:
    """A used ring with that index, and an entry with that id."""
    wrote = Wrote("used 0", 4, (struct.pack("<I", ring),)), Wrote("used 0", 2, (struct.pack("<H", index),))
    return [cue(R.SET_VRING_ENABLE, "reply"), *wrote]


RUNS: list[Entry] = [cue(R.SET_VRING_ENABLE, "reply"), ENDS]
ASKS = Said(Side.BACKEND, BackendRequest.SHARED_OBJECT_ADD, 9, bytes(16), own_channel=True)
ASKED: list[Entry] = [cue(R.SET_VRING_ENABLE, "reply"), ASKS, Paused(1.0), ENDS]
PASSES = Said(Side.BACKEND, R.GET_FEATURES, 5, struct.pack("=Q", 1 << 30 | 1 << 32), fds=(PIPE,))
PASSED: list[Entry] = [cue(R.GET_FEATURES), PASSES, *RUNS]
TEMPO = Tempo(LONG / 2, 13)
HABITS = Habits(Parting.RETURNS, 0.05, TEMPO, TEMPO, "", tuple(RUNS))


async def found(
    fault: str, *conversations: list[Entry], habits: Habits = HABITS, cold: bool = False, patience: float = LONG
) -> list[Finding]:
    """What comes of conversations with a front-end that runs, or with one that has just been started."""
    findings: list[Finding] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sock"
        async with (
            await listen(path) as endpoint,
            started(command(fault), path=path, listens=False) as program,
            FrontEnd(program, endpoint.accept, habits) as target,
        ):
            before = None if cold else await target.settled()
            for entries in conversations:
                examined = await target.examine(entries, patience, before)
                assert examined.performance.played == len(entries)
                findings += examined.findings
    return findings


@pytest.mark.parametrize(
    ("fault", "entries", "kind", "signature"),
    [
        ("exits", refused(R.SET_VRING_ENABLE), Trouble.EXIT, "exit status 1: ring # cannot be enabled"),
        ("believes", used(1, 99), Trouble.CRASH, "SIGKILL: place unknown"),
        ("agrees", ASKED, Trouble.ACCEPTED, "SHARED_OBJECT_ADD VU-NEG-6"),
        ("leaks", PASSED, Trouble.FD_LEAK, "pipe:[]"),
        ("oversteps", RUNS, Trouble.WRONG_REQUEST, "VU-NEG-6"),
    ],
)
async def test_a_fault_shows(fault: str, entries: list[Entry], kind: Trouble, signature: str) -> None:
    (finding,) = await found(fault, entries)
    assert (finding.trouble, finding.signature) == (kind, signature)


async def test_one_that_does_not_come_again_hangs_and_its_place_is_told() -> None:
    (finding,) = await found("hangs", [*refused(R.SET_MEM_TABLE), ENDS], patience=0.1)
    assert finding.trouble is Trouble.HANG
    assert "sleep" in finding.signature
    assert finding.detail.startswith("after SET_MEM_TABLE it no longer comes again within")


async def test_nothing_shows_where_nothing_is() -> None:
    assert await found("", RUNS, refused(R.SET_MEM_TABLE), [*used(1, 99), ENDS], PASSED, ASKED) == []
    assert await found("believes", [*used(1, 1), Paused(0.1), ENDS]) == []


@pytest.mark.parametrize("refusal", [R.SET_VRING_ENABLE, R.SET_MEM_TABLE])
async def test_one_may_give_up_while_it_starts(refusal: R) -> None:
    assert await found("exits", refused(refusal), cold=True) == []


async def test_one_may_end_if_that_is_its_habit() -> None:
    habits = replace(HABITS, parting=Parting.ENDS, last_words="exit status 0")
    assert await found("leaves", RUNS, cold=True, habits=habits) == []


@pytest.mark.parametrize(("faults", "parting"), [("", Parting.RETURNS), ("leaves", Parting.ENDS)])
async def test_habits_are_learned(faults: str, parting: Parting) -> None:
    aim = FrontEnds(command(faults), asking=1.0)
    await aim.ask()
    async with aim.target() as target:
        assert target.habits.parting is parting
        assert target.habits.first.messages == 13
        assert target.habits.introduction[-1] == ENDS
        examined = await target.examine(aim.introduction, LONG)
        assert (examined.performance.played, examined.findings) == (len(aim.introduction), ())


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('no back-end wanted')", "exit status 0\nno back-end wanted"),
        ("s.connect(sys.argv[1]); sys.exit(3)", "exit status 3"),
    ],
)
async def test_one_that_ends_and_says_nothing_is_told(program: str, told: str) -> None:
    words = f"import socket, sys; s = socket.socket(socket.AF_UNIX); {program}"
    aim = FrontEnds(f"{sys.executable} -I -S -c {shlex.quote(words)} {{socket}}", asking=0.1)
    with pytest.raises(VhostUserError) as raised:
        await aim.ask()
    assert str(raised.value) == f"it ended before it said anything: {told}"


async def test_one_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostuser.fuzz.front_end._STARTING", 0.1)
    with pytest.raises(VhostUserError, match=r"^the front-end says nothing; it printed:\n$"):
        await FrontEnds("sh -c 'exec sleep 1000' {socket}", asking=0.1).ask()


@pytest.mark.parametrize(
    ("times", "tempo"),
    [
        ([0.1, 0.2, 0.3], Tempo(0.1, 3)),
        ([0.1, 5.1, 5.2, 5.3], Tempo(5.0, 4)),
        ([0.1, 0.2, 0.3, 0.4, 9.0], Tempo(0.1, 4)),
        ([0.001, 0.002, 0.003, 0.004, 0.024], Tempo(0.1, 5)),
        ([], Tempo()),
    ],
)
def test_what_comes_late_is_not_waited_for_if_it_is_little(times: list[float], tempo: Tempo) -> None:
    asked = [Asked(-1, Said(Side.FRONTEND, R.SET_OWNER, time=time), None, False) for time in times]
    told = Tempo.of(asked)
    assert (round(told.silence, 6), told.messages) == (tempo.silence, tempo.messages)

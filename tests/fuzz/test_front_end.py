"""What became of a front-end: each verdict, on one whose faults are known."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.front_end import Parting, Tempo
from vhostuser.fuzz.front_ends import FrontEnds
from vhostuser.fuzz.verdict import Finding, Trouble
from vhostuser.transcript.counterpart import Asked
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Said, Side, Wrote
from vhostuser.wire.codec import encode_ack
from vhostuser.wire.requests import BackendRequest, FrontendRequest

GULLIBLE = Path(__file__).with_name("gullible.py")
R = FrontendRequest
PIPE = Descriptor("pipe", Kind.PIPE_READ)


def gullible(*faults: str) -> FrontEnds:
    """A front-end with these faults."""
    return FrontEnds(f"{sys.executable} -I -S {GULLIBLE} {{socket}} {' '.join(faults)}", asking=0.2)


def cue(request: int, answer: str | None = None) -> Said:
    return Said(Side.FRONTEND, request, answer=answer)


def refused(request: int) -> list[Entry]:
    return [cue(request), Said(Side.BACKEND, request, 5, encode_ack(request, 1).payload)]


def used(index: int, ring: int) -> list[Entry]:
    """A used ring with that index, and an entry with that id."""
    return [
        cue(R.SET_VRING_ENABLE, "reply"),
        Wrote("used 0", 4, (struct.pack("<I", ring),)),
        Wrote("used 0", 2, (struct.pack("<H", index),)),
        Paused(0.1),
    ]


ASKS = Said(Side.BACKEND, BackendRequest.SHARED_OBJECT_ADD, 9, bytes(16), own_channel=True)
TAKES_FDS = Said(Side.BACKEND, R.GET_FEATURES, 5, struct.pack("=Q", 1 << 30 | 1 << 32), fds=(PIPE,))


async def found(faults: str, entries: list[Entry], *, cold: bool = False) -> list[Finding]:
    """What comes of a conversation with a front-end that runs, or with one that has just been started."""
    aim = gullible(*faults.split())
    await aim.ask()
    async with aim.target() as target:
        before = None if cold else await target.settled()
        examined = await target.examine(entries, 0.1, before)
        assert examined.performance.played == len(entries)
        return list(examined.findings)


@pytest.mark.parametrize(
    ("fault", "entries", "kind", "signature"),
    [
        ("exits", refused(R.SET_VRING_ENABLE), Trouble.EXIT, "exit status 1: ring # cannot be enabled"),
        ("believes", used(1, 99), Trouble.CRASH, "SIGKILL: place unknown"),
        ("agrees", [cue(R.SET_VRING_ENABLE, "reply"), ASKS], Trouble.ACCEPTED, "SHARED_OBJECT_ADD VU-NEG-6"),
        ("leaks", [cue(R.GET_FEATURES), TAKES_FDS], Trouble.FD_LEAK, "pipe:[]"),
        ("oversteps", [], Trouble.WRONG_REQUEST, "VU-NEG-6"),
    ],
)
async def test_a_fault_shows(fault: str, entries: list[Entry], kind: Trouble, signature: str) -> None:
    (finding,) = await found(fault, entries)
    assert (finding.trouble, finding.signature) == (kind, signature)


async def test_one_that_does_not_come_again_hangs_and_its_place_is_told() -> None:
    (finding,) = await found("hangs", refused(R.SET_MEM_TABLE))
    assert finding.trouble is Trouble.HANG
    assert "sleep" in finding.signature
    assert finding.detail.startswith("after SET_MEM_TABLE it no longer comes again within")


@pytest.mark.parametrize(
    ("faults", "entries", "cold"),
    [
        ("", [], False),
        ("", refused(R.SET_MEM_TABLE), False),
        ("", used(1, 99), False),
        ("believes", used(1, 1), False),
        ("", [cue(R.GET_FEATURES), TAKES_FDS], False),
        ("", [cue(R.SET_VRING_ENABLE, "reply"), ASKS], False),
        ("exits", refused(R.SET_VRING_ENABLE), True),
        ("", refused(R.SET_MEM_TABLE), True),
        ("leaves", [], True),
    ],
    ids=["well", "comes again", "knows better", "used as it should", "closes", "refuses", "start", "gives up", "ends"],
)
async def test_nothing_shows_where_nothing_is(faults: str, entries: list[Entry], cold: bool) -> None:
    assert await found(faults, entries, cold=cold) == []


async def test_habits_are_learned() -> None:
    for faults, parting in (("", Parting.RETURNS), ("leaves", Parting.ENDS)):
        aim = gullible(faults)
        await aim.ask()
        async with aim.target() as target:
            assert target.habits.parting is parting
            assert target.habits.first.messages == 13


async def test_one_that_says_nothing_is_told() -> None:
    aim = FrontEnds(f"{sys.executable} -c 'print(\"no back-end wanted\")' {{socket}}", asking=0.2)
    with pytest.raises(VhostUserError, match=r"says nothing.*\nno back-end wanted"):
        await aim.ask()


@pytest.mark.parametrize(
    ("times", "tempo"),
    [
        ([0.1, 0.2, 0.3], Tempo(0.1, 3)),
        ([0.1, 5.1, 5.2, 5.3], Tempo(5.0, 4)),
        ([0.1, 0.2, 0.3, 0.4, 9.0], Tempo(0.1, 4)),
        ([], Tempo()),
    ],
)
def test_what_comes_late_is_not_waited_for_if_it_is_little(times: list[float], tempo: Tempo) -> None:
    asked = [Asked(-1, Said(Side.FRONTEND, R.SET_OWNER, time=time), None, False) for time in times]
    told = Tempo.of(asked)
    assert (round(told.silence, 6), told.messages) == (tempo.silence, tempo.messages)


async def test_the_introduction_is_a_conversation_that_leaves_it_running() -> None:
    aim = gullible()
    await aim.ask()
    assert aim.introduction[-1] == Closed(Side.BACKEND)
    async with aim.target() as target:
        examined = await target.examine(aim.introduction, 0.1)
    assert (examined.performance.played, examined.findings) == (len(aim.introduction), ())

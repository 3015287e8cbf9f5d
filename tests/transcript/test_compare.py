"""Two conversations: what only one of them has, and what both have in different ways."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.transcript.conversations import NEED_REPLY, answers, asks
from vhostuser.session.witness import Side
from vhostuser.transcript.compare import Difference, compare
from vhostuser.transcript.entries import Closed, Entry, Said, Transcript
from vhostuser.transcript.file import load
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import BackendRequest, FrontendRequest

R, B = FrontendRequest, BackendRequest
RECORDED = sorted((Path(__file__).parents[2] / "protocol-spec" / "transcripts").glob("*.jsonl"))

OWNER, FEATURES = asks(R.SET_OWNER), asks(R.GET_FEATURES)
OFFER = answers(R.GET_FEATURES, U64(0x10))


def compared(one: list[Entry], other: list[Entry], of: Side | None = None) -> list[Difference]:
    return compare(Transcript(tuple(one)), Transcript(tuple(other)), of)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recording_is_like_itself(path: Path) -> None:
    transcript = load(path)
    assert compare(transcript, transcript) == []


def test_what_one_does_not_ask() -> None:
    assert compared([FEATURES, OFFER, OWNER, Closed()], [FEATURES, OFFER, Closed()]) == [
        Difference(2, None, "SET_OWNER", "SET_OWNER", "-")
    ]
    assert compared([OWNER], [FEATURES, OWNER]) == [Difference(None, 0, "GET_FEATURES", "-", "GET_FEATURES")]


def test_what_is_asked_in_another_order() -> None:
    found = compared([OWNER, FEATURES, OFFER], [FEATURES, OFFER, OWNER])
    assert sorted(difference.about for difference in found) in (["GET_FEATURES"] * 2, ["SET_OWNER"] * 2)


def test_what_is_asked_and_answered_differently() -> None:
    one: list[Entry] = [FEATURES, OFFER, asks(R.SET_FEATURES, U64(0x10), NEED_REPLY), answers(R.SET_FEATURES, U64(0))]
    other: list[Entry] = [FEATURES, answers(R.GET_FEATURES, U64(0x30)), asks(R.SET_FEATURES, U64(0x30))]
    offer = Difference(0, 0, "GET_FEATURES", "GET_FEATURES reply 0x10", "GET_FEATURES reply 0x30")
    asked = Difference(2, 2, "SET_FEATURES", "SET_FEATURES 0x10 need_reply", "SET_FEATURES 0x30")
    answered = Difference(2, 2, "SET_FEATURES", "SET_FEATURES ack 0", "no answer")
    assert compared(one, other) == [offer, asked, answered]
    assert compared(one, other, Side.FRONTEND) == [asked]
    assert compared(one, other, Side.BACKEND) == [offer, answered]


def test_rings_are_told_apart() -> None:
    first, second = (asks(R.SET_VRING_ENABLE, VringState(ring, 1)) for ring in range(2))
    (found,) = compared([first, second], [second])
    assert (found.number, found.one) == (0, "SET_VRING_ENABLE index=0 num=1")


def test_who_closed_the_connection() -> None:
    (found,) = compared([OWNER, Closed()], [OWNER, Closed(Side.BACKEND)])
    assert found == Difference(1, 1, "the connection", "the front-end closes the connection",
                               "the back-end closes the connection")  # fmt: skip


def test_the_back_ends_own_requests_are_compared_but_for_those_that_traffic_makes() -> None:
    change = Said(Side.BACKEND, B.CONFIG_CHANGE_MSG, NEED_REPLY, own_channel=True)
    call = Said(Side.BACKEND, B.VRING_CALL, 1, bytes(8), own_channel=True)
    done = Said(Side.FRONTEND, B.CONFIG_CHANGE_MSG, 5, bytes(8), own_channel=True)
    refused = replace(done, payload=b"\1" + bytes(7))
    kick = asks(R.VRING_KICK, VringState(0, 0))
    assert compared([FEATURES, OFFER, change, done], [FEATURES, OFFER, call, call, change, done, kick]) == []
    (found,) = compared([FEATURES, OFFER, change, done], [FEATURES, OFFER, change, refused])
    assert (found.one, found.other) == ("CONFIG_CHANGE_MSG ack 0", "CONFIG_CHANGE_MSG ack 1")
    (found,) = compared([FEATURES, OFFER, change, done], [FEATURES, OFFER])
    assert (found.about, found.other) == ("CONFIG_CHANGE_MSG", "-")


def test_kinds_of_answers_are_compared_where_no_more_is_known() -> None:
    known: list[Entry] = [FEATURES, OFFER, asks(R.SET_OWNER, None, NEED_REPLY), answers(R.SET_OWNER, U64(0))]
    kinds: list[Entry] = [replace(FEATURES, answer="reply"), asks(R.SET_OWNER, None, NEED_REPLY)]
    (found,) = compared(known, kinds)
    assert (found.about, found.one, found.other) == ("SET_OWNER", "SET_OWNER ack 0", "no answer")


def test_what_was_bent_is_not_held_against_anybody() -> None:
    assert compared([FEATURES, replace(OFFER, payload=bytes(8), bent=("0x10 cleared",))], [FEATURES, OFFER]) == []


def test_long_conversations_take_no_time_worth_the_name() -> None:
    message: Entry = asks(R.SET_VRING_ENABLE, VringState(0, 1))
    begin = time.process_time()
    assert len(compared([message] * 6000, [*[message] * 5000, OWNER])) > 0
    assert time.process_time() - begin < 10

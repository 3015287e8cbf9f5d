"""What a back-end does wrong: it can be kept and played, follows from its seed, and leaves no way to do wrong out."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostuser.errors import FramingError
from vhostuser.fuzz import used
from vhostuser.fuzz.conduct import Conduct, Way, own_way_of, way_of
from vhostuser.fuzz.misconduct import Situation, misled, own_request
from vhostuser.session.backend import Offer
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.counterpart import Asked, Counterplay, is_cue
from vhostuser.transcript.entries import Closed, Entry, Paused, Said, Side, Signalled, Transcript, Wrote
from vhostuser.transcript.file import lines_of, parse
from vhostuser.wire import layouts
from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.features import ProtocolFeature as P
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import (
    U64,
    MemoryRegion,
    MemoryTable,
    Payload,
    VringAddr,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import BACKEND_REQUESTS, Direction, FrontendRequest, RequestSpec

R = FrontendRequest
OFFER = Offer(VhostFeature.PROTOCOL_FEATURES | VhostFeature.RING_PACKED | 1 << 32, P.REPLY_ACK | P.BACKEND_REQ, 2)
seeds = st.integers(0, 2**32)

#: What a front-end says, how many descriptors come with it, and whether it wants that acknowledged.
SAID: list[tuple[R, Payload | None, int, bool]] = [
    (R.GET_FEATURES, None, 0, False),
    (R.GET_PROTOCOL_FEATURES, None, 0, False),
    (R.SET_PROTOCOL_FEATURES, U64(int(P.REPLY_ACK | P.BACKEND_REQ)), 0, False),
    (R.SET_BACKEND_REQ_FD, None, 1, True),
    (R.SET_OWNER, None, 0, False),
    (R.GET_FEATURES, None, 0, False),
    (R.SET_FEATURES, U64(OFFER.virtio_features), 0, False),
    (R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 1 << 16, 0, 0),)), 1, True),
    *((R.SET_VRING_NUM, VringState(ring, 64), 0, False) for ring in range(2)),
    *((R.SET_VRING_ADDR, VringAddr(ring, 0, 0, 0x2000, 0x1000, 0), 0, False) for ring in range(2)),
    *((R.SET_VRING_KICK, VringFd(ring), 1, False) for ring in range(2)),
    (R.SET_VRING_ENABLE, VringState(0, 1), 0, True),
]


def conversation() -> list[Asked]:
    """That, with the answers that it should get."""
    answers, asked = Answers(OFFER), []
    for request, payload, fds, ack in SAID:
        body = layouts.build(payload) if payload else b""
        frame = Frame(request, 9 if ack else 1, body, LentFds(range(fds)))
        said = Said(Side.FRONTEND, request, frame.flags, body)
        asked.append(Asked(-1, said, answers.to(frame), cue=False))
    return asked


ASKED = conversation()


def made(seed: int) -> tuple[Entry, ...]:
    return misled(Random(seed), (), ASKED, lambda question, acts: True)


def cues_of(entries: Sequence[Entry]) -> list[int]:
    return [entry.request for entry in entries if isinstance(entry, Said) and is_cue(entry)]


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_it_follows_from_its_seed_and_can_be_kept(seed: int) -> None:
    entries = made(seed)
    assert entries == made(seed)
    assert parse("\n".join(lines_of(Transcript(entries)))).entries == entries


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_cues_come_in_the_order_of_the_conversation(seed: int) -> None:
    coming = iter([question.said.request for question in ASKED])
    assert all(any(request == other for other in coming) for request in cues_of(made(seed)))


@settings(deadline=None, max_examples=50)
@given(seeds, seeds)
def test_what_grows_keeps_what_was_there(seed: int, more: int) -> None:
    entries = made(seed)
    asked = [question for question in ASKED if question.said.request not in cues_of(entries)]
    later = [Asked(len(entries) - 1, question.said, question.good, cue=False) for question in asked]
    grown = misled(Random(more), entries, later, lambda question, acts: True)
    assert grown[: len(entries)] == entries
    assert len(grown) > len(entries)


def test_every_way_to_do_wrong_is_taken() -> None:
    ways: Counter[Way] = Counter()
    kinds: Counter[type[Entry]] = Counter()
    asked_by_itself = set[int]()
    for seed in range(400):
        entries = made(seed)
        kinds.update(map(type, entries))
        asked_by_itself |= {entry.request for entry in entries if isinstance(entry, Said) and entry.own_channel}
        at = next((at for at, entry in enumerate(entries) if is_cue(entry)), None)
        if at is not None and isinstance(cue := entries[at], Said):
            question = next(question for question in ASKED if question.said.request == cue.request)
            ways[way_of(Asked(at, question.said, question.good, cue=True), entries)] += 1
    assert set(ways) == set(Way)
    assert {Said, Wrote, Signalled, Paused, Closed} <= set(kinds)
    assert set(BACKEND_REQUESTS) <= asked_by_itself


def test_what_is_not_wanted_is_left_out() -> None:
    unwanted = [misled(Random(seed), (), ASKED, lambda question, acts: False) for seed in range(20)]
    assert unwanted == [()] * 20


@pytest.mark.parametrize("spec", BACKEND_REQUESTS.values(), ids=lambda spec: spec.name)
def test_its_own_requests_are_as_the_table_wants_them(spec: RequestSpec) -> None:
    legal = 0
    for seed in range(30):
        said = own_request(Random(seed), spec)
        assert (said.request, said.own_channel) == (spec.number, True)
        try:
            decode(Direction.BACKEND, said.frame(LentFds(range(len(said.fds)))))
        except FramingError:
            pytest.fail(f"{said} is no message")
        else:
            legal += own_way_of(said) is Way.WELL
    assert legal == 30


def test_how_far_a_front_end_has_come_decides_what_can_be_done() -> None:
    said = [question.said for question in ASKED]
    assert Situation.after(said[:3]) == Situation()
    assert Situation.after(said[:4]).channel
    assert Situation.after(said) == Situation(channel=True, packed=True, rings={0: 64, 1: 64})


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_given_back_lies_in_the_ring(packed: bool) -> None:
    ends = {"descriptor": 16 * 64, "used": 4 if packed else 4 + 8 * 64 + 2}
    ids = set[int]()
    for seed in range(200):
        *wrote, called = used.returned(Random(seed), 1, 64, packed)
        assert called == Signalled("call 1")
        for entry in wrote:
            assert isinstance(entry, Wrote)
            place, ring = entry.memory.split()
            assert ring == "1"
            assert all(entry.offset + len(data) <= ends[place] for data in entry.data)
            if not packed and entry.memory == "used 1" and entry.offset == 4:
                ids |= {struct.unpack_from("<I", data)[0] for data in entry.data}
    assert packed or ({number < 64 for number in ids} == {True, False})


# ---- how it is counted -----------------------------------------------------------------------------------------------

GOOD = ASKED[0].good
assert GOOD is not None
CUE = ASKED[0].said
ANSWERS: list[tuple[list[Entry], str | None, Way]] = [
    ([], None, Way.WELL),
    ([GOOD], None, Way.WELL),
    ([Said(Side.BACKEND, 1, 5, bytes(8))], None, Way.VALUES),
    ([Said(Side.BACKEND, 1, 5, b"abc")], None, Way.FORM),
    ([Said(Side.BACKEND, 2, 5, bytes(8))], None, Way.FORM),
    ([Said(Side.BACKEND, 1, 5, bytes(8), size=99)], None, Way.FORM),
    ([Said(Side.BACKEND, 1, 5, bytes(8), fds=(own_request(Random(1), BACKEND_REQUESTS[9]).fds[0],))], None, Way.FDS),
    ([Said(Side.BACKEND, 1, 5, b"")], None, Way.REFUSED),
    ([GOOD, GOOD], None, Way.OFTEN),
    ([GOOD], "reply", Way.OFTEN),
    ([Paused(1.0)], None, Way.LATE),
    ([Said(Side.BACKEND, 1, 5, bytes(8), cut=0)], None, Way.NEVER),
    ([GOOD, Closed(Side.BACKEND)], None, Way.CLOSED),
    ([Signalled("call 0"), Paused(1.0)], "reply", Way.BESIDES),
]


@pytest.mark.parametrize(("acts", "answer", "way"), ANSWERS, ids=lambda value: getattr(value, "value", None))
def test_ways_are_told_by_what_was_done(acts: list[Entry], answer: str | None, way: Way) -> None:
    cue = Said(Side.FRONTEND, 1, answer=answer)
    assert way_of(Asked(0, CUE, GOOD, cue=True), [cue, *acts, Said(Side.FRONTEND, 3)]) is way


def test_a_refusal_is_one_however_it_is_said() -> None:
    refused = Said(Side.BACKEND, R.SET_VRING_ENABLE, 5, encode_ack(R.SET_VRING_ENABLE, 7).payload)
    question = Asked(0, ASKED[-1].said, ASKED[-1].good, cue=True)
    assert way_of(question, [ASKED[-1].said, refused]) is Way.REFUSED


def test_a_conversation_is_counted_and_what_it_did_is_told() -> None:
    conduct = Conduct()
    bad = Said(Side.BACKEND, R.GET_FEATURES, 5, b"abc")
    own = own_request(Random(1), BACKEND_REQUESTS[2])
    counterplay = Counterplay(asked=[Asked(0, CUE, GOOD, cue=True), Asked(2, ASKED[4].said, None, cue=False)], played=3)
    behaviour = conduct.add([CUE, bad, own], counterplay)
    assert ("GET_FEATURES", Way.FORM, "SET_OWNER") in behaviour
    assert ("SET_OWNER", Way.WELL, "silence") in behaviour
    rows = dict(conduct.rows())
    assert rows["GET_FEATURES"][list(Way).index(Way.FORM)] == (1,)
    assert rows["own CONFIG_CHANGE_MSG"][list(Way).index(Way.WELL)] == (1,)
    assert "GET_FEATURES" not in conduct.unvisited()
    assert "SET_STATUS" in conduct.unvisited()

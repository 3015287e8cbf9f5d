"""What is changed on the way is what was asked for, and is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.transcript.bending import (
    Bending,
    Bent,
    Corruption,
    Pick,
    parse_corruption,
    parse_delay,
    parse_drop,
)
from vhostuser.wire.codec import encode, encode_reply
from vhostuser.wire.frames import HEADER_SIZE, Frame, LentFds
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FRONTEND_REQUESTS, BackendRequest, Direction, FrontendRequest

R, B = FrontendRequest, BackendRequest

OWNER = Frame(R.SET_OWNER, 9)
FEATURES = encode(Direction.FRONTEND, R.SET_FEATURES, U64(0x1234))


def bend(bending: Bending, frame: Frame, direction: Direction = Direction.FRONTEND) -> Bent:
    return bending.bend(direction, frame)


def test_nothing_is_bent_that_was_not_asked_for() -> None:
    for frame in (OWNER, FEATURES, Frame(R.SET_OWNER, 5, bytes(8)), Frame(12345, 1, b"?")):
        assert bend(Bending(), frame) == Bent(frame)


@pytest.mark.parametrize("about", [R.GET_FEATURES, R.GET_PROTOCOL_FEATURES])
def test_bits_are_cleared_in_answers_alone(about: FrontendRequest) -> None:
    bending = Bending(features=0x30) if about is R.GET_FEATURES else Bending(protocol_features=0x30)
    reply = encode_reply(FRONTEND_REQUESTS[about], U64(0xFF))
    bent = bend(bending, reply)
    assert bent.frame is not None
    assert (bent.frame.payload[0], bent.words) == (0xCF, ("0x30 cleared",))
    assert bend(bending, encode_reply(FRONTEND_REQUESTS[about], U64(0xF))).words == ()
    assert bend(bending, Frame(about, 1)).words == ()
    assert bend(bending, Frame(about, 5, b"odd")).words == ()
    assert bend(bending, reply, Direction.BACKEND).words == (), "the back-end's requests have numbers of their own"


def test_each_or_the_nth_is_dropped() -> None:
    bending = Bending(drops=[Pick("SET_OWNER", nth=2), Pick("SET_FEATURES")])
    assert [bend(bending, OWNER).frame is None for _ in range(4)] == [False, True, False, False]
    assert [bend(bending, FEATURES).words for _ in range(2)] == [("dropped",)] * 2


def test_answers_and_requests_are_told_apart() -> None:
    bending = Bending(drops=[parse_drop("SET_OWNER.reply")])
    assert bend(bending, OWNER).frame is not None
    assert bend(bending, Frame(R.SET_OWNER, 5, bytes(8))).frame is None


def test_requests_without_a_name_have_a_number() -> None:
    bending = Bending(drops=[parse_drop("99")])
    assert bend(bending, Frame(99, 1)).frame is None
    assert bend(bending, Frame(98, 1)).frame is not None


def test_requests_of_both_sides_are_meant() -> None:
    bending = Bending(drops=[parse_drop("IOTLB_MSG"), parse_drop("CONFIG_CHANGE_MSG")])
    assert bend(bending, Frame(R.IOTLB_MSG, 1)).frame is None
    assert bend(bending, Frame(B.IOTLB_MSG, 1), Direction.BACKEND).frame is None
    assert bend(bending, Frame(B.CONFIG_CHANGE_MSG, 1), Direction.BACKEND).frame is None
    assert bend(bending, Frame(int(B.CONFIG_CHANGE_MSG), 1)).frame is not None


def test_delays_add_up() -> None:
    bending = Bending(delays=[parse_delay("0.5"), parse_delay("SET_OWNER=1")])
    assert (bend(bending, OWNER).delay, bend(bending, FEATURES).delay) == (1.5, 0.5)
    assert bend(bending, OWNER).words == ("1.5 s late",)


def test_bytes_are_put_anywhere_and_descriptors_stay() -> None:
    frame = Frame(FEATURES.request, FEATURES.flags, FEATURES.payload, LentFds((0, 1)))
    bending = Bending(corruptions=[parse_corruption("SET_FEATURES:12=ff00"), parse_corruption("SET_FEATURES:8=0900")])
    bent = bend(bending, frame)
    assert bent.frame is not None
    assert bent.frame.encode() == FEATURES.encode()[:8] + b"\x09\0\0\0" + b"\xff\0" + FEATURES.payload[2:]
    assert bent.frame.fds is frame.fds
    assert bent.words == ("bytes from 12 on: 3412 became ff00", "bytes from 8 on: 0800 became 0900")


def test_what_is_too_short_is_left_alone_and_told() -> None:
    bent = bend(Bending(corruptions=[parse_corruption("SET_FEATURES:19=ffff")]), FEATURES)
    assert bent.frame is not None
    assert bent.frame.encode() == FEATURES.encode()
    assert bent.words == ("not corrupted: it has 20 bytes",)


@given(st.integers(0, 2**32), st.binary(max_size=40))
def test_chance_flips_one_bit_and_tells_which(seed: int, payload: bytes) -> None:
    frame = Frame(R.SET_OWNER, 1, payload)
    corruptions = [Corruption(Pick("SET_OWNER"))]
    bent = bend(Bending(corruptions=corruptions, seed=seed), frame)
    assert bent == bend(Bending(corruptions=corruptions, seed=seed), frame)
    assert bent.frame is not None
    before, after = (int.from_bytes(data.encode(), "little") for data in (frame, bent.frame))
    flipped = (before ^ after).bit_length() - 1
    assert before ^ after == 1 << flipped
    assert bent.words == (f"bit {flipped % 8} of byte {flipped // 8} flipped",)
    assert flipped // 8 >= HEADER_SIZE if payload else flipped // 8 < 8


@pytest.mark.parametrize(
    ("parse", "word", "complaint"),
    [
        (parse_drop, "SET_LUNCH", "'SET_LUNCH' is no request"),
        (parse_drop, "SET_OWNER=0", "0: the first one is number 1"),
        (parse_drop, "SET_OWNER=x", "'x' is not a number"),
        (parse_drop, "99999999999", "is no request"),
        (parse_delay, "soon", "'soon' is not seconds"),
        (parse_delay, "-1", "-1: seconds are not below 0"),
        (parse_delay, "inf", "inf: seconds"),
        (parse_delay, "nan", "nan: seconds"),
        (parse_delay, "LUNCH=1", "'LUNCH' is no request"),
        (parse_corruption, "SET_OWNER:x=00", "an offset and bytes in hexadecimal"),
        (parse_corruption, "SET_OWNER:1=0", "an offset and bytes in hexadecimal"),
        (parse_corruption, "SET_OWNER:", "an offset and bytes in hexadecimal"),
    ],
)
def test_what_cannot_be_asked_for_is_told(parse: object, word: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(word)  # type: ignore[operator]

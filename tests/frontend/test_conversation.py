"""A front-end's requests against a scripted back-end: what is sent, and what is made of the answers."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.frontend.scripted import connected
from vhostuser.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import GuestRam
from vhostuser.wire import messages as m
from vhostuser.wire.codec import encode_ack, encode_reply
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import U64, DeviceState, Iotlb, Log, Message, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, Reply, RequestSpec

R = FrontendRequest
ALL = (1 << 64) - 1

REGION = m.MemoryRegion(0, 1 << 24, 0x7F00_0000_0000, 0)
PAYLOADS: dict[type[m.Payload], m.Payload] = {
    type(payload): payload
    for payload in (
        U64(ProtocolFeature.REPLY_ACK),
        VringState(0, 8),
        m.VringAddr(0, 0, 0x1000, 0x2000, 0x3000, 0),
        m.VringFd(0),
        m.MemoryTable((REGION,)),
        m.SingleRegion(REGION),
        Log(0x1000, 0),
        Iotlb(0, 0x1000, 0, 3, m.IotlbType.UPDATE),
        m.Config(0, 0, b"config"),
        m.Inflight(0x1000, 0, 1, 8),
        m.SharedObject(bytes(16)),
        DeviceState(0, 0),
        m.CryptoSession(bytes(8)),
        m.ShmemConfig(0, (0,) * 256),
    )
}
"""A good value of each payload."""


def answers(spec: RequestSpec) -> Iterator[str]:
    """What can come back for a request, by what was negotiated."""
    if spec.reply is not Reply.ALWAYS:
        yield from ("nothing", "acknowledgement")
    if spec.reply is not Reply.ACK:
        yield "own reply"


def counts(spec: RequestSpec) -> set[int]:
    """How many descriptors can come with a request; for payloads that tell how many, what those above say."""
    return {1} if spec.payload in (m.VringFd, m.MemoryTable) else {spec.fds.min, spec.fds.max}


@pytest.mark.parametrize(
    ("spec", "answer", "fds"),
    [
        pytest.param(spec, answer, fds, id=f"{spec.name}-{answer}-{fds}")
        for spec in FRONTEND_REQUESTS.values()
        for answer in answers(spec)
        for fds in sorted(counts(spec))
    ],
)
async def test_every_request(spec: RequestSpec, answer: str, fds: int, memory: GuestRam) -> None:
    """It arrives as the table has it, descriptors included, and whatever may answer it is understood."""
    number = R(spec.number)
    payload, lent = PAYLOADS[spec.payload] if spec.payload else None, memory.fds()[:fds]
    own = PAYLOADS[spec.reply_payload] if spec.reply_payload else None
    if spec.refusal and spec.reply_payload is U64:
        own = U64(0)  # such a reply is an acknowledgement in all but name
    async with connected(keep={number}) as (front_end, back_end):
        if answer == "own reply":
            back_end.answers[number] = encode_reply(spec, own, LentFds(memory.fds()[: spec.reply_fds.max]))
            front_end.protocol_features = spec.gate or ProtocolFeature(0)
            front_end.listening = True
        elif answer == "acknowledgement":
            front_end.protocol_features = back_end.acknowledged = ProtocolFeature.REPLY_ACK
        value, passed = await front_end.request_with_fds(number, payload, lent)
        await front_end.word(R.GET_FEATURES)  # so that what has no answer has arrived, too
        with passed:
            assert len(passed) == (spec.reply_fds.max if answer == "own reply" else 0)
        assert value == {"nothing": None, "acknowledgement": U64(0), "own reply": own}[answer]
        expected = Message(number, spec, payload, LentFds(lent), need_reply=answer == "acknowledgement")
        assert back_end.seen[0] == str(expected)
        assert len(back_end.kept[number]) == fds


async def test_an_acknowledgement_is_awaited_only_when_it_comes() -> None:
    async with connected() as (front_end, back_end):
        assert await front_end.request(R.SET_OWNER, need_reply=True) is None
        await front_end.negotiate(ALL)
        assert await front_end.request(R.SET_OWNER) == U64(0)
        assert await front_end.request(R.SET_OWNER, need_reply=False) is None
        assert await front_end.request(R.GET_QUEUE_NUM) == U64(4)
        assert back_end.seen.count("SET_OWNER need_reply") == 3
        assert back_end.seen[-1] == "GET_QUEUE_NUM"


async def test_the_new_bits_decide_whether_they_are_acknowledged() -> None:
    async with connected() as (front_end, _):
        bits = U64(ProtocolFeature.REPLY_ACK)
        assert await front_end.request(R.SET_PROTOCOL_FEATURES, bits, need_reply=True) == U64(0)


async def test_a_gated_reply_comes_once_its_feature_is_acknowledged(memory: GuestRam) -> None:
    log = Log(0x1000, 0)
    answer = Frame(R.SET_LOG_BASE, 0x5, struct.pack("=QQ", 0x1000, 0))
    async with connected(answers={R.SET_LOG_BASE: answer}) as (front_end, _):
        front_end.protocol_features = ProtocolFeature.LOG_SHMFD
        assert await front_end.request(R.SET_LOG_BASE, log, memory.fds()[:1]) == log


async def test_a_refused_request_raises() -> None:
    async with connected(acks={R.SET_VRING_NUM: 1}) as (front_end, _):
        await front_end.negotiate(ALL)
        with pytest.raises(RefusedError, match="SET_VRING_NUM: refused with 0x1"):
            await front_end.request(R.SET_VRING_NUM, VringState(0, 3))
        assert await front_end.request(R.GET_QUEUE_NUM) == U64(4)


async def test_an_empty_reply_is_a_refusal() -> None:
    async with connected(answers={R.GET_QUEUE_NUM: Frame(R.GET_QUEUE_NUM, 0x5)}) as (front_end, _):
        with pytest.raises(RefusedError, match="empty reply"):
            await front_end.request(R.GET_QUEUE_NUM)


async def test_replies_that_are_acknowledgements_in_all_but_name(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies |= {R.IOTLB_MSG: U64(1), R.SET_DEVICE_STATE_FD: U64(0x100), R.CHECK_DEVICE_STATE: U64(1)}
        with pytest.raises(RefusedError):
            await front_end.request(R.IOTLB_MSG, Iotlb(0, 1, 0, 3, 2))
        reply = await front_end.request(R.SET_DEVICE_STATE_FD, DeviceState(0, 0), memory.fds()[:1])
        assert reply == U64(0x100)
        with pytest.raises(RefusedError):
            await front_end.request(R.CHECK_DEVICE_STATE)


async def test_unknown_requests_are_refused_or_passed_over() -> None:
    async with connected() as (front_end, back_end):
        assert await front_end.request(77, b"abc") is None
        await front_end.negotiate(ALL)
        with pytest.raises(RefusedError, match="request 77"):
            await front_end.request(77, b"abc")
        assert back_end.seen[0].startswith("request 77")


@pytest.mark.proves("VU-FRONT-2")
@pytest.mark.parametrize(
    "answer",
    [
        Frame(R.GET_QUEUE_NUM, 0xD, bytes(8)),
        Frame(R.GET_QUEUE_NUM, 0x1, bytes(8)),
        Frame(R.GET_FEATURES, 0x5, bytes(8)),
        Frame(R.GET_QUEUE_NUM, 0x5, bytes(7)),
    ],
)
async def test_what_is_no_answer_raises(answer: Frame) -> None:
    async with connected(answers={R.GET_QUEUE_NUM: answer}) as (front_end, _):
        with pytest.raises(FramingError):
            await front_end.request(R.GET_QUEUE_NUM)


@pytest.mark.proves("VU-FRONT-2")
async def test_silence_has_a_limit(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(answers={R.GET_FEATURES: None}) as (front_end, _):
        with pytest.raises(FramingError, match="GET_FEATURES: no answer after 30 s"):
            await front_end.request(R.GET_FEATURES)
        with pytest.raises(FramingError, match="answer to GET_FEATURES is still outstanding"):
            await front_end.request(R.SET_OWNER)


async def test_a_back_end_that_leaves() -> None:
    async with connected() as (front_end, back_end):
        back_end.leaves_after = R.GET_FEATURES
        with pytest.raises(ConnectionClosedError):
            await front_end.request(R.GET_FEATURES)


async def test_tasks_take_turns() -> None:
    async with connected() as (front_end, back_end):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(front_end.request, R.GET_FEATURES)
                nursery.start_soon(front_end.request, R.GET_QUEUE_NUM)
        assert len(back_end.seen) == 40


async def test_frames_that_no_table_allows() -> None:
    async with connected() as (front_end, back_end):
        with pytest.raises(LocalProtocolError):
            await front_end.request(R.SET_VRING_NUM, U64(1))
        back_end.answers[R.GET_FEATURES] = encode_ack(R.GET_FEATURES, 5)
        await front_end.send_frame(Frame(R.GET_FEATURES, 0x1))
        assert (await front_end.receive_frame()).payload == struct.pack("=Q", 5)


def test_every_request_of_the_table_has_a_name() -> None:
    assert {FrontendRequest[spec.name] for spec in FRONTEND_REQUESTS.values()} == set(FrontendRequest)


async def test_a_word_is_the_answer_of_few_requests() -> None:
    async with connected() as (front_end, back_end):
        assert await front_end.word(R.GET_QUEUE_NUM) == 4
        with pytest.raises(LocalProtocolError, match="SET_OWNER: answered by None, not by a word"):
            await front_end.word(R.SET_OWNER)
        back_end.answers[R.GET_STATUS] = Frame(R.GET_STATUS, 0x5)
        with pytest.raises(RefusedError):
            await front_end.word(R.GET_STATUS)

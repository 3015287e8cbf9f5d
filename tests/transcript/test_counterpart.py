"""A back-end's part is played to live front-ends: as the conversation says, and well where it says nothing."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio

from vhostuser.errors import ConnectionClosedError, EndpointError
from vhostuser.fds import FdBundle
from vhostuser.frontend import connect
from vhostuser.session.backend import Offer
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.counterpart import Counterplay, play_back_end
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Said, Side, Signalled, Wrote
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import listen
from vhostuser.wire.codec import encode, encode_ack
from vhostuser.wire.features import ProtocolFeature as P
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import (
    U64,
    MemoryRegion,
    MemoryTable,
    Payload,
    SharedObject,
    VringAddr,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

R = FrontendRequest
OFFER = Offer(VhostFeature.PROTOCOL_FEATURES | 1 << 32, P.REPLY_ACK | P.BACKEND_REQ | P.SHARED_OBJECT | P.MQ, 2)
BIT = int(VhostFeature.PROTOCOL_FEATURES)
QUIET = 0.05
REPLY, NEED_REPLY = 5, 9

FrontEndPart = Callable[[Channel], Awaitable[None]]


def cue(request: int, answer: str | None = None) -> Said:
    return Said(Side.FRONTEND, request, answer=answer)


def say(request: int, payload: bytes = bytes(8), **more: object) -> Said:
    return Said(Side.BACKEND, request, REPLY, payload, **more)  # type: ignore[arg-type]


def word(number: int) -> bytes:
    return struct.pack("=Q", number)


async def played(entries: Sequence[Entry], *parts: FrontEndPart, offer: Offer = OFFER) -> Counterplay:
    """Play to a front-end that does these things, each on a connection of its own."""
    coming: Iterator[FrontEndPart] = iter(parts)
    async with trio.open_nursery() as nursery:

        async def accept() -> Channel:
            part = next(coming, None)
            if part is None:
                raise EndpointError("nobody comes")
            ours, theirs = (Channel(sock) for sock in trio.socket.socketpair())

            async def live() -> None:
                async with theirs:
                    await part(theirs)

            nursery.start_soon(live)
            return ours

        return await play_back_end(entries, accept, Answers(offer), quiet=QUIET)


async def ask(channel: Channel, request: int, payload: Payload | None = None, *fds: int, ack: bool = False) -> None:
    await channel.send(encode(Direction.FRONTEND, request, payload, fds, need_reply=ack))


async def answer(channel: Channel) -> Frame:
    """The next answer; its descriptors are closed."""
    with trio.fail_after(5):
        frame = await channel.receive()
    frame.fds.close()
    return frame


async def value(channel: Channel, request: int) -> int:
    """The word that a request without payload is answered with."""
    await ask(channel, request)
    frame = await answer(channel)
    assert (frame.request, frame.flags) == (request, REPLY)
    return int.from_bytes(frame.payload, "little")


async def is_closed(channel: Channel) -> bool:
    try:
        with trio.fail_after(5):
            await channel.receive()
    except ConnectionClosedError:
        return True
    return False


# ---- what the conversation does not say ------------------------------------------------------------------------------


async def test_a_front_end_gets_all_that_it_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    async with trio.open_nursery() as nursery, await listen(path) as endpoint:
        plays: list[Counterplay] = []

        async def back_end() -> None:
            plays.append(await play_back_end((), endpoint.accept, Answers(OFFER), quiet=5.0))

        nursery.start_soon(back_end)
        async with connect(path) as front_end:
            await front_end.add_ring(0)
    (counterplay,) = plays
    assert counterplay.breaches == []
    assert {question.said.request for question in counterplay.asked} > {R.SET_MEM_TABLE, R.SET_VRING_KICK}
    assert counterplay.closed == [-1]


async def test_what_was_told_once_is_told_again() -> None:
    heard: list[int] = []

    async def front_end(channel: Channel) -> None:
        heard.extend([await value(channel, R.GET_FEATURES) for _ in range(3)])

    await played([cue(R.GET_FEATURES), cue(R.GET_FEATURES), say(R.GET_FEATURES, word(77))], front_end)
    assert heard == [OFFER.virtio_features, 77, 77]


async def test_a_position_is_told_as_it_was_set() -> None:
    async def front_end(channel: Channel) -> None:
        await ask(channel, R.SET_VRING_BASE, VringState(1, 5))
        await ask(channel, R.GET_VRING_BASE, VringState(1, 0))
        assert struct.unpack("=II", (await answer(channel)).payload) == (1, 5)

    await played([], front_end)


async def test_what_is_illegal_is_refused() -> None:
    async def front_end(channel: Channel) -> None:
        await value(channel, R.GET_FEATURES)
        await ask(channel, R.SET_PROTOCOL_FEATURES, U64(int(P.REPLY_ACK)))
        await ask(channel, R.SET_VRING_NUM, VringState(0, 3), ack=True)
        assert any((await answer(channel)).payload)

    counterplay = await played([], front_end)
    assert [breach.rule for _, breach in counterplay.breaches] == ["VU-RING-12"]


# ---- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "answers"),
    [
        ([say(R.GET_FEATURES, word(BIT)), say(R.GET_FEATURES, word(BIT | 1))], [word(BIT), word(BIT | 1)]),
        ([say(R.GET_FEATURES, b"abc")], [b"abc"]),
        ([say(R.GET_FEATURES, word(BIT), pieces=(1, 2, 9))], [word(BIT)]),
        ([Paused(0.01)], [word(int(OFFER.virtio_features))]),
        ([], [word(int(OFFER.virtio_features))]),
        ([say(R.GET_FEATURES, cut=0)], []),
    ],
    ids=["twice", "other bytes", "in pieces", "late", "well", "never"],
)
async def test_a_cue_is_answered_as_the_conversation_says(entries: list[Entry], answers: list[bytes]) -> None:
    async def front_end(channel: Channel) -> None:
        await ask(channel, R.GET_FEATURES)
        for payload in answers:
            assert (await answer(channel)).payload == payload
        assert await value(channel, R.GET_PROTOCOL_FEATURES) == OFFER.protocol_features

    counterplay = await played([cue(R.GET_FEATURES), *entries], front_end)
    assert counterplay.played == 1 + len(entries)
    assert [question.cue for question in counterplay.asked] == [True, False]


async def test_a_message_that_lies_about_its_size_is_sent_as_it_is() -> None:
    async def front_end(channel: Channel) -> None:
        await ask(channel, R.GET_FEATURES)
        with trio.fail_after(5), pytest.raises(ConnectionClosedError, match="8 of 100 payload bytes"):
            await channel.receive()

    await played([cue(R.GET_FEATURES), say(R.GET_FEATURES, size=100), Closed(Side.BACKEND)], front_end)


@pytest.mark.parametrize("answered", [None, "reply"])
async def test_the_back_end_leaves_before_an_answer_or_after_it(answered: str | None) -> None:
    async def front_end(channel: Channel) -> None:
        await ask(channel, R.GET_FEATURES)
        if answered:
            assert any((await answer(channel)).payload)
        assert await is_closed(channel)

    counterplay = await played([cue(R.GET_FEATURES, answered), Closed(Side.BACKEND)], front_end)
    assert counterplay.closed == []


async def test_what_comes_before_the_first_cue_is_said_unasked() -> None:
    async def front_end(channel: Channel) -> None:
        assert (await answer(channel)).request == R.SET_OWNER

    await played([say(R.SET_OWNER)], front_end)


async def test_a_connection_that_was_passed_to_its_front_end_ends_all_the_same() -> None:
    this = Descriptor("this connection", Kind.CONNECTION)
    kept: list[FdBundle] = []

    async def front_end(channel: Channel) -> None:
        await ask(channel, R.GET_FEATURES)
        with trio.fail_after(5):
            kept.append((await channel.receive()).fds)
        assert await is_closed(channel)

    await played([cue(R.GET_FEATURES), say(R.GET_FEATURES, fds=(this,)), Closed(Side.BACKEND)], front_end)
    kept[0].close()


# ---- connection after connection -------------------------------------------------------------------------------------


async def test_the_rest_goes_on_when_the_front_end_comes_again() -> None:
    async def first(channel: Channel) -> None:
        await value(channel, R.GET_FEATURES)

    async def second(channel: Channel) -> None:
        assert await value(channel, R.GET_FEATURES) == OFFER.virtio_features
        assert await value(channel, R.GET_PROTOCOL_FEATURES) == 9

    entries = [cue(R.GET_FEATURES), cue(R.GET_PROTOCOL_FEATURES), say(R.GET_PROTOCOL_FEATURES, word(9))]
    counterplay = await played(entries, first, second)
    assert (counterplay.played, counterplay.closed) == (3, [0, 2])


async def test_the_end_of_what_a_front_end_says_is_waited_for() -> None:
    async def silent(channel: Channel) -> None:
        await value(channel, R.GET_FEATURES)
        assert await is_closed(channel)

    async def second(channel: Channel) -> None:
        assert await value(channel, R.GET_FEATURES) == 9

    entries: list[Entry] = [Closed(), cue(R.GET_FEATURES), say(R.GET_FEATURES, word(9))]
    counterplay = await played(entries, silent, second)
    assert (counterplay.played, counterplay.closed) == (3, [2])


async def test_a_front_end_that_never_gets_there_ends_the_play() -> None:
    async def front_end(channel: Channel) -> None:
        await value(channel, R.GET_FEATURES)

    counterplay = await played([cue(R.GET_STATUS), Closed(Side.BACKEND)], *[front_end] * 5)
    assert (counterplay.played, len(counterplay.asked)) == (0, 1)


async def test_nobody_comes() -> None:
    assert (await played([cue(R.GET_FEATURES)])).unreachable == -1


# ---- what the front-end passed ---------------------------------------------------------------------------------------


async def test_rings_are_written_and_drivers_called() -> None:
    region = MemoryRegion(0x1000, 1 << 16, 0x7000_0000, 0x2000)
    memory, call = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(memory, 1 << 17)

    async def front_end(channel: Channel) -> None:
        await ask(channel, R.SET_MEM_TABLE, MemoryTable((region,)), memory)
        await ask(channel, R.SET_VRING_ADDR, VringAddr(1, 0, 0x7000_0000, 0x7000_3000, 0x7000_1000, 0))
        await ask(channel, R.SET_VRING_CALL, VringFd(1), call)
        await value(channel, R.GET_FEATURES)

    entries: list[Entry] = [
        cue(R.GET_FEATURES),
        *(Wrote("used 1", 2, (b"ab",)), Wrote("descriptor 1", 0, (b"cd",)), Wrote("used 7", 0, (b"no such ring",))),
        *(Wrote("used 1", (1 << 16) - 0x3001, (b"across its end",)), Wrote("used 1", 8, (b"x", b"y"), 0.01)),
        *(Signalled("call 1"), Signalled("call 0"), Signalled("err 1")),
    ]
    await played(entries, front_end)
    with mmap.mmap(memory, 1 << 17) as guest:
        assert guest[0x5002:0x5004] == b"ab"
        assert guest[0x2000:0x2002] == b"cd"
        assert guest[0x5008:0x5009] in (b"x", b"y")
        assert len(bytes(guest).replace(b"\0", b"")) == 5, "something else was written"
    assert os.eventfd_read(call) == 1
    os.close(memory)
    os.close(call)


def own(request: BackendRequest, payload: Payload | None = None, flags: int = NEED_REPLY) -> Said:
    frame = encode(Direction.BACKEND, request, payload)
    return Said(Side.BACKEND, request, flags, frame.payload, own_channel=True)


def with_own_channel(protocol: P, reply: Callable[[Frame], Frame | None]) -> FrontEndPart:
    """A front-end that answers what it is asked on the back-end's own channel."""

    async def front_end(channel: Channel) -> None:
        await value(channel, R.GET_FEATURES)
        await ask(channel, R.SET_PROTOCOL_FEATURES, U64(int(protocol)))
        ours, theirs = socket.socketpair()
        await ask(channel, R.SET_BACKEND_REQ_FD, None, theirs.fileno())
        theirs.close()
        async with Channel(trio.socket.from_stdlib_socket(ours)) as asked:
            await value(channel, R.GET_FEATURES)
            with trio.move_on_after(QUIET / 2):
                if (frame := reply(await asked.receive())) is not None:
                    await asked.send(frame)
            assert await is_closed(channel)

    return front_end


OWN = P.REPLY_ACK | P.BACKEND_REQ
OBJECT = SharedObject(bytes(16))


@pytest.mark.parametrize(
    ("protocol", "asked", "replied", "missed", "rules"),
    [
        (OWN | P.SHARED_OBJECT, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT), 0, False, []),
        (OWN | P.SHARED_OBJECT, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT), None, True, []),
        (OWN | P.SHARED_OBJECT, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT, 1), None, False, []),
        (OWN, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT), 1, False, []),
        (OWN, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT), None, False, []),
        (OWN, own(BackendRequest.SHARED_OBJECT_ADD, OBJECT), 0, False, ["VU-NEG-6"]),
    ],
    ids=["done", "missed", "nothing promised", "refused", "ignored", "accepted"],
)
async def test_its_own_requests_are_judged_by_what_was_acknowledged(
    protocol: P, asked: Said, replied: int | None, missed: bool, rules: list[str]
) -> None:
    def reply(frame: Frame) -> Frame | None:
        return None if replied is None else encode_ack(frame.request, replied)

    entries = [cue(R.GET_FEATURES), cue(R.GET_FEATURES, "reply"), asked]
    counterplay = await played(entries, with_own_channel(protocol, reply))
    assert bool(counterplay.missed) is missed
    assert [breach.rule for _, breach in counterplay.own_breaches] == rules
    assert [answer.value for answer in counterplay.own_answers] == ([] if replied is None else [replied])


async def test_an_answer_that_is_none_is_a_breach() -> None:
    wrong = with_own_channel(OWN | P.SHARED_OBJECT, lambda frame: Frame(frame.request, REPLY, b"abc"))
    entries = [cue(R.GET_FEATURES), cue(R.GET_FEATURES, "reply"), own(BackendRequest.SHARED_OBJECT_ADD, OBJECT)]
    counterplay = await played(entries, wrong)
    assert [(breach.blame, breach.rule) for _, breach in counterplay.own_breaches] == [(Side.FRONTEND, "VU-PAY-1")]


async def test_nothing_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    asked = own(BackendRequest.SHARED_OBJECT_ADD, OBJECT)
    await played([cue(R.GET_FEATURES, "reply"), asked], with_own_channel(OWN, lambda frame: None))
    assert sorted(os.listdir("/proc/self/fd")) == before

"""A stand-in answers a live front-end as the recorded back-end did, whatever it asks."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.hostile.victim import DEADLINE
from tests.transcript.conversations import NEED_REPLY, answers, asks
from vhostuser.errors import ConnectionClosedError
from vhostuser.session.witness import Side
from vhostuser.transcript.compare import Difference, compare
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Said, Transcript
from vhostuser.transcript.file import TranscriptError
from vhostuser.transcript.stand_in import StandIn
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect, listen
from vhostuser.wire.codec import encode, encode_ack
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import U64, Inflight, VringState
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

R, B = FrontendRequest, BackendRequest

FEATURES, OFFER = asks(R.GET_FEATURES), answers(R.GET_FEATURES, U64(VhostFeature.PROTOCOL_FEATURES))
REPLY_ACK = asks(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK))
OWNER, YES = asks(R.SET_OWNER, None, NEED_REPLY), answers(R.SET_OWNER, U64(0))


class Playing:
    """A stand-in at a path, and what differs when it is over."""

    def __init__(self, transcript: Transcript, path: Path) -> None:
        self.transcript = transcript
        self.back_end = StandIn(transcript)
        self.path = path
        self.over = trio.Event()

    async def differences(self) -> list[Difference]:
        await self.over.wait()
        return compare(self.transcript, self.transcript.but(tuple(self.back_end.heard)), of=Side.FRONTEND)


@asynccontextmanager
async def playing(path: Path, entries: list[Entry]) -> AsyncIterator[Playing]:
    before = sorted(os.listdir("/proc/self/fd"))
    play = Playing(Transcript(tuple(entries)), path)
    with trio.fail_after(DEADLINE):
        async with await listen(path) as endpoint, trio.open_nursery() as nursery:

            async def serve() -> None:
                await play.back_end.serve(endpoint)
                play.over.set()

            nursery.start_soon(serve)
            yield play
            await play.over.wait()
    assert sorted(os.listdir("/proc/self/fd")) == before


async def ask(channel: Channel, frame: Frame) -> bytes:
    await channel.send(frame)
    answer = await channel.receive()
    answer.fds.close()
    assert answer.request == frame.request
    return answer.payload


async def test_it_answers_as_recorded_and_the_same_is_no_difference(tmp_path: Path) -> None:
    async with playing(tmp_path / "s", [FEATURES, OFFER, OWNER, YES, Closed()]) as play:
        async with await connect(play.path) as channel:
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
            assert await ask(channel, OWNER.frame()) == bytes(8)
        assert await play.differences() == []


async def test_another_order_is_told_and_answered_all_the_same(tmp_path: Path) -> None:
    async with playing(tmp_path / "s", [FEATURES, OFFER, OWNER, YES, Closed()]) as play:
        async with await connect(play.path) as channel:
            assert await ask(channel, OWNER.frame()) == bytes(8)
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
        assert len(await play.differences()) == 2


async def test_what_was_never_recorded_is_answered_as_by_any_back_end(tmp_path: Path) -> None:
    async with playing(tmp_path / "s", [FEATURES, OFFER, Closed()]) as play:
        async with await connect(play.path) as channel:
            await channel.send(REPLY_ACK.frame())
            assert await ask(channel, OWNER.frame()) == bytes(8)
            assert await ask(channel, Frame(99, NEED_REPLY)) == b"\1" + bytes(7)
            assert await ask(channel, asks(R.GET_VRING_BASE, VringState(3, 0)).frame()) == b"\3" + bytes(7)
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
        assert [difference.one for difference in await play.differences()] == ["-"] * 4


async def test_an_acknowledgement_comes_where_it_is_asked_for(tmp_path: Path) -> None:
    entries: list[Entry] = [REPLY_ACK, OWNER, YES, FEATURES, OFFER, asks(R.SET_FEATURES, U64(0)), Closed()]
    async with playing(tmp_path / "s", entries) as play:
        async with await connect(play.path) as channel:
            await channel.send(REPLY_ACK.frame())
            await channel.send(Frame(R.SET_OWNER, 1))
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
            assert await ask(channel, encode(Direction.FRONTEND, R.SET_FEATURES, U64(0), (), True)) == bytes(8)
        assert [difference.about for difference in await play.differences()] == ["SET_OWNER", "SET_FEATURES"]


async def test_rings_have_their_own_answers(tmp_path: Path) -> None:
    bases = [(asks(R.GET_VRING_BASE, VringState(ring, 0)), answers(R.GET_VRING_BASE, VringState(ring, 7 + ring)))
             for ring in range(2)]  # fmt: skip
    entries: list[Entry] = [*bases[0], *bases[1], Closed()]
    async with playing(tmp_path / "s", entries) as play, await connect(play.path) as channel:
        assert await ask(channel, bases[1][0].frame()) == bases[1][1].payload
        assert await ask(channel, bases[0][0].frame()) == bases[0][1].payload


async def test_it_hands_out_fresh_descriptors(tmp_path: Path) -> None:
    inflight = Descriptor("inflight", Kind.MEMORY, size=4096)
    asked, told = asks(R.GET_INFLIGHT_FD, Inflight(0, 0, 2, 256)), Inflight(4096, 0, 2, 256)
    entries: list[Entry] = [asked, answers(R.GET_INFLIGHT_FD, told, inflight), Closed()]
    async with playing(tmp_path / "s", entries) as play, await connect(play.path) as channel:
        await channel.send(asked.frame())
        answer = await channel.receive()
        with answer.fds:
            (fd,) = answer.fds.filenos()
            assert os.fstat(fd).st_size == 4096


async def test_it_asks_on_its_own_channel_what_was_asked(tmp_path: Path) -> None:
    channel_fd = Descriptor("channel", Kind.SOCKET)
    entries: list[Entry] = [
        asks(R.SET_BACKEND_REQ_FD, None, 1, channel_fd),
        FEATURES,
        OFFER,
        Said(Side.BACKEND, B.CONFIG_CHANGE_MSG, NEED_REPLY, own_channel=True),
        Said(Side.FRONTEND, B.CONFIG_CHANGE_MSG, 5, bytes(8), own_channel=True),
        Said(Side.BACKEND, B.VRING_CALL, 1, bytes(8), own_channel=True),
        Closed(),
    ]
    async with playing(tmp_path / "s", entries) as play:
        ours, theirs = socket.socketpair()
        async with Channel(trio.socket.from_stdlib_socket(ours)) as own, await connect(play.path) as channel:
            with theirs:
                await channel.send(Frame(R.SET_BACKEND_REQ_FD, 1, b"", LentFds([theirs.fileno()])))
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
            assert (await own.receive()).request == B.CONFIG_CHANGE_MSG
            await own.send(encode_ack(B.CONFIG_CHANGE_MSG, 1))
            assert await ask(channel, FEATURES.frame()) == OFFER.payload
        found = await play.differences()
    assert [(difference.about, difference.other) for difference in found] == [
        ("GET_FEATURES", "GET_FEATURES"),
        ("CONFIG_CHANGE_MSG", "CONFIG_CHANGE_MSG ack 1"),
    ]


async def test_it_closes_where_the_back_end_closed_and_takes_the_next_connection(tmp_path: Path) -> None:
    async with playing(tmp_path / "s", [FEATURES, OFFER, Closed(Side.BACKEND), OWNER, YES]) as play:
        async with await connect(play.path) as channel:
            await ask(channel, FEATURES.frame())
            with pytest.raises(ConnectionClosedError):
                await channel.receive()
        async with await connect(play.path) as channel:
            assert await ask(channel, OWNER.frame()) == bytes(8)
            with pytest.raises(ConnectionClosedError):
                await channel.receive()
        assert await play.differences() == []


async def test_a_front_end_that_leaves_early_or_says_what_is_no_message(tmp_path: Path) -> None:
    async with playing(tmp_path / "s", [FEATURES, OFFER, OWNER, YES, Closed(), FEATURES, OFFER, Closed()]) as play:
        async with await connect(play.path) as channel:
            await ask(channel, FEATURES.frame())
        async with await connect(play.path) as channel:
            await channel.send_bytes(bytes(12), LentFds(()))
            with pytest.raises(ConnectionClosedError):
                await channel.receive()
        assert {("SET_OWNER", "-")} <= {(difference.about, difference.other) for difference in await play.differences()}


def test_a_recording_without_the_back_end_is_refused() -> None:
    with pytest.raises(TranscriptError, match="not what the back-end said"):
        StandIn(Transcript((FEATURES,)))

"""A recorded front-end is played again, and exactly what the back-end does differently is told."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.hostile.victim import DEADLINE, Victim, good_session
from tests.transcript.conversations import NEED_REPLY, answers, asks
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.sockets import Loop
from vhostuser.errors import ConnectionClosedError, EndpointError
from vhostuser.runtime.serve import Server
from vhostuser.session.backend import BackendSession, Done, Offer
from vhostuser.session.witness import Side
from vhostuser.transcript.compare import Difference
from vhostuser.transcript.entries import Closed, Entry, Said, Transcript
from vhostuser.transcript.file import load
from vhostuser.transcript.proxy import PATIENT, Began, Ended, Passed, Proxy
from vhostuser.transcript.replay import replay
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Connector, connect, listen
from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import Direction, FrontendRequest

R = FrontendRequest
RECORDED = sorted((Path(__file__).parents[2] / "protocol-spec" / "transcripts").glob("*.jsonl"))
BOTH_SIDES = [path for path in RECORDED if path.stem.endswith("both-sides")]
KINDS_ALONE = [path for path in RECORDED if path not in BOTH_SIDES]

Reply = Callable[[Message, Frame | None], Frame | None]


class SessionBackEnd:
    """Our session behind a socket, with a recording's offer, without memory and rings.

    Attributes:
        bend: What a test makes of an answer; it may raise ConnectionClosedError to leave.
    """

    def __init__(self, offer: Offer, bend: Reply = lambda message, answer: answer) -> None:
        self._offer = offer
        self.bend = bend

    async def connect(self) -> Channel:
        ours, theirs = socket.socketpair()
        self._nursery.start_soon(self._serve, Channel(trio.socket.from_stdlib_socket(theirs)))
        return Channel(trio.socket.from_stdlib_socket(ours))

    async def _serve(self, channel: Channel) -> None:
        session = BackendSession(self._offer)
        async with channel:
            try:
                while True:
                    frame = await channel.receive()
                    with frame.fds:
                        message = decode(Direction.FRONTEND, frame)
                        session.admit(message)
                        own = message.spec is not None and session.expected(message).name == "REPLY"
                        answer = session.answer(message, Done(_body(message)) if own else Done())
                    if (answer := self.bend(message, answer)) is not None:
                        await channel.send(answer)
            except ConnectionClosedError:
                return

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as self._nursery:
                yield
                self._nursery.cancel_scope.cancel()


def _body(message: Message) -> Payload | None:
    assert message.spec is not None
    kind = message.spec.reply_payload
    return U64(0) if kind is U64 else message.payload if isinstance(message.payload, Payload) else None


def offer_of(transcript: Transcript) -> Offer:
    told = dict(transcript.offer)
    return Offer(told["virtio_features"], ProtocolFeature(told["protocol_features"]), told["vrings"])


async def replayed(entries: list[Entry], bend: Reply = lambda message, answer: answer) -> list[Difference]:
    """Play to a session that offers everything; `bend` changes its answers."""
    back_end = SessionBackEnd(Offer(2**64 - 1, ProtocolFeature(2**24 - 1), 256), bend)
    async with back_end.serving():
        return await replay(Transcript(tuple(entries)), back_end.connect, patience=0.1)


ALL = asks(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ))
OWNER, YES = asks(R.SET_OWNER, None, NEED_REPLY), answers(R.SET_OWNER, U64(0))
QUEUES, NONE = asks(R.GET_QUEUE_NUM), answers(R.GET_QUEUE_NUM, U64(0))
SESSION: list[Entry] = [ALL, OWNER, YES, QUEUES, NONE, Closed()]


# ---- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KINDS_ALONE, ids=lambda path: path.stem)
async def test_a_recording_with_kinds_of_answers_passes_and_a_changed_kind_is_told(path: Path) -> None:
    transcript = load(path)
    back_end = SessionBackEnd(offer_of(transcript))
    answered = [at for at, entry in enumerate(transcript.entries) if isinstance(entry, Said) and entry.answer]
    async with back_end.serving():
        assert await replay(transcript, back_end.connect) == []
        for at in (answered[0], answered[len(answered) // 2], answered[-1]):
            said = transcript.entries[at]
            assert isinstance(said, Said)
            other = {"ack": "reply", "reply": "ack"}[said.answer or ""]
            entries = (*transcript.entries[:at], replace(said, answer=other), *transcript.entries[at + 1 :])
            (found,) = await replay(transcript.but(entries), back_end.connect)
            assert (found.number, found.about, found.one) == (at, R(said.request).name, other)


@pytest.mark.parametrize("path", BOTH_SIDES, ids=lambda path: path.stem)
async def test_a_recording_of_ours_passes_and_a_changed_answer_is_told(
    path: Path, tmp_path: Path, interrupts: None, caplog: pytest.LogCaptureFixture
) -> None:
    transcript = load(path)
    replies = [at for at, entry in enumerate(transcript.entries) if isinstance(entry, Said) and entry.is_reply]
    device = NetDevice(Loop(2 if "--queues 2" in transcript.back_end else 1))
    with closing(device), trio.fail_after(DEADLINE):
        async with await listen(tmp_path / "vhost.sock") as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(Server(device, endpoint).run)
            assert await replay(transcript, lambda: connect(tmp_path / "vhost.sock")) == []
            for at in (replies[0], replies[len(replies) // 2], replies[-1]):
                (found,) = await replay(altered(transcript, at), lambda: connect(tmp_path / "vhost.sock"))
                said = transcript.entries[at]
                assert isinstance(said, Said)
                assert (found.number, found.about) == (at - 1, R(said.request).name)
            nursery.cancel_scope.cancel()
    assert "broken" not in caplog.text, "rings that went on elsewhere than at 0 are empty there"


def altered(transcript: Transcript, at: int) -> Transcript:
    """The same with another bit in an answer, where all of them are compared."""
    said = transcript.entries[at]
    assert isinstance(said, Said)
    other = replace(said, payload=bytes([said.payload[0] ^ 1]) + said.payload[1:])
    return transcript.but((*transcript.entries[:at], other, *transcript.entries[at + 1 :]))


async def recorded(victim: Victim, folder: Path) -> Transcript:
    """A good session with packets, as a proxy saw it."""
    events: list[Began | Passed | Ended] = []
    with Proxy(events.append) as proxy:
        async with await listen(folder / "proxy.sock", PATIENT) as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(proxy.serve, endpoint, Connector(victim.path, PATIENT).next_channel)
            through = Victim(folder / "proxy.sock", victim.port, victim.device, victim.server, victim.nursery)
            await good_session(through)
            nursery.cancel_scope.cancel()
    return Transcript(tuple(event.said if isinstance(event, Passed) else event.closed
                            for event in events if not isinstance(event, Began)))  # fmt: skip


async def test_what_was_recorded_of_ours_passes_and_each_changed_answer_is_told(victim: Victim, tmp_path: Path) -> None:
    transcript = await recorded(victim, tmp_path)
    replies = [at for at, entry in enumerate(transcript.entries) if isinstance(entry, Said) and entry.is_reply]
    assert len(replies) > 10
    with trio.fail_after(DEADLINE):
        assert await replay(transcript, lambda: connect(victim.path)) == []
        for at in replies:
            (found,) = await replay(altered(transcript, at), lambda: connect(victim.path))
            said = transcript.entries[at]
            assert isinstance(said, Said)
            assert (found.number, found.other_number, found.about) == (at - 1, None, R(said.request).name)


# ---- what can be different -------------------------------------------------------------------------------------------


async def test_the_same_is_no_difference() -> None:
    assert await replayed(SESSION) == []


async def test_another_answer() -> None:
    def two(message: Message, answer: Frame | None) -> Frame | None:
        return Frame(message.request, 5, b"\2" + bytes(7)) if message.request == R.GET_QUEUE_NUM else answer

    assert await replayed(SESSION, two) == [
        Difference(3, None, "GET_QUEUE_NUM", "GET_QUEUE_NUM reply 0", "GET_QUEUE_NUM reply 2")
    ]


async def test_an_answer_that_does_not_come() -> None:
    def silent(message: Message, answer: Frame | None) -> Frame | None:
        return None if message.request == R.SET_OWNER else answer

    assert await replayed(SESSION, silent) == [Difference(1, None, "SET_OWNER", "SET_OWNER ack 0", "no answer")]


async def test_an_answer_that_nobody_asked_for() -> None:
    entries: list[Entry] = [asks(R.SET_OWNER), QUEUES, NONE]

    def eager(message: Message, answer: Frame | None) -> Frame | None:
        return encode_ack(message.request, 0) if message.request == R.SET_OWNER else answer

    (found,) = await replayed([ALL, *entries], eager)
    assert (found.one, found.other) in (
        ("no answer", "SET_OWNER ack 0"),
        ("GET_QUEUE_NUM reply 0", "SET_OWNER ack 0; GET_QUEUE_NUM reply 0"),
    )


async def test_an_answer_that_no_rule_promises_is_waited_for() -> None:
    """A back-end that answers with an acknowledgement what it need not, as recorded."""
    entries: list[Entry] = [asks(R.SET_OWNER), YES, QUEUES, NONE]

    def eager(message: Message, answer: Frame | None) -> Frame | None:
        return encode_ack(message.request, 0) if message.request == R.SET_OWNER else answer

    assert await replayed([ALL, *entries], eager) == []
    (found,) = await replayed([ALL, *entries])
    assert (found.number, found.other) == (1, "no answer")


def leaving(message: Message, answer: Frame | None) -> Frame | None:
    if message.request == R.SET_OWNER:
        raise ConnectionClosedError("enough")
    return answer


async def test_a_closing_that_was_not_recorded_is_one_difference() -> None:
    (found,) = await replayed([ALL, QUEUES, NONE, OWNER, YES, QUEUES, NONE, QUEUES, NONE, Closed()], leaving)
    assert found == Difference(3, None, "SET_OWNER", "SET_OWNER ack 0", "closes the connection")


async def test_what_comes_after_a_closing_is_played_on_the_next_connection() -> None:
    found = await replayed([ALL, OWNER, YES, Closed(), ALL, QUEUES, NONE, Closed()], leaving)
    assert [difference.number for difference in found] == [1]


async def test_a_closing_that_was_recorded_is_no_difference() -> None:
    assert await replayed([ALL, QUEUES, NONE, OWNER, Closed(Side.BACKEND), ALL, Closed()], leaving) == []


async def test_a_closing_that_does_not_come() -> None:
    (found,) = await replayed([ALL, QUEUES, NONE, Closed(Side.BACKEND)])
    assert found == Difference(3, None, "the connection", "the back-end closes it", "it stays open")


async def test_a_back_end_that_hangs() -> None:
    def asleep(message: Message, answer: Frame | None) -> Frame | None:
        return None

    found = await replayed(SESSION, asleep)
    assert found == [Difference(1, None, "SET_OWNER", "SET_OWNER ack 0",
                                "neither answers nor closes the connection any more")]  # fmt: skip


async def test_bytes_that_are_no_message() -> None:
    def garbage(message: Message, answer: Frame | None) -> Frame | None:
        return Frame(message.request, 0) if message.request == R.SET_OWNER else answer

    (found,) = await replayed(SESSION, garbage)
    assert (found.number, found.other) == (1, "closes the connection")


async def test_a_back_end_that_cannot_be_reached_any_more() -> None:
    back_end = SessionBackEnd(Offer(0, ProtocolFeature(0), 2))
    connections: list[Channel] = []

    async def once() -> Channel:
        if connections:
            raise EndpointError("gone")
        connections.append(await back_end.connect())
        return connections[0]

    features = asks(R.GET_FEATURES), answers(R.GET_FEATURES, U64(0))
    async with back_end.serving():
        found = await replay(Transcript((*features, Closed(), *features)), once)
    assert found == [Difference(3, None, "GET_FEATURES", "GET_FEATURES reply 0x0", "takes no connection any more")]


async def test_a_back_end_that_cannot_be_reached_at_all() -> None:
    async def never() -> Channel:
        raise EndpointError("nobody")

    with pytest.raises(EndpointError, match="nobody"):
        await replay(Transcript((OWNER,)), never)


@pytest.mark.parametrize("connections", [1, 2], ids=["at once", "after one more that it closes"])
async def test_a_back_end_that_dies_of_the_last_message(connections: int) -> None:
    """It has been reached, though it never said anything."""
    left = connections

    async def dying() -> Channel:
        nonlocal left
        if not left:
            raise EndpointError("gone")
        left -= 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return Channel(trio.socket.from_stdlib_socket(ours))

    found = await replay(Transcript((asks(R.SET_OWNER), Closed(Side.BACKEND))), dying, patience=0.1)
    assert found == [Difference(1, None, "the back-end", "goes on", "is gone: takes no connection any more")]


async def test_a_back_end_that_does_not_answer_the_next_front_end() -> None:
    back_end = SessionBackEnd(Offer(0, ProtocolFeature(0), 2))
    silent, theirs = socket.socketpair()
    before = [back_end.connect]

    async def reach() -> Channel:
        return await before.pop()() if before else Channel(trio.socket.from_stdlib_socket(silent))

    features = asks(R.GET_FEATURES), answers(R.GET_FEATURES, U64(0))
    async with back_end.serving():
        with theirs:
            found = await replay(Transcript((*features, Closed())), reach, patience=0.1)
    assert [(difference.about, difference.other) for difference in found] == [
        ("the back-end", "does not answer the next front-end")
    ]


async def test_a_bent_answer_is_not_held_against_the_back_end() -> None:
    bent = replace(answers(R.GET_QUEUE_NUM, U64(7)), bent=("bit 0 of byte 12 flipped",))
    assert await replayed([ALL, QUEUES, bent, Closed()]) == []

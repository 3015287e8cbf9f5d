"""A front-end's part is played: what is answered is heard, what is not is missed, and nothing is left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from vhostuser.errors import ConnectionClosedError, EndpointError, FramingError
from vhostuser.fds import OwnedFd
from vhostuser.session.witness import Side
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Resized, Said, Saw, Signalled, Wrote
from vhostuser.transcript.player import Performance, play
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import encode, encode_ack, encode_reply
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, BackendRequest, Direction, FrontendRequest

R = FrontendRequest
FRONTEND, BACKEND = Side.FRONTEND, Side.BACKEND
NEED_REPLY = 9
MEMORY = Descriptor("memory 0", Kind.MEMORY, size=4096)
KICK = Descriptor("kick 0", Kind.EVENTFD)
CHANNEL = Descriptor("channel", Kind.SOCKET)


def ask(request: int, payload: bytes = b"", flags: int = 1, *fds: Descriptor) -> Said:
    return Said(FRONTEND, request, flags, payload, fds=fds)


NEGOTIATION: list[Entry] = [
    ask(R.GET_FEATURES),
    ask(R.GET_PROTOCOL_FEATURES),
    ask(R.SET_PROTOCOL_FEATURES, (ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ).to_bytes(8, "little")),
]

Answer = Callable[[Channel, Frame], Awaitable[None]]


@dataclass
class Scripted:
    """A back-end that answers features, acknowledges what asks for it, and does what a test says instead.

    Attributes:
        instead: What it does with a request of that number.
        frames: The frames that came, their descriptors with them, until they are closed at the end.
        connections: How many there were.
    """

    instead: dict[int, Answer] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    connections: int = 0

    async def connect(self) -> Channel:
        ours, theirs = socket.socketpair()
        self.connections += 1
        self.nursery.start_soon(self._serve, Channel(trio.socket.from_stdlib_socket(theirs)))
        return Channel(trio.socket.from_stdlib_socket(ours))

    async def _serve(self, channel: Channel) -> None:
        async with channel:
            try:
                while True:
                    frame = await channel.receive()
                    self.frames.append(frame)
                    await self.instead.get(frame.request, answer)(channel, frame)
            except (ConnectionClosedError, FramingError, trio.ClosedResourceError):
                return

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as self.nursery:
            yield
            await trio.testing.wait_all_tasks_blocked()
            self.nursery.cancel_scope.cancel()
        for frame in self.frames:
            frame.fds.close()

    @property
    def requests(self) -> list[int]:
        return [frame.request for frame in self.frames]


async def answer(channel: Channel, frame: Frame) -> None:
    """As most back-ends do."""
    values = {
        R.GET_FEATURES: VhostFeature.PROTOCOL_FEATURES,
        R.GET_PROTOCOL_FEATURES: ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ,
    }
    if frame.request in values:
        value = U64(values[FrontendRequest(frame.request)])
        await channel.send(encode_reply(FRONTEND_REQUESTS[frame.request], value))
    elif frame.need_reply:
        await channel.send(encode_ack(frame.request, 0))


async def silence(channel: Channel, frame: Frame) -> None:
    """Nothing is said."""


async def leave(channel: Channel, frame: Frame) -> None:
    channel.close()


async def garbage(channel: Channel, frame: Frame) -> None:
    """What is no message."""
    await channel.send(Frame(frame.request, 7, b""))


async def perform(back_end: Scripted, entries: Sequence[Entry], **options: object) -> Performance:
    """Play to a back-end; nothing may be left of it."""
    before = sorted(os.listdir("/proc/self/fd"))
    with trio.fail_after(20):
        async with back_end.serving():
            performance = await play(entries, back_end.connect, **options)  # type: ignore[arg-type]
    assert sorted(os.listdir("/proc/self/fd")) == before
    return performance


async def test_what_is_answered_is_heard_after_its_entry() -> None:
    back_end = Scripted()
    performance = await perform(back_end, [*NEGOTIATION, ask(R.SET_OWNER, flags=NEED_REPLY)])
    assert [(heard.after, heard.frame.request) for heard in performance.heard] == [
        (0, R.GET_FEATURES),
        (1, R.GET_PROTOCOL_FEATURES),
        (3, R.SET_OWNER),
    ]
    assert performance.heard[-1].judgement is not None
    assert performance.heard[-1].judgement.accepted
    assert performance.played == 4
    assert (performance.breaches, performance.missed, performance.closed) == ([], [], [])
    assert performance.hung is None


async def test_an_answer_that_does_not_come_is_missed_and_the_play_goes_on() -> None:
    back_end = Scripted({R.SET_OWNER: silence})
    entries = [*NEGOTIATION, ask(R.SET_OWNER, flags=NEED_REPLY), ask(R.SET_FEATURES, bytes(8), NEED_REPLY)]
    performance = await perform(back_end, entries, patience=0.05)
    assert performance.missed == [3]
    assert performance.hung is None
    assert [heard.after for heard in performance.heard] == [0, 1, 4]
    assert back_end.requests[4] == R.GET_FEATURES, "it is asked whether it still listens"
    assert performance.played == 5


async def test_a_back_end_that_answers_nothing_any_more_hangs() -> None:
    back_end = Scripted({R.SET_OWNER: silence, R.GET_FEATURES: silence})
    entries = [*NEGOTIATION[1:], ask(R.SET_OWNER, flags=NEED_REPLY), ask(R.SET_FEATURES, bytes(8))]
    performance = await perform(back_end, entries, patience=0.05)
    assert (performance.hung, performance.missed, performance.played) == (2, [2], 3)
    assert R.SET_FEATURES not in back_end.requests


async def test_a_back_end_that_does_not_read_hangs() -> None:
    async def sleep(channel: Channel, frame: Frame) -> None:
        await trio.sleep_forever()

    back_end = Scripted({R.SET_OWNER: sleep})
    performance = await perform(back_end, [ask(R.SET_OWNER, bytes(4096)) for _ in range(500)], patience=0.05)
    assert performance.hung is not None
    assert performance.hung < 499


async def test_what_was_to_be_said_to_a_back_end_that_closed_is_left_out_until_the_next_connection() -> None:
    back_end = Scripted({R.SET_OWNER: leave})
    again = ask(R.GET_FEATURES)
    performance = await perform(back_end, [ask(R.SET_OWNER), again, again, Closed(), again])
    assert back_end.connections == 2
    assert performance.closed in ([0], [1]), "the second message may be under way when it closes"
    assert [heard.after for heard in performance.heard] == [4]


async def test_where_the_back_end_closed_it_is_waited_for() -> None:
    back_end = Scripted({R.SET_OWNER: leave})
    performance = await perform(back_end, [ask(R.SET_OWNER), Closed(BACKEND), ask(R.GET_FEATURES)])
    assert back_end.connections == 2
    assert performance.closed in ([0], [1])


async def test_bytes_that_are_no_message_are_a_breach_and_end_the_connection() -> None:
    back_end = Scripted({R.GET_FEATURES: garbage})
    performance = await perform(back_end, [ask(R.GET_FEATURES), ask(R.SET_OWNER)])
    ((entry, breach),) = performance.breaches
    assert (entry, breach.blame, performance.closed) == (0, BACKEND, [0])
    assert "version 3" in breach.text
    assert back_end.requests == [R.GET_FEATURES]


async def test_an_answer_that_nobody_promised_is_waited_for_on_demand() -> None:
    async def late(channel: Channel, frame: Frame) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await channel.send(encode_ack(frame.request, 0))

    performance = await perform(Scripted({R.SET_OWNER: late}), [ask(R.SET_OWNER)], awaited=lambda number: number == 0)
    assert [heard.after for heard in performance.heard] == [0]
    assert [breach.rule for _, breach in performance.breaches] == ["VU-REP-3"]
    performance = await perform(Scripted(), [ask(R.SET_OWNER)], awaited=lambda number: True, patience=0.05)
    assert performance.missed == [0]
    assert not performance.heard


async def test_a_message_in_pieces_arrives_whole_and_a_cut_one_does_not() -> None:
    back_end = Scripted()
    said = Said(FRONTEND, R.SET_FEATURES, 1, bytes(8), pieces=(1, 5, 8), fds=(KICK,))
    await perform(back_end, [said, Said(FRONTEND, R.SET_OWNER, 1, cut=7)])
    assert back_end.requests == [R.SET_FEATURES]
    assert back_end.frames[0].payload == bytes(8)


async def test_memory_is_written_and_resized_and_kicks_arrive() -> None:
    seen: list[tuple[bytes, int, int]] = []

    async def look(channel: Channel, frame: Frame) -> None:
        memory, kick = frame.fds.filenos()
        seen.append((os.pread(memory, 4, 16), os.fstat(memory).st_size, os.eventfd_read(kick)))
        await answer(channel, frame)

    entries: list[Entry] = [
        *NEGOTIATION,
        ask(R.SET_OWNER, b"", 1, MEMORY, KICK),
        Wrote(MEMORY.name, 16, (b"ring",)),
        Resized(MEMORY.name, 20),
        Signalled(KICK.name),
        Signalled(KICK.name),
        Wrote("unknown", 0, (b"x",)),
        Resized("unknown", 0),
        Signalled("unknown"),
        Paused(0),
        ask(R.RESET_OWNER, b"", NEED_REPLY, MEMORY, KICK),
    ]
    await perform(Scripted({R.RESET_OWNER: look}), entries)
    assert seen == [(b"ring", 20, 2)]


async def test_memory_that_is_not_as_it_was_seen_differs() -> None:
    async def store(channel: Channel, frame: Frame) -> None:
        (memory,) = frame.fds.filenos()
        await answer(channel, frame)
        await trio.testing.wait_all_tasks_blocked()
        os.pwrite(memory, b"used", 8)

    entries: list[Entry] = [
        *NEGOTIATION,
        ask(R.SET_OWNER, b"", NEED_REPLY, MEMORY),
        Saw(MEMORY.name, 8, b"used"),
        Saw(MEMORY.name, 8, b"lost"),
        Saw("unknown", 0, b"x"),
    ]
    performance = await perform(Scripted({R.SET_OWNER: store}), entries, patience=0.2)
    assert performance.differing == [5, 6]


async def test_memory_that_changes_meanwhile_changes_until_the_end() -> None:
    values = set[bytes]()

    async def look(channel: Channel, frame: Frame) -> None:
        (memory,) = frame.fds.filenos()
        while not values >= {b"a", b"b"}:
            values.add(os.pread(memory, 1, 0))
            await trio.lowlevel.checkpoint()
        await answer(channel, frame)

    changing = Wrote(MEMORY.name, 0, (b"a", b"b"), seconds=60)
    entries: list[Entry] = [
        *NEGOTIATION,
        ask(R.SET_OWNER, b"", 1, MEMORY),
        changing,
        ask(R.RESET_OWNER, b"", NEED_REPLY, MEMORY),
    ]
    await perform(Scripted({R.RESET_OWNER: look}), entries, patience=10)
    assert values >= {b"a", b"b"}


async def test_the_back_ends_own_requests_are_answered_as_recorded_else_with_a_yes() -> None:
    answers: list[tuple[int, bytes]] = []

    async def ask_back(channel: Channel, frame: Frame) -> None:
        own = Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=frame.fds.take().detach())))
        async with own:
            for need_reply in (True, True, False):
                await own.send(encode(Direction.BACKEND, BackendRequest.CONFIG_CHANGE_MSG, None, (), need_reply))
                if need_reply:
                    reply = await own.receive()
                    answers.append((reply.request, reply.payload))
            lookup = Frame(BackendRequest.SHARED_OBJECT_LOOKUP, 1, bytes(16))
            await own.send(lookup)
            answers.append(((await own.receive()).request, b""))
        await answer(channel, frame)

    refusal = Said(FRONTEND, BackendRequest.CONFIG_CHANGE_MSG, 5, (1).to_bytes(8, "little"), own_channel=True)
    entries = [*NEGOTIATION, ask(R.SET_BACKEND_REQ_FD, b"", NEED_REPLY, CHANNEL), refusal]
    performance = await perform(Scripted({R.SET_BACKEND_REQ_FD: ask_back}), entries)
    assert answers == [
        (BackendRequest.CONFIG_CHANGE_MSG, (1).to_bytes(8, "little")),
        (BackendRequest.CONFIG_CHANGE_MSG, bytes(8)),
        (BackendRequest.SHARED_OBJECT_LOOKUP, b""),
    ]
    assert [heard.after for heard in performance.heard if heard.own_channel] == [3, 3, 3, 3]


async def test_descriptors_of_answers_are_told_and_closed() -> None:
    async def hand_over(channel: Channel, frame: Frame) -> None:
        with OwnedFd(os.memfd_create("inflight")) as memory:
            os.ftruncate(memory.fileno(), 123)
            await channel.send(Frame(frame.request, 5, bytes(24), type(frame.fds)([os.dup(memory.fileno())])))

    back_end = Scripted({R.GET_INFLIGHT_FD: hand_over})
    performance = await perform(back_end, [ask(R.GET_INFLIGHT_FD, bytes(24))], awaited=lambda number: True)
    ((told,),) = [heard.fds for heard in performance.heard]
    assert (told.kind, told.size) == (Kind.MEMORY, 123)


async def test_the_connection_itself_can_be_passed() -> None:
    back_end = Scripted()
    itself = Descriptor("itself", Kind.CONNECTION)
    performance = await perform(back_end, [ask(R.SET_BACKEND_REQ_FD, b"", 1, itself), ask(R.GET_FEATURES)])
    assert [heard.after for heard in performance.heard] == [1]


async def test_a_play_ends_where_nobody_is_reached() -> None:
    async def nobody() -> Channel:
        raise EndpointError("nobody is there")

    performance = await play([Paused(0), ask(R.SET_OWNER), Paused(0)], nobody)
    assert (performance.unreachable, performance.played) == (1, 1)


async def test_a_whole_session_with_ring_positions() -> None:
    async def base(channel: Channel, frame: Frame) -> None:
        await channel.send(encode_reply(FRONTEND_REQUESTS[R.GET_VRING_BASE], VringState(0, 7)))

    performance = await perform(Scripted({R.GET_VRING_BASE: base}), [*NEGOTIATION, ask(R.GET_VRING_BASE, bytes(8))])
    judgement = performance.heard[-1].judgement
    assert judgement is not None
    assert judgement.value == VringState(0, 7)


async def test_an_answer_is_not_taken_for_one_that_nobody_has_to_give() -> None:
    """To the one that takes REPLY_ACK back no answer is promised; the next one's is not taken for it."""
    words = [word.to_bytes(8, "little") for word in (ProtocolFeature.REPLY_ACK, 0, ProtocolFeature.REPLY_ACK)]
    entries = [*NEGOTIATION, *(ask(R.SET_PROTOCOL_FEATURES, word, NEED_REPLY) for word in words)]

    async def by_the_new_word(channel: Channel, frame: Frame) -> None:
        if frame.need_reply and any(frame.payload):
            await channel.send(encode_ack(frame.request, 0))

    scripted = Scripted({R.SET_PROTOCOL_FEATURES: by_the_new_word})
    async with scripted.serving():
        performance = await play(entries, scripted.connect, patience=5)
    assert (performance.missed, performance.breaches) == ([], [])
    assert [heard.answers for heard in performance.heard] == [0, 1, 3, 5]

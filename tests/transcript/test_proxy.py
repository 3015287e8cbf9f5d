"""What stands between two sides passes on everything and lets go of everything, whatever either says."""

from __future__ import annotations

import os
import random
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.hostile.victim import DEADLINE, Victim, good_session, serving, unharmed
from vhostuser.errors import ConnectionClosedError, EndpointError
from vhostuser.fds import OwnedFd
from vhostuser.session.witness import Side
from vhostuser.transcript.bending import Bending, Corruption, Pick
from vhostuser.transcript.entries import Kind
from vhostuser.transcript.proxy import PATIENT, Began, Ended, Passed, Proxy
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Connector, listen
from vhostuser.wire.codec import encode, encode_ack, encode_reply
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import MAX_FDS, Frame, LentFds
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FRONTEND_REQUESTS, BackendRequest, Direction, FrontendRequest

R, B = FrontendRequest, BackendRequest
FRONTEND, BACKEND = Side.FRONTEND, Side.BACKEND


@dataclass
class Joined:
    """Two ends that a proxy joins, and what it told."""

    front_end: Channel
    back_end: Channel
    events: list[Began | Passed | Ended] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def passed(self) -> list[Passed]:
        return [event for event in self.events if isinstance(event, Passed)]

    @property
    def ended(self) -> list[Ended]:
        return [event for event in self.events if isinstance(event, Ended)]

    def names(self) -> list[str]:
        return [fd.name for passed in self.passed for fd in passed.said.fds]

    async def ask(self, frame: Frame) -> Frame:
        """Send a frame from the front-end; as it arrives, its descriptors owned."""
        await self.front_end.send(frame)
        return await self.back_end.receive()

    async def answer(self, frame: Frame) -> Frame:
        await self.back_end.send(frame)
        return await self.front_end.receive()


def pair() -> tuple[Channel, Channel]:
    ours, theirs = (Channel(trio.socket.from_stdlib_socket(end), PATIENT) for end in socket.socketpair())
    return ours, theirs


@asynccontextmanager
async def joined(bending: Bending | None = None) -> AsyncIterator[Joined]:
    """A front-end and a back-end that nothing was said between; nothing may be left of them."""
    before = sorted(os.listdir("/proc/self/fd"))
    front_end, near = pair()
    back_end, far = pair()
    ends = Joined(front_end, back_end)
    with trio.fail_after(DEADLINE), Proxy(ends.events.append, bending) as proxy:
        async with front_end, back_end, trio.open_nursery() as nursery:

            async def run() -> None:
                async with near, far:
                    await proxy.join(near, far)
                ends.over.set()

            nursery.start_soon(run)
            yield ends
            front_end.close()
            back_end.close()
            await ends.over.wait()
    assert sorted(os.listdir("/proc/self/fd")) == before


@contextmanager
def memfd(size: int = 4096) -> Iterator[int]:
    with OwnedFd(os.memfd_create("guest")) as memory:
        os.ftruncate(memory.fileno(), size)
        yield memory.fileno()


def same(fd: int, other: int) -> bool:
    """Whether two descriptors are of the same file."""
    return os.path.sameopenfile(fd, other)


# ---- what is said --------------------------------------------------------------------------------------------------


async def test_both_sides_are_passed_on_to_the_bit() -> None:
    request = Frame(R.SET_FEATURES, 0xFFFFFFF9, bytes(range(8)))
    reply = Frame(R.SET_FEATURES, 0x5 | 0x100, b"")
    async with joined() as ends:
        assert (await ends.ask(request)).encode() == request.encode()
        assert (await ends.answer(reply)).encode() == reply.encode()
    assert [(passed.said.side, passed.said.flags, passed.said.payload) for passed in ends.passed] == [
        (FRONTEND, request.flags, request.payload),
        (BACKEND, reply.flags, b""),
    ]


async def test_descriptors_are_passed_on_and_told() -> None:
    async with joined() as ends:
        with memfd() as memory, OwnedFd(os.eventfd(0)) as kick:
            message = Frame(R.SET_MEM_TABLE, 1, bytes(8), LentFds((memory, kick.fileno())))
            arrived = await ends.ask(message)
            with arrived.fds:
                theirs, their_kick = arrived.fds.filenos()
                assert same(memory, theirs)
                os.eventfd_write(their_kick, 3)
                assert os.eventfd_read(kick.fileno()) == 3
    ((first, second),) = [passed.said.fds for passed in ends.passed]
    assert (first.kind, first.size, second.kind) == (Kind.MEMORY, 4096, Kind.EVENTFD)


async def test_as_many_descriptors_as_the_kernel_passes() -> None:
    async with joined() as ends:
        with memfd() as memory:
            arrived = await ends.ask(Frame(R.SET_OWNER, 1, b"", LentFds([memory] * MAX_FDS)))
            with arrived.fds:
                assert len(arrived.fds) == MAX_FDS
    assert set(ends.names()) == {"descriptor"}


async def test_broken_rules_are_told_with_who_broke_them() -> None:
    async with joined() as ends:
        await ends.ask(Frame(R.SET_FEATURES, 1, b"short"))
        await ends.ask(encode(Direction.FRONTEND, R.GET_FEATURES))
        await ends.answer(Frame(R.GET_FEATURES, 5, bytes(3)))
    blamed = [(passed.said.side, [breach.blame for breach in passed.breaches]) for passed in ends.passed]
    assert blamed == [(FRONTEND, [FRONTEND]), (FRONTEND, []), (BACKEND, [BACKEND])]
    assert all(passed.said.rules for passed in ends.passed if passed.breaches)


# ---- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
async def test_a_side_that_leaves_ends_the_connection_for_the_other(side: Side) -> None:
    async with joined() as ends:
        leaving, staying = ends.front_end, ends.back_end
        if side is BACKEND:
            leaving, staying = staying, leaving
        await leaving.send(Frame(R.SET_OWNER, 1))
        leaving.close()
        assert (await staying.receive()).request == R.SET_OWNER
        with pytest.raises(ConnectionClosedError):
            await staying.receive()
    (ended,) = ends.ended
    assert (ended.closed.side, ended.why, ended.own_channel) == (side, "", False)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\x01\0\0\0\x02\0\0\0\0\0\0\0", "version 2"), (b"\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff", "4294967295")],
)
async def test_what_is_no_message_ends_the_connection_for_both(side: Side, data: bytes, why: str) -> None:
    async with joined() as ends:
        await (ends.front_end if side is FRONTEND else ends.back_end).send_bytes(data, LentFds(()))
        for end in (ends.front_end, ends.back_end):
            with pytest.raises(ConnectionClosedError):
                await end.receive()
    (ended,) = ends.ended
    assert ended.closed.side is side
    assert why in ended.why


async def test_a_message_that_breaks_off_is_told() -> None:
    async with joined() as ends:
        await ends.front_end.send_bytes(bytes(5), LentFds(()))
        ends.front_end.close()
        with pytest.raises(ConnectionClosedError):
            await ends.back_end.receive()
    assert ends.ended[0].why == "closed after 5 of 12 header bytes"


async def test_the_last_words_of_a_back_end_arrive() -> None:
    """It answered and left while the front-end was still sending, which fails first."""
    async with joined() as ends:
        for number in range(100):
            await ends.back_end.send(encode_ack(R.SET_OWNER, number))
        ends.back_end.close()
        await ends.front_end.send(Frame(R.SET_OWNER, 1))
        answers = [int.from_bytes((await ends.front_end.receive()).payload, "little") for _ in range(100)]
        assert answers == list(range(100))
    assert [ended.closed.side for ended in ends.ended] == [BACKEND]


async def test_a_side_that_does_not_read_holds_up_only_the_other() -> None:
    async with joined() as ends, trio.open_nursery() as nursery:

        async def flood() -> None:
            for _ in range(1000):
                await ends.front_end.send(Frame(R.SET_OWNER, 1, bytes(4096)))

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert len(ends.passed) < 1000
        assert (await ends.answer(encode_ack(R.SET_OWNER, 0))).request == R.SET_OWNER
        for _ in range(1000):
            await ends.back_end.receive()
    assert len(ends.passed) == 1001


async def test_a_side_that_leaves_while_the_other_does_not_read() -> None:
    async with joined() as ends:
        with trio.move_on_after(DEADLINE):
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    for _ in range(1000):
                        await ends.front_end.send(Frame(R.SET_OWNER, 1, bytes(4096)))

                nursery.start_soon(flood)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        ends.back_end.close()
        await ends.over.wait()


async def test_when_both_have_left_one_of_them_is_told() -> None:
    """Each is found to be gone by sending it what the other had said."""
    async with joined() as ends:
        for _ in range(20):
            await ends.front_end.send(Frame(R.SET_OWNER, 1))
            await ends.back_end.send(Frame(R.SET_OWNER, 5))
        ends.front_end.close()
        ends.back_end.close()
    assert len(ends.ended) == 1


# ---- the back-end's own channel ------------------------------------------------------------------------------------


async def own_channel(ends: Joined) -> tuple[Channel, Channel]:
    """The ends of an own channel that both sides got; the front-end's first."""
    ours, theirs = socket.socketpair()
    with theirs:
        arrived = await ends.ask(encode(Direction.FRONTEND, R.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
    got = socket.socket(fileno=arrived.fds.take().detach())
    front_end, back_end = (Channel(trio.socket.from_stdlib_socket(sock), PATIENT) for sock in (ours, got))
    return front_end, back_end


async def test_the_back_ends_own_channel_is_passed_on_and_told_both_ways() -> None:
    async with joined() as ends:
        front_end, back_end = await own_channel(ends)
        async with front_end, back_end:
            with memfd() as memory:
                request = Frame(B.SHMEM_MAP, 9, bytes(40), LentFds([memory]))
                await back_end.send(request)
                arrived = await front_end.receive()
                with arrived.fds:
                    assert same(arrived.fds.filenos()[0], memory)
            await front_end.send(encode_ack(B.SHMEM_MAP, 1))
            assert (await back_end.receive()).payload == (1).to_bytes(8, "little")
            back_end.close()
            with pytest.raises(ConnectionClosedError):
                await front_end.receive()
        # the connection itself goes on
        assert (await ends.ask(encode(Direction.FRONTEND, R.SET_OWNER))).request == R.SET_OWNER
    own = [passed.said for passed in ends.passed if passed.said.own_channel]
    assert [(said.side, said.request, [fd.name for fd in said.fds]) for said in own] == [
        (BACKEND, B.SHMEM_MAP, ["shmem"]),
        (FRONTEND, B.SHMEM_MAP, []),
    ]
    assert ends.names()[0] == "channel"
    assert (ends.ended[0].own_channel, ends.ended[0].closed.side) == (True, BACKEND)


async def test_garbage_on_the_own_channel_ends_that_alone() -> None:
    async with joined() as ends:
        front_end, back_end = await own_channel(ends)
        async with front_end, back_end:
            await back_end.send_bytes(bytes(12), LentFds(()))
            with pytest.raises(ConnectionClosedError):
                await front_end.receive()
        await ends.ask(encode(Direction.FRONTEND, R.SET_OWNER))
    assert (ends.ended[0].own_channel, "version 0" in ends.ended[0].why) == (True, True)


async def test_what_cannot_be_a_channel_is_passed_on_as_it_is() -> None:
    async with joined() as ends:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams, OwnedFd(os.eventfd(0)) as event:
            for fds in ([], [event.fileno()], [datagrams.fileno()], [datagrams.fileno()] * 2):
                arrived = await ends.ask(Frame(R.SET_BACKEND_REQ_FD, 1, b"", LentFds(fds)))
                with arrived.fds:
                    assert len(arrived.fds) == len(fds)
                    assert all(map(same, arrived.fds.filenos(), fds))


async def test_new_own_channels_take_the_place_of_old_ones() -> None:
    async with joined() as ends:
        channels = [await own_channel(ends) for _ in range(20)]
        with pytest.raises(ConnectionClosedError):
            await channels[0][0].receive()
        front_end, back_end = channels[-1]
        await back_end.send(Frame(B.CONFIG_CHANGE_MSG, 1))
        assert (await front_end.receive()).request == B.CONFIG_CHANGE_MSG
        for either in channels:
            for channel in either:
                channel.close()


async def test_without_descriptors_left_an_own_channel_goes_on_unseen() -> None:
    async with joined() as ends:
        ours, theirs = socket.socketpair()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with ours, theirs:
            await ends.front_end.send(encode(Direction.FRONTEND, R.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
            resource.setrlimit(resource.RLIMIT_NOFILE, (_second_free_number(), hard))  # room for one, not for two more
            try:
                arrived = await ends.back_end.receive()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with arrived.fds:
                assert same(arrived.fds.filenos()[0], theirs.fileno())


def _second_free_number() -> int:
    taken = set(map(int, os.listdir("/proc/self/fd")))
    _, second, *_ = (number for number in range(len(taken) + 2) if number not in taken)
    return second


# ---- what is bent --------------------------------------------------------------------------------------------------


async def test_what_is_bent_goes_on_so_and_is_told_so() -> None:
    bending = Bending(
        features=VhostFeature.RING_PACKED,
        corruptions=[Corruption(Pick("SET_FEATURES"), 12, b"\xff")],
        drops=[Pick("SET_OWNER", nth=2)],
    )
    async with joined(bending) as ends:
        await ends.ask(encode(Direction.FRONTEND, R.GET_FEATURES))
        offer = VhostFeature.RING_PACKED | VhostFeature.PROTOCOL_FEATURES
        reply = await ends.answer(encode_reply(FRONTEND_REQUESTS[R.GET_FEATURES], U64(offer)))
        assert int.from_bytes(reply.payload, "little") == VhostFeature.PROTOCOL_FEATURES
        for _ in range(3):
            await ends.front_end.send(encode(Direction.FRONTEND, R.SET_OWNER))
        assert (await ends.ask(encode(Direction.FRONTEND, R.SET_FEATURES, U64(0)))).request == R.SET_OWNER
        assert [(await ends.back_end.receive()).request for _ in range(2)] == [R.SET_OWNER, R.SET_FEATURES]
    assert [(passed.said.bent, passed.dropped) for passed in ends.passed] == [
        ((), False),
        ((f"{int(VhostFeature.RING_PACKED):#x} cleared",), False),
        ((), False),
        (("dropped",), True),
        ((), False),
        (("bytes from 12 on: 00 became ff", "now SET_FEATURES: bits 0xff of 0xff are not offered"), False),
    ]
    assert not ends.passed[-1].breaches, "it is not the front-end that broke the rule"
    assert ends.passed[-1].said.payload[0] == 0xFF


async def test_each_side_is_judged_by_what_reached_it() -> None:
    """A front-end that does not know of what was cleared breaks no rule by not taking it; one that takes it does."""
    async with joined(Bending(features=VhostFeature.RING_PACKED)) as ends:
        await ends.ask(encode(Direction.FRONTEND, R.GET_FEATURES))
        await ends.answer(encode_reply(FRONTEND_REQUESTS[R.GET_FEATURES], U64(VhostFeature.RING_PACKED)))
        await ends.ask(encode(Direction.FRONTEND, R.SET_FEATURES, U64(VhostFeature.RING_PACKED)))
    assert [len(passed.breaches) for passed in ends.passed] == [0, 0, 1]


async def test_what_comes_late_keeps_its_place(autojump_clock: trio.testing.MockClock) -> None:
    async with joined(Bending(delays=[(Pick("SET_OWNER"), 5.0)])) as ends:
        await ends.front_end.send(encode(Direction.FRONTEND, R.SET_OWNER))
        assert (await ends.ask(encode(Direction.FRONTEND, R.GET_FEATURES))).request == R.SET_OWNER
        assert (await ends.back_end.receive()).request == R.GET_FEATURES
    assert ends.passed[0].said.bent == ("5 s late",)
    assert ends.passed[1].said.time >= 5


# ---- one after another ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def between(
    path: Path, back_end: Path, listening: Side = FRONTEND
) -> AsyncIterator[list[Began | Passed | Ended]]:
    """A proxy that listens at `path`; what it told."""
    events: list[Began | Passed | Ended] = []
    with trio.fail_after(DEADLINE), Proxy(events.append) as proxy:
        async with await listen(path, PATIENT) as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(proxy.serve, endpoint, Connector(back_end, PATIENT).next_channel, listening)
            yield events
            nursery.cancel_scope.cancel()


async def test_packets_flow_and_nothing_is_left_of_any_connection(victim: Victim, tmp_path: Path) -> None:
    async with between(tmp_path / "trace.sock", victim.path) as events:
        through = Victim(tmp_path / "trace.sock", victim.port, victim.device, victim.server, victim.nursery)
        await good_session(through)  # names keep the eventfds of the last ones
        async with unharmed(through):
            for _ in range(3):
                await good_session(through)
    kinds = [type(event) for event in events if not isinstance(event, Passed)]
    assert kinds[: len(kinds) // 2 * 2] == [Began, Ended] * (len(kinds) // 2), "one at a time"
    assert not [event for event in events if isinstance(event, Passed) and event.breaches]
    pids = {(event.front_end, event.back_end) for event in events if isinstance(event, Began)}
    assert pids == {(os.getpid(), os.getpid())}


async def test_a_back_end_that_comes_back_is_found_again(tmp_path: Path) -> None:
    async with between(tmp_path / "trace.sock", tmp_path / "back.sock"):
        for _ in range(2):
            async with serving(tmp_path / "back.sock") as victim:
                through = Victim(tmp_path / "trace.sock", victim.port, victim.device, victim.server, victim.nursery)
                await good_session(through)


async def test_a_front_end_that_leaves_before_the_back_end_is_there(tmp_path: Path) -> None:
    async with between(tmp_path / "trace.sock", tmp_path / "back.sock") as events:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as impatient:
                impatient.connect(str(tmp_path / "trace.sock"))
        async with serving(tmp_path / "back.sock") as victim:
            through = Victim(tmp_path / "trace.sock", victim.port, victim.device, victim.server, victim.nursery)
            await good_session(through)
    assert any(isinstance(event, Passed) for event in events)


async def test_a_back_end_may_be_the_one_that_connects(tmp_path: Path) -> None:
    async with (
        await listen(tmp_path / "front.sock", PATIENT) as endpoint,
        between(tmp_path / "trace.sock", tmp_path / "front.sock", BACKEND) as events,
        Channel(trio.socket.from_stdlib_socket(_connected(tmp_path / "trace.sock"))) as back_end,
        await endpoint.accept() as front_end,
    ):
        await front_end.send(Frame(R.SET_OWNER, 1))
        assert (await back_end.receive()).request == R.SET_OWNER
    assert [event.said.side for event in events if isinstance(event, Passed)] == [FRONTEND]


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


async def test_a_place_where_no_back_end_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Proxy(lambda event: None) as proxy:
        async with await listen(tmp_path / "trace.sock", PATIENT) as endpoint:
            with _connected(tmp_path / "trace.sock"), pytest.raises(EndpointError, match="cannot connect"):
                await proxy.serve(endpoint, Connector(tmp_path / "file", PATIENT).next_channel)


# ---- whatever either says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_nonsense_from_both_sides_harms_nothing(seed: int) -> None:
    chance = random.Random(seed)

    def nonsense() -> bytes:
        head = [chance.choice([*R, *B, 0, 999]), chance.choice([1, 5, 9]), chance.choice([0, 4, 8, 12, 40])]
        return b"".join(word.to_bytes(4, "little") for word in head) + chance.randbytes(head[2])

    async def talk(end: Channel) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        with memfd() as memory, OwnedFd(os.eventfd(0)) as event:
            lent = [memory, event.fileno(), *(sock.fileno() for both in pairs for sock in both), end.fileno()]
            try:
                for _ in range(60):
                    fds = LentFds(chance.choices(lent, k=chance.choice((0, 0, 1, 1, 3))))
                    data = nonsense()
                    await end.send_bytes(data[: chance.choice([len(data)] * 20 + [3, 14])], fds)
                end.close()
            except (ConnectionClosedError, trio.ClosedResourceError):
                pass
        for both in pairs:
            for sock in both:
                sock.close()

    async def drain(end: Channel) -> None:
        try:
            while True:
                (await end.receive()).fds.close()
        except (ConnectionClosedError, trio.ClosedResourceError):
            pass

    async with joined() as ends, trio.open_nursery() as nursery:
        for end in (ends.front_end, ends.back_end):
            nursery.start_soon(talk, end)
            nursery.start_soon(drain, end)
    assert ends.ended

"""The back-end's own requests: in order, one at a time, answered or given up, and never in the way of anything else."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hostile.attack import Running, ask, refused, talking
from tests.hostile.victim import DEADLINE, Victim, exchange
from vhostuser.errors import ConnectionClosedError, FdError, NotNegotiatedError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import FrontEnd
from vhostuser.limits import Limits
from vhostuser.runtime.backend_channel import BackendChannel, RefusedError
from vhostuser.runtime.complaints import Complaints
from vhostuser.session.backend import BackendSession, Offer
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame, HeaderFlags
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

B = BackendRequest
P = ProtocolFeature
ALL = P.BACKEND_REQ | P.REPLY_ACK | P.CONFIG | P.INBAND_NOTIFICATIONS
TIMEOUT = 3.0


@dataclass
class Ends:
    """Both ends of a channel: ours as the runtime has it, and the front-end's."""

    session: BackendSession
    ours: BackendChannel
    theirs: Channel

    async def asked(self) -> BackendRequest:
        """The next request that arrives."""
        frame = await self.theirs.receive()
        assert frame.need_reply == (P.REPLY_ACK in self.session.protocol_features)
        return BackendRequest(decode(Direction.BACKEND, frame).request)


def pair() -> tuple[OwnedFd, Channel]:
    """A socket as SET_BACKEND_REQ_FD brings it, and the front-end's end."""
    passed, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return OwnedFd(passed.detach()), Channel(trio.socket.from_stdlib_socket(kept))


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    session = BackendSession(Offer(0, ALL, 1))
    session.protocol_features = ALL
    session.vrings[0].started = True
    ours = BackendChannel(session, Complaints(), Limits(TIMEOUT / 2, TIMEOUT), TIMEOUT)
    passed, theirs = pair()
    ours.open(passed)
    yield Ends(session, ours, theirs)
    ours.close()
    theirs.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        yield listening


async def ask_for(ends: Ends, *requests: BackendRequest, done: list[BackendRequest]) -> None:
    for request in requests:
        await ends.ours.request(request, VringState(0, 0) if request is not B.CONFIG_CHANGE_MSG else None)
        done.append(request)


@pytest.mark.proves("VU-BACK-1")
async def test_one_request_at_a_time_in_order(ends: Ends) -> None:
    done: list[BackendRequest] = []
    async with trio.open_nursery() as nursery:
        for request in (B.VRING_CALL, B.VRING_ERR, B.CONFIG_CHANGE_MSG):
            nursery.start_soon(partial(ask_for, ends, request, done=done))
            await wait_all_tasks_blocked()
        for count, request in enumerate((B.VRING_CALL, B.VRING_ERR, B.CONFIG_CHANGE_MSG)):
            assert await ends.asked() is request
            await wait_all_tasks_blocked()
            assert len(done) == count
            await ends.theirs.send(encode_ack(request, 0))
            await wait_all_tasks_blocked()
            assert done[-1] is request


@pytest.mark.proves("VU-BACK-2")
async def test_without_reply_ack_nothing_is_waited_for(ends: Ends) -> None:
    ends.session.protocol_features &= ~P.REPLY_ACK
    done: list[BackendRequest] = []
    await ask_for(ends, B.VRING_CALL, B.VRING_CALL, done=done)
    assert [await ends.asked() for _ in range(2)] == done


@pytest.mark.proves("VU-BACK-2")
async def test_a_refusal_is_the_askers(ends: Ends) -> None:
    await ends.theirs.send(encode_ack(B.CONFIG_CHANGE_MSG, 1))
    with pytest.raises(RefusedError, match="CONFIG_CHANGE_MSG: the front-end refused with 0x1"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    await ends.theirs.send(encode_ack(B.CONFIG_CHANGE_MSG, 0))
    assert (await ends.ours.request(B.CONFIG_CHANGE_MSG))[0] == U64(0)


@pytest.mark.proves("VU-BACK-3")
async def test_what_is_not_acknowledged_is_not_sent(ends: Ends) -> None:
    ends.session.protocol_features &= ~P.CONFIG
    with pytest.raises(NotNegotiatedError, match=r"CONFIG_CHANGE_MSG: .*CONFIG.* is not acknowledged"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)


@pytest.mark.proves("VU-BACK-4")
async def test_nothing_is_sent_while_all_rings_are_stopped(ends: Ends) -> None:
    ring = ends.session.vrings[0]
    ring.started = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.ours.request, B.CONFIG_CHANGE_MSG)
        await wait_all_tasks_blocked()
        ends.ours.rings_changed()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0):
            await ends.theirs.receive()
        ring.started = True
        ends.ours.rings_changed()
        assert await ends.asked() is B.CONFIG_CHANGE_MSG
        await ends.theirs.send(encode_ack(B.CONFIG_CHANGE_MSG, 0))


WRONG = {
    "another request": encode_ack(B.VRING_ERR, 0),
    "no reply": Frame(B.CONFIG_CHANGE_MSG, 0x1, bytes(8)),
    "a size of its own": Frame(B.CONFIG_CHANGE_MSG, 0x1 | HeaderFlags.REPLY, bytes(12)),
    "another version": Frame(B.CONFIG_CHANGE_MSG, 0x2 | HeaderFlags.REPLY, bytes(8)),
}


@pytest.mark.proves("VU-BACK-5")
@pytest.mark.parametrize("answer", WRONG.values(), ids=list(WRONG))
async def test_an_answer_that_is_none_closes_the_channel(ends: Ends, answer: Frame) -> None:
    await ends.theirs.send(answer)
    with pytest.raises(ConnectionClosedError, match="CONFIG_CHANGE_MSG"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    with pytest.raises(ConnectionClosedError, match="there is no back-end channel"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    assert await ends.asked() is B.CONFIG_CHANGE_MSG
    with pytest.raises(ConnectionClosedError):
        await ends.theirs.receive()


@pytest.mark.proves("VU-BACK-5")
async def test_an_answer_with_descriptors_leaves_none_behind(ends: Ends) -> None:
    fds = array.array("i", [0, 1, 2])
    with socket.socket(fileno=os.dup(ends.theirs._socket.fileno())) as raw:
        raw.sendmsg([encode_ack(B.CONFIG_CHANGE_MSG, 0).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionClosedError, match="3 descriptors"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the channel itself


@pytest.mark.proves("VU-BACK-5")
async def test_a_peer_that_never_answers(ends: Ends, autojump_clock: MockClock) -> None:
    before = trio.current_time()
    with pytest.raises(ConnectionClosedError, match=f"no answer after {TIMEOUT:g} s"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    assert trio.current_time() - before == TIMEOUT


@pytest.mark.proves("VU-BACK-5")
async def test_a_peer_that_never_reads(ends: Ends, autojump_clock: MockClock) -> None:
    ends.session.protocol_features &= ~P.REPLY_ACK
    sent: list[BackendRequest] = []
    with pytest.raises(ConnectionClosedError, match="reads too slowly"):
        await ask_for(ends, *[B.CONFIG_CHANGE_MSG] * 100_000, done=sent)
    assert 1 < len(sent) < 100_000


@pytest.mark.proves("VU-BACK-5")
async def test_a_peer_that_answers_in_part(ends: Ends, autojump_clock: MockClock) -> None:
    with socket.socket(fileno=os.dup(ends.theirs._socket.fileno())) as raw:
        raw.send(encode_ack(B.CONFIG_CHANGE_MSG, 0).encode()[:13])
    with pytest.raises(ConnectionClosedError, match="1 of 8 payload bytes"):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)


@pytest.mark.proves("VU-BACK-5")
async def test_a_socket_that_the_peer_made_block_again(ends: Ends, autojump_clock: MockClock) -> None:
    """It holds the very open file that it passed, and with it O_NONBLOCK."""
    passed, theirs = pair()
    with OwnedFd(os.dup(passed.fileno())) as kept:
        ends.ours.open(passed)
        os.set_blocking(kept.fileno(), True)
        with pytest.raises(ConnectionClosedError, match="no answer after"):
            await ends.ours.request(B.CONFIG_CHANGE_MSG)
    theirs.close()


@pytest.mark.proves("VU-BACK-6")
async def test_a_new_channel_replaces_the_old_one(ends: Ends) -> None:
    passed, theirs = pair()
    async with trio.open_nursery() as nursery:

        async def unanswered() -> None:
            with pytest.raises(ConnectionClosedError):
                await ends.ours.request(B.CONFIG_CHANGE_MSG)

        nursery.start_soon(unanswered)
        await wait_all_tasks_blocked()
        ends.ours.open(passed)
    await theirs.send(encode_ack(B.CONFIG_CHANGE_MSG, 0))
    await ends.ours.request(B.CONFIG_CHANGE_MSG)
    theirs.close()
    assert await ends.asked() is B.CONFIG_CHANGE_MSG
    with pytest.raises(ConnectionClosedError):
        await ends.theirs.receive()


@pytest.mark.proves("VU-BACK-5")
async def test_who_gives_up_takes_the_channel_along(ends: Ends) -> None:
    """Its answer would come at the next request's turn."""
    with trio.move_on_after(0) as scope:
        await ends.ours.request(B.CONFIG_CHANGE_MSG)
    assert scope.cancelled_caught
    with pytest.raises(ConnectionClosedError):
        await ends.ours.request(B.CONFIG_CHANGE_MSG)


def unusable(name: str) -> OwnedFd:
    match name:
        case "memfd":
            return OwnedFd(os.memfd_create("x"))
        case "eventfd":
            return OwnedFd(os.eventfd(0))
        case "datagram":
            return OwnedFd(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach())
    return OwnedFd(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach())


@pytest.mark.proves("VU-BACK-7")
@pytest.mark.parametrize("name", ["memfd", "eventfd", "datagram", "internet"])
async def test_s4_what_cannot_be_a_channel_is_refused(victim: Victim, attacker: FrontEnd, name: str) -> None:
    await attacker.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.BACKEND_REQ))
    with unusable(name) as fd:
        await refused(attacker, ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=[fd.fileno()]))
        with pytest.raises(FdError):
            BackendChannel(BackendSession(Offer(0, ALL, 1)), Complaints()).open(fd)


@pytest.mark.proves("VU-BACK-5")
@pytest.mark.parametrize("end", ["closed", "open"])
async def test_s4_a_channel_without_a_peer_disturbs_nobody(
    victim: Victim, running: Running, listener: socket.socket, end: str
) -> None:
    """Here it is a socket that nobody has connected, and one whose other end is closed already."""
    await running.front_end.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.BACKEND_REQ))
    fd = listener.fileno()
    if end == "closed":
        passed, theirs = pair()
        theirs.close()
        fd = passed.fileno()
    with trio.fail_after(DEADLINE):
        await running.front_end.request(FrontendRequest.SET_BACKEND_REQ_FD, None, [fd])
        await exchange(victim, running.driver)
        await talking(running.front_end)

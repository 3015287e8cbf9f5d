"""Stands between a front-end and a back-end: passes on what either says, descriptors included, and tells of it.

Must not know: who is told, and what of it is printed or kept.

How: two tasks a connection, one each way; a message goes on when it was told of, so an answer is never told before its
question. SET_BACKEND_REQ_FD is given another socket on its way, and the same happens between that and the front-end's.
Each side is judged by what it said and what reached it: two witnesses, since a message may be bent in between.

A side that leaves ends its connection for the other. One that cannot be sent to may still have said something, and
is heard to its end. What is no message cannot be passed on, so the connection ends there. Front-ends come one after
another, each gets a connection to the back-end of its own, and nothing of one is left when the next comes.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from vhostuser.errors import ConnectionClosedError, FramingError, VhostUserError
from vhostuser.fds import Closing, FdBundle
from vhostuser.limits import Limits
from vhostuser.session.witness import Breach, Witness
from vhostuser.transcript.bending import Bending
from vhostuser.transcript.descriptors import can_be_channel
from vhostuser.transcript.entries import Closed, Said, Side
from vhostuser.transcript.names import Names
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Endpoint
from vhostuser.wire.codec import decode, decode_reply
from vhostuser.wire.frames import Frame
from vhostuser.wire.requests import BACKEND_REQUESTS, Direction, FrontendRequest

PATIENT = Limits(messages_per_second=math.inf, connections_per_second=math.inf, first_message_timeout=math.inf)
"""Limits of a proxy's channels: how fast and how talkative a peer may be is the other one's business."""
MAX_OWN_CHANNELS = 4
"""Own channels of a back-end that are passed on at once; a new one takes the place of the one before anyway."""


@dataclass(frozen=True, slots=True)
class Began:
    """A front-end and a back-end were joined.

    Attributes:
        front_end, back_end: Their process ids, as the kernel remembers them from when the sockets were made.
        time: Seconds since the first connection began.
    """

    front_end: int
    back_end: int
    time: float


@dataclass(frozen=True, slots=True)
class Passed:
    """A message that went through.

    Attributes:
        said: What it was when it went on; of one that was dropped, when it came.
        breaches: The rules that were broken, by its sender.
        dropped: Whether it did not go on.
    """

    said: Said
    breaches: tuple[Breach, ...] = ()
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection, or an own channel, that ended.

    Attributes:
        closed: By whom, and when.
        own_channel: Whether it was the back-end's own channel.
        why: What was wrong; empty if it was closed between two messages.
    """

    closed: Closed
    own_channel: bool = False
    why: str = ""


Observer = Callable[[Began | Passed | Ended], None]
Reach = Callable[[], Awaitable[Channel]]


class Proxy(Closing):
    """Joins connections of front-ends to connections of back-ends. Close it at the end.

    Args:
        observe: Told of everything, before it goes on.
        bending: What is to be changed on the way.
    """

    def __init__(self, observe: Observer, bending: Bending | None = None) -> None:
        self.observe = observe
        self.bending = bending or Bending()
        self.names = Names()
        self._begin: float | None = None

    @property
    def now(self) -> float:
        """Seconds since the first connection began."""
        if self._begin is None:
            self._begin = trio.current_time()
        return trio.current_time() - self._begin

    async def serve(self, endpoint: Endpoint, reach: Reach, listening: Side = Side.FRONTEND) -> None:
        """Join whoever comes, one after another, to the other side.

        Args:
            endpoint: Where they come from.
            reach: Connects to the other side, however long that takes.
            listening: Which side it is that comes; the back-end where that is the one to connect.

        Raises:
            EndpointError: The other side is at no place where waiting would help.
        """
        async for near in endpoint:
            async with near:
                far = await _unless_gone(near, reach)
                if far is None:
                    continue
                async with far:
                    await self.join(*((near, far) if listening is Side.FRONTEND else (far, near)))

    async def join(self, front_end: Channel, back_end: Channel) -> None:
        """Pass on what both say until one of them leaves. Both channels stay the caller's, who has to close them."""
        self.observe(Began(front_end.peer_pid(), back_end.peer_pid(), self.now))
        await _Line(self, front_end, back_end).run()

    def close(self) -> None:
        """Let go of what was kept to tell descriptors apart."""
        self.names.close()


async def _unless_gone(near: Channel, reach: Reach) -> Channel | None:
    """The connection to the other side; None if who asked for it left before there was one."""
    far: Channel | None = None
    failure: VhostUserError | None = None
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await near.wait_hangup()
            nursery.cancel_scope.cancel()

        nursery.start_soon(give_up)
        try:
            far = await reach()
        except VhostUserError as error:
            failure = error  # raised out here it would be in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return far


class _Line:
    """Two channels that are joined: a connection, or the back-end's own channel of one."""

    def __init__(self, proxy: Proxy, front_end: Channel, back_end: Channel, own_channel: bool = False) -> None:
        self._proxy = proxy
        self._ends = {Side.FRONTEND: front_end, Side.BACKEND: back_end}
        self._direction = Direction.BACKEND if own_channel else Direction.FRONTEND
        self._own_channel = own_channel
        self._own_lines: deque[trio.CancelScope] = deque()
        self._deaf: Side | None = None  # who could not be sent to any more, first
        self._ended = False
        self._witnesses = {side: Witness() for side in Side}

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._forward, Side.FRONTEND, Side.BACKEND)
            self._nursery.start_soon(self._forward, Side.BACKEND, Side.FRONTEND)
        if self._deaf is not None and not self._ended:
            self._tell_end(self._deaf, "")  # both left, with something unread

    async def _forward(self, side: Side, other: Side) -> None:
        while True:
            try:
                frame = await self._ends[side].receive()
            except (ConnectionClosedError, FramingError, OSError) as error:
                self._end(side, error)
                return
            with frame.fds:
                if not await self._pass_on(frame, side, other):
                    return

    def _end(self, side: Side, error: Exception) -> None:
        self._tell_end(side, "" if isinstance(error, ConnectionClosedError) and str(error) == "closed" else str(error))
        self._nursery.cancel_scope.cancel()

    def _tell_end(self, side: Side, why: str) -> None:
        self._ended = True
        self._proxy.observe(Ended(Closed(side, self._proxy.now), self._own_channel, why))

    async def _pass_on(self, frame: Frame, side: Side, other: Side) -> bool:
        """Tell of a message and pass it on; False if nothing more can be passed that way."""
        fds = self._proxy.names.describe(self._direction, frame)
        breaches = self._judge(side, frame, side)
        bent = self._proxy.bending.bend(self._direction, frame)
        if bent.delay:
            await trio.sleep(bent.delay)
        on = frame if bent.frame is None else bent.frame
        words = bent.words
        if bent.frame is not None:
            then = self._judge(side, on, other)
            words += tuple(f"now {breach.text}" for breach in then if words and breach not in breaches)
        said = Said(side, on.request, on.flags, on.payload, on.size, fds, self._own_channel, time=self._proxy.now,
                    rules=tuple(breach.rule for breach in breaches if breach.rule), bent=words)  # fmt: skip
        self._proxy.observe(Passed(said, breaches, dropped=bent.frame is None))
        if bent.frame is None:
            return True
        on = self._interposed(on, side)
        with on.fds:
            try:
                await self._ends[other].send(on)
            except ConnectionClosedError:
                self._deaf = self._deaf or other
                return False  # what it said before it left is still to be passed on
            except (FramingError, OSError) as error:
                self._end(other, error)
                return False
        return True

    def _judge(self, side: Side, frame: Frame, witness: Side) -> tuple[Breach, ...]:
        """What is wrong with what a side said, for the witness who saw what this or the other side sent and got."""
        if self._own_channel:
            return _judge_own(side, frame) if side is witness else ()
        judge = self._witnesses[witness].request if side is Side.FRONTEND else self._witnesses[witness].reply
        return judge(frame).breaches

    # ---- the back-end's own channel ----------------------------------------------------------------------------------

    def _interposed(self, frame: Frame, side: Side) -> Frame:
        """The same frame; with a socket of ours, if it brings the back-end's own channel."""
        brings = frame.request == FrontendRequest.SET_BACKEND_REQ_FD and side is Side.FRONTEND and not frame.is_reply
        if self._own_channel or not brings or len(frame.fds) != 1 or not can_be_channel(*frame.fds.filenos()):
            return frame
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # no more descriptors: it stays unseen
            return frame
        front_end = socket.socket(fileno=frame.fds.take().detach())
        self._nursery.start_soon(self._own_line, _channel(front_end), _channel(ours))
        return replace(frame, fds=FdBundle([theirs.detach()]))

    async def _own_line(self, front_end: Channel, back_end: Channel) -> None:
        async with front_end, back_end:
            with trio.CancelScope() as scope:
                self._own_lines.append(scope)
                if len(self._own_lines) > MAX_OWN_CHANNELS:
                    self._own_lines.popleft().cancel()
                await _Line(self._proxy, front_end, back_end, own_channel=True).run()
        if scope in self._own_lines:
            self._own_lines.remove(scope)


def _judge_own(side: Side, frame: Frame) -> tuple[Breach, ...]:
    """What is wrong with a message on the back-end's own channel, looked at alone."""
    try:
        if side is Side.BACKEND:
            decode(Direction.BACKEND, frame)
        elif spec := BACKEND_REQUESTS.get(frame.request):
            decode_reply(spec, frame)
    except VhostUserError as error:
        return (Breach(side, error.rule, error.text),)
    return ()


def _channel(sock: socket.socket) -> Channel:
    return Channel(trio.socket.from_stdlib_socket(sock), PATIENT)

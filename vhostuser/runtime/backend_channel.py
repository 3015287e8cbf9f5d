"""The back-end's own requests, on the channel that SET_BACKEND_REQ_FD brings.

Must not know why anything is asked.

One request is under way at a time, in the order in which they were made; it waits for its answer where the table of
requests or REPLY_ACK promises one. No handler of a front-end's request may wait for one of these: a front-end that
waits for our answer need not look at this channel before it has it. Handlers start a task.

    > [In the suspended state the back-end must not] send messages to the front-end

so a request that is made while all rings are stopped waits for the first that starts.

A peer that never reads, never answers, answers something else, or closes its end loses this channel, and only that:
the front-end's requests are answered meanwhile and afterwards. What it floods us with stays in its socket until an
answer is due, and is then found to be none.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

import trio

from vhostuser.errors import ConnectionClosedError, FdError, NotNegotiatedError, VhostUserError
from vhostuser.fds import FdBundle, OwnedFd
from vhostuser.limits import Limits
from vhostuser.runtime.complaints import Complaints
from vhostuser.session.backend import BackendSession
from vhostuser.transport.channel import Channel
from vhostuser.wire.codec import decode_reply, encode
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, Payload
from vhostuser.wire.requests import BACKEND_REQUESTS, BackendRequest, Direction, Reply, RequestSpec

REPLY_TIMEOUT = 30.0  # seconds from the end of a request to the begin of its answer
_CLOSED = "the back-end channel is closed"


class RefusedError(VhostUserError):
    """The front-end refused a request of ours."""


class BackendChannel:
    """Our end of the channel, if there is one.

    Args:
        session: says what was negotiated, and whether all rings are stopped.
        complaints: where a peer that fails here is told of.
        limits: how long it may take to read a request, or to finish an answer.
        reply_timeout: how long it may take to begin one, in seconds.
    """

    def __init__(
        self,
        session: BackendSession,
        complaints: Complaints,
        limits: Limits | None = None,
        reply_timeout: float = REPLY_TIMEOUT,
    ) -> None:
        self._session = session
        self._complaints = complaints
        self._limits = limits
        self._reply_timeout = reply_timeout
        self._channel: Channel | None = None
        self._turn = trio.Lock()
        self._resumed = trio.Event()

    def open(self, fd: OwnedFd) -> None:
        """Use this socket from now on, in place of the one before; the descriptor is taken over.

        Raises:
            FdError: not a stream socket of the UNIX family. The descriptor stays the caller's.
        """
        check_socket(fd)
        self.close()
        self._channel = Channel(trio.socket.from_stdlib_socket(socket.socket(fileno=fd.detach())), self._limits)

    def close(self) -> None:
        """Close the channel. A request that waits for its answer fails."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def rings_changed(self) -> None:
        """A request of the front-end was carried out: perhaps the first ring was started."""
        if not self._session.suspended:
            self._resumed.set()
            self._resumed = trio.Event()

    async def tell(self, request: BackendRequest, payload: Payload | None = None) -> None:
        """As :meth:`request`, for who has no use for the answer: what goes wrong is logged."""
        try:
            _, fds = await self.request(request, payload)
        except VhostUserError as error:
            self._complaints.add("%s", error)
        else:
            fds.close()

    async def request(
        self, request: BackendRequest, payload: Payload | None = None, fds: Iterable[int] = ()
    ) -> tuple[Payload | None, FdBundle]:
        """Send a request and wait for its answer, if it has one.

        Args:
            request: which.
            payload: its value.
            fds: descriptors to pass; they stay the caller's.

        Returns:
            The value of the answer, None where none is due, and its descriptors, which are the caller's.

        Raises:
            NotNegotiatedError: the request's features were not acknowledged.
            RefusedError: the front-end refused.
            ConnectionClosedError: there is no channel, or none any more.
        """
        spec = BACKEND_REQUESTS[request]
        self._check_gates(spec)
        acknowledged = spec.reply is Reply.ACK and ProtocolFeature.REPLY_ACK in self._session.protocol_features
        frame = encode(Direction.BACKEND, request, payload, fds, acknowledged)
        async with self._turn:
            while self._session.suspended:
                await self._resumed.wait()
            if self._channel is None:
                raise ConnectionClosedError(f"{spec.name}: there is no back-end channel")
            answered = acknowledged or spec.reply is not Reply.ACK
            value, passed = await self._exchange(self._channel, spec, frame, answered)
        if isinstance(value, U64) and value.value:
            passed.close()
            raise RefusedError(f"{spec.name}: the front-end refused with {value.value:#x}")
        return value, passed

    def _check_gates(self, spec: RequestSpec) -> None:
        # int: the complement of an IntFlag lacks the bits above its highest member
        if missing := int(spec.gate or 0) & ~int(self._session.protocol_features):
            words = f"{spec.name}: {ProtocolFeature(missing)!r} is not acknowledged"
            raise NotNegotiatedError(words, rule="VU-BACK-3")
        if missing := int(spec.virtio_gate or 0) & ~self._session.features:
            words = f"{spec.name}: {VhostFeature(missing)!r} is not acknowledged"
            raise NotNegotiatedError(words, rule="VU-BACK-3")

    async def _exchange(
        self, channel: Channel, spec: RequestSpec, frame: Frame, answered: bool
    ) -> tuple[Payload | None, FdBundle]:
        try:
            await channel.send(frame)
            return await self._answer(channel, spec) if answered else (None, FdBundle())
        except VhostUserError as error:
            self._give_up(channel)
            raise ConnectionClosedError(f"{_CLOSED}: {spec.name}: {error.text}", rule=error.rule) from error
        except (OSError, trio.ClosedResourceError) as error:
            self._give_up(channel)
            raise ConnectionClosedError(f"{_CLOSED}: {spec.name}: {error}") from error
        except BaseException:  # cancelled: the answer would be taken for that to the next request
            self._give_up(channel)
            raise

    async def _answer(self, channel: Channel, spec: RequestSpec) -> tuple[Payload | None, FdBundle]:
        with trio.move_on_after(self._reply_timeout):
            answer = await channel.receive()
            try:
                return decode_reply(spec, answer), answer.fds
            except BaseException:
                answer.fds.close()
                raise
        raise ConnectionClosedError(f"no answer after {self._reply_timeout:g} s", rule="VU-BACK-5")

    def _give_up(self, channel: Channel) -> None:
        if channel is self._channel:
            self.close()


def check_socket(fd: OwnedFd) -> None:
    """Accept what may be the channel: a stream socket of the UNIX family.

    Raises:
        FdError: it is something else.
    """
    try:
        duplicate = socket.socket(fileno=fd.fileno())
    except OSError as error:
        words = f"SET_BACKEND_REQ_FD: its descriptor is no socket: {error.strerror}"
        raise FdError(words, rule="VU-BACK-7") from error
    try:
        if (duplicate.family, duplicate.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise FdError(
                f"SET_BACKEND_REQ_FD: a stream socket of the UNIX family is needed, "
                f"not {duplicate.family!r}, {duplicate.type!r}",
                rule="VU-BACK-7",
            )
    finally:
        duplicate.detach()

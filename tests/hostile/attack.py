"""What a hostile front-end does, and the verdicts on it: refused, or the connection closed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.hostile.victim import DEADLINE
from vhostuser.errors import ConnectionClosedError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.wire import layouts
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags, LentFds
from vhostuser.wire.messages import U64, Payload
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, Reply, RequestSpec

REQUEST = int(VERSION)
NEED_REPLY = VERSION | HeaderFlags.NEED_REPLY
REPLY = VERSION | HeaderFlags.REPLY


@dataclass(frozen=True)
class Running:
    """A front-end with a driver whose two rings run, before it turns hostile."""

    front_end: FrontEnd
    memory: GuestRam
    driver: NetDriver


def ask(
    request: int,
    payload: Payload | bytes = b"",
    fds: Iterable[int] = (),
    *,
    flags: int = NEED_REPLY,
    size: int | None = None,
) -> Frame:
    """A request's frame, right or wrong; the descriptors stay the caller's."""
    data = layouts.build(payload) if isinstance(payload, Payload) else payload
    return Frame(request, flags, data, LentFds(fds), size)


async def refused(front_end: FrontEnd, frame: Frame) -> None:
    """The verdict R: `frame` asks for a reply, gets one that says no, and the connection lives on."""
    with trio.fail_after(DEADLINE):
        await front_end.send_frame(frame)
        answer = await front_end.receive_frame()
        assert (answer.request, answer.flags) == (frame.request, REPLY)
        assert answer.payload == _refusal(frame, front_end), f"{frame} was not refused: {answer}"
        await talking(front_end)


async def unanswered(front_end: FrontEnd, frame: Frame) -> None:
    """Nothing is sent for `frame`, and the connection lives on."""
    with trio.fail_after(DEADLINE):
        await front_end.send_frame(frame)
        await talking(front_end)


async def accepted(front_end: FrontEnd, frame: Frame) -> None:
    """`frame` asks for an acknowledgement and gets that of success."""
    with trio.fail_after(DEADLINE):
        await front_end.send_frame(frame)
        answer = await front_end.receive_frame()
        assert (answer.request, answer.flags, answer.payload) == (frame.request, REPLY, bytes(8)), f"{frame}: {answer}"


async def closed(front_end: FrontEnd, frame: Frame | None = None) -> None:
    """The verdict C: the server closes the connection, after `frame` if there is one."""
    with trio.fail_after(DEADLINE):
        if frame is not None:
            await front_end.send_frame(frame)
        with pytest.raises(ConnectionClosedError):
            await front_end.receive_frame()


async def talking(front_end: FrontEnd) -> None:
    """The next thing that comes is the answer to a question asked now."""
    await front_end.send_frame(ask(FrontendRequest.GET_FEATURES, flags=REQUEST))
    answer = await front_end.receive_frame()
    assert (answer.request, answer.flags, len(answer.payload)) == (FrontendRequest.GET_FEATURES, REPLY, 8), str(answer)


async def signalled(fd: int) -> None:
    """Wait until an eventfd, usually an err descriptor, was written to."""
    with trio.fail_after(DEADLINE):
        await trio.lowlevel.wait_readable(fd)


def _refusal(frame: Frame, front_end: FrontEnd) -> bytes:
    spec = FRONTEND_REQUESTS.get(frame.request)
    if spec is None or not _has_own_reply(spec, front_end):
        return layouts.build(U64(1))
    return layouts.build(spec.refusal) if spec.refusal else b""


def _has_own_reply(spec: RequestSpec, front_end: FrontEnd) -> bool:
    if spec.reply is Reply.GATED:
        return bool(spec.gate and spec.gate & front_end.protocol_features)
    return spec.reply is Reply.ALWAYS


def eventfd(value: int = 0, flags: int = os.EFD_NONBLOCK) -> int:
    """A new eventfd; the caller closes it."""
    return os.eventfd(value, flags | os.EFD_CLOEXEC)


@contextmanager
def borrowed(*fds: int) -> Iterator[tuple[int, ...]]:
    """Descriptors that are closed at the end of the block."""
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)

"""What a back-end answers is told apart: what is accepted, refused, ignored, and what it must not be."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest
import trio

from vhostuser.conformance.connection import NEED_REPLY, REPLY, Connection, Patience
from vhostuser.conformance.record import Record
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.errors import ConnectionClosedError
from vhostuser.transcript.entries import Closed, Said, Side
from vhostuser.transport.channel import Channel
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, Log
from vhostuser.wire.requests import FrontendRequest as R

PATIENCE = Patience(answer=0.2, silence=0.02, limit=0.2)
FEATURES = Frame(R.GET_FEATURES, REPLY, bytes(8))
Script = Callable[[Frame], list[Frame] | None]
"""What is said to a frame; None to close."""


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[Connection, Record]]:
    """A connection to a back-end that says what a test wants to what it is told, and else answers GET_FEATURES."""
    ours, theirs = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    record = Record()

    async def converse() -> None:
        async with Channel(theirs) as channel:
            with suppress(ConnectionClosedError):
                while (said := script(frame := await channel.receive())) is not None:
                    for answer in said or ([FEATURES] if frame.request == R.GET_FEATURES else []):
                        await channel.send(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse)
        with ExitStack() as kept:
            connection = Connection(Channel(ours), record, PATIENCE, kept)
            kept.callback(connection.close)
            connection.protocol = ProtocolFeature.REPLY_ACK
            yield connection, record


def to(request: int, *answers: Frame) -> Script:
    """Says something to one request."""
    return lambda frame: list(answers) if frame.request == request else []


def leaves_at(request: int) -> Script:
    return lambda frame: None if frame.request == request else []


def ack(request: int, value: int, flags: int = REPLY) -> Frame:
    return Frame(request, flags, value.to_bytes(8, "little"))


OWNER = R.SET_OWNER
Method = Callable[[Connection], Awaitable[object]]


def refuses(request: int = OWNER) -> Method:
    return lambda connection: connection.refused(connection.frame(request))


WRONG: dict[str, tuple[Script, Method, str]] = {
    "refused instead of accepted": (to(OWNER, ack(OWNER, 1)), lambda c: c.accepted(OWNER), "SET_OWNER.*: refused with"),
    "silent": (to(0), lambda c: c.accepted(OWNER), "an answer to SET_OWNER.*, but nothing came in 0.2 s"),
    "gone": (leaves_at(OWNER), lambda c: c.accepted(OWNER), "SET_OWNER.*, but the connection was closed"),
    "answers another": (to(OWNER, ack(R.SET_FEATURES, 0)), lambda c: c.accepted(OWNER), "SET_OWNER"),
    "answers what is unknown": (to(99, ack(99, 0)), lambda c: c.accepted(99), "unknown, and answered with"),
    "says it twice": (to(OWNER, ack(OWNER, 0), ack(OWNER, 0)), lambda c: c.ignored(c.frame(OWNER)), "nothing before"),
    "accepts instead of refusing": (to(OWNER, ack(OWNER, 0)), refuses(), "expected a refusal, came"),
    "does not say no": (to(0), refuses(), "expected a refusal, but nothing came in"),
    "leaves instead of refusing": (leaves_at(OWNER), refuses(), "expected a refusal, but the connection was closed"),
    "refuses with a request": (to(OWNER, ack(OWNER, 1, NEED_REPLY)), refuses(), "expected a refusal, came"),
    "neither refuses nor leaves": (to(0), lambda c: c.rejected(c.frame(OWNER)), "but nothing came in 0.2 s"),
    "goes on": (to(0), lambda c: c.closes(c.frame(OWNER)), "to close, but it goes on with"),
    "hangs": (to(R.GET_FEATURES), lambda c: c.closes_in_time("silence"), "to close, but it does not in 0.2 s"),
    "speaks too soon": (to(OWNER, ack(OWNER, 0)), lambda c: c.unanswered(c.frame(OWNER)), "nothing for now, came"),
    "leaves too soon": (leaves_at(OWNER), lambda c: c.unanswered(c.frame(OWNER)), "the connection was closed"),
    "answers at length": (to(R.GET_FEATURES, Frame(R.GET_FEATURES, REPLY, bytes(16))), lambda c: c.talks(), "16"),
    "no word": (to(R.GET_CONFIG, Frame(R.GET_CONFIG, REPLY, bytes(12))), lambda c: c.value(R.GET_CONFIG), "64 bits"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_a_violation(name: str) -> None:
    script, method, text = WRONG[name]
    async with connected(script) as (connection, _):
        with pytest.raises(Violation, match=text):
            await method(connection)


async def leaves_in_time(connection: Connection) -> None:
    await connection.send(connection.frame(OWNER))
    await connection.closes_in_time("an owner")


RIGHT: dict[str, tuple[Script, Method]] = {
    "accepts": (to(OWNER, ack(OWNER, 0)), lambda c: c.accepted(OWNER)),
    "accepts without a word": (to(0), lambda c: c.accepted(OWNER, flags=1)),
    "refuses": (to(OWNER, ack(OWNER, errno.EINVAL)), refuses()),
    "rejects": (to(OWNER, ack(OWNER, errno.EINVAL)), lambda c: c.rejected(c.frame(OWNER))),
    "rejects by leaving": (leaves_at(OWNER), lambda c: c.rejected(c.frame(OWNER))),
    "closes": (leaves_at(OWNER), lambda c: c.closes(c.frame(OWNER))),
    "closes in time": (leaves_at(OWNER), leaves_in_time),
    "ignores": (to(0), lambda c: c.ignored(c.frame(OWNER))),
    "copies flags": (to(OWNER, ack(OWNER, 0, REPLY | NEED_REPLY)), lambda c: c.accepted(OWNER)),
}


@pytest.mark.parametrize("name", RIGHT)
async def test_what_is_right_is_none(name: str) -> None:
    script, method = RIGHT[name]
    async with connected(script) as (connection, _):
        await method(connection)


async def test_flags_count_where_they_are_the_matter() -> None:
    async with connected(to(OWNER, ack(OWNER, 0, REPLY | NEED_REPLY))) as (connection, _):
        connection.strict = True
        with pytest.raises(Violation, match="SET_OWNER"):
            await connection.accepted(OWNER)


LOG = Log(0x1000, 0)


@pytest.mark.parametrize("payload", [b"", bytes(8), (0x1000).to_bytes(8, "little"), bytes(16)], ids=len)
async def test_a_log_is_accepted_in_any_of_the_known_ways(payload: bytes) -> None:
    async with connected(to(R.SET_LOG_BASE, Frame(R.SET_LOG_BASE, REPLY, payload))) as (connection, _):
        connection.protocol |= ProtocolFeature.LOG_SHMFD
        with pytest.raises(Violation, match="expected a refusal, came"):
            await connection.refused(connection.frame(R.SET_LOG_BASE, LOG))


async def test_a_log_is_refused_with_a_number_that_is_not_the_requests() -> None:
    async with connected(to(R.SET_LOG_BASE, ack(R.SET_LOG_BASE, 1))) as (connection, _):
        connection.protocol |= ProtocolFeature.LOG_SHMFD
        assert (await connection.refused(connection.frame(R.SET_LOG_BASE, LOG))).payload == b"\1" + bytes(7)


async def test_what_is_not_told_cannot_be_asked_for() -> None:
    async with connected(to(0)) as (connection, _):
        connection.protocol = ProtocolFeature(0)
        with pytest.raises(NotApplicable, match="without REPLY_ACK a refusal is not told"):
            await connection.refused(connection.frame(OWNER))


async def test_acknowledged_features_are_known() -> None:
    accepted = (R.SET_FEATURES, R.SET_PROTOCOL_FEATURES)
    async with connected(lambda f: [ack(f.request, 0)] if f.request in accepted else []) as (connection, _):
        await connection.accepted(R.SET_FEATURES, U64(5))
        await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(8 | 1))
        assert (connection.features, connection.protocol) == (5, ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ)


async def test_all_of_it_is_in_the_record() -> None:
    async with connected(leaves_at(OWNER)) as (connection, record):
        await connection.talks()
        await connection.closes(connection.frame(OWNER))
    entries = record.transcript("a", "b", "c").entries
    told = [(entry.side, entry.request) if isinstance(entry, Said) else entry.side for entry in entries]  # type: ignore[union-attr]
    front, back = Side.FRONTEND, Side.BACKEND
    assert told == [(front, R.GET_FEATURES), (back, R.GET_FEATURES), (front, OWNER), back]
    assert isinstance(entries[-1], Closed)

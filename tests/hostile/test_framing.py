"""Rows F of the hostile inputs: what arrives on the socket, byte by byte and descriptor by descriptor.

Verdicts are those of ``attack``: R, refused and the connection lives; C, closed. What the victim's fixture shows after
each test stands in ``victim``.
"""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import (
    NEED_REPLY,
    REPLY,
    REQUEST,
    ask,
    borrowed,
    closed,
    eventfd,
    refused,
    talking,
    unanswered,
)
from tests.hostile.stream import (
    GET_FEATURES,
    SET_CALL,
    SET_FEATURES,
    Socket,
    features_answer,
    raw,
    receive_answer,
    receive_end,
    rights,
)
from tests.hostile.victim import DEADLINE, Victim, exchange, serving, unharmed
from vhostuser.errors import ConnectionClosedError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.limits import Limits
from vhostuser.runtime.offer import offer_of
from vhostuser.transport.endpoints import from_fd
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, Frame
from vhostuser.wire.messages import U64, MemoryRegion, MemoryTable, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, RequestSpec

R = FrontendRequest

SERVED = (
    R.GET_FEATURES,
    R.SET_FEATURES,
    R.SET_OWNER,
    R.RESET_OWNER,
    R.SET_MEM_TABLE,
    R.SET_LOG_FD,
    R.SET_VRING_NUM,
    R.SET_VRING_ADDR,
    R.SET_VRING_BASE,
    R.GET_VRING_BASE,
    R.SET_VRING_KICK,
    R.SET_VRING_CALL,
    R.SET_VRING_ERR,
    R.GET_PROTOCOL_FEATURES,
    R.SET_PROTOCOL_FEATURES,
    R.SET_VRING_ENABLE,
)
"""What the victim serves once REPLY_ACK is acknowledged, and nothing else."""

TABLE_OF_EIGHT = MemoryTable(tuple(MemoryRegion(i << 20, 4096, i << 20, 0) for i in range(8)))


# ---- F1: pieces and joins --------------------------------------------------------------------------------------------


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = sizes[min(at, len(sizes) - 1)] if at < len(sizes) else sizes[-1]
        yield data[at : at + size]
        at += size


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([1], id="F1-one-byte-pieces"),
        pytest.param([HEADER_SIZE, *[HEADER_SIZE] * (HEADER_SIZE - 1), 1], id="F1-payload-in-pieces"),
        pytest.param([7], id="F1-pieces-across-the-header"),
    ],
)
async def test_messages_in_pieces(victim: Victim, sizes: list[int]) -> None:
    async with raw(victim) as sock:
        with borrowed(eventfd()) as (call,):
            for piece in pieces(SET_FEATURES, sizes):
                await sock.send(piece)
            for i, piece in enumerate(pieces(SET_CALL, sizes)):
                await sock.sendmsg([piece], [] if i else [rights(call)])
            for piece in pieces(GET_FEATURES, sizes):
                await sock.send(piece)
        assert await receive_answer(sock) == features_answer(victim)


@pytest.mark.parametrize("count", [pytest.param(n, id=f"F1-{n}-in-one-send") for n in (2, 3, 100)])
async def test_several_messages_in_one_send(victim: Victim, count: int) -> None:
    async with raw(victim) as sock:
        await sock.send((SET_FEATURES + GET_FEATURES) * count)
        for _ in range(count):
            assert await receive_answer(sock) == features_answer(victim)


@pytest.mark.parametrize("case", [pytest.param(None, id="F1-descriptors-stay-with-their-messages-in-one-queue")])
async def test_descriptors_stay_with_their_messages(victim: Victim, attacker: FrontEnd, case: None) -> None:
    """A message without and one with a descriptor, joined in the kernel's queue: neither is taken for the other."""
    with borrowed(eventfd()) as (call,):
        for index in (0, 1) * 10:
            await attacker.send_frame(ask(R.SET_VRING_NUM, VringState(index, 256)))
            await attacker.send_frame(ask(R.SET_VRING_CALL, VringFd(index), [call]))
        for _ in range(40):
            assert (await attacker.receive_frame()).payload == bytes(8)


# ---- F2: messages that end early -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_fd", [pytest.param(False, id="alone"), pytest.param(True, id="with-fd")])
@pytest.mark.parametrize(
    "length",
    [
        *(pytest.param(n, id=f"F2-header-cut-at-{n}") for n in range(1, HEADER_SIZE)),
        *(pytest.param(HEADER_SIZE + n, id=f"F2-payload-cut-at-{n}") for n in range(8)),
    ],
)
async def test_a_message_that_is_cut_by_the_end(victim: Victim, length: int, with_fd: bool) -> None:
    async with raw(victim) as sock:
        with borrowed(eventfd()) as (fd,):
            await sock.sendmsg([SET_CALL[:length]], [rights(fd)] if with_fd else [])
        sock.shutdown(socket.SHUT_WR)
        await receive_end(sock)


# ---- F3, F4: flags ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-HDR-2")
@pytest.mark.parametrize("version", [pytest.param(n, id=f"F3-version-{n}") for n in (0, 2, 3)])
@pytest.mark.parametrize("request_", [R.GET_FEATURES, R.SET_OWNER, 99], ids=["own-reply", "no-reply", "unknown"])
async def test_another_version(attacker: FrontEnd, request_: int, version: int) -> None:
    await closed(attacker, ask(request_, flags=version))


@pytest.mark.proves("VU-HDR-5")
@pytest.mark.parametrize(
    "bits",
    [pytest.param(1 << n, id=f"F3-reserved-flag-{1 << n:#x}") for n in (4, 5, 16, 31)]
    + [pytest.param(0xFFFFFFF0, id="F3-all-reserved-flags")],
)
async def test_reserved_flags_are_tolerated(attacker: FrontEnd, bits: int) -> None:
    await attacker.send_frame(ask(R.GET_FEATURES, flags=REQUEST | bits))
    answer = await attacker.receive_frame()
    assert (answer.request, answer.flags) == (R.GET_FEATURES, REPLY)
    await talking(attacker)


@pytest.mark.proves("VU-HDR-3")
@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        pytest.param(R.GET_FEATURES, b"", id="F4-reply-flag-own-reply"),
        pytest.param(R.GET_FEATURES, bytes(8), id="F4-reply-flag-looks-like-an-answer"),
        pytest.param(R.SET_OWNER, b"", id="F4-reply-flag-no-reply"),
        pytest.param(99, b"", id="F4-reply-flag-unknown-request"),
    ],
)
@pytest.mark.parametrize("flags", [REPLY, REPLY | NEED_REPLY], ids=["plain", "need-reply"])
async def test_a_request_with_the_reply_flag(attacker: FrontEnd, request_: int, payload: bytes, flags: int) -> None:
    await closed(attacker, ask(request_, payload, flags=flags))


# ---- F5: sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-HDR-4")
@pytest.mark.parametrize(
    "size",
    [pytest.param(n, id=f"F5-size-{n:x}") for n in (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x10000)]
    + [pytest.param(MAX_PAYLOAD + 1, id="F5-size-4097")],
)
@pytest.mark.parametrize("request_", [R.GET_FEATURES, R.SET_MEM_TABLE, 99], ids=lambda n: getattr(n, "name", "unknown"))
async def test_a_size_beyond_the_limit_is_not_even_read(attacker: FrontEnd, request_: int, size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await closed(attacker, ask(request_, bytes(64), size=size))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB more memory than ever before"


def off_by_one(spec: RequestSpec) -> list[int]:
    legal = layouts.legal_sizes(spec.payload)
    return [size for size in (min(legal) - 1, max(legal) + 1) if size >= 0]


@pytest.mark.proves("VU-HDR-6")
@pytest.mark.parametrize(
    ("request_", "size"),
    [
        pytest.param(spec.number, size, id=f"F5-{spec.name}-size-{size}")
        for spec in FRONTEND_REQUESTS.values()
        for size in off_by_one(spec)
    ],
)
async def test_a_size_that_the_request_cannot_have(attacker: FrontEnd, request_: int, size: int) -> None:
    await closed(attacker, ask(request_, bytes(size)))


# ---- F6, F7, F8: requests that are not for us ------------------------------------------------------------------------


@pytest.mark.proves("VU-HDR-8")
@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(MAX_PAYLOAD)], ids=["no-payload", "8-bytes", "4096-bytes"])
@pytest.mark.parametrize("request_", [pytest.param(n, id=f"F6-request-{n}") for n in (0, 46, 0xFFFFFFFF)])
class TestUnknownRequests:
    async def test_with_need_reply(self, attacker: FrontEnd, request_: int, payload: bytes) -> None:
        await refused(attacker, ask(request_, payload))

    async def test_without_need_reply(self, attacker: FrontEnd, request_: int, payload: bytes) -> None:
        await unanswered(attacker, ask(request_, payload, flags=REQUEST))


def wellformed(spec: RequestSpec, fds: Sequence[int], **more: int) -> Frame:
    """A request with a legal size and as many descriptors as it may have."""
    return ask(spec.number, bytes(min(layouts.legal_sizes(spec.payload))), fds[: spec.fds.max], **more)


UNSERVED = [spec for spec in FRONTEND_REQUESTS.values() if spec.number not in SERVED]


@pytest.mark.proves("VU-NEG-6")
@pytest.mark.parametrize("spec", [pytest.param(spec, id=f"F7-{spec.name}") for spec in UNSERVED])
async def test_a_request_whose_feature_was_not_acknowledged(attacker: FrontEnd, spec: RequestSpec) -> None:
    with borrowed(*(eventfd() for _ in range(8))) as fds:
        await refused(attacker, wellformed(spec, fds))


@pytest.mark.parametrize("bit", [pytest.param(bit, id=f"F7-acknowledging-{bit.name}") for bit in ProtocolFeature])
@pytest.mark.proves("VU-NEG-5")
async def test_a_feature_that_was_not_offered_cannot_be_acknowledged(
    victim: Victim, attacker: FrontEnd, bit: ProtocolFeature
) -> None:
    word = ProtocolFeature.REPLY_ACK | bit
    if bit & offer_of(victim.device).protocol_features:
        word |= 1 << 63  # offered, so something else is needed
    await refused(attacker, ask(R.SET_PROTOCOL_FEATURES, U64(word)))


@pytest.mark.proves("VU-REP-3")
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ask(R.SET_OWNER), id="F8-SET_OWNER"),
        pytest.param(ask(R.SET_FEATURES, U64(VhostFeature.PROTOCOL_FEATURES)), id="F8-SET_FEATURES"),
        pytest.param(ask(R.SET_FEATURES, U64(1 << 63)), id="F8-SET_FEATURES-refused"),
        pytest.param(ask(R.SET_PROTOCOL_FEATURES, U64(0)), id="F8-SET_PROTOCOL_FEATURES-0"),
        pytest.param(ask(R.SET_VRING_NUM, VringState(0, 256)), id="F8-SET_VRING_NUM"),
        pytest.param(ask(R.SET_VRING_NUM, VringState(9, 3)), id="F8-SET_VRING_NUM-refused"),
        pytest.param(ask(R.SET_MEM_TABLE, TABLE_OF_EIGHT), id="F8-SET_MEM_TABLE-refused"),
        pytest.param(ask(R.SET_STATUS, U64(1)), id="F8-SET_STATUS-refused"),
        pytest.param(ask(R.SET_LOG_BASE, bytes(16)), id="F8-SET_LOG_BASE-refused"),
        pytest.param(ask(99), id="F8-unknown-request"),
    ],
)
async def test_need_reply_without_reply_ack(victim: Victim, frame: Frame) -> None:
    async with await victim.connect() as front_end:
        await unanswered(front_end, frame)


# ---- F9, F10: descriptors --------------------------------------------------------------------------------------------

SURPLUS = [
    ("1-on-GET_FEATURES", ask(R.GET_FEATURES), 1),
    ("1-on-SET_OWNER", ask(R.SET_OWNER), 1),
    ("1-on-SET_VRING_NUM", ask(R.SET_VRING_NUM, VringState(0, 256)), 1),
    ("1-on-unknown-request", ask(99), 1),
    ("2-on-SET_VRING_CALL", ask(R.SET_VRING_CALL, VringFd(0)), 2),
    ("2-on-SET_BACKEND_REQ_FD", ask(R.SET_BACKEND_REQ_FD), 2),
    ("9-on-SET_MEM_TABLE", ask(R.SET_MEM_TABLE, TABLE_OF_EIGHT), 9),
    ("9-on-SET_OWNER", ask(R.SET_OWNER), 9),
    ("253-on-SET_MEM_TABLE", ask(R.SET_MEM_TABLE, TABLE_OF_EIGHT), MAX_FDS),
    ("253-on-GET_FEATURES", ask(R.GET_FEATURES), MAX_FDS),
    ("253-on-SET_VRING_KICK", ask(R.SET_VRING_KICK, VringFd(0)), MAX_FDS),
]


@pytest.mark.proves("VU-FD-1", "VU-FD-6")
@pytest.mark.parametrize(("frame", "count"), [pytest.param(f, n, id=f"F9-{name}") for name, f, n in SURPLUS])
async def test_surplus_descriptors(attacker: FrontEnd, frame: Frame, count: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(attacker, ask(frame.request, frame.payload, [fd] * count))


@pytest.mark.proves("VU-FD-6")
@pytest.mark.parametrize("case", [pytest.param(None, id="F9-two-blocks-in-one-send")])
async def test_two_blocks_in_one_send_are_one_to_the_kernel(victim: Victim, attacker: FrontEnd, case: None) -> None:
    async with raw(victim) as sock:
        await attacker.aclose()  # so that it is our turn
        with borrowed(eventfd(), eventfd()) as (one, other):
            await sock.sendmsg([SET_CALL + GET_FEATURES], [rights(one), rights(other)])
        assert await receive_answer(sock) == features_answer(victim)


@pytest.mark.proves("VU-FD-7")
@pytest.mark.parametrize(
    ("cuts", "blocks"),
    [
        pytest.param([4, 8], [1, 1], id="F9-two-blocks-in-one-header"),
        pytest.param([4, 8], [1, MAX_FDS], id="F9-a-second-block-of-253"),
        pytest.param([12, 8], [0, 1], id="F9-on-payload-bytes"),
        pytest.param([12, 8], [1, 1], id="F9-on-header-and-payload"),
        pytest.param([12, 4, 4], [1, 0, MAX_FDS], id="F9-253-on-the-payloads-end"),
    ],
)
async def test_descriptors_at_the_wrong_place(victim: Victim, cuts: list[int], blocks: list[int]) -> None:
    async with raw(victim) as sock:
        with borrowed(eventfd()) as (fd,):
            at = 0
            for cut, count in zip(cuts, blocks, strict=True):
                await sock.sendmsg([SET_CALL[at : at + cut]], [rights(*[fd] * count)] if count else [])
                at += cut
        await receive_end(sock)


@contextmanager
def only_more_descriptors(count: int) -> Iterator[None]:
    """Let this process open `count` further descriptors."""
    listed = os.listdir("/proc/self/fd")  # which opens one itself, gone by now
    highest = max(int(fd) for fd in listed if os.path.exists(f"/proc/self/fd/{fd}"))
    free = [fd for fd in range(highest) if not os.path.exists(f"/proc/self/fd/{fd}")]
    with borrowed(*(os.dup(0) for _ in free)):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.proves("VU-FD-7")
@pytest.mark.parametrize("room", [pytest.param(n, id=f"F9-ctrunc-{n}-of-8-arrive") for n in (0, 1, 7)])
async def test_descriptors_that_the_kernel_had_to_drop(victim: Victim, attacker: FrontEnd, room: int) -> None:
    with borrowed(eventfd()) as (fd,):
        frame = ask(R.SET_MEM_TABLE, TABLE_OF_EIGHT, [fd] * 8)
        with only_more_descriptors(room):
            await closed(attacker, frame)


@pytest.mark.parametrize("case", [pytest.param(None, id="F9-sent-and-never-read")])
async def test_descriptors_in_a_queue_that_nobody_reads(victim: Victim, attacker: FrontEnd, case: None) -> None:
    """They wait behind a message that closes the connection; the kernel closes them with the socket."""
    async with raw(victim) as sock:
        await attacker.aclose()
        with borrowed(eventfd()) as (fd,):
            await sock.send(ask(R.SET_OWNER, flags=0).encode())
            with suppress(BrokenPipeError):  # it may be quicker
                for _ in range(20):
                    await sock.sendmsg([SET_CALL], [rights(fd)])
        await receive_end(sock)


MISSING = [
    ("SET_MEM_TABLE-0-of-1", ask(R.SET_MEM_TABLE, MemoryTable(TABLE_OF_EIGHT.regions[:1])), 0),
    ("SET_MEM_TABLE-1-of-2", ask(R.SET_MEM_TABLE, MemoryTable(TABLE_OF_EIGHT.regions[:2])), 1),
    ("SET_MEM_TABLE-7-of-8", ask(R.SET_MEM_TABLE, TABLE_OF_EIGHT), 7),
    ("SET_VRING_KICK", ask(R.SET_VRING_KICK, VringFd(0)), 0),
    ("SET_VRING_CALL", ask(R.SET_VRING_CALL, VringFd(1)), 0),
    ("SET_VRING_ERR", ask(R.SET_VRING_ERR, VringFd(1)), 0),
    ("SET_BACKEND_REQ_FD", ask(R.SET_BACKEND_REQ_FD), 0),
    ("SET_LOG_FD", ask(R.SET_LOG_FD), 0),
    ("SET_LOG_BASE", ask(R.SET_LOG_BASE, bytes(16)), 0),
]


@pytest.mark.proves("VU-FD-1")
@pytest.mark.parametrize(("frame", "count"), [pytest.param(f, n, id=f"F10-{name}") for name, f, n in MISSING])
async def test_missing_descriptors(victim: Victim, frame: Frame, count: int) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(0, ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ)
        with borrowed(eventfd()) as (fd,):
            await refused(front_end, ask(frame.request, frame.payload, [fd] * count))


# ---- F11: peers that hold the channel up -----------------------------------------------------------------------------

IMPATIENT = Limits(message_timeout=0.25, send_timeout=0.25)


@pytest.fixture
async def impatient(tmp_path: Path, interrupts: None) -> AsyncIterator[Victim]:
    """A victim that waits a quarter of a second for the rest of a message."""
    async with serving(tmp_path / "impatient.sock", IMPATIENT) as victim, unharmed(victim):
        yield victim


@pytest.mark.proves("VU-HDR-9")
@pytest.mark.parametrize("with_fd", [pytest.param(False, id="alone"), pytest.param(True, id="with-fd")])
@pytest.mark.parametrize(
    "length", [pytest.param(n, id=f"F11-stalls-after-{n}-bytes") for n in (1, 11, HEADER_SIZE, HEADER_SIZE + 7)]
)
async def test_a_peer_that_stalls_in_a_message(impatient: Victim, length: int, with_fd: bool) -> None:
    async with raw(impatient) as sock:
        with borrowed(eventfd()) as (fd,):
            await sock.sendmsg([SET_CALL[:length]], [rights(fd)] if with_fd else [])
        await receive_end(sock)


async def send_for_ever(sock: Socket, data: bytes) -> None:
    while True:
        await sock.send(data)


@pytest.mark.proves("VU-HDR-9")
@pytest.mark.parametrize("case", [pytest.param(None, id="F11-never-reads-its-replies")])
async def test_a_peer_that_never_reads(impatient: Victim, case: None) -> None:
    async with raw(impatient) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(BrokenPipeError):
            await send_for_ever(sock, GET_FEATURES)


@pytest.mark.parametrize("case", [pytest.param(None, id="F11-idle-between-messages-is-no-stall")])
async def test_a_peer_with_nothing_to_say(impatient: Victim, case: None) -> None:
    async with await impatient.connect() as front_end:
        await talking(front_end)
        await trio.sleep(1.5 * IMPATIENT.message_timeout)
        await talking(front_end)


# ---- F13, F14 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_fd", [False, True], ids=["F13-credentials", "F13-credentials-and-a-descriptor"])
async def test_credentials_are_ignored(tmp_path: Path, interrupts: None, with_fd: bool) -> None:
    """Whoever made an inherited socket may have switched them on; the kernel then adds them to every message."""
    path = tmp_path / "inherited.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, array.array("i", [os.getpid(), os.getuid(), os.getgid()]))
    endpoint = from_fd(listener.detach())
    async with serving(path, endpoint=endpoint) as victim, unharmed(victim), raw(victim) as sock:
        with borrowed(eventfd()) as (fd,):
            await sock.sendmsg([SET_CALL], [rights(fd), credentials] if with_fd else [credentials])
        await sock.sendmsg([GET_FEATURES], [credentials])
        assert await receive_answer(sock) == features_answer(victim)


@pytest.mark.proves("VU-COM-1")
@pytest.mark.parametrize("others", [pytest.param(n, id=f"F14-{n}-more") for n in (1, 15)])
async def test_a_second_client_waits_and_the_first_is_unharmed(victim: Victim, others: int) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as first:
            driver = await NetDriver.start(first, memory)
            waiting = [await victim.connect() for _ in range(others)]
            for front_end in waiting:
                await front_end.send_frame(ask(R.GET_FEATURES, flags=REQUEST))
            await exchange(victim, driver)
            assert victim.server.counters()["sessions"] == 2, "this one, and the one before it that counted"
            driver.close()
        for front_end in waiting:
            async with front_end:
                assert (await front_end.receive_frame()).request == R.GET_FEATURES


@pytest.mark.proves("VU-COM-1")
@pytest.mark.parametrize("case", [pytest.param(None, id="F14-a-second-client-that-gives-up")])
async def test_a_second_client_that_leaves_before_its_turn(victim: Victim, case: None) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as first:
            driver = await NetDriver.start(first, memory)
            async with await victim.connect() as second:
                with borrowed(eventfd()) as (fd,):
                    await second.send_frame(ask(R.SET_VRING_KICK, VringFd(0), [fd]))
            await exchange(victim, driver)
            driver.close()


@pytest.mark.parametrize("case", [pytest.param(None, id="F14-the-first-breaks-the-framing-while-a-second-waits")])
async def test_a_second_client_is_served_after_a_hostile_first(victim: Victim, case: None) -> None:
    async with await victim.connect() as first, await victim.connect() as second:
        await closed(first, ask(R.GET_FEATURES, flags=0))
        await talking(second)
        with pytest.raises(ConnectionClosedError):
            await first.send_frame(ask(R.GET_FEATURES))

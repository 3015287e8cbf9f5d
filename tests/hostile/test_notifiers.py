"""Rows Q6, Q7 and Q10 of the hostile inputs: descriptors that notify, of every wrong kind, and kicks without end."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
import trio

from tests.hostile.attack import (
    REQUEST,
    Running,
    accepted,
    ask,
    borrowed,
    eventfd,
    refused,
    talking,
)
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of, split_rings
from vhostuser.errors import ConnectionClosedError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, VringFd
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
NUM = 256
NOTIFIERS = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)
NO_FD = 0x100
FULL = 0xFFFFFFFFFFFFFFFE
"""The largest value of an eventfd: one more has to wait."""


# ---- Q6: descriptors that do not notify, or not as expected ----------------------------------------------------------


def opened(stack: ExitStack, path: str, flags: int = os.O_RDWR) -> int:
    return stack.enter_context(borrowed(os.open(path, flags | os.O_CLOEXEC)))[0]


def regular_file(stack: ExitStack) -> int:
    return stack.enter_context(tempfile.TemporaryFile()).fileno()


def epoll(stack: ExitStack) -> int:
    return stack.enter_context(closing(select.epoll())).fileno()


NO_NOTIFIERS: dict[str, Callable[[ExitStack], int]] = {
    "regular-file": regular_file,
    "memfd": lambda stack: stack.enter_context(borrowed(os.memfd_create("hostile")))[0],
    "directory": lambda stack: opened(stack, "/", os.O_RDONLY | os.O_DIRECTORY),
    "dev-null": lambda stack: opened(stack, "/dev/null"),
    "dev-zero": lambda stack: opened(stack, "/dev/zero"),
    "tap": lambda stack: opened(stack, "/dev/net/tun"),
    "epoll": epoll,
    "pidfd": lambda stack: stack.enter_context(borrowed(os.pidfd_open(os.getpid())))[0],
    "proc-file": lambda stack: opened(stack, "/proc/self/status", os.O_RDONLY),
}


@pytest.mark.proves("VU-RING-24")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize("make", [pytest.param(make, id=f"Q6-{name}") for name, make in NO_NOTIFIERS.items()])
async def test_descriptors_that_cannot_notify(
    victim: Victim, running: Running, request_: R, make: Callable[[ExitStack], int]
) -> None:
    with ExitStack() as stack:
        fd = make(stack)
        for index in range(2):
            await refused(running.front_end, ask(request_, VringFd(index), [fd]))
    await exchange(victim, running.driver)  # what was there before still is


def pipe_end(stack: ExitStack, end: int, *, full: bool = False, alone: bool = False, flags: int = os.O_NONBLOCK) -> int:
    """One end of a pipe; `alone`: the other one is closed."""
    ends = os.pipe2(os.O_CLOEXEC | flags)
    if full:
        os.set_blocking(ends[1], False)
        with suppress(BlockingIOError):
            while True:
                os.write(ends[1], bytes(4096))
        os.set_blocking(ends[1], not flags & os.O_NONBLOCK)
    kept = stack.enter_context(borrowed(ends[end]))[0]
    if alone:
        os.close(ends[1 - end])
    else:
        stack.enter_context(borrowed(ends[1 - end]))
    return kept


def socket_of(stack: ExitStack, kind: socket.SocketKind, *, alone: bool = False, full: bool = False) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    stack.enter_context(ours)
    if full:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(8))
        ours.setblocking(True)
    if alone:
        theirs.close()
    else:
        stack.enter_context(theirs)
    return ours.fileno()


def listening(stack: ExitStack) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.bind("")  # an abstract name of the kernel's choice
    sock.listen()
    client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(sock.getsockname())
    return sock.fileno()


def an_eventfd(stack: ExitStack, value: int = 0, flags: int = os.EFD_NONBLOCK) -> int:
    fd = stack.enter_context(borrowed(eventfd(0, flags)))[0]
    if value:
        os.eventfd_write(fd, value)
    return fd


ODD_NOTIFIERS: dict[str, Callable[[ExitStack], int]] = {
    "eventfd-that-is-full": lambda stack: an_eventfd(stack, FULL),
    "eventfd-that-blocks": lambda stack: an_eventfd(stack, 0, 0),
    "eventfd-that-blocks-and-is-full": lambda stack: an_eventfd(stack, FULL, 0),
    "eventfd-semaphore": lambda stack: an_eventfd(stack, 1 << 40, os.EFD_SEMAPHORE | os.EFD_NONBLOCK),
    "eventfd-semaphore-that-blocks": lambda stack: an_eventfd(stack, FULL, os.EFD_SEMAPHORE),
    "pipe-read-end": lambda stack: pipe_end(stack, 0),
    "pipe-read-end-that-is-full": lambda stack: pipe_end(stack, 0, full=True, flags=0),
    "pipe-read-end-without-writer": lambda stack: pipe_end(stack, 0, alone=True),
    "pipe-write-end": lambda stack: pipe_end(stack, 1),
    "pipe-write-end-that-blocks-and-is-full": lambda stack: pipe_end(stack, 1, full=True, flags=0),
    "pipe-write-end-without-reader": lambda stack: pipe_end(stack, 1, alone=True),
    "stream-socket": lambda stack: socket_of(stack, socket.SOCK_STREAM),
    "stream-socket-that-is-full": lambda stack: socket_of(stack, socket.SOCK_STREAM, full=True),
    "stream-socket-without-peer": lambda stack: socket_of(stack, socket.SOCK_STREAM, alone=True),
    "datagram-socket": lambda stack: socket_of(stack, socket.SOCK_DGRAM),
    "datagram-socket-that-is-full": lambda stack: socket_of(stack, socket.SOCK_DGRAM, full=True),
    "datagram-socket-without-peer": lambda stack: socket_of(stack, socket.SOCK_DGRAM, alone=True),
    "seqpacket-socket": lambda stack: socket_of(stack, socket.SOCK_SEQPACKET),
    "listening-socket-with-a-client": listening,
}


def resting(victim: Victim, before: dict[str, int], seconds: float) -> None:
    """The data path slept and did not go round and round; a ring without kicks is looked at once a millisecond."""
    wakeups = victim.server.counters()["sleeps"] - before["sleeps"]
    assert wakeups < 100 + 2000 * seconds, f"{wakeups} turns in {seconds:.3f} s with nothing to do"


@pytest.mark.proves("VU-RING-24")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize("make", [pytest.param(make, id=f"Q6-{name}") for name, make in ODD_NOTIFIERS.items()])
async def test_notifiers_that_are_odd(
    victim: Victim, running: Running, request_: R, make: Callable[[ExitStack], int]
) -> None:
    """Packets are moved by kicks or by looking, calls are lost to who asked for it, and no request waits."""
    driver, front_end = running.driver, running.front_end
    with ExitStack() as stack, trio.fail_after(DEADLINE):
        fd = make(stack)
        await exchange(victim, driver, 2)
        for ring in (driver.rx, driver.tx):
            await accepted(front_end, ask(request_, VringFd(ring.index), [fd]))
        if request_ is R.SET_VRING_ERR:
            for ring in split_rings(driver):
                ring.avail_idx += NUM + 1
                ring.kick(force=True)
            await victim.port.send(bytes(60))
        if request_ is R.SET_VRING_CALL:
            await driver.send(bytes(60))
            assert await victim.port.receive() == bytes(60)
            await victim.port.send(bytes(60))
        for ring in (driver.rx, driver.tx):
            await front_end.enable_ring(ring)
            await front_end.stop_ring(ring)
            await talking(front_end)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=f"Q6-{name}") for name, make in ODD_NOTIFIERS.items() if "semaphore" not in name],
)
async def test_kicks_that_never_come_cost_nothing(
    victim: Victim, running: Running, make: Callable[[ExitStack], int]
) -> None:
    with ExitStack() as stack, trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(1), [make(stack)]))
        before, start = victim.server.counters(), trio.current_time()
        for _ in range(100):
            await talking(running.front_end)
        resting(victim, before, trio.current_time() - start)


@pytest.mark.parametrize("request_", [*NOTIFIERS, R.SET_BACKEND_REQ_FD], ids=lambda request: request.name)
@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-the-connections-own-socket")])
async def test_the_connections_own_socket(victim: Victim, request_: R, case: None) -> None:
    """It must not keep a connection alive whose front-end is gone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(victim.path))
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with FrontEnd.from_socket(sock) as front_end:
            with closing(await NetDriver.start(front_end, memory)) as driver:
                features = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
                await accepted(front_end, ask(R.SET_PROTOCOL_FEATURES, U64(features)))
                payload = b"" if request_ is R.SET_BACKEND_REQ_FD else VringFd(1)
                await front_end.send_frame(ask(request_, payload, [sock.fileno()], flags=REQUEST))
                with suppress(ConnectionClosedError):
                    for _ in range(10):
                        await front_end.send_frame(ask(R.GET_FEATURES, flags=REQUEST))
                _, tx = split_rings(driver)
                tx.avail_idx += 1
                tx.kick(force=True)


@pytest.mark.parametrize("end", ["stops", "vanishes"])
@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-call-eventfd-made-to-block-later")])
async def test_a_call_that_blocks_after_it_was_checked(victim: Victim, running: Running, end: str, case: None) -> None:
    """O_NONBLOCK belongs to the open file, which the peer holds too: it clears it behind our back, again and again."""
    driver = running.driver
    _, tx = split_rings(driver)
    with borrowed(eventfd()) as (call,), trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_CALL, VringFd(1), [call]))
        for _ in range(3):
            fill(call)
            os.set_blocking(call, True)
            tx.used_event = tx.used_idx
            await driver.send(bytes(60))
            assert await victim.port.receive() == bytes(60)
            await running.front_end.enable_ring(driver.tx)  # the thread hangs in a write, and is fetched out of it
        if end == "stops":
            await running.front_end.stop_ring(driver.tx)
            await talking(running.front_end)
        else:
            await running.front_end.aclose()


@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-call-eventfd-kept-full-and-blocking")])
async def test_a_call_that_is_kept_full_and_blocking(victim: Victim, running: Running, case: None) -> None:
    """A thread of the peer sees to it that no call ever gets through; packets do, and requests are answered."""
    driver, front_end = running.driver, running.front_end
    with borrowed(eventfd()) as (call,), trio.fail_after(DEADLINE):
        for index in range(2):
            await accepted(front_end, ask(R.SET_VRING_CALL, VringFd(index), [call]))
        fill(call)
        with working(lambda: keep_full(call)):
            for i in range(5):
                for ring in split_rings(driver):
                    ring.used_event = ring.used_idx  # every chain is worth a call
                await driver.send(frame_of(i))
                assert await victim.port.receive() == frame_of(i)
                await victim.port.send(frame_of(i))
                # each request fetches the thread out of a call; the last one comes when there is none left to make
                while {ring.used_idx for ring in split_rings(driver)} != {i + 1}:
                    await front_end.enable_ring(driver.tx)
                await front_end.enable_ring(driver.tx)
            for ring in split_rings(driver):
                await front_end.stop_ring(ring)
            await talking(front_end)


def keep_full(fd: int) -> None:
    """Fill what little room there is, and have writers wait."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
    os.set_blocking(fd, True)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-err-eventfd-made-to-block-later")])
async def test_an_err_that_blocks_after_it_was_checked(running: Running, case: None) -> None:
    _, ring = split_rings(running.driver)
    with borrowed(eventfd()) as (err,), trio.fail_after(DEADLINE):
        await accepted(running.front_end, ask(R.SET_VRING_ERR, VringFd(1), [err]))
        fill(err)
        os.set_blocking(err, True)
        ring.avail_idx += NUM + 1
        ring.kick(force=True)
        await running.front_end.stop_ring(ring)
        await talking(running.front_end)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q6-kick-eventfd-made-to-block-later")])
async def test_a_kick_that_blocks_after_it_was_checked(victim: Victim, running: Running, case: None) -> None:
    """Somebody else empties it between our look at it and our read: the test's thread tries to."""
    driver = running.driver
    kick = driver.tx.kick_fd.fileno()
    os.set_blocking(kick, True)
    with working(lambda: stolen(kick)), trio.fail_after(DEADLINE):
        for i in range(100):
            os.eventfd_write(kick, 1)
            await talking(running.front_end)
            if i % 10 == 0:
                await running.front_end.enable_ring(driver.tx)
    os.set_blocking(kick, False)
    await exchange(victim, driver)


def fill(fd: int) -> None:
    """Leave no room in an eventfd."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, FULL)


def stolen(fd: int) -> None:
    """Take a kick away from whom it was meant for."""
    with suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)


# ---- Q7: words of the notifiers --------------------------------------------------------------------------------------


@pytest.mark.proves("VU-PAY-4")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize(
    "bits",
    [pytest.param(1 << n, id=f"Q7-bit-{n}") for n in (9, 10, 16, 31, 32, 63)]
    + [pytest.param(((1 << 64) - 1) & ~0x1FF, id="Q7-bits-9-to-63")],
)
async def test_bits_above_those_of_the_index(victim: Victim, running: Running, request_: R, bits: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(running.front_end, ask(request_, U64(bits), [fd]))
    await refused(running.front_end, ask(request_, U64(bits | NO_FD)))
    await exchange(victim, running.driver, 2)


@pytest.mark.proves("VU-FD-2")
@pytest.mark.parametrize("request_", NOTIFIERS, ids=lambda request: request.name)
@pytest.mark.parametrize(
    ("word", "fds"),
    [
        pytest.param(NO_FD, 1, id="Q7-no_fd-with-a-descriptor"),
        pytest.param(NO_FD, 2, id="Q7-no_fd-with-two-descriptors"),
        pytest.param(0, 0, id="Q7-no-descriptor-without-no_fd"),
        pytest.param(0, 2, id="Q7-two-descriptors-without-no_fd"),
    ],
)
async def test_no_fd_and_descriptors(victim: Victim, running: Running, request_: R, word: int, fds: int) -> None:
    with borrowed(eventfd()) as (fd,):
        await refused(running.front_end, ask(request_, U64(word), [fd] * fds))
    await exchange(victim, running.driver, 2)


# ---- Q10: storms of kicks --------------------------------------------------------------------------------------------


@contextmanager
def working(function: Callable[[], object]) -> Iterator[None]:
    """Call `function` over and over in another thread while the block runs."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            function()

    thread = threading.Thread(target=work, name="storm")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def kick_hard(*fds: int) -> None:
    for fd in fds * 50:
        with suppress(BlockingIOError):
            os.write(fd, (1).to_bytes(8, "little"))


async def served_all_the_same(victim: Victim, running: Running) -> None:
    """Requests are answered, those into the thread too, and packets flow both ways."""
    with trio.fail_after(DEADLINE):
        for i in range(100):
            await talking(running.front_end)
            await running.front_end.enable_ring(running.driver.tx if i & 1 else running.driver.rx)
        await exchange(victim, running.driver)
        await running.front_end.set_mem_table(running.memory)
        for ring in (running.driver.rx, running.driver.tx):
            await running.front_end.stop_ring(ring)


@pytest.mark.parametrize("which", ["rx", "tx", "both"])
@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-kicks-without-end")])
async def test_kicks_without_end(victim: Victim, running: Running, which: str, case: None) -> None:
    rings = {"rx": running.driver.rx, "tx": running.driver.tx}
    kicks = [ring.kick_fd.fileno() for name, ring in rings.items() if which in (name, "both")]
    with working(lambda: kick_hard(*kicks)):
        await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-kicks-through-a-pipe-without-end")])
async def test_kicks_through_a_pipe_without_end(victim: Victim, running: Running, case: None) -> None:
    with borrowed(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)) as (reader, writer):
        for index in range(2):
            await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index), [reader]))
        with working(lambda: kick_hard(writer)):
            await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-a-semaphore-that-always-has-one-more-kick")])
async def test_a_kick_that_cannot_be_emptied(victim: Victim, running: Running, case: None) -> None:
    with borrowed(eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)) as (fd,):
        os.eventfd_write(fd, FULL)
        for index in range(2):
            await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index), [fd]))
        await served_all_the_same(victim, running)


@pytest.mark.parametrize("case", [pytest.param(None, id="Q10-rings-without-kicks-are-looked-at")])
async def test_rings_that_are_polled(victim: Victim, running: Running, case: None) -> None:
    for index in range(2):
        await accepted(running.front_end, ask(R.SET_VRING_KICK, VringFd(index, no_fd=True)))
    before, start = victim.server.counters(), trio.current_time()
    await served_all_the_same(victim, running)
    resting(victim, before, trio.current_time() - start)

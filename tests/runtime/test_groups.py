"""Queue groups: functions called in the thread, the end of the thread, and a thread that hangs in a system call."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.hostile.attack import borrowed, eventfd
from tests.hostile.victim import DEADLINE
from vhostuser.devices.net.pump import NetPump
from vhostuser.errors import PortError, RingError, VhostUserError
from vhostuser.runtime.groups import Group

_libc = ctypes.CDLL(None, use_errno=True)
FULL = 0xFFFFFFFFFFFFFFFE


@asynccontextmanager
async def living() -> AsyncIterator[tuple[Group, trio.CancelScope]]:
    """A group whose thread runs, and what ends it."""
    group = Group(NetPump(0, 0))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.run)
            yield group, nursery.cancel_scope
            nursery.cancel_scope.cancel()


def blocking_write(fd: int) -> int:
    """write(2) as the data path does it: a signal ends it. Returns bytes written, or -1."""
    return int(_libc.write(fd, ctypes.byref(ctypes.c_uint64(1)), 8))


@pytest.fixture
def full() -> Iterator[int]:
    """An eventfd in blocking mode with no room left."""
    with borrowed(eventfd(0, 0)) as (fd,):
        os.eventfd_write(fd, FULL)
        yield fd


# ---- calls -----------------------------------------------------------------------------------------------------------


async def test_a_call_runs_in_the_groups_thread_and_returns() -> None:
    async with living() as (group, _):
        idents = {await group.call(threading.get_ident) for _ in range(10)}
        assert len(idents) == 1
        assert threading.get_ident() not in idents
        assert await group.call(lambda: "answer") == "answer"


async def test_a_call_raises_what_its_function_raises() -> None:
    def fail() -> None:
        raise RingError("in the thread")

    async with living() as (group, _):
        with pytest.raises(RingError, match="in the thread"):
            await group.call(fail)
        assert await group.call(lambda: 1) == 1


async def test_calls_are_carried_out_in_order() -> None:
    done: list[int] = []
    async with living() as (group, _), trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(group.call, lambda i=i: done.append(i))
            await trio.lowlevel.checkpoint()  # so that it begins
    assert done == list(range(50))


async def test_calls_race_with_the_wait() -> None:
    """Waking is two steps, a flag and a descriptor, and so is going to sleep: no order of them loses a call."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    async def caller(group: Group) -> None:
        for _ in range(500):
            await group.call(step)

    async with living() as (group, _), trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(caller, group)
    assert count == 4000


async def test_a_group_sleeps_after_a_call() -> None:
    async with living() as (group, _):
        for _ in range(20):
            await group.call(lambda: None)
        before = await group.call(group.pump.counters)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        after = await group.call(group.pump.counters)
        assert after["turns"] - before["turns"] <= 4


async def test_a_cancelled_caller_does_not_take_the_thread_along() -> None:
    async with living() as (group, _):
        started, goes_on = threading.Event(), threading.Event()

        def slow() -> None:
            started.set()
            goes_on.wait(DEADLINE)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.call, slow)
                await trio.to_thread.run_sync(started.wait)
                scope.cancel()
        goes_on.set()
        assert await group.call(lambda: 1) == 1


async def test_more_groups_than_trio_has_threads() -> None:
    """Trio runs 40 threads at a time unless told otherwise; a group keeps its thread for as long as it lives."""
    groups = [Group(NetPump(0, 0)) for _ in range(60)]
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(group.run)
            idents = [await group.call(threading.get_ident) for group in groups]
            assert len(set(idents)) == 60
            nursery.cancel_scope.cancel()


async def test_a_system_without_threads_is_the_hosts_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")  # as Python says it

    monkeypatch.setattr(trio.to_thread, "run_sync", full)
    group = Group(NetPump(0, 0))
    with pytest.RaisesGroup(pytest.RaisesExc(PortError, match="can't start new thread"), flatten_subgroups=True):
        await group.run()
    assert group.pump.wake_fd == -1


async def test_what_goes_wrong_in_the_thread_is_not_called_a_lack_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("wrong")

    monkeypatch.setattr(Group, "_in_loop", wrong)
    group = Group(NetPump(0, 0))
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="^wrong$"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.run)
            await group.call(lambda: None)


# ---- the end ---------------------------------------------------------------------------------------------------------


async def test_cancelling_ends_the_thread_and_closes_the_pump() -> None:
    async with living() as (group, scope):
        thread = await group.call(threading.current_thread)
        wake_fd = group.pump.wake_fd
        os.fstat(wake_fd)
        busy = thread.name
        scope.cancel()
    assert thread.name != busy, "the thread is not back in Trio's cache"
    assert group.pump.wake_fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wake_fd)


async def test_cancelling_right_after_the_start() -> None:
    for _ in range(20):
        async with living() as (_, scope):
            scope.cancel()


async def test_a_call_that_the_end_overtakes_fails() -> None:
    outcome: list[str] = []

    async def call(group: Group) -> None:
        with trio.CancelScope(shield=True):
            try:
                await group.call(lambda: outcome.append("carried out"))
            except VhostUserError as error:
                outcome.append(str(error))

    async with trio.open_nursery() as outer, living() as (group, scope):
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            release.wait(DEADLINE)

        outer.start_soon(group.call, hold)
        await trio.to_thread.run_sync(held.wait)
        outer.start_soon(call, group)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        release.set()
    assert len(outcome) == 1


# ---- a thread that hangs in a system call ----------------------------------------------------------------------------


async def test_a_call_fetches_the_thread_out_of_a_system_call(interrupts: None, full: int) -> None:
    async with living() as (group, _), trio.open_nursery() as nursery:
        for _ in range(3):  # the peer may fill it again
            hung: list[int] = []
            nursery.start_soon(group.call, lambda hung=hung: hung.append(blocking_write(full)))
            await trio.testing.wait_all_tasks_blocked()
            assert await group.call(lambda: 1) == 1
            assert hung == [-1]


async def test_a_group_that_hangs_delays_no_other(interrupts: None, full: int) -> None:
    async with living() as (hung, _), living() as (other, _), trio.open_nursery() as nursery:
        entered, left = threading.Event(), threading.Event()

        def hang() -> None:
            entered.set()
            while not left.is_set():
                blocking_write(full)

        nursery.start_soon(hung.call, hang)
        await trio.to_thread.run_sync(entered.wait)
        for _ in range(20):
            assert await other.call(threading.get_ident) != threading.get_ident()
        left.set()


async def test_the_end_fetches_the_thread_out_of_a_system_call(interrupts: None, full: int) -> None:
    async with living() as (group, scope):
        entered = threading.Event()

        def hang() -> None:
            entered.set()
            blocking_write(full)

        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.call, hang)
                await trio.to_thread.run_sync(entered.wait)
                caller.cancel()
        scope.cancel()
    assert group.pump.wake_fd == -1

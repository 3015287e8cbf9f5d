"""Kicks and calls: sent exactly when they are due, and never lost."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.virtio.bench import Bench, Discard, InOrderDiscard, PackedDiscard, signals, turn_until_idle
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import NO_NOTIFICATION, full_fence
from vhostuser.virtio.layout import BURST, EVENT, WORK

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
ROUNDS = 5_000
BURSTS = 200
DEADLINE_MS = 20_000  # for what takes microseconds: only a lost notification needs it
U16 = st.integers(0, 0xFFFF)
LAYOUTS: dict[str, type[Any]] = {"split": Discard, "packed": PackedDiscard, "in order": InOrderDiscard}


@pytest.mark.proves("VIO-NOTIFY-1", "VIO-NOTIFY-4")
@SHARED
@given(
    U16,
    st.lists(st.tuples(st.integers(0, 128), st.one_of(st.integers(-3, 130), U16), st.integers(1, 256)), max_size=12),
)
def test_a_call_is_made_when_used_idx_passes_used_event(
    ram: GuestRam, base: int, steps: list[tuple[int, int, int]]
) -> None:
    """Chains added, where used_event stands (from the present used.idx on), budget of the turn."""
    with Discard(ram, 128, base=base, event_idx=True) as bench:
        driver, used, waiting, first = bench.driver, base, 0, True
        for count, event, budget in steps:
            count = min(count, driver.free)
            bench.add(count)
            waiting += count
            driver.used_event = used + event
            calls = 0
            left = min(waiting, budget)
            waiting -= left
            while left:
                burst = min(left, BURST)
                passed = {(used + i) & 0xFFFF for i in range(burst)}
                calls += first or driver.used_event in passed
                used, left, first = (used + burst) & 0xFFFF, left - burst, False
            before = bench.ring.counters()["calls"]
            bench.pump.turn(budget)
            assert driver.used_idx == used
            assert bench.ring.counters()["calls"] - before == calls
            assert signals(driver.call_fd.fileno()) == calls
            driver.reap()


@pytest.mark.proves("VIO-NOTIFY-2")
@SHARED
@given(U16, st.lists(st.tuples(st.integers(0, 16), st.booleans(), U16), max_size=12))
def test_without_event_idx_a_flag_decides(ram: GuestRam, base: int, steps: list[tuple[int, bool, int]]) -> None:
    with Discard(ram, 16, base=base) as bench:
        for count, quiet, event in steps:
            bench.driver.avail_flags = int(quiet)
            bench.driver.used_event = event  # means nothing
            bench.add(count)
            bench.pump.turn()
            assert signals(bench.driver.call_fd.fileno()) == (count > 0 and not quiet)
            bench.driver.reap()


@pytest.mark.proves("VIO-NOTIFY-3")
@SHARED
@given(U16, st.lists(st.tuples(st.integers(0, 16), st.integers(1, 16)), max_size=12))
def test_avail_event_asks_for_the_next_chain(ram: GuestRam, base: int, steps: list[tuple[int, int]]) -> None:
    with Discard(ram, 16, base=base, event_idx=True) as bench:
        for count, budget in steps:
            count = min(count, bench.driver.free)
            bench.add(count)
            todo = bench.pump.turn(budget)
            assert (todo == WORK) != bench.ring.armed
            if bench.ring.armed:
                assert bench.driver.avail_event == bench.driver.avail_idx == bench.driver.used_idx
            assert bench.driver.used_flags == 0  # with EVENT_IDX the device must not use it
            bench.driver.reap()


@pytest.mark.proves("VIO-NOTIFY-3")
def test_without_event_idx_kicks_are_off_while_the_ring_is_worked_on(ram: GuestRam) -> None:
    with Discard(ram) as bench:
        assert bench.pump.turn() == 0
        assert bench.driver.used_flags == 0
        bench.add(16)
        assert bench.pump.turn(10) == WORK
        assert bench.driver.used_flags == 1
        assert bench.pump.turn(10) == 0
        assert bench.driver.used_flags == 0


def test_a_ring_without_a_call_descriptor_counts_no_calls(ram: GuestRam) -> None:
    with Discard(ram) as bench:
        bench.ring.set_call(-1)
        before = bench.ring.counters()["calls"]
        bench.add()
        bench.pump.turn()
        assert bench.ring.counters()["calls"] == before
        assert bench.driver.used_idx == 1


@pytest.mark.proves("VIO-NOTIFY-4")
def test_a_start_and_a_new_call_descriptor_are_signalled_once(ram: GuestRam) -> None:
    with Bench(ram) as bench:  # starting did it already, as start() of the bench looks
        call = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            bench.ring.set_call(call)
            assert signals(call) == 1
            bench.ring.stop()
            bench.ring.set_call(call)
            assert signals(call) == 0
        finally:
            os.close(call)


@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_a_full_call_descriptor_blocks_nobody(ram: GuestRam, blocking: bool) -> None:
    with Bench(ram) as bench:
        call = os.eventfd(0, 0 if blocking else os.EFD_NONBLOCK)
        try:
            os.eventfd_write(call, (1 << 64) - 2)
            bench.ring.set_call(call)
            bench.driver.add([(0x1000, 8)])
            assert bench.pump.turn() == EVENT
            assert bench.pump.complete(bench.pump.ticket, 0)
            assert os.eventfd_read(call) == (1 << 64) - 2
        finally:
            os.close(call)


@pytest.mark.parametrize("full", [False, True], ids=["pipe", "full pipe"])
def test_a_pipe_may_be_the_call_descriptor(ram: GuestRam, full: bool) -> None:
    """Nobody but QEMU promises an eventfd."""
    with Bench(ram) as bench:
        reader, writer = os.pipe()
        try:
            if full:
                os.set_blocking(writer, False)
                while True:
                    try:
                        os.write(writer, bytes(4096))
                    except BlockingIOError:
                        break
                os.set_blocking(writer, True)
            bench.ring.set_call(writer)
            if not full:
                assert os.read(reader, 64) == (1).to_bytes(8, sys.byteorder)
        finally:
            os.close(reader)
            os.close(writer)


# ---- driver and device at the same time ------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NOTIFY-5")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_order_of_adding_kicking_and_turning_loses_a_chain(ram: GuestRam, layout: str, event_idx: bool) -> None:
    """All words of seven letters: the driver adds, or kicks if it is asked to; the device turns if it was kicked."""
    with LAYOUTS[layout](ram, 8, event_idx=event_idx) as bench:
        driver, pump = bench.driver, bench.pump
        awake = True
        for word in product("akd", repeat=7):
            for letter in (*word, "k", "d", "d"):
                awake |= bool(signals(driver.kick_fd.fileno()))
                if letter == "a" and driver.free:
                    bench.add()
                elif letter == "k":
                    driver.kick()
                elif letter == "d" and awake:
                    awake = pump.turn() == WORK
            assert driver.used_idx == driver.avail_idx, "".join(word)
            driver.reap()


@pytest.mark.proves("VIO-NOTIFY-6")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("burst", [1, 4, 16])
def test_a_burst_costs_one_kick_and_one_call(ram: GuestRam, event_idx: bool, burst: int) -> None:
    """Both sides sleep between bursts: 1 000 000 / `burst` kicks, and as many calls, for a million chains."""
    with Discard(ram, 16, event_idx=event_idx) as bench:
        turn_until_idle(bench.pump)
        before, kicks = bench.ring.counters(), 0
        for _ in range(BURSTS):
            bench.driver.used_event = bench.driver.used_idx
            bench.add(burst)
            kicks += bench.driver.kick()
            turn_until_idle(bench.pump)
            assert len(bench.driver.reap()) == burst
        after = bench.ring.counters()
        assert kicks == BURSTS
        assert after["calls"] - before["calls"] == BURSTS
        assert after["chains"] - before["chains"] == BURSTS * burst


@pytest.mark.proves("VIO-NOTIFY-6")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_two_sides_that_are_awake_do_not_signal(ram: GuestRam, event_idx: bool) -> None:
    """The device lingers and the driver polls: one kick and one call in all, however many chains."""
    with Discard(ram, 16, event_idx=event_idx, poll_us=1_000_000) as bench:
        turn_until_idle(bench.pump)
        before, kicks = bench.ring.counters()["calls"], 0
        for i in range(BURSTS):
            bench.add(4)
            kicks += bench.driver.kick()
            bench.pump.turn()
            assert len(bench.driver.reap()) == 4
            bench.driver.avail_flags = NO_NOTIFICATION if i == 0 and not event_idx else bench.driver.avail_flags
        assert kicks == 1
        assert bench.ring.counters()["calls"] - before == 1


def interleaved(*words: str) -> Any:
    """What the scenario finds, in a process of its own that runs the interpreted edition."""
    command = [sys.executable, "-m", "tests.virtio.interleave", *words]
    environment = {**os.environ, "VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.proves("VIO-NOTIFY-5")
@pytest.mark.parametrize("mode", ["flags", "event_idx"])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_no_access_of_the_device_lets_a_kick_be_lost(layout: str, mode: str) -> None:
    assert interleaved("kicks", layout, mode) == [[], [], []]


@pytest.mark.parametrize("mode", ["flags", "event_idx"])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_without_the_second_look_kicks_are_lost(layout: str, mode: str) -> None:
    """The test before this one is able to fail."""
    assert any(interleaved("kicks", layout, mode, "no-second-look"))


@pytest.mark.proves("VIO-NOTIFY-5")
@pytest.mark.parametrize("mode", ["flags", "event_idx"])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_no_access_of_the_device_lets_a_call_be_lost(layout: str, mode: str) -> None:
    assert interleaved("calls", layout, mode) == []


@pytest.mark.proves("VIO-PACKED-6")
def test_a_burst_is_a_lap_at_most() -> None:
    assert max(interleaved("laps")) == 2


@pytest.mark.proves("VIO-RING-18")
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_a_burst_becomes_visible_at_once(layout: str) -> None:
    seen = interleaved("bursts", layout)
    assert sorted(seen) == seen
    assert set(seen) == {0, 3}


@pytest.mark.proves("VIO-RING-14")
@pytest.mark.parametrize("mode", ["flags", "event_idx"])
def test_each_field_that_the_driver_writes_is_read_once(mode: str) -> None:
    counted = interleaved("loads", "split", mode)
    event_idx = mode == "event_idx"
    assert counted.pop("avail.idx") == 3  # a chain is there; then none is; and the second look of arming
    assert counted.pop("used_event") == event_idx
    assert counted.pop("avail.flags") == (not event_idx)
    assert counted.pop("anything else") == 0
    assert len(counted) == 17
    assert set(counted.values()) == {1}


@pytest.mark.proves("VIO-RING-14")
@pytest.mark.parametrize("mode", ["flags", "event_idx"])
def test_each_field_of_a_packed_ring_is_read_once(mode: str) -> None:
    """A chain of two slots, then an indirect one with a table of two."""
    counted = interleaved("loads", "packed", mode)
    assert counted.pop("desc[3].flags") == 3  # nothing behind the chains; again nothing; the second look of arming
    assert counted.pop("desc[0].id") == 0  # the last slot of a chain has it
    assert counted.pop("anything else") == 0
    assert counted.pop("driver event") == 1
    assert len(counted) == 3 * 4 - 1 + 2 * 3
    assert set(counted.values()) == {1}


@pytest.mark.proves("VIO-NOTIFY-5")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_threads_lose_no_notification(ram: GuestRam, layout: str, event_idx: bool) -> None:
    """Real threads, on two processors where there are two: each side sleeps unless it is told."""
    with LAYOUTS[layout](ram, 4, event_idx=event_idx) as bench:
        driver = bench.driver
        todo: list[int] = []
        thread = threading.Thread(target=lambda: todo.append(bench.pump.run()), name="device")
        thread.start()
        try:
            call = select.poll()
            call.register(driver.call_fd.fileno(), select.POLLIN)
            for _ in range(ROUNDS):
                bench.add()
                driver.kick()
                wanted = driver.avail_idx
                while driver.used_idx != wanted:
                    driver.used_event = wanted - 1
                    full_fence()
                    if driver.used_idx != wanted:
                        assert call.poll(DEADLINE_MS), f"lost with used.idx {driver.used_idx}, avail.idx {wanted}"
                        signals(driver.call_fd.fileno())
                assert len(driver.reap()) == 1
        finally:
            bench.pump.wake()
            thread.join()
        assert todo == [0]

"""The moments of a pump: which ones are noted, that only the last are kept, that a reader never sees half of one."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

import pytest

from tests.devices.bench import Net
from tests.devices.conftest import every_layout, make_net, make_split_net
from tests.virtio.test_pump import DEADLINE_MS, Runner, wait_readable
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio.timeline import Moment, Timeline

__all__ = ["every_layout", "make_net", "make_split_net"]

PACKET = bytes(76)
RX, TX = range(2)


def names(timeline: Timeline) -> list[tuple[str, int]]:
    return [(moment.what, moment.ring) for moment in timeline.moments()]


def test_a_round_trip_is_told_from_wake_to_call(make_net: Callable[..., Net]) -> None:
    net = make_net()
    timeline = Timeline(64)
    net.pump.record(timeline)
    net.post(2048)
    begin = time.monotonic_ns()
    runner = Runner(net.pump)
    net.host.send(PACKET)
    wait_readable(net.rx.call_fd.fileno())
    net.transmit(PACKET)
    net.tx.kick(force=True)
    wait_readable(net.host.fileno())
    runner.wake()
    end = time.monotonic_ns()

    moments = timeline.moments()
    times = [moment.time for moment in moments]
    assert times == sorted(times)
    assert begin <= times[0]
    assert times[-1] <= end
    told = iter(names(timeline))
    for expected in [("received", RX), ("call", RX), ("called", RX), ("sent", TX)]:
        assert expected in told, moments  # in this order: what is behind the last one found is left
    assert sum(moment.packets for moment in moments if moment.what == "received") == 1
    assert sum(moment.packets for moment in moments if moment.what == "sent") == 1


def test_a_wait_is_told_with_its_reason(ram: GuestRam) -> None:
    net = Net(ram)
    timeline = Timeline(64)
    try:
        net.post(2048)
        net.pump.turn()
        net.pump.record(timeline)
        runner = Runner(net.pump)
        wait_for(lambda: names(timeline)[-1:] == [("sleep", RX)])
        net.host.send(PACKET)
        wait_for(lambda: ("called", RX) in names(timeline) and names(timeline)[-1:] == [("sleep", RX)])
        net.tx.kick(force=True)
        wait_for(lambda: ("kick", TX) in names(timeline))
        runner.wake()
        told = names(timeline)
        port, kick = told.index(("port", RX)), told.index(("kick", TX))
        assert told[port - 2 : port] == told[kick - 2 : kick] == [("sleep", RX), ("wake", RX)]
    finally:
        net.close()


def test_a_driver_that_wants_no_call_is_told(make_net: Callable[..., Net]) -> None:
    net = make_net(event_idx=False)
    timeline = Timeline(16)
    net.tx.avail_flags = 1
    net.pump.record(timeline)
    net.transmit(PACKET)
    net.pump.turn()
    assert names(timeline)[:2] == [("sent", TX), ("no-call", TX)]


def test_the_last_moments_are_kept_oldest_first(make_net: Callable[..., Net]) -> None:
    net = make_net()
    timeline = Timeline(10)
    assert timeline.entries == 16
    net.pump.record(timeline)
    seen: list[Moment] = []
    for _ in range(40):
        net.transmit(PACKET)
        net.pump.turn()
        net.tx.reap()
        net.received()
        moments = timeline.moments()
        seen += [moment for moment in moments if not seen or moment.time > seen[-1].time]
        # one fewer than there is room for: the next would take that one's place
        assert moments == seen[-15:]
    assert len(seen) > 80


def test_without_a_timeline_nothing_is_noted(make_net: Callable[..., Net]) -> None:
    net = make_net()
    timeline = Timeline(16)
    net.pump.record(timeline)
    net.pump.record(None)
    net.transmit(PACKET)
    net.pump.turn()
    assert len(net.received()) == 1
    assert timeline.moments() == []


def test_a_reader_sees_whole_moments_while_the_pump_writes(ram: GuestRam) -> None:
    net = Net(ram)
    timeline = Timeline(16)
    net.pump.record(timeline)
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            net.tx.add([net.frame])
            net.pump.turn()
            net.tx.reap()
            net.received()

    writer = threading.Thread(target=send)
    writer.start()
    try:
        changes, before = 0, timeline.moments()
        deadline = time.monotonic() + DEADLINE_MS / 1000
        while changes < 50:  # each takes the interpreter's lock from the writer
            assert time.monotonic() < deadline, f"{changes} changes seen"
            moments = timeline.moments()
            assert [moment.time for moment in moments] == sorted(moment.time for moment in moments)
            assert {moment.what for moment in moments} <= {"sent", "received", "call", "called", "no-call"}
            changes += moments != before
            before = moments
    finally:
        done.set()
        writer.join()
        net.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.001)


@pytest.mark.parametrize(("asked", "entries"), [(1, 2), (2, 2), (3, 4), (1000, 1024)])
def test_the_room_is_a_power_of_two(asked: int, entries: int) -> None:
    assert Timeline(asked).entries == entries

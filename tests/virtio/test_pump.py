"""Pumps: what a turn waits for and what it costs, being woken, chains in a Python device's hands."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.devices.bench import Net
from tests.virtio.bench import Bench, map_guest, signals, start
from vhostuser.devices.net.pump import NetPump
from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import EITHER, EVENT, PORT_IN, PORT_OUT
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.split import SplitRing

DEADLINE_MS = 20_000
PINGS = 20
VANISHED = -6
MIB = 1 << 20


@dataclass
class Runner:
    """A pump in a thread, as a queue group runs it."""

    pump: Pump
    results: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=lambda: self.results.append(self.pump.run()))
        self._thread.start()

    def join(self) -> int:
        self._thread.join(DEADLINE_MS / 1000)
        assert not self._thread.is_alive(), "the pump does not return"
        return self.results[-1]

    def wake(self) -> int:
        self.pump.wake()
        return self.join()


@contextmanager
def net_on(ram: GuestRam) -> Iterator[Net]:
    net = Net(ram)
    try:
        yield net
    finally:
        net.close()


def wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE_MS), "nothing came"


def ping(ring: DriverRing, frame: tuple[int, int]) -> None:
    """Have one chain of a transmit ring used, which shows that the thread has turned."""
    ring.used_event = ring.used_idx
    ring.add([frame])
    ring.kick(force=True)
    wait_readable(ring.call_fd.fileno())
    signals(ring.call_fd.fileno())
    ring.reap()


# ---- the wait set ----------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PUMP-1")
def test_a_turn_says_what_it_waits_for(ram: GuestRam) -> None:
    with net_on(ram) as net:
        assert net.pump.turn() == 0  # no receive buffers: the port is none of our business
        assert net.pump.rx.armed
        assert net.pump.tx.armed
        net.rx.add(writable=[(ram.alloc(2048), 2048)])
        assert net.pump.turn() == PORT_IN
        assert not net.pump.rx.armed
        net.fill_port()
        assert net.pump.turn() == PORT_IN | PORT_OUT
        assert not net.pump.tx.armed
        net.pump.rx.enabled = False
        assert net.pump.turn() == PORT_OUT


@pytest.mark.proves("VIO-PUMP-1")
def test_a_flood_to_a_guest_without_buffers_costs_nothing(ram: GuestRam) -> None:
    with net_on(ram) as net:
        assert net.flood_port() > 10
        runner = Runner(net.pump)
        net.pump.tx.enabled = False  # pings are thrown away
        for _ in range(PINGS):
            ping(net.tx, net.frame)
        counters = net.pump.counters()
        assert runner.wake() == 0
        assert counters["rx_packets"] == 0
        assert counters["turns"] <= 2 * PINGS + 2


@pytest.mark.proves("VIO-PUMP-1")
def test_a_guest_that_floods_a_full_port_costs_nothing(ram: GuestRam) -> None:
    with net_on(ram) as net:
        net.fill_port()
        before = net.pump.counters()["turns"]
        runner = Runner(net.pump)
        net.rx.used_event = net.rx.used_idx
        for _ in range(PINGS):  # kicks of the blocked ring, then a packet the other way, as a sign of life
            net.tx.kick(force=True)
            net.rx.used_event = net.rx.used_idx
            net.rx.add(writable=[net.frame])
            net.rx.kick(force=True)
            net.host.send(bytes(76))
            wait_readable(net.rx.call_fd.fileno())
            signals(net.rx.call_fd.fileno())
            net.rx.reap()
        after = net.pump.counters()["turns"]
        assert runner.wake() == 0
        # one for the buffer, one for the packet, one more if the two meet badly
        assert after - before <= 3 * PINGS + 3


def test_an_idle_pump_sleeps(ram: GuestRam) -> None:
    with net_on(ram) as net:
        net.rx.add(writable=[(ram.alloc(2048), 2048)])
        runner = Runner(net.pump)
        ping(net.tx, net.frame)
        counters = net.pump.counters()
        assert runner.wake() == 0
        assert counters["turns"] <= 4
        assert counters["sleeps"] <= 3


def test_rings_that_are_stopped_are_not_looked_at(ram: GuestRam) -> None:
    with net_on(ram) as net:
        assert net.pump.turn() == 0
        net.pump.rx.stop()
        net.pump.tx.stop()
        net.tx.add([net.frame])
        net.tx.kick(force=True)
        assert net.pump.turn() == 0
        assert net.tx.used_idx == 0
        assert signals(net.tx.kick_fd.fileno()) == 1


def test_kicks_are_counted_and_taken(ram: GuestRam) -> None:
    with net_on(ram) as net:
        runner = Runner(net.pump)
        net.pump.tx.enabled = False
        ping(net.tx, net.frame)
        runner.wake()
        assert net.pump.tx.counters()["kicks"] <= 1
        assert net.pump.turn() == 0


@pytest.mark.proves("VIO-PUMP-2")
def test_a_ring_without_a_kick_descriptor_is_polled(ram: GuestRam) -> None:
    with net_on(ram) as net:
        net.pump.tx.enabled = False
        net.pump.tx.set_kick(-1)
        runner = Runner(net.pump)
        for _ in range(PINGS):
            net.tx.used_event = net.tx.used_idx
            net.tx.add([net.frame])
            wait_readable(net.tx.call_fd.fileno())
            signals(net.tx.call_fd.fileno())
            net.tx.reap()
        assert runner.wake() == 0


@pytest.mark.proves("VIO-PUMP-2")
def test_a_kick_pipe_whose_writer_is_gone_becomes_polling(ram: GuestRam) -> None:
    with net_on(ram) as net:
        reader, writer = os.pipe()
        net.pump.tx.enabled = False
        net.pump.tx.set_kick(reader)
        runner = Runner(net.pump)
        net.tx.used_event = 0
        net.tx.add([net.frame])
        os.write(writer, b"12345678")
        wait_readable(net.tx.call_fd.fileno())
        signals(net.tx.call_fd.fileno())
        os.close(writer)
        net.tx.used_event = 1
        net.tx.add([net.frame])
        wait_readable(net.tx.call_fd.fileno())
        assert runner.wake() == 0
        assert net.pump.tx.kick == -1
        os.close(reader)


def test_a_kick_descriptor_that_blocks_its_reader_does_not_block_the_pump(ram: GuestRam) -> None:
    with net_on(ram) as net:
        kick = os.eventfd(0)
        net.pump.tx.enabled = False
        net.pump.tx.set_kick(kick)
        runner = Runner(net.pump)
        for _ in range(3):
            net.tx.used_event = net.tx.used_idx
            net.tx.add([net.frame])
            os.eventfd_write(kick, 1)
            wait_readable(net.tx.call_fd.fileno())
            signals(net.tx.call_fd.fileno())
        assert runner.wake() == 0
        os.close(kick)


# ---- waking ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PUMP-3")
def test_a_wake_before_the_wait_is_not_lost(ram: GuestRam) -> None:
    with Bench(ram) as bench:
        for _ in range(3):
            bench.pump.wake()
            bench.pump.wake()
            assert bench.pump.run() == 0
        runner = Runner(bench.pump)
        assert runner.wake() == 0


def test_a_wake_costs_a_turn_or_two(ram: GuestRam) -> None:
    with net_on(ram) as net:
        for _ in range(50):
            runner = Runner(net.pump)
            ping(net.tx, net.frame)
            before = net.pump.counters()["turns"]
            assert runner.wake() == 0
            assert net.pump.counters()["turns"] - before <= 3


def test_work_does_not_keep_a_pump_from_being_woken(ram: GuestRam) -> None:
    """A driver that is faster than the device: there is always more, and run() returns all the same."""
    with net_on(ram) as net:
        net.pump.tx.enabled = False
        for index in range(16):
            net.tx.set_descriptor(index, net.tx.descriptor(index)._replace(addr=net.frame[0], length=76))
        stop = threading.Event()

        def feed() -> None:
            while not stop.is_set():
                net.tx.avail_idx = net.tx.used_idx + 16

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            for _ in range(20):
                assert Runner(net.pump).wake() == 0
        finally:
            stop.set()
            feeder.join()
        assert net.pump.tx.fault == 0


def test_closing_twice_is_harmless(ram: GuestRam) -> None:
    with Bench(ram) as bench:
        bench.pump.close()
        assert bench.pump.wake_fd == -1


# ---- chains in a Python device's hands -------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PUMP-4")
def test_one_chain_is_out_at_a_time(ram: GuestRam) -> None:
    with Bench(ram) as bench:
        bench.driver.add([bench.buffer(b"one")])
        bench.driver.add([bench.buffer(b"two")])
        assert bench.pump.turn() == EVENT
        first = bench.pump.ticket
        assert bench.pump.turn() == 0
        assert bench.pump.ticket == first
        assert bench.pump.read(first) == b"one"
        assert bench.pump.complete(first, 0)
        assert not bench.pump.complete(first, 0)
        assert bench.pump.turn() == EVENT
        assert bench.pump.ticket == first + 1
        assert bench.pump.read(first + 1) == b"two"
        with pytest.raises(MemoryAccessError, match=f"chain {first} of vring 0"):
            bench.pump.read(first)
        with pytest.raises(MemoryAccessError):
            bench.pump.write(first, b"stale")


def test_a_disabled_ring_of_a_python_device_yields_nothing(ram: GuestRam) -> None:
    with Bench(ram) as bench:
        bench.ring.enabled = False
        bench.driver.add([bench.buffer(b"one")])
        assert bench.pump.turn() == 0
        assert not bench.pump.holding
        bench.ring.enabled = True
        assert bench.pump.turn() == EVENT


@pytest.mark.proves("VIO-MEM-3")
def test_a_chain_that_is_out_when_memory_changes_is_gone(ram: GuestRam) -> None:
    """The iovecs that it had point into mappings that are no more; the driver's buffer is handed out anew."""
    with Bench(ram) as bench:
        bench.driver.add([bench.buffer(b"still here")])
        assert bench.pump.turn() == EVENT
        ticket, old = bench.pump.ticket, bench.memory
        bench.memory = map_guest(ram)
        bench.ring.adopt(bench.memory)
        assert not bench.pump.holding  # or what follows kills the process
        old.close()
        with pytest.raises(MemoryAccessError):
            bench.pump.read(ticket)
        assert not bench.pump.complete(ticket, 0)
        assert bench.pump.turn() == EVENT
        assert bench.pump.read(bench.pump.ticket) == b"still here"


# ---- memory that vanishes --------------------------------------------------------------------------------------------


@pytest.fixture
def shrinkable() -> Iterator[GuestRam]:
    with GuestRam([(0, MIB), (1 << 32, MIB)], seals=0) as ram:
        yield ram


def truncate(ram: GuestRam, region: int = 1) -> None:
    os.ftruncate(ram.regions[region].fd.fileno(), 0)


@pytest.mark.proves("VIO-MEM-4")
def test_a_buffer_that_vanished_breaks_the_ring_when_it_is_read(shrinkable: GuestRam) -> None:
    with Bench(shrinkable) as bench:
        bench.driver.add([(1 << 32, 64)])
        assert bench.pump.turn() == EVENT
        truncate(shrinkable)
        with pytest.raises(MemoryAccessError, match="vanished under vring 0"):
            bench.pump.read(bench.pump.ticket)
        assert bench.ring.fault == VANISHED


@pytest.mark.proves("VIO-MEM-4")
def test_a_buffer_that_vanished_breaks_the_ring_when_it_is_written(shrinkable: GuestRam) -> None:
    with Bench(shrinkable) as bench:
        bench.driver.add(writable=[(1 << 32, 64)])
        assert bench.pump.turn() == EVENT
        truncate(shrinkable)
        with pytest.raises(MemoryAccessError, match="vanished under vring 0"):
            bench.pump.write(bench.pump.ticket, bytes(64))
        assert bench.ring.fault == VANISHED


@pytest.mark.proves("VIO-MEM-4")
def test_a_ring_that_vanished_breaks(shrinkable: GuestRam) -> None:
    with Bench(shrinkable, region=1) as bench:
        assert bench.pump.turn() == 0
        truncate(shrinkable)
        assert bench.pump.turn() == EVENT
        assert bench.ring.fault == VANISHED


@pytest.mark.proves("VIO-MEM-4")
def test_an_indirect_table_that_vanished_breaks_the_ring(shrinkable: GuestRam) -> None:
    with Bench(shrinkable) as bench:
        bench.driver._indirect_tables[0] = (1 << 32, 64)
        bench.driver.add([(0x8000, 64)], indirect=True)
        truncate(shrinkable)
        assert bench.pump.turn() == EVENT
        assert bench.ring.fault == VANISHED


@pytest.mark.proves("VIO-MEM-4")
def test_a_used_ring_that_vanished_breaks_at_completion(shrinkable: GuestRam) -> None:
    with Bench(shrinkable, region=1) as bench:
        bench.driver.add([(0x8000, 64)])
        assert bench.pump.turn() == EVENT
        truncate(shrinkable)
        bench.pump.complete(bench.pump.ticket, 0)
        assert bench.pump.turn() == EVENT
        assert bench.ring.fault == VANISHED


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("kind", ["chain pump", "net pump"])
def test_a_used_ring_that_vanished_while_idle_breaks(shrinkable: GuestRam, kind: str, event_idx: bool) -> None:
    """Only the used ring is lost, and only arming touches it."""
    memory = map_guest(shrinkable)
    driver = DriverRing(shrinkable, 1, 16, event_idx=event_idx)
    driver.used_addr = shrinkable.alloc(6 + 8 * 16, 4, 1)
    if kind == "net pump":
        net_pump = NetPump(0, VirtioFeature.VERSION_1)
        pump: Pump = net_pump
        ring: Ring = net_pump.tx
    else:
        ring = SplitRing(1, EITHER)
        pump = ChainPump(ring)
    start(ring, driver, memory)
    truncate(shrinkable)
    todo = pump.turn()
    if not todo & EVENT:
        todo = pump.turn()  # at the latest
    assert todo == EVENT
    assert ring.fault == VANISHED
    pump.close()
    driver.close()
    memory.close()


@pytest.mark.proves("VIO-MEM-4")
def test_a_start_on_a_ring_that_vanished(shrinkable: GuestRam) -> None:
    memory = map_guest(shrinkable)
    driver = DriverRing(shrinkable, 0, 16, region=1)
    ring = SplitRing(0, EITHER)
    truncate(shrinkable)
    start(ring, driver, memory)
    assert ring.fault == VANISHED
    driver.close()
    memory.close()


def test_a_polled_ring_does_not_hide_the_other_ones_kick(ram: GuestRam) -> None:
    """The poll set is made anew for both rings, whatever the first one is."""
    with net_on(ram) as net:
        net.pump.rx.set_kick(-1)
        runner = Runner(net.pump)
        ping(net.tx, net.frame)
        assert runner.wake() == 0
        other = os.eventfd(0, os.EFD_NONBLOCK)
        net.pump.tx.set_kick(other)
        runner = Runner(net.pump)
        net.pump.tx.enabled = False
        before = net.pump.counters()["vring1_kicks"]
        net.tx.used_event = net.tx.used_idx
        net.tx.add([net.frame])
        os.eventfd_write(other, 1)
        wait_readable(net.tx.call_fd.fileno())
        assert runner.wake() == 0
        assert net.pump.counters()["vring1_kicks"] == before + 1
        os.close(other)

"""The device's side of both layouts against the front-end's driver: two readings of one specification."""

from __future__ import annotations

from typing import NamedTuple, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from tests.frontend.devices import make_ring as make_driver
from tests.virtio.bench import map_guest, signals, start, turn_until_idle
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import Used
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import EITHER
from vhostuser.virtio.pump import ChainPump
from vhostuser.virtio.rings import make_ring

PROPERTY = settings(max_examples=200, deadline=None, derandomize=REPEATABLE)


class Setup(NamedTuple):
    """How a ring is set up; `at` is the position at which it begins, to be cut to what the layout has."""

    packed: bool
    size: int
    at: int
    event_idx: bool
    in_order: bool

    @property
    def features(self) -> int:
        features = VirtioFeature.VERSION_1
        if self.packed:
            features |= VirtioFeature.RING_PACKED
        if self.in_order:
            features |= VirtioFeature.IN_ORDER
        return features

    @property
    def ring_size(self) -> int:
        return self.size if self.packed else 1 << self.size.bit_length() - 1

    @property
    def base(self) -> int:
        if not self.packed:
            return self.at
        return ((self.at & 0x7FFF) % self.size | self.at & 0x8000) * 0x10001


SETUPS = st.builds(
    Setup,
    st.booleans(),
    st.integers(1, 20),
    st.sampled_from([0x8000, 0xFFFD]) | st.integers(0, 0xFFFF),
    st.booleans(),
    st.booleans(),
)


class Pair:
    """A driver, a pump that hands out its chains one by one, and the chains that are on their way."""

    def __init__(self, ram: GuestRam, setup: Setup) -> None:
        self.ram = ram
        self.memory = map_guest(ram)
        self.driver = make_driver(
            ram, setup.packed, 0, setup.ring_size, event_idx=setup.event_idx, in_order=setup.in_order
        )
        self.driver.reset(setup.base)
        self.pump = ChainPump(make_ring(setup.features, 0, EITHER))
        start(self.pump.first, self.driver, self.memory)
        self.lent: list[tuple[int, bytes, list[tuple[int, int]]]] = []
        self.used: list[tuple[Used, list[tuple[int, int]], bytes]] = []
        self.content = 0
        self.first_call = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pump.close()
        self.driver.close()
        self.memory.close()

    def add(self, readable: int, writable: int, indirect: bool) -> None:
        """Lend a chain whose bytes no other chain has; a device that sleeps is woken."""
        count = readable + writable
        if not count or (1 if indirect else count) > self.driver.free:
            return
        buffers = [(self.ram.alloc(7), 7) for _ in range(count)]
        self.content += 1
        data = self.content.to_bytes(7, "little")
        for address, _ in buffers[:readable]:
            self.ram.write(address, data)
        head = self.driver.add(buffers[:readable], buffers[readable:], indirect=indirect)
        idle = not self.lent
        self.lent.append((head, data * readable, buffers[readable:]))
        assert self.driver.kick() or not idle
        assert signals(self.driver.kick_fd.fileno()) or not idle

    def serve(self, written: int, called: bool) -> None:
        """The device works on a chain, or sleeps if there is none. Who asks for a call gets it."""
        turn_until_idle(self.pump)
        assert self.pump.holding == bool(self.lent)
        if not self.lent:
            return
        if called := called and not self.driver.has_used:
            self.driver.ask_for_call()
        else:
            self.driver.ask_for_no_calls()
        head, data, buffers = self.lent.pop(0)
        assert self.pump.read(self.pump.ticket) == data
        self.content += 1
        answer = self.content.to_bytes(7, "little") * len(buffers)
        answer = answer[: written % (len(answer) + 1)]
        assert self.pump.write(self.pump.ticket, answer) == len(answer)
        assert self.pump.complete(self.pump.ticket, len(answer))
        self.used.append((Used(head, len(answer)), buffers, answer))
        # The first call after a start is always made.
        assert bool(signals(self.driver.call_fd.fileno())) == called or self.first_call
        self.first_call = False
        turn_until_idle(self.pump)

    def reap(self) -> None:
        """The driver collects what was used, all of it and as it was."""
        assert self.driver.reap() == [used for used, _, _ in self.used]
        for _, buffers, answer in self.used:
            assert b"".join(self.ram.read(*buffer) for buffer in buffers)[: len(answer)] == answer
        self.used.clear()


ADD = st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 3), st.booleans())
SERVE = st.tuples(st.just("serve"), st.integers(0, 21), st.booleans())
STEPS = st.lists(st.one_of(ADD, SERVE, st.tuples(st.just("reap"))), max_size=80)


@PROPERTY
@given(SETUPS, STEPS)
def test_whatever_both_do_they_agree(setup: Setup, steps: list[tuple[object, ...]]) -> None:
    with GuestRam([(0, MIB)]) as ram, Pair(ram, setup) as pair:
        turn_until_idle(pair.pump)
        for name, *arguments in steps:
            getattr(pair, str(name))(*arguments)
        while pair.lent:
            pair.serve(7, True)
        pair.reap()
        assert pair.driver.free == setup.ring_size
        driver = pair.driver
        if isinstance(driver, PackedDriverRing):
            assert driver.next_avail == driver.next_used
            assert pair.pump.first.stop() == driver.next_used.word * 0x10001


def run_bursts(setup: Setup, rounds: list[list[int]]) -> None:
    """Chains of these lengths through a transmit ring that is disabled: they are taken by bursts, and dropped."""
    with GuestRam([(0, MIB)]) as ram:
        memory = map_guest(ram)
        driver = make_driver(ram, setup.packed, 1, setup.ring_size, event_idx=setup.event_idx, in_order=setup.in_order)
        driver.reset(setup.base)
        pump = NetPump(0, setup.features)
        start(pump.tx, driver, memory)
        pump.tx.enabled = False
        turn_until_idle(pump)
        for lengths in rounds:
            heads = [driver.add(readable=[(0, 64)] * length) for length in lengths if length <= driver.free]
            assert driver.kick() == bool(heads) or not setup.event_idx
            driver.ask_for_call()
            signals(driver.call_fd.fileno())
            turn_until_idle(pump)
            assert bool(signals(driver.call_fd.fileno())) == bool(heads)
            assert driver.reap() == [Used(head, 0) for head in heads]
            assert driver.in_flight == 0
        pump.close()
        driver.close()
        memory.close()


@PROPERTY
@given(SETUPS, st.lists(st.lists(st.integers(1, 4), max_size=30), max_size=20))
def test_bursts_and_batches(setup: Setup, rounds: list[list[int]]) -> None:
    run_bursts(setup, rounds)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_largest_ring(packed: bool, in_order: bool) -> None:
    run_bursts(Setup(packed, 32768, 0xFFF0, True, in_order), [[64] * 512, [63] * 520, [64] * 512])

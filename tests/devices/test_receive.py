"""Receive: every packet reaches the driver whole and in order, whatever buffers it offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.devices.bench import MODERN, Net
from tests.hostile.victim import frame_of
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import BURST, EVENT, PORT_IN, WORK

PLAIN = int(VirtioFeature.VERSION_1)
MakeNet = Callable[..., Net]
MAX_FRAME = 65535 + 18
MIB = 1 << 20
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


class Driver:
    """A driver that keeps receive chains posted and puts packets together by num_buffers."""

    def __init__(self, net: Net, sizes: Sequence[int]) -> None:
        self.net = net
        self.sizes = sizes
        self._lent: dict[int, list[tuple[int, int]]] = {}
        self._free: list[list[tuple[int, int]]] = []
        self._filled: list[bytes] = []

    def fill(self, count: int) -> None:
        """Post so many chains."""
        for _ in range(count):
            buffers = self._free.pop() if self._free else [(self.net.ram.alloc(size, 1), size) for size in self.sizes]
            self._lent[self.net.rx.add(writable=buffers, indirect=len(buffers) > 1)] = buffers

    def collect(self) -> list[tuple[int, bytes]]:
        """The packets that are complete: num_buffers and the frame."""
        for used in self.net.rx.reap():
            buffers = self._lent.pop(used.head)
            self._filled.append(self.net.content(buffers)[: used.written])
            self._free.append(buffers)
        packets = []
        while self._filled:
            header = NetHeader.parse(self._filled[0][: self.net.header_size])
            assert 1 <= header.num_buffers <= len(self._filled), "a packet's buffers are published together"
            pieces = self._filled[: header.num_buffers]
            del self._filled[: header.num_buffers]
            room = sum(self.sizes)
            assert all(len(piece) == room for piece in pieces[:-1]), "a gap in the packet"
            packets.append((header.num_buffers, b"".join(pieces)[self.net.header_size :]))
        return packets


# ---- mergeable buffers -----------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NET-10", "VIO-NET-11")
@pytest.mark.parametrize("splits", [1, 3], ids=["one segment", "three segments"])
@pytest.mark.parametrize("buffer", [60, 100, 1526, 4096, 65562])
def test_mergeable_buffers_of_every_size(buffer: int, splits: int) -> None:
    """Frames from the shortest to the longest that 64 such buffers hold, twice, so that it adapts both ways."""
    most = min(MAX_FRAME, 64 * buffer - 12)
    lengths = sorted({n for n in (14, 48, 49, 60, 88, 89, 1514, 1515, 4084, 4085, 9000, 65550, most) if n <= most})
    frames = [(frame_of(i) * (n // 60 + 1))[:n] for i, n in enumerate([*lengths, *reversed(lengths)] * 2)]
    sizes = [buffer - 2 * (buffer // 3), *[buffer // 3] * 2] if splits == 3 else [buffer]
    with GuestRam([(0, 64 * MIB)]) as ram:
        net = Net(ram, size=256)
        try:
            driver = Driver(net, sizes)
            got = []
            for frame in frames:
                net.host.send(bytes(12) + frame)
                driver.fill(net.rx.free)
                while net.pump.turn() == WORK:
                    pass
                got += driver.collect()
            assert [frame for _, frame in got] == frames
            assert [count for count, _ in got] == [-(-(12 + len(frame)) // buffer) for frame in frames]
            assert net.counters("rx_packets", "rx_dropped") == (len(frames), 0)
        finally:
            net.close()


def test_after_a_long_packet_the_next_go_straight_into_the_buffers(make_net: MakeNet) -> None:
    net = make_net(size=64)
    driver = Driver(net, [4096])
    driver.fill(64)
    for _ in range(4):
        net.host.send(bytes(12 + 9000))
        net.pump.turn()
    assert driver.collect() == [(3, bytes(9000))] * 4
    assert net.counters("rx_packets", "rx_direct") == (4, 3)


@pytest.mark.proves("VIO-NET-10")
@SHARED
@given(
    st.integers(40, 2000),
    st.lists(
        st.tuples(st.lists(st.integers(14, 3000), max_size=4), st.integers(0, 40), st.integers(1, 64)), max_size=12
    ),
)
def test_any_packets_through_any_buffers(ram: GuestRam, buffer: int, steps: list[tuple[list[int], int, int]]) -> None:
    """Each step sends packets of some lengths, posts some chains, and turns with some budget."""
    net = Net(ram, size=128)
    try:
        driver = Driver(net, [buffer])
        sent: list[bytes] = []
        got: list[bytes] = []
        for lengths, posted, budget in [*steps, *[([], 128, 64)] * 60]:
            for length in lengths:
                if 12 + length <= 64 * buffer:
                    sent.append((frame_of(len(sent)) * 50)[:length])
                    net.host.send(bytes(12) + sent[-1])
            driver.fill(min(posted, net.rx.free))
            net.pump.turn(budget)
            got += [frame for _, frame in driver.collect()]
        assert got == sent
    finally:
        net.close()


@pytest.mark.proves("VIO-NET-11")
@pytest.mark.parametrize("cut", range(1, 13))
def test_num_buffers_across_segments(make_net: MakeNet, cut: int) -> None:
    net = make_net()
    first = net.post(cut, 64 - cut)
    second = net.post(2000)
    net.host.send(bytes(12) + frame_of(2))
    net.pump.turn()
    used = net.rx.reap()
    assert [entry.written for entry in used] == [64, 12 + len(frame_of(2)) - 64]
    assert NetHeader.parse(net.content(first)[:12]).num_buffers == 2
    assert net.content(first)[12:] + net.content(second)[: used[1].written] == frame_of(2)


@pytest.mark.proves("VIO-NET-11")
def test_num_buffers_one_byte_a_segment(make_net: MakeNet) -> None:
    net = make_net()
    buffers = net.post(*[1] * 12, 100)
    net.host.send(bytes(2) + b"\xff" * 10 + frame_of(0)[:60])
    net.pump.turn()
    assert net.content(buffers)[:12] == bytes(2) + b"\xff" * 8 + b"\1\0"


@pytest.mark.proves("VIO-NET-11")
def test_num_buffers_is_one_without_mergeable_buffers(make_net: MakeNet) -> None:
    net = make_net(PLAIN)
    buffers = net.post(2048)
    net.host.send(bytes(2) + b"\xff" * 10 + frame_of(0))
    net.pump.turn()
    assert net.content(buffers)[:12] == bytes(2) + b"\xff" * 8 + b"\1\0"


def test_a_header_of_ten_has_no_num_buffers(make_net: MakeNet) -> None:
    net = make_net(0)
    buffers = net.post(2048)
    net.host.send(bytes(2) + b"\xff" * 8 + frame_of(0))
    net.pump.turn()
    assert net.reap_one(net.rx).written == 10 + len(frame_of(0))
    assert net.content(buffers)[: 10 + len(frame_of(0))] == bytes(2) + b"\xff" * 8 + frame_of(0)


@pytest.mark.proves("VIO-NET-12")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_too_few_buffers_wait_for_a_kick(make_net: MakeNet, event_idx: bool) -> None:
    net = make_net(event_idx=event_idx)
    driver = Driver(net, [200])
    driver.fill(3)
    net.host.send(bytes(12) + (frame := bytes(range(250)) * 4))
    for _ in range(3):
        assert net.pump.turn() == 0  # the port is left alone
        assert net.pump.rx.armed
        assert net.rx.used_idx == 0
    driver.fill(2)
    assert net.rx.kick()
    assert net.pump.turn() == 0
    assert net.rx.used_idx == 0
    driver.fill(1)
    assert net.rx.kick()
    assert net.pump.turn() == 0
    assert driver.collect() == [(6, frame)]
    assert net.counters("rx_packets", "rx_dropped") == (1, 0)


@pytest.mark.proves("VIO-NET-12")
def test_a_packet_that_waits_stays_first(make_net: MakeNet) -> None:
    net = make_net()
    driver = Driver(net, [100])
    driver.fill(2)
    frames = [bytes([i]) * n for i, n in enumerate((400, 60, 300, 14))]
    for frame in frames:
        net.host.send(bytes(12) + frame)
    net.pump.turn()
    assert driver.collect() == []
    driver.fill(14)
    while net.pump.turn() == WORK:
        pass
    assert [frame for _, frame in driver.collect()] == frames


@pytest.mark.proves("VIO-NET-12")
def test_a_packet_that_waits_outlives_a_stop(make_net: MakeNet) -> None:
    """Its ring stops with the buffers put back; after the next start they are used first."""
    net = make_net()
    net.post(100)
    net.host.send(bytes(12) + bytes(150))
    net.pump.turn()
    assert net.rx.used_idx == 0
    assert net.pump.rx.stop() == net.position(net.rx)


@pytest.mark.proves("VIO-NET-13")
@pytest.mark.parametrize("size", [4, 64, 256])
def test_a_packet_that_no_number_of_buffers_holds_is_dropped(make_net: MakeNet, size: int) -> None:
    net = make_net(size=size)
    driver = Driver(net, [60])
    driver.fill(size)
    net.host.send(bytes(12) + bytes(60 * min(size, 64)))
    net.host.send(bytes(12) + b"next".ljust(48))
    while net.pump.turn() == WORK:
        pass
    assert [frame for _, frame in driver.collect()] == [b"next".ljust(48)]
    assert net.counters("rx_dropped", "rx_packets") == (1, 1)


@pytest.mark.proves("VIO-NET-13")
@pytest.mark.parametrize("buffer", [80_000, 2048, 69_000])
@pytest.mark.parametrize("frame", [MAX_FRAME + 1, 100_000, 131_000])
def test_packets_longer_than_any_frame(make_net: MakeNet, buffer: int, frame: int) -> None:
    """Dropped, even if one buffer would hold it; nothing is written where it does not belong."""
    net = make_net(size=64)
    driver = Driver(net, [buffer])
    driver.fill(64)
    net.host.send(bytes(12 + frame))
    net.host.send(bytes(12) + frame_of(7))
    while net.pump.turn() == WORK:
        pass
    assert [frame for _, frame in driver.collect()] == [frame_of(7)]
    assert net.counters("rx_dropped") == (1,)


# ---- buffers that hold a whole packet --------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NET-14")
def test_without_mergeable_buffers_what_is_too_long_is_dropped(make_net: MakeNet) -> None:
    net = make_net(PLAIN)
    driver = Driver(net, [512])
    driver.fill(8)
    frames = [bytes([i]) * n for i, n in enumerate((500, 501, 14, 60_000, 499))]
    for frame in frames:
        net.host.send(bytes(12) + frame)
    while net.pump.turn() == WORK:
        pass
    assert driver.collect() == [(1, frame) for frame in frames if len(frame) <= 500]
    assert net.counters("rx_packets", "rx_dropped") == (3, 2)
    assert net.rx.in_flight == 5


def test_a_packet_without_a_header_is_dropped(make_net: MakeNet) -> None:
    net = make_net()
    driver = Driver(net, [512])
    driver.fill(4)
    net.host.send(bytes(11))
    net.host.send(bytes(12) + frame_of(0))
    while net.pump.turn() == WORK:
        pass
    assert [frame for _, frame in driver.collect()] == [frame_of(0)]
    assert net.counters("rx_dropped") == (1,)


# ---- chains that cannot be used --------------------------------------------------------------------------------------

NOWHERE = 0xDEAD_0000_0000
USELESS = {
    "readable": [(0x10000, 2048, 0, 0)],
    "readable after writable": [(0x10000, 2048, 3, 1), (0x20000, 64, 0, 0)],
    "unmapped": [(NOWHERE, 2048, 2, 0)],
    "unmapped after writable": [(0x10000, 2048, 3, 1), (NOWHERE, 64, 2, 0)],
    "length 0 after writable": [(0x10000, 2048, 3, 1), (0x20000, 0, 2, 0)],
    "shorter than a header": [(0x10000, 11, 2, 0)],
    "one byte": [(0x10000, 1, 2, 0)],
}


@pytest.mark.proves("VIO-NET-15")
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "plain"])
@pytest.mark.parametrize("name", USELESS)
def test_useless_chains_are_passed_over(make_split_net: MakeNet, name: str, mergeable: bool) -> None:
    """They come back with length 0, and the packet goes into the next good one, untouched by what was before it."""
    net = make_split_net(MODERN if mergeable else PLAIN)
    for i, (addr, length, flags, following) in enumerate(USELESS[name]):
        net.rx.set_descriptor(i, net.rx.descriptor(i)._replace(addr=addr, length=length, flags=flags, next=following))
    good = net.ram.alloc(4096, 1), 4096
    net.rx.set_descriptor(5, net.rx.descriptor(5)._replace(addr=good[0], length=4096, flags=2))
    for slot, head in enumerate((0, 5, 0, 5)):
        net.rx.set_avail(slot, head)
    net.rx.avail_idx = 4
    for number in (1, 2):
        net.host.send(bytes(12) + frame_of(number))
    while net.pump.turn() == WORK:
        pass
    assert net.pump.rx.fault == 0
    written = [0, 12 + len(frame_of(1)), 0, 12 + len(frame_of(2))]
    assert [net.rx.used(slot) for slot in range(4)] == list(zip((0, 5, 0, 5), written, strict=True))
    assert net.content([good])[12 : 12 + len(frame_of(2))] == frame_of(2)
    assert net.counters("rx_packets") == (2,)


@pytest.mark.proves("VIO-NET-15")
@pytest.mark.parametrize("name", USELESS)
def test_a_useless_chain_in_the_middle_of_a_merged_packet(make_split_net: MakeNet, name: str) -> None:
    """What stood before it goes back empty too: a merged packet's chains must stand side by side."""
    net = make_split_net()
    for i, (addr, length, flags, following) in enumerate(USELESS[name]):
        net.rx.set_descriptor(i, net.rx.descriptor(i)._replace(addr=addr, length=length, flags=flags, next=following))
    rooms = [net.ram.alloc(512, 1) for _ in range(4)]
    for i, room in enumerate(rooms):
        net.rx.set_descriptor(5 + i, net.rx.descriptor(5 + i)._replace(addr=room, length=512, flags=2))
    heads = [5, 0, 6, 7, 8]
    for slot, head in enumerate(heads):
        net.rx.set_avail(slot, head)
    net.rx.avail_idx = 5
    frame = bytes(range(250)) * 6
    net.host.send(bytes(12) + frame)
    while net.pump.turn() == WORK:
        pass
    used = [net.rx.used(slot) for slot in range(net.rx.used_idx)]
    got = b"".join(
        net.ram.read(rooms[entry.head - 5], entry.written) for entry in used if entry.head and entry.written > 12
    )
    if "header" in name or "byte" in name:  # short but sound: it may hold its part of the packet
        assert sum(entry.written for entry in used) == 12 + len(frame)
    else:
        assert got[12:] == frame
        assert NetHeader.parse(got[:12]).num_buffers == 3


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NET-7")
def test_a_disabled_ring_receives_nothing(make_net: MakeNet) -> None:
    net = make_net()
    driver = Driver(net, [2048])
    driver.fill(4)
    net.pump.rx.enabled = False
    net.host.send(bytes(12) + frame_of(0))
    assert net.pump.turn() == 0
    assert driver.collect() == []
    net.pump.rx.enabled = True
    assert net.pump.turn() == PORT_IN
    assert driver.collect() == [(1, frame_of(0))]


def test_more_than_a_turn_moves(make_net: MakeNet) -> None:
    net = make_net(size=256)
    driver = Driver(net, [2048])
    frames = [frame_of(i) for i in range(200)]
    for frame in frames:
        net.host.send(bytes(12) + frame)
    driver.fill(256)
    turns = 0
    while net.pump.turn(32) == WORK:
        turns += 1
    assert turns >= 5
    assert [frame for _, frame in driver.collect()] == frames


@pytest.mark.proves("VIO-NET-9")
def test_a_port_that_is_gone_is_an_event(make_net: MakeNet) -> None:
    net = make_net()
    net.post(2048)
    net.host.close()
    assert net.pump.turn() == EVENT
    assert net.pump.port_failed
    assert net.rx.used_idx == 0


def test_both_rings_in_one_memory_may_overlap(make_split_net: MakeNet) -> None:
    """A driver that receives into its own rings harms its own rings."""
    net = make_split_net()
    for address in (net.rx.used_addr, net.rx.avail_addr + 4, net.tx.desc_addr, net.tx.used_addr):
        net.rx.add(writable=[(address, 64)])
    for _ in range(8):
        net.host.send(b"\xff" * 64)
        net.pump.turn()
    assert net.pump.port == net.port.fileno()


def test_counters_have_names() -> None:
    pump = NetPump(0, MODERN)
    counters = pump.counters()
    assert set(counters.values()) == {0}
    assert {"vring0_chains", "vring1_chains", "rx_packets", "sleeps"} <= counters.keys()
    pump.close()


def test_useless_chains_before_a_kept_packet_count_against_the_budget(make_split_net: MakeNet) -> None:
    """Else a guest that adds them without end would never let the turn end."""
    net = make_split_net(size=256)
    net.post(16)
    net.host.send(bytes(12) + bytes(100))
    net.pump.turn()
    assert net.counters("rx_packets") == (0,)
    for _ in range(200):
        net.rx.add(writable=[(1 << 40, 64)])
    before = net.rx.used_idx
    assert net.pump.turn(4) & WORK
    assert net.rx.used_idx - before <= BURST

"""Transmit: what leaves a port is what the driver sent, in order, and nothing that it may not send."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.devices.bench import MODERN, Net
from tests.hostile.victim import frame_of
from vhostuser.devices.net.features import NetFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import EVENT, PORT_OUT, WORK

LEGACY = 0
MakeNet = Callable[..., Net]
MAX_FRAME = 65535 + 18


@pytest.fixture(params=[LEGACY, MODERN], ids=["header of 10", "header of 12"])
def net(request: pytest.FixtureRequest, make_split_net: MakeNet) -> Net:
    return make_split_net(request.param)


@pytest.mark.proves("VIO-NET-5")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("pieces", range(1, 13))
def test_a_header_in_pieces(net: Net, pieces: int, indirect: bool) -> None:
    """In so many descriptors, cut at places that differ from case to case; the frame begins where the header ends."""
    cuts = sorted(random.Random(pieces).sample(range(1, net.header_size), min(pieces, net.header_size) - 1))
    sizes = [end - begin for begin, end in zip([0, *cuts], [*cuts, net.header_size], strict=True)]
    header = NetHeader(hdr_len=14, csum_start=0x1234, csum_offset=0x5678, gso_size=7)
    packet = header.pack(net.header_size) + frame_of(3)
    head = net.transmit(packet, sizes, indirect=indirect)
    net.pump.turn()
    assert net.received() == [packet]
    assert net.reap_one(net.tx) == (head, 0)


@pytest.mark.proves("VIO-NET-5")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), max_size=15), st.integers(0, 50), st.booleans())
def test_a_packet_in_pieces(ram: GuestRam, sizes: list[int], number: int, legacy: bool) -> None:
    net = Net(ram, LEGACY if legacy else MODERN)
    try:
        packet = bytes(net.header_size) + frame_of(number)
        net.transmit(packet, sizes)
        net.pump.turn()
        assert net.received() == [packet]
    finally:
        net.close()


@pytest.mark.proves("VIO-NET-6")
@pytest.mark.parametrize(
    ("frame", "sent"),
    [
        *((n, n >= 14) for n in (0, 1, 13, 14, 15, 1514, 2036, 2037, 2038, 2048)),
        *((MAX_FRAME, True), (MAX_FRAME + 1, False)),
    ],
)
def test_sizes_at_the_limits(net: Net, frame: int, sent: bool) -> None:
    packet = bytes(net.header_size + frame)
    head = net.transmit(packet, [4096] * 15)
    net.pump.turn()
    assert net.received() == ([packet] if sent else [])
    assert net.counters("tx_packets", "tx_bytes", "tx_dropped") == ((1, frame, 0) if sent else (0, 0, 1))
    assert net.reap_one(net.tx) == (head, 0)


@pytest.mark.proves("VIO-NET-6")
@pytest.mark.parametrize("size", [1, 5, 9, 10, 11, 12])
def test_chains_that_hold_no_more_than_a_header(net: Net, size: int) -> None:
    net.transmit(bytes(size))
    net.transmit(bytes(net.header_size) + frame_of(1))
    net.pump.turn()
    assert net.received() == [bytes(net.header_size) + frame_of(1)]
    assert net.counters("tx_dropped") == (1,)


@pytest.mark.proves("VIO-NET-3", "VIO-NET-4")
def test_what_was_judged_is_what_is_sent(make_net: MakeNet) -> None:
    net = make_net(MODERN | NetFeature.CSUM)
    bad = NetHeader(flags=1, csum_start=60)
    cleared = NetHeader(flags=0xFF, csum_start=34, csum_offset=6)
    for header in (bad, cleared, NetHeader()):
        net.transmit(header.pack(12) + bytes(60))
    net.pump.turn()
    assert [NetHeader.parse(packet[:12]) for packet in net.received()] == [
        NetHeader(flags=1, csum_start=34, csum_offset=6),
        NetHeader(),
    ]
    assert net.counters("tx_packets", "tx_dropped") == (2, 1)


@pytest.mark.proves("VIO-NET-7")
def test_a_disabled_ring_is_emptied_and_its_packets_thrown_away(net: Net) -> None:
    net.pump.tx.enabled = False
    heads = [net.transmit(bytes(net.header_size) + frame_of(i)) for i in range(5)]
    assert net.pump.turn() == 0
    assert net.received() == []
    assert [used.head for used in net.tx.reap()] == heads
    assert net.counters("tx_discarded", "tx_packets", "tx_dropped") == (5, 0, 0)
    net.pump.tx.enabled = True
    net.transmit(bytes(net.header_size) + frame_of(9))
    net.pump.turn()
    assert net.received() == [bytes(net.header_size) + frame_of(9)]


@pytest.mark.proves("VIO-NET-8")
@pytest.mark.parametrize("size", [4, 16, 256])
def test_a_full_port_loses_nothing_and_reorders_nothing(make_limited: MakeNet, size: int) -> None:
    """Packets in chains of one to four buffers, far more than the port takes at once."""
    net = make_limited(size=size)
    net.port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    wanted = [frame_of(i) for i in range(700)]
    left = list(reversed(wanted))
    got: list[bytes] = []
    blocked = 0
    while left or net.tx.in_flight:
        net.tx.reap()
        while left and net.tx.free:
            pieces = len(left) % min(4, net.tx.free)
            net.transmit(bytes(12) + left.pop(), [17] * pieces)
        while (todo := net.pump.turn(64)) == WORK:
            pass
        if todo & PORT_OUT:
            blocked += 1
            got += net.received()
    got += net.received()
    assert blocked
    assert [packet[12:] for packet in got] == wanted
    assert net.counters("tx_packets", "tx_dropped", "tx_rejected") == (700, 0, 0)


@pytest.mark.proves("VIO-NET-8")
def test_what_a_full_port_did_not_take_stays_in_the_ring(make_limited: MakeNet) -> None:
    net = make_limited()
    sent = net.fill_port()
    assert net.pump.turn() & PORT_OUT
    assert net.tx.used_idx == sent
    assert net.pump.tx.stop() == net.position(net.tx)
    assert len(net.received()) == sent


def test_a_packet_that_the_port_refuses_is_not_sent_again(make_net: MakeNet) -> None:
    """A socket refuses what is longer than its buffer with EMSGSIZE; an interface that is down with EIO."""
    net = make_net()
    net.port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    net.transmit(bytes(12) + bytes(30_000), [4096] * 8)
    net.transmit(bytes(12) + frame_of(1))
    net.pump.turn()
    assert net.received() == [bytes(12) + frame_of(1)]
    assert net.counters("tx_rejected", "tx_packets") == (1, 1)


@pytest.mark.proves("VIO-NET-9")
def test_a_port_that_is_gone_is_an_event(net: Net) -> None:
    net.host.close()
    net.transmit(bytes(net.header_size) + frame_of(1))
    assert net.pump.turn() == EVENT
    assert net.pump.port_failed
    assert net.pump.tx.fault == 0
    assert net.tx.used_idx == 0
    assert net.pump.tx.stop() == net.position(net.tx)  # the packet was not sent


def test_turns_are_bounded(make_net: MakeNet) -> None:
    net = make_net(size=256)
    for _ in range(256):
        net.tx.add([net.frame])
    net.pump.tx.enabled = False
    assert net.pump.turn(100) == WORK
    assert net.tx.used_idx == 100
    assert net.pump.turn(100) == WORK
    assert net.pump.turn(100) == 0


def test_a_burst_fits_the_iovecs_however_many_buffers_its_chains_have(make_net: MakeNet) -> None:
    """Four packets of a thousand pieces are more iovecs than a burst has."""
    net = make_net(size=16)
    packets = []
    for i in range(4):
        packets.append(bytes(12) + frame_of(20 + i)[:988].ljust(988, b"."))
        net.transmit(packets[-1], [1] * 999, indirect=True)
    while net.pump.turn() == WORK:
        pass
    assert net.received() == packets
    assert net.counters("tx_packets", "vring1_chains", "vring1_chains_dropped") == (4, 4, 0)


@pytest.mark.parametrize("features", [int(VirtioFeature.VERSION_1), int(NetFeature.MRG_RXBUF), LEGACY])
def test_header_sizes_by_feature(make_net: MakeNet, features: int) -> None:
    net = make_net(features)
    assert net.header_size == (12 if features else 10)

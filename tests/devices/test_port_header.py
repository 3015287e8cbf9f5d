"""A port whose header lacks num_buffers, and headers that a driver did not accept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.devices.bench import MODERN, Net
from tests.hostile.victim import frame_of
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature as F
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.virtio.features import VirtioFeature

MakeNet = Callable[..., Net]
UNMERGED = int(VirtioFeature.VERSION_1)
HEADER = NetHeader(0, 0, 0x1122, 0x3344, 0x5566, 0x7788)


def port_packet(frame: bytes, header: NetHeader = HEADER) -> bytes:
    return header.pack(10) + frame


@pytest.mark.proves("VIO-NET-16")
def test_sending_cuts_num_buffers(make_net: MakeNet) -> None:
    net = make_net(size=64, port_header=10)
    header = NetHeader(hdr_len=14, num_buffers=0xABCD)
    for number in range(8):
        net.transmit(header.pack(12) + frame_of(number), [3, 8, 5])
    net.pump.turn()
    assert net.received() == [port_packet(frame_of(number), header) for number in range(8)]


@pytest.mark.proves("VIO-NET-16")
@pytest.mark.parametrize("features", [MODERN, UNMERGED], ids=["mergeable", "one buffer"])
@pytest.mark.parametrize("cut", range(1, 16))
def test_receiving_adds_num_buffers_wherever_the_header_lies(make_net: MakeNet, cut: int, features: int) -> None:
    net = make_net(features, port_header=10)
    buffers = [net.post(cut, 1600) for _ in range(8)]
    for number in range(8):
        net.host.send(port_packet(frame_of(number)))
    for _ in range(8):
        net.pump.turn()
    for number, (used, buffer) in enumerate(zip(net.rx.reap(), buffers, strict=True)):
        packet = net.content(buffer)[: used.written]
        assert packet[:10] == HEADER.pack(10)
        assert NetHeader.parse(packet[:12]).num_buffers == 1
        assert packet[12:] == frame_of(number)
    assert net.counters("rx_packets", "rx_dropped") == (8, 0)


@pytest.mark.proves("VIO-NET-16")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(14, 9000), min_size=1, max_size=30),
    pieces=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    batching=st.sampled_from(Batching),
)
def test_any_packet_over_any_buffers(ram: GuestRam, lengths: list[int], pieces: list[int], batching: Batching) -> None:
    pieces = [*pieces, 400]  # a header has room in each chain
    net = Net(ram, size=256, port_header=10)
    net.pump.use(net.port.fileno(), 10, batching)
    try:
        frames = [(frame_of(number) * 150)[:length] for number, length in enumerate(lengths)]
        posted: list[list[tuple[int, int]]] = []
        got: list[bytes] = []
        data = b""
        left = 0
        for frame in [*frames, *[b""] * 40]:
            while net.rx.free >= len(pieces):
                posted.append(net.post(*pieces))
            if frame:
                net.host.send(port_packet(frame))
            net.pump.turn()
            for used in net.rx.reap():
                packet = net.content(posted.pop(0))[: used.written]
                if not left:
                    assert packet[:10] == HEADER.pack(10)
                    left = NetHeader.parse(packet[:12]).num_buffers
                    packet = packet[12:]
                data += packet
                left -= 1
                if not left:
                    got.append(data)
                    data = b""
        assert got == frames
    finally:
        net.close()


@pytest.mark.proves("VIO-NET-17")
@pytest.mark.parametrize(
    ("accepted", "header", "taken"),
    [
        pytest.param(0, NetHeader(), True, id="plain"),
        pytest.param(0, NetHeader(flags=2), True, id="a checksum that was verified"),
        pytest.param(0, NetHeader(flags=1, csum_start=34, csum_offset=16), False, id="checksum"),
        pytest.param(F.GUEST_CSUM, NetHeader(flags=1, csum_start=34, csum_offset=16), True, id="checksum accepted"),
        pytest.param(F.GUEST_CSUM, NetHeader(1, 1, 54, 1448, 34, 16), False, id="TSO4"),
        pytest.param(F.GUEST_CSUM | F.GUEST_TSO6, NetHeader(1, 1, 54, 1448, 34, 16), False, id="TSO4 for TSO6"),
        pytest.param(F.GUEST_CSUM | F.GUEST_TSO4, NetHeader(1, 1, 54, 1448, 34, 16), True, id="TSO4 accepted"),
        pytest.param(F.GUEST_CSUM | F.GUEST_TSO4, NetHeader(1, 0x81, 54, 1448, 34, 16), False, id="ECN"),
        pytest.param(
            F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_ECN, NetHeader(1, 0x81, 54, 1448, 34, 16), True, id="ECN accepted"
        ),
        pytest.param(
            F.GUEST_CSUM | F.GUEST_TSO6 | F.GUEST_ECN, NetHeader(1, 0x84, 74, 1448, 54, 16), True, id="ECN over IPv6"
        ),
        pytest.param(F.GUEST_CSUM | F.GUEST_UFO, NetHeader(1, 3, 42, 1480, 34, 6), True, id="UFO accepted"),
        pytest.param(F.GUEST_CSUM | F.GUEST_USO4, NetHeader(1, 5, 42, 1472, 34, 6), False, id="USO of IPv4 only"),
        pytest.param(
            F.GUEST_CSUM | F.GUEST_USO4 | F.GUEST_USO6, NetHeader(1, 5, 42, 1472, 34, 6), True, id="USO accepted"
        ),
        pytest.param(~0, NetHeader(1, 2, 42, 1472, 34, 6), False, id="no such type"),
    ],
)
@pytest.mark.parametrize("pieces", [[1600], [1, 1600]], ids=["whole", "split after one byte"])
@pytest.mark.parametrize("port_header", [10, 12])
def test_a_driver_gets_no_packet_that_it_did_not_accept(
    make_net: MakeNet, accepted: int, header: NetHeader, taken: bool, pieces: list[int], port_header: int
) -> None:
    net = make_net(MODERN | accepted, port_header=port_header)
    buffers = [net.post(*pieces) for _ in range(8)]
    for packet in (header, NetHeader(hdr_len=7)) * 2:
        net.host.send(packet.pack(port_header) + frame_of(1))
    for _ in range(8):
        net.pump.turn()
    got = [NetHeader.parse(net.content(buffer)[:12]).hdr_len for buffer, _ in zip(buffers, net.rx.reap(), strict=False)]
    assert got == ([header.hdr_len, 7] if taken else [7]) * 2
    assert net.counters("rx_packets", "rx_refused") == ((4, 0) if taken else (2, 2))


@pytest.mark.proves("VIO-NET-19")
@pytest.mark.parametrize("accepted", [0, F.GUEST_CSUM], ids=["without GUEST_CSUM", "with GUEST_CSUM"])
@pytest.mark.parametrize("pieces", [[9000], [1, 9000]], ids=["whole", "split after one byte"])
@pytest.mark.parametrize("size", [60, 8000], ids=["copied", "straight into the buffers"])
def test_a_verified_checksum_is_told_to_whom_it_means_something(
    make_net: MakeNet, accepted: int, pieces: list[int], size: int
) -> None:
    net = make_net(MODERN | accepted)
    buffers = [net.post(*pieces) for _ in range(4)]
    for _ in buffers:
        net.host.send(NetHeader(flags=2).pack(12) + bytes(size))
    for _ in range(8):
        net.pump.turn()
    assert [NetHeader.parse(net.content(buffer)[:12]).flags for buffer in buffers] == [2 if accepted else 0] * 4
    assert net.counters("rx_packets", "rx_direct") == (4, 0 if size == 60 else 3)

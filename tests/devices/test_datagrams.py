"""Batches on a socket: what sendmmsg refuses, and where it stops."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.devices.bench import Net
from tests.hostile.victim import frame_of
from vhostuser.devices.net.batch import Batching
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio.layout import EVENT, PORT_OUT

HEADER = bytes(12)


@pytest.fixture
def net(ram: GuestRam, every_layout: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    monkeypatch.setattr(Net, "batching", Batching.DATAGRAMS)
    net = Net(ram, size=64)
    yield net
    net.close()


@pytest.mark.parametrize("refused", [(0,), (3,), (7,), (0, 1, 7), range(8)])
def test_a_packet_that_the_socket_refuses_keeps_none_from_being_sent(net: Net, refused: tuple[int, ...]) -> None:
    """A socket refuses what is longer than its buffer with EMSGSIZE."""
    net.port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    for number in range(8):
        net.transmit(HEADER + (bytes(50_000) if number in refused else frame_of(number)), [4096] * 3)
    assert not net.pump.turn() & (EVENT | PORT_OUT)
    assert net.received() == [HEADER + frame_of(number) for number in range(8) if number not in refused]
    assert net.counters("tx_rejected", "tx_packets", "tx_batches") == (len(refused), 8 - len(refused), 1)
    assert len(net.tx.reap()) == 8


def test_packets_of_every_length_in_one_batch(net: Net) -> None:
    frames = [(frame_of(number) * 50)[:length] for number, length in enumerate([14, 2036, 2037, 60, 9000, 65553, 14])]
    for frame in frames:
        net.transmit(HEADER + frame, [12, 1000])
    net.pump.turn()
    assert net.received() == [HEADER + frame for frame in frames]
    assert net.counters("tx_batches") == (1,)


@pytest.mark.proves("VIO-NET-8")
def test_what_is_dropped_behind_a_full_sockets_last_packet_counts_once(net: Net) -> None:
    net.port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    for number in range(48):
        net.transmit(HEADER + frame_of(number))
        if number % 3 == 0:
            net.transmit(bytes(20))  # too short for a frame
    rounds = 0
    got: list[bytes] = []
    while net.pump.turn() & PORT_OUT:
        rounds += 1
        got += net.received()
    got += net.received()
    assert rounds
    assert got == [HEADER + frame_of(number) for number in range(48)]
    assert net.counters("tx_packets", "tx_dropped", "tx_blocked") == (48, 16, rounds)


@pytest.mark.proves("VIO-NET-9")
def test_a_socket_whose_peer_is_gone_is_an_event(net: Net) -> None:
    net.host.close()
    for number in range(8):
        net.transmit(HEADER + frame_of(number))
    assert net.pump.turn() == EVENT
    assert net.pump.port_failed
    assert net.tx.reap() == []


def test_as_many_reads_as_there_are_packets(net: Net) -> None:
    """A burst of reads stops at the first that finds nothing."""
    for number in range(50):
        net.post(2048)
        net.host.send(HEADER + frame_of(number))
    net.pump.turn()
    assert len(net.rx.reap()) == 50
    assert net.counters("rx_packets", "rx_dropped", "rx_batches") == (50, 0, 4)

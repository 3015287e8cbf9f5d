"""Batches through io_uring, and what becomes of packets where they are not to be had."""

from __future__ import annotations

import os
import pty
import tty

import pytest

from tests.devices.bench import MODERN, Net
from vhostuser.devices.net import uring
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import GuestRam


@pytest.fixture
def batching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "batching", True)


def test_a_burst_is_one_call_each_way(ram: GuestRam, batching: None) -> None:
    net = Net(ram)
    frames = [bytes([n]) * 60 for n in range(8)]
    for frame in frames:
        net.transmit(bytes(12) + frame)
        net.post(2048)
    net.pump.turn()
    assert [net.host.recv(4096)[12:] for _ in frames] == frames
    assert net.counters("tx_packets", "tx_batches") == (8, 1)
    for frame in frames:
        net.host.send(bytes(12) + frame)
    net.pump.turn()
    assert net.counters("rx_packets") == (8,)
    assert net.counters("rx_batches")[0] >= 1
    net.close()


def test_a_file_without_nowait_gets_a_call_a_packet(ram: GuestRam, batching: None) -> None:
    """A tap before Linux 6.4 is one, and a terminal still is."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    net = Net(ram, port=master)
    for n in range(5):
        net.transmit(bytes(12) + bytes([n]) * 60)
    for _ in range(3):
        net.pump.turn()
    assert net.counters("tx_packets", "tx_rejected", "tx_dropped") == (5, 0, 0)
    assert os.read(slave, 4096) == b"".join(bytes(12) + bytes([n]) * 60 for n in range(5))
    assert net.pump.uring is not None
    assert not net.pump.uring.works
    net.close()
    os.close(master)
    os.close(slave)


def test_without_io_uring_there_are_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SETUP", -1)  # no such system call
    assert uring.open_uring() is None
    pump = NetPump(0, MODERN)
    pump.use(-1, 12, batching=True)
    assert pump.uring is None
    pump.close()

"""Batches through io_uring, and what becomes of packets where they are not to be had."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import AsyncIterator

import pytest
from click.testing import CliRunner

from tests.devices.bench import MODERN, Net
from tests.ports import PairPort
from vhostuser.cli import main
from vhostuser.devices.net import uring
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.datagrams import Datagrams
from vhostuser.devices.net.device import IoUring, NetDevice
from vhostuser.devices.net.pump import NetPump
from vhostuser.errors import PortError
from vhostuser.frontend.memory import GuestRam


@pytest.fixture
def batching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "batching", Batching.URING)


@pytest.mark.parametrize("kind", [Batching.URING, Batching.DATAGRAMS])
def test_a_burst_is_one_call_each_way(ram: GuestRam, monkeypatch: pytest.MonkeyPatch, kind: Batching) -> None:
    monkeypatch.setattr(Net, "batching", kind)
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
    sent = b"".join(bytes(12) + bytes([n]) * 60 for n in range(5))
    got = b""
    while len(got) < len(sent):  # a terminal passes on what it has when a worker of the kernel comes to it
        got += os.read(slave, 4096)
    assert got == sent
    assert net.pump.batch is not None
    assert not net.pump.batch.works
    net.close()
    os.close(master)
    os.close(slave)


def test_without_io_uring_there_are_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SETUP", -1)  # no such system call
    assert uring.open_uring(0) is None
    pump = NetPump(0, MODERN)
    pump.use(0, 12, batching=Batching.URING)
    assert pump.batch is None
    pump.close()


# ---- the choice ------------------------------------------------------------------------------------------------------


class BatchingPort(PairPort):
    """A port that is never full, as far as the device knows."""

    def __init__(self) -> None:
        super().__init__()
        self.batching = Batching.URING


@pytest.fixture
async def port() -> AsyncIterator[BatchingPort]:
    port = BatchingPort()
    yield port
    port.close()
    port.host.close()


@pytest.mark.parametrize(("choice", "batches"), [(IoUring.AUTO, True), (IoUring.ON, True), (IoUring.OFF, False)])
async def test_batches_can_be_demanded_and_refused(port: BatchingPort, choice: IoUring, batches: bool) -> None:
    pump = NetDevice(port, io_uring=choice).pump(0, MODERN)
    assert (pump.batch is not None) == batches
    pump.close()


async def test_auto_does_without_io_uring(port: BatchingPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SETUP", -1)
    pump = NetDevice(port).pump(0, MODERN)
    assert pump.batch is None
    pump.close()


async def test_on_tells_what_the_kernel_refuses(port: BatchingPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SETUP", -1)
    with pytest.raises(PortError, match=r"^io_uring=on: Function not implemented$"):
        NetDevice(port, io_uring=IoUring.ON)


async def test_a_socket_needs_no_io_uring(port: BatchingPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uring, "_SETUP", -1)
    port.batching = Batching.DATAGRAMS
    pump = NetDevice(port, io_uring=IoUring.ON).pump(0, MODERN)
    assert isinstance(pump.batch, Datagrams)
    pump.close()


async def test_on_tells_of_a_port_that_can_be_full(port: BatchingPort) -> None:
    port.batching = Batching.NONE
    with pytest.raises(PortError, match="io_uring=on: the port's send buffer is limited"):
        NetDevice(port, io_uring=IoUring.ON)


def test_a_file_without_nowait_is_found_out() -> None:
    master, slave = pty.openpty()
    with pytest.raises(OSError, match="does not know RWF_NOWAIT"):
        uring.check_uring(master)
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("words", [["--io-uring=maybe"], ["--poll-us=1000001"], ["--poll-us=-1"]])
def test_the_command_line_names_what_it_refuses(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["net", "--tap=none", "--socket-path=none", *words])
    assert result.exit_code == 2
    assert words[0].partition("=")[2] in result.output


@pytest.mark.parametrize("words", [[f"--io-uring={choice}"] for choice in IoUring] + [["--poll-us=1000000"]])
def test_the_command_line_takes_every_choice(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["net", "--print-capabilities", *words])
    assert result.exit_code == 0, result.output

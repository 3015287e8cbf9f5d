"""Taps with several queues: opened, adopted, attached and detached, and where the host's flows go. Needs root."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from click.testing import CliRunner

from tests.devices.namespace import drop_capabilities, in_namespace
from tests.devices.test_tap import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    exists,
    ip,
    packet_socket,
    queue,
    seen,
)
from vhostuser.cli import main
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports.tap import Tap, adopt_tap, open_tap
from vhostuser.errors import PortError

PAIRS = 4
FLOWS = 200
MULTI_QUEUE = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE


@contextmanager
def serving(queues: int = PAIRS) -> Iterator[tuple[Tap, NetDevice, socket.socket]]:
    """A tap, its device with a driver whose first pair runs, and the host's stack."""
    with closing(open_tap("several", queues)) as tap, packet_socket("several") as host:
        device = NetDevice(tap)
        device.driver_started(1 << 32)
        device.ring_running(0, True)
        ready(tap, host)
        yield tap, device, host


def ready(tap: Tap, host: socket.socket) -> None:
    """Send until something arrives: until the kernel has noticed a tap's carrier, it throws packets away."""
    while not any(received(tap, pair) for pair in range(tap.queues)):
        host.send(flow(0))


def flow(number: int, reply: bool = False) -> bytes:
    """A UDP packet from the host to the guest that belongs to one flow among many; or the flow's other direction."""
    ends, ports = [0x0A000001, 0x0A000002], [9, 1000 + number]
    if reply:
        ends.reverse()
        ports.reverse()
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 48, number, 0, 64, 17, 0, *ends)
    return b"\x02\0\0\0\0\2\x02\0\0\0\0\1\x08\0" + header + struct.pack("!HHHH", *ports, 28, 0) + bytes(20)


def received(tap: Tap, pair: int) -> list[bytes]:
    """What waits at a pair's queue, without its headers."""
    frames = []
    try:
        while True:
            frames.append(os.read(tap.fileno(pair), 4096)[12:])
    except BlockingIOError:
        return frames


def spread(tap: Tap, host: socket.socket) -> list[int]:
    """Send one packet of each flow to the guest: how many come by each queue. None gets lost or doubled."""
    sent = [flow(number) for number in range(FLOWS)]
    for frame in sent:
        host.send(frame)
    queues = [received(tap, pair) for pair in range(tap.queues)]
    assert sorted(frame for frames in queues for frame in frames) == sorted(sent)
    return [len(frames) for frames in queues]


def attached(name: str) -> int:
    """How many queues the host sends to."""
    return len([entry for entry in os.listdir(f"/sys/class/net/{name}/queues") if entry.startswith("tx-")])


# ---- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-TAP-1", "VIO-MQ-1")
@in_namespace
def test_a_tap_with_several_queues_is_made_and_removed() -> None:
    with closing(open_tap("several", PAIRS)) as tap:
        assert int(seen("several", "tun_flags"), 16) == MULTI_QUEUE
        fds = [tap.fileno(pair) for pair in range(tap.queues)]
        assert len(set(fds)) == tap.queues == PAIRS
        assert not any(os.get_blocking(fd) or os.get_inheritable(fd) for fd in fds)
        assert attached("several") == 1
    assert not exists("several")


@pytest.mark.parametrize("queues", [1, PAIRS])
@in_namespace
def test_a_tap_with_multi_queue_is_attached_to_and_stays(queues: int) -> None:
    ip("tuntap", "add", "dev", "there", "mode", "tap", "multi_queue", "vnet_hdr")
    for _ in range(2):
        with closing(open_tap("there", queues)) as tap:
            assert tap.queues == queues
            assert attached("there") == 1
    assert exists("there")


@pytest.mark.proves("VIO-TAP-2")
@in_namespace
def test_a_tap_without_multi_queue_has_one_queue() -> None:
    ip("tuntap", "add", "dev", "single", "mode", "tap", "vnet_hdr")
    with pytest.raises(PortError, match=r"tap single: exists with the flags tap, .*must be a tap \(.*multi_queue\)"):
        open_tap("single", 2)
    open_tap("single").close()


@pytest.mark.proves("VIO-TAP-2")
@pytest.mark.parametrize("queues", [1, 2])
@in_namespace
def test_a_tap_of_which_another_process_has_queues(queues: int) -> None:
    with closing(open_tap("shared", 2)):
        with pytest.raises(PortError, match=r"tap shared: another process has queues of it open; .*--tap fd:N"):
            open_tap("shared", queues)
        with closing(adopt_tap(queue("shared", MULTI_QUEUE))) as second:
            assert second.queues == 1
    open_tap("shared", queues).close()


@pytest.mark.proves("VIO-TAP-2")
@in_namespace
def test_a_tap_whose_queues_are_all_taken() -> None:
    with pytest.raises(PortError, match="tap crowded: it has no room for 300 more queues, 256 are the most"):
        open_tap("crowded", 300)
    assert not exists("crowded")


# ---- adopting --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-TAP-3", "VIO-MQ-1")
@in_namespace
def test_open_queues_are_adopted_and_switched_without_privilege() -> None:
    fds = [queue("given", MULTI_QUEUE) for _ in range(PAIRS)]
    drop_capabilities()
    with closing(adopt_tap(*fds)) as tap:
        assert tap.queues == PAIRS
        assert attached("given") == 1
        tap.attach(2, True)
        assert attached("given") == 2
    assert not exists("given")


@pytest.mark.proves("VIO-TAP-2")
@in_namespace
def test_queues_that_do_not_go_together() -> None:
    with ExitStack() as opened:

        def made(name: str, flags: int) -> int:
            fd = queue(name, flags)
            opened.callback(os.close, fd)
            return fd

        first, other = made("first", MULTI_QUEUE), made("other", MULTI_QUEUE)
        single = made("single", MULTI_QUEUE & ~IFF_MULTI_QUEUE)
        with pytest.raises(PortError, match="the queues belong to several taps: first, other"):
            adopt_tap(first, other)
        with pytest.raises(PortError, match=f"fd:{first}, fd:{first}: a queue serves one pair"):
            adopt_tap(first, first)
        twin = os.dup(single)
        opened.callback(os.close, twin)
        with pytest.raises(PortError, match=r"tap single: opened with the flags tap, .*; multi_queue missing"):
            adopt_tap(single, twin)
        unattached = os.open("/dev/net/tun", os.O_RDWR)
        opened.callback(os.close, unattached)
        with pytest.raises(PortError, match=f"--tap fd:{unattached}: not an attached tap queue"):
            adopt_tap(first, unattached)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--tap fd:3,fd:4 --queues 3", "--queues 3: --tap names 2 open queues"),
        ("--tap fd:3 --tap fd:4 --tap fd:5 --queues 1", "--queues 1: --tap names 3 open queues"),
        ("--tap fd:3,4", "--tap 4: a number must follow fd:"),
        ("--tap fd:3 --tap name", "--tap name: a number must follow fd:"),
        ("--tap fd:", "--tap fd:: a number must follow fd:"),
        ("--tap one --tap two", "2 names; a device has one tap"),
        ("--tap one --queues 0", "'0' is not a number from 1 to 128"),
        ("--tap one --queues 129", "'129' is not a number from 1 to 128"),
        ("--queues 2", "exactly one of --tap, --packet, --loop and --null is needed"),
        ("--tap /dev/tap9 --queues 2", "--queues 2: a macvtap serves one pair"),
        (f"--tap {','.join(f'fd:{fd}' for fd in range(3, 132))}", "129 open queues; a device has 128 pairs at most"),
    ],
)
def test_a_command_line_that_makes_no_sense(words: str, complaint: str) -> None:
    result = CliRunner().invoke(main, ["net", "--socket-path=/nowhere/vhost.sock", *words.split()])
    assert result.exit_code == 2
    assert complaint in result.output


# ---- attaching -------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MQ-1")
@in_namespace
def test_the_host_sends_to_the_pairs_that_receive() -> None:
    with serving() as (tap, device, host):
        assert spread(tap, host) == [FLOWS, 0, 0, 0]
        for running in (4, 6, 2):
            device.ring_running(running, True)
        assert min(spread(tap, host)) > 0
        device.ring_running(4, False)
        counts = spread(tap, host)
        assert counts.pop(2) == 0
        assert min(counts) > 0
        for stopped in (6, 2, 0):
            device.ring_running(stopped, False)
        assert spread(tap, host) == [FLOWS, 0, 0, 0], "the first queue stays"


@pytest.mark.proves("VIO-MQ-1")
@in_namespace
def test_a_transmit_ring_attaches_nothing() -> None:
    with serving() as (tap, device, _):
        for index in (1, 3, 5):
            device.ring_running(index, True)
        assert attached("several") == 1
        os.write(tap.fileno(1), bytes(12) + flow(1, reply=True))  # a detached queue takes packets all the same


@pytest.mark.proves("VIO-TAP-6")
@in_namespace
def test_what_waits_when_a_pair_stops_is_thrown_away() -> None:
    with serving(2) as (tap, device, host):
        device.ring_running(2, True)
        for number in range(FLOWS):
            host.send(flow(number))
        device.ring_running(2, False)
        device.ring_running(2, True)
        assert received(tap, 1) == []
        assert 0 < len(received(tap, 0)) < FLOWS


@pytest.mark.proves("VIO-MQ-2")
@in_namespace
def test_a_flow_comes_back_on_the_pair_that_sent_it() -> None:
    with serving() as (tap, device, host):
        for pair in range(1, PAIRS):
            device.ring_running(2 * pair, True)
        for turn in range(PAIRS):
            wanted: dict[int, list[bytes]] = {pair: [] for pair in range(PAIRS)}
            for number in range(40):
                pair = (number + turn) % PAIRS
                os.write(tap.fileno(pair), bytes(12) + flow(number, reply=True))
                wanted[pair].append(flow(number))
            for number in range(40):
                host.send(flow(number))
            assert {pair: received(tap, pair) for pair in range(PAIRS)} == wanted


@pytest.mark.proves("VIO-TAP-4", "VIO-TAP-5")
@in_namespace
def test_header_and_carrier_are_those_of_every_queue() -> None:
    with closing(open_tap("several", PAIRS)) as tap, packet_socket("several") as host:
        device = NetDevice(tap)
        for features, size in ((0, 10), (NetFeature.MRG_RXBUF, 12), (0, 10)):
            assert seen("several", "carrier") == "0"
            device.driver_started(features)
            assert seen("several", "carrier") == "1"
            for pair in range(PAIRS):
                device.ring_running(2 * pair, True)
            for number in range(FLOWS):
                host.send(flow(number))
            for pair in range(PAIRS):
                assert len(os.read(tap.fileno(pair), 4096)) == size + len(flow(0))
                device.ring_running(2 * pair, False)
            device.driver_stopped()


@in_namespace
def test_a_tap_that_is_gone_cannot_be_attached_to() -> None:
    with closing(open_tap("gone", 2)) as tap:
        ip("link", "delete", "gone")
        with pytest.raises(PortError, match="tap gone: queue 1 cannot be attached"):
            tap.attach(1, True)
        tap.attach(1, False)


# ---- what follows from the number of queues --------------------------------------------------------------------------


@pytest.mark.proves("VIO-MQ-3")
@pytest.mark.parametrize("queues", [1, 2])
@in_namespace
def test_several_pairs_are_offered_if_there_are_several(queues: int) -> None:
    with closing(open_tap("several", queues)) as tap:
        device = NetDevice(tap)
        assert bool(device.features & NetFeature.MQ) == (queues > 1)
        assert not NetDevice(tap, remove=NetFeature.MQ).features & NetFeature.MQ
        assert not device.features & NetFeature.CTRL_VQ
        assert device.groups == ((0, 1), (2, 3))[:queues]

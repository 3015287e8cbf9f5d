"""One tap takes another's place: which queues the host sends to then, and what becomes of the old one. Needs root."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import trio

from tests.devices.bench import MODERN, Net
from tests.devices.namespace import in_namespace
from tests.devices.test_multiqueue_tap import FLOWS, ready, serving, spread
from tests.devices.test_tap import exists, packet_socket
from tests.hostile.victim import frame_of
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.tap import open_tap
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio.pump import Pump


@pytest.mark.proves("VIO-PORT-5", "VIO-MQ-1")
@in_namespace
def test_the_host_sends_to_the_same_pairs_as_before() -> None:
    async def no_threads(function: Callable[[int, Pump], None]) -> None:
        pass

    with serving() as (old, device, host):
        device.ring_running(4, True)
        for frame in (frame_of(1), frame_of(2)):
            host.send(frame)
        with closing(open_tap("other", old.queues)) as new, packet_socket("other") as host:
            assert trio.run(device.swap, new, no_threads) == 2
            assert not exists("several")
            ready(new, host)
            first, second, third, fourth = spread(new, host)
            assert (second, fourth) == (0, 0)
            assert first + third == FLOWS
            assert min(first, third) > 0
            device.ring_running(4, False)
            assert spread(new, host) == [FLOWS, 0, 0, 0]


@pytest.mark.proves("VIO-PORT-5")
@in_namespace
def test_batches_go_to_the_new_tap_and_the_old_one_is_gone_at_once() -> None:
    frames = [frame_of(number) for number in range(8)]

    def burst(net: Net, name: str) -> None:
        with packet_socket(name) as host:
            for frame in frames:
                net.transmit(bytes(12) + frame)
            net.pump.turn()
            net.tx.reap()
            assert [host.recv(2048) for _ in frames] == frames

    with GuestRam() as ram, closing(NetDevice(open_tap("old"))) as device, closing(Net(ram, MODERN)) as net:

        async def in_turns(function: Callable[[int, Pump], None]) -> None:
            function(0, net.pump)

        device.driver_started(MODERN)
        net.pump.use(device.port.fileno(), 12, device.batching)
        burst(net, "old")
        for name in ("new", "newer"):
            former = device.port.name
            trio.run(device.swap, open_tap(name), in_turns)
            assert not exists(former)  # io_uring has let go of it as well
            burst(net, name)
        assert net.counters("tx_packets", "tx_batches", "tx_rejected") == (24, 3, 0)

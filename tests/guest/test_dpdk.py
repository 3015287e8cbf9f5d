"""DPDK's virtio-user as the front-end: no Linux driver, no machine, rings that are polled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig import acceptance
from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import wait_until
from tests.rig.testpmd import FRONT_END_MAC, Testpmd, virtio_user

pytestmark = pytest.mark.guest

TAP = "tap0"


@pytest.fixture(scope="module")
def quiet_netns(image: GuestImage) -> Iterator[Netns]:
    """A namespace whose stack sends no packets of its own, so that every packet can be counted."""
    with Netns() as netns:
        netns.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
        yield netns


@pytest.fixture(scope="module")
def backend(quiet_netns: Netns) -> Iterator[Backend]:
    with Backend(quiet_netns, tap=TAP) as backend:
        yield backend


@pytest.mark.parametrize("mrg_rxbuf", [False, True], ids=["mrg_rxbuf=0", "mrg_rxbuf=1"])
def test_every_frame_sent_reaches_the_tap(quiet_netns: Netns, backend: Backend, mrg_rxbuf: bool) -> None:
    before = quiet_netns.rx_packets(TAP)
    with Testpmd([virtio_user(backend.socket, mrg_rxbuf=mrg_rxbuf)]) as front_end:
        front_end.forward("txonly", 60)
        acceptance.wait_for_packets(quiet_netns, TAP, before + 1000)
        front_end.stop_forwarding()
        sent = front_end.stats().tx_packets
        wait_until(lambda: quiet_netns.rx_packets(TAP) - before == sent, 10, f"{sent} packets at the tap")


@pytest.mark.parametrize("mrg_rxbuf", [False, True], ids=["mrg_rxbuf=0", "mrg_rxbuf=1"])
def test_every_frame_of_the_tap_is_received(quiet_netns: Netns, backend: Backend, mrg_rxbuf: bool) -> None:
    destination, source = bytes.fromhex(FRONT_END_MAC.replace(":", "")), bytes.fromhex("020000000001")
    experimental = bytes.fromhex("88b5")  # the EtherType that IEEE 802 leaves to local experiments
    sizes = [60 + 7 * step for step in range(200)]
    with Testpmd([virtio_user(backend.socket, mrg_rxbuf=mrg_rxbuf)]) as front_end:
        front_end.forward("rxonly")
        before = front_end.stats()
        with quiet_netns.packet_socket(TAP) as tap:
            for size in sizes:
                tap.send((destination + source + experimental).ljust(size, b"\xa5"))
        wait_until(lambda: front_end.stats().rx_packets - before.rx_packets >= len(sizes), 10, f"{len(sizes)} packets")
        after = front_end.stats()
    assert after.rx_packets - before.rx_packets == len(sizes)
    assert after.rx_bytes - before.rx_bytes == sum(sizes)


def test_both_ways_at_once(quiet_netns: Netns, backend: Backend) -> None:
    before = quiet_netns.rx_packets(TAP)
    with Testpmd([virtio_user(backend.socket)]) as front_end, quiet_netns.packet_socket(TAP) as tap:
        front_end.forward("flowgen")
        acceptance.wait_for_packets(quiet_netns, TAP, before + 1000)
        for _ in range(200):
            tap.send(bytes.fromhex(FRONT_END_MAC.replace(":", "")).ljust(60, b"\x02"))
        wait_until(lambda: front_end.stats().rx_packets >= 200, 10, "200 packets while it sends")

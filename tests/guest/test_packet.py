"""A Linux guest in QEMU whose network card is one end of a veth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.conftest import Machine
from tests.rig import acceptance
from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX
from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns, TapWatcher
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import Host, iperf_mbits

pytestmark = pytest.mark.guest

PLAIN_FRAME = 1514
FAR = "far"


@pytest.fixture(scope="module")
def machine(image: GuestImage) -> Iterator[Machine]:
    with Netns() as netns:
        netns.ip("link", "add", "near", "type", "veth", "peer", "name", FAR)
        netns.ip("link", "set", "near", "up")
        netns.add_address(FAR, f"{HOST_ADDRESS}/{PREFIX}")
        with (
            Backend(netns, tap=None, options=["--packet", "near"]) as backend,
            Qemu(image, [VhostUserNic(backend.socket)]) as guest,
        ):
            guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
            yield Machine(netns, backend, Host(netns, image), guest)


@pytest.mark.proves("VIO-PORT-3")
@pytest.mark.parametrize("reverse", [False, True], ids=["guest to host", "host to guest"])
def test_tcp_in_frames_larger_than_the_mtu(machine: Machine, reverse: bool) -> None:
    acceptance.ping(machine.netns)
    with TapWatcher(machine.netns, FAR) as watcher:
        assert iperf_mbits(machine.guest, machine.host, HOST_ADDRESS, 1, reverse=reverse) > 0
    assert (watcher.to_guest if reverse else watcher.from_guest) > PLAIN_FRAME
    assert machine.guest.snmp("Tcp", "InCsumErrors") == 0
    assert machine.netns.snmp("Tcp", "InCsumErrors") == 0


@pytest.mark.proves("VIO-PORT-3")
def test_every_byte_arrives_both_ways_at_once(machine: Machine) -> None:
    assert len(acceptance.checked_traffic(machine.guest, machine.host, 1)) == 4
    counters = machine.backend.counters()
    assert (counters["rx_refused"], counters["tx_dropped"]) == (0, 0)

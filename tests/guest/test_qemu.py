"""A Linux guest in QEMU: one boot for all tests of this module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.conftest import Bench, Machine
from tests.rig import acceptance
from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS
from tests.rig.image import GuestImage
from tests.rig.netns import TapWatcher
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import iperf_mbits, round_trips

pytestmark = pytest.mark.guest

PLAIN_FRAME = 1514


@pytest.fixture(scope="module")
def machine(bench: Bench, image: GuestImage) -> Iterator[Machine]:
    with Qemu(image, [VhostUserNic(bench.backend.socket)], dimm_slots=2) as guest:
        yield Machine.of(bench, guest)


@pytest.mark.sends(
    "QEMU",
    "GET_FEATURES",
    "SET_FEATURES",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_OWNER",
    "REPLY_ACK",
    "SET_BACKEND_REQ_FD",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "SET_VRING_ERR",
    "GET_STATUS",
    "SET_STATUS",
)
def test_ping_both_ways(machine: Machine) -> None:
    acceptance.ping(machine.netns)
    assert " 0% packet loss" in machine.guest.run(f"ping -c 3 -i 0.05 {HOST_ADDRESS}")


@pytest.mark.parametrize("reverse", [False, True], ids=["guest to host", "host to guest"])
def test_tcp_in_frames_larger_than_the_mtu(machine: Machine, reverse: bool) -> None:
    with TapWatcher(machine.netns, machine.tap) as watcher:
        assert iperf_mbits(machine.guest, machine.host, HOST_ADDRESS, 1, reverse=reverse) > 0
    assert (watcher.to_guest if reverse else watcher.from_guest) > PLAIN_FRAME
    assert machine.guest.snmp("Tcp", "InCsumErrors") == 0
    assert machine.netns.snmp("Tcp", "InCsumErrors") == 0


def test_every_byte_arrives_both_ways_at_once(machine: Machine) -> None:
    tallies = acceptance.checked_traffic(machine.guest, machine.host, 1)
    assert len(tallies) == 4


def test_fragmented_datagrams_come_back(machine: Machine) -> None:
    assert round_trips(machine.host, machine.guest, GUEST_ADDRESS, size=20000, count=20)["received"] == 20


def test_counters_agree_with_the_kernel(machine: Machine) -> None:
    def uncounted() -> tuple[int, int]:
        """Packets that the kernel saw and the back-end did not, each way."""
        ours, kernel = machine.backend.counters(), acceptance.link_packets(machine.netns, machine.tap)
        return kernel[0] - ours["tx_packets"], kernel[1] - ours["rx_packets"]

    # what passed the tap before the guest was there is none of the guest's traffic
    before, packets = acceptance.settled(uncounted), machine.backend.counters()["tx_packets"]
    iperf_mbits(machine.guest, machine.host, HOST_ADDRESS, 1)
    assert acceptance.settled(uncounted) == before
    assert machine.backend.counters()["tx_packets"] > packets


@pytest.mark.sends("QEMU", "ADD_MEM_REG", "REM_MEM_REG")
def test_memory_hot_plug_under_traffic(machine: Machine) -> None:
    assert isinstance(machine.guest, Qemu)
    acceptance.hotplug(machine.guest, machine.host, machine.backend, cycles=2, seconds=3)


def test_idle_means_idle(machine: Machine) -> None:
    acceptance.idle(machine.netns, machine.backend, seconds=2)


@pytest.mark.sends("QEMU", "SET_STATUS", "GET_VRING_BASE")
def test_the_guest_survives_a_reset(machine: Machine) -> None:
    assert isinstance(machine.guest, Qemu)
    machine.guest.reset()
    Machine.of(machine, machine.guest)
    acceptance.ping(machine.netns)

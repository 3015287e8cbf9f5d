"""User-mode Linux: another driver of the vhost-user protocol, one boot for all tests of this module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.conftest import Bench, Machine
from tests.rig import acceptance
from tests.rig.acceptance import HOST_ADDRESS
from tests.rig.image import GuestImage
from tests.rig.netns import TapWatcher
from tests.rig.traffic import iperf_mbits
from tests.rig.uml import Uml

pytestmark = pytest.mark.guest

PLAIN_FRAME = 1514


@pytest.fixture(scope="module")
def machine(bench: Bench, image: GuestImage) -> Iterator[Machine]:
    with Uml(image, bench.backend.socket) as guest:
        yield Machine.of(bench, guest)


def test_its_rings_are_packed(machine: Machine) -> None:
    """It takes the packed layout where it is offered, and tells a base of 0 for a fresh ring."""
    assert machine.guest.run("cut -c 35 /sys/class/net/eth0/device/features").strip() == "1"


@pytest.mark.sends(
    "user-mode Linux",
    "GET_FEATURES",
    "SET_FEATURES",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_OWNER",
    "REPLY_ACK",
    "SET_BACKEND_REQ_FD",
    "SET_MEM_TABLE",
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
)
def test_ping_both_ways(machine: Machine) -> None:
    acceptance.ping(machine.netns)
    assert " 0% packet loss" in machine.guest.run(f"ping -c 3 -i 0.05 {HOST_ADDRESS}")


def test_tcp_both_ways(machine: Machine) -> None:
    with TapWatcher(machine.netns, machine.tap) as watcher:
        for reverse in (False, True):
            assert iperf_mbits(machine.guest, machine.host, HOST_ADDRESS, 1, reverse=reverse) > 0
    assert min(watcher.from_guest, watcher.to_guest) > PLAIN_FRAME
    assert machine.guest.snmp("Tcp", "InCsumErrors") == machine.netns.snmp("Tcp", "InCsumErrors") == 0


def test_every_byte_arrives_both_ways_at_once(machine: Machine) -> None:
    assert len(acceptance.checked_traffic(machine.guest, machine.host, 1)) == 4

"""DPDK's virtio-user as the front-end: no Linux driver, no machine, rings that are polled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig import acceptance
from tests.rig.backend import Backend
from tests.rig.matrix import MODES
from tests.rig.netns import Netns
from tests.rig.process import wait_until
from tests.rig.testpmd import FRONT_END_MAC, Testpmd, virtio_user

pytestmark = pytest.mark.guest

TAP = "tap0"
EXPERIMENTAL = bytes.fromhex("88b5")  # the EtherType that IEEE 802 leaves to local experiments


@pytest.fixture(scope="module")
def backend(quiet_netns: Netns) -> Iterator[Backend]:
    with Backend(quiet_netns, tap=TAP, options=["-vv"]) as backend:
        yield backend


in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@in_every_mode
def test_frames_both_ways(quiet_netns: Netns, backend: Backend, mode: dict[str, bool]) -> None:
    """What it forwards comes back as it was: every frame goes through both rings, several times around, twice."""
    destination, source = bytes.fromhex(FRONT_END_MAC.replace(":", "")), bytes.fromhex("020000000001")
    frames = [(destination + source + EXPERIMENTAL + bytes([n % 256]) * (46 + 2 * n)) for n in range(700)]
    with Testpmd([virtio_user(backend.socket, **mode)]) as front_end:
        for _ in range(2):
            front_end.forward("io")
            before = front_end.stats()
            with quiet_netns.packet_socket(TAP) as tap:
                for batch in range(0, len(frames), 50):
                    sent = frames[batch : batch + 50]
                    for frame in sent:
                        tap.send(frame)
                    assert [tap.recv(2048) for _ in sent] == sent
            after = front_end.stats()
            assert after.rx_packets - before.rx_packets == after.tx_packets - before.tx_packets == len(frames)
            assert after.rx_bytes - before.rx_bytes == after.tx_bytes - before.tx_bytes == sum(map(len, frames))
            front_end.stop_forwarding()
            front_end.command("port stop 0")
            front_end.command("port start 0")


@in_every_mode
def test_every_frame_sent_reaches_the_tap(quiet_netns: Netns, backend: Backend, mode: dict[str, bool]) -> None:
    before = quiet_netns.rx_packets(TAP)
    with Testpmd([virtio_user(backend.socket, **mode)]) as front_end:
        front_end.forward("txonly", 60)
        acceptance.wait_for_packets(quiet_netns, TAP, before + 1000)
        front_end.stop_forwarding()
        sent = front_end.stats().tx_packets
        wait_until(lambda: quiet_netns.rx_packets(TAP) - before == sent, 10, f"{sent} packets at the tap")


@pytest.mark.sends(
    "DPDK",
    "GET_FEATURES",
    "SET_FEATURES",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_OWNER",
    "REPLY_ACK",
    "SET_MEM_TABLE",
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "GET_VRING_BASE",
    "GET_STATUS",
    "SET_STATUS",
)
def test_both_ways_at_once(quiet_netns: Netns, backend: Backend) -> None:
    before = quiet_netns.rx_packets(TAP)
    with Testpmd([virtio_user(backend.socket)]) as front_end, quiet_netns.packet_socket(TAP) as tap:
        front_end.forward("flowgen")
        acceptance.wait_for_packets(quiet_netns, TAP, before + 1000)
        for _ in range(200):
            tap.send(bytes.fromhex(FRONT_END_MAC.replace(":", "")).ljust(60, b"\x02"))
        wait_until(lambda: front_end.stats().rx_packets >= 200, 10, "200 packets while it sends")

"""A Linux guest migrates between two QEMU processes, each with a back-end of its own."""

from __future__ import annotations

import pytest

from tests.rig.image import GuestImage
from tests.rig.migration import Traveller, reverse_arps, trips
from tests.rig.places import TAPS, Plan, ours, two_places
from tests.rig.process import wait_until
from tests.rig.qemu import GUEST_MAC

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("plan", [Plan(), Plan(packed=True, pairs=4)], ids=["split, one pair", "packed, four pairs"])
def test_there_and_back_under_traffic(image: GuestImage, plan: Plan) -> None:
    for trip in trips(image, ours, plan, 2):
        assert trip["to the host"]["lost"] == 0, trip
        assert trip["to the guest"]["lost"] < trip["to the guest"]["sent"], trip


@pytest.mark.proves("VIO-NET-18")
def test_a_guest_that_cannot_announce_itself_is_announced(image: GuestImage) -> None:
    plan = Plan(card=("guest_announce=off",))
    with two_places(ours, plan) as (netns, places), Traveller(image, netns, places, plan) as traveller:
        for tap in reversed(TAPS):
            with reverse_arps(netns) as packets:
                traveller.move()
                frame = packets.recv(2048)
            mac = bytes.fromhex(GUEST_MAC.replace(":", ""))
            assert frame == (b"\xff" * 6 + mac + bytes.fromhex("8035 0001 0800 06 04 0003") + (mac + bytes(4)) * 2).ljust(60, b"\0")
            wait_until(lambda tap=tap: f"{GUEST_MAC} dev {tap}" in netns.run("bridge", "fdb", "show"), 5, f"the guest at {tap}")  # type: ignore[misc]

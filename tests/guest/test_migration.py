"""A Linux guest migrates between two QEMU processes, each with a back-end of its own."""

from __future__ import annotations

import re

import pytest

from tests.rig.image import GuestImage
from tests.rig.migration import Traveller, audited, memory_last, reverse_arps, trips, with_large_packets
from tests.rig.netns import Netns
from tests.rig.places import TAPS, Plan, ours, two_places
from tests.rig.process import wait_until
from tests.rig.qemu import GUEST_MAC

pytestmark = pytest.mark.guest

MAC = bytes.fromhex(GUEST_MAC.replace(":", ""))

#: "Request reverse" of RFC 903: broadcast, its sender and its target are the guest, whose address is not told.
RARP = b"".join((b"\xff" * 6, MAC, bytes.fromhex("8035 0001 0800 06 04 0003"), MAC, bytes(4), MAC, bytes(4), bytes(18)))


def learnt(netns: Netns) -> str:
    """The port of the bridge behind which it has found the guest."""
    found = re.search(rf"{GUEST_MAC} dev (\w+)", netns.run("bridge", "fdb", "show"))
    return found[1] if found else ""


@pytest.mark.parametrize(
    "plan",
    [audited(Plan(rate=400)), with_large_packets(audited(Plan(packed=True, pairs=2, rate=400)))],
    ids=["split, one pair", "packed, two pairs, large packets"],
)
def test_there_and_back_under_traffic(image: GuestImage, plan: Plan) -> None:
    for trip in trips(image, ours, plan, 2):
        assert trip["to the host"]["lost"] == 0, trip
        assert trip["to the guest"]["lost"] < trip["to the guest"]["sent"], trip


@pytest.mark.sends("QEMU", "POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "POSTCOPY_END")
def test_the_guest_goes_first_and_its_memory_follows(image: GuestImage) -> None:
    (trip,) = trips(image, ours, memory_last(Plan(packed=True, rate=400, options=("-vv",))), 1)
    assert trip["to the host"]["lost"] == 0, trip


@pytest.mark.sends("QEMU", "SET_LOG_BASE", "GET_VRING_BASE", "SEND_RARP")
@pytest.mark.proves("VIO-NET-18")
def test_a_guest_that_cannot_announce_itself_is_announced(image: GuestImage) -> None:
    plan = Plan(card=("guest_announce=off",), options=("-vv",))
    with two_places(ours, plan) as (netns, places), Traveller(image, netns, places, plan) as traveller:
        for tap in reversed(TAPS):
            with reverse_arps(netns) as packets:
                traveller.move()
                frame = packets.recv(2048)
            assert frame == RARP
            wait_until(lambda tap=tap: learnt(netns) == tap, 5, f"the bridge to find the guest at {tap}")  # type: ignore[misc]

"""Either side goes away, in order or not, and comes back; nothing is left behind."""

from __future__ import annotations

import pytest

from tests.rig import acceptance
from tests.rig.image import GuestImage

pytestmark = pytest.mark.guest

CYCLES = 4  # each compares what the back-end holds; `scripts/soak reconnect` goes through a hundred


def test_back_end_killed_and_restarted(image: GuestImage) -> None:
    assert acceptance.restart_back_end(image, cycles=CYCLES)["cycles"] == CYCLES


def test_front_ends_come_and_go(image: GuestImage) -> None:
    assert acceptance.restart_front_end(cycles=CYCLES)["cycles"] == CYCLES


@pytest.mark.timeout(300)  # a guest boots in each cycle
def test_listening_front_end_killed_and_restarted(image: GuestImage) -> None:
    assert acceptance.restart_listening_front_end(image, cycles=CYCLES)["cycles"] == CYCLES

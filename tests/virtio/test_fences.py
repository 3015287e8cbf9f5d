"""The full fences of the device's rings: enough of them, and none too many, shown with two processes on one ring."""

from __future__ import annotations

import pytest

from tests.virtio.fences import LAYOUTS, LOST_WITHOUT, stress, without_fence
from vhostuser import edition

ROUNDS = 20_000 if edition.compiled() else 2_000


@pytest.mark.proves("VIO-NOTIFY-5")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_two_processes_lose_no_notification(layout: str, event_idx: bool) -> None:
    outcome = stress(ROUNDS, event_idx=event_idx, layout=layout, edition=edition.name())
    assert outcome["lost"] is None, outcome
    assert outcome["rounds"] == ROUNDS
    assert outcome["kicks"] > 0
    assert outcome["calls"] > 0


if edition.compiled():  # an interpreter is so slow between two accesses that a processor never swaps them

    @pytest.mark.timeout(300)  # it builds a module
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("method", LOST_WITHOUT)
    def test_without_one_of_its_fences_the_device_or_the_driver_sleeps_for_ever(layout: str, method: str) -> None:
        with without_fence(method, layout) as tree:
            for event_idx in (False, True):
                outcome = stress(2_000_000, event_idx=event_idx, layout=layout, tree=tree, timeout=1.0)
                assert outcome["lost"] == LOST_WITHOUT[method], outcome

"""Frames for a guest that takes none: the short form of ``scripts/soak flood``."""

from __future__ import annotations

import pytest

from tests.rig.flood import flood_without_buffers

pytestmark = pytest.mark.guest


@pytest.mark.proves("VIO-PUMP-1")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_flood_without_buffers_costs_nothing(packed: bool) -> None:
    assert flood_without_buffers(1, packed=packed)["dropped"] > 0

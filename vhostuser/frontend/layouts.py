"""Both ring layouts, and which of them was negotiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.split import DriverRing

if TYPE_CHECKING:
    from vhostuser.frontend.memory import GuestRam


def make_ring(memory: GuestRam, index: int, size: int = 256, features: int = 0) -> DriverRing | PackedDriverRing:
    """A driver's ring, put into memory, as the acknowledged features have it.

    Args:
        memory: Where it is put.
        index: Its number in the device.
        size: Number of descriptors.
        features: The virtio features that were acknowledged: layout, EVENT_IDX, IN_ORDER.
    """
    layout = PackedDriverRing if features & DriverFeature.RING_PACKED else DriverRing
    event_idx, in_order = bool(features & DriverFeature.EVENT_IDX), bool(features & DriverFeature.IN_ORDER)
    return layout(memory, index, size, event_idx=event_idx, in_order=in_order)

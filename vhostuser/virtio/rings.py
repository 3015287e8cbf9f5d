"""Which layout a ring has: the one place that knows both.

Must not know what a device does with a ring. Everybody else works through :class:`~vhostuser.virtio.ring.Ring`.
"""

from __future__ import annotations

from vhostuser.virtio import packed, split
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.ring import Ring


def make_ring(features: int, index: int, expects: int) -> Ring:
    """The device's side of vring `index` in the layout that the acknowledged `features` chose.

    Args:
        features: the acknowledged virtio feature word.
        index: the vring's index in the device.
        expects: ``READABLE``, ``WRITABLE`` or ``EITHER``, as :class:`Ring` has it.
    """
    if features & VirtioFeature.RING_PACKED:
        return packed.PackedRing(index, expects, bool(features & VirtioFeature.IN_ORDER))
    return split.SplitRing(index, expects)


def area_sizes(features: int, num: int) -> tuple[int, int, int]:
    """Bytes of the descriptor, driver and device areas of a ring of `num` descriptors under `features`."""
    if features & VirtioFeature.RING_PACKED:
        return packed.area_sizes(num)
    return split.area_sizes(num, bool(features & VirtioFeature.RING_EVENT_IDX))

"""Feature bits of rings and transport, whatever the device type (virtio 1.2, section 6), as masks."""

from enum import IntFlag


class VirtioFeature(IntFlag):
    """VIRTIO_F_* and VIRTIO_RING_F_*."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27  #: legacy drivers may lay out header and data as they like
    RING_INDIRECT_DESC = 1 << 28
    INDIRECT_DESC = RING_INDIRECT_DESC  #: its name in virtio 1.2; the other one is Linux's
    RING_EVENT_IDX = 1 << 29
    EVENT_IDX = RING_EVENT_IDX
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    NOTIFICATION_DATA = 1 << 38
    RING_RESET = 1 << 40


#: What our rings can do.
SUPPORTED = (
    VirtioFeature.ANY_LAYOUT
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
    | VirtioFeature.VERSION_1
    | VirtioFeature.RING_PACKED
    | VirtioFeature.IN_ORDER
)

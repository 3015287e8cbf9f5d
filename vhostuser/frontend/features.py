"""The virtio features that the drivers here know, as masks.

Must not know: what the back-end's side calls them; bits that change vhost-user itself are in ``wire.features``.
"""

from __future__ import annotations

from enum import IntFlag


class DriverFeature(IntFlag):
    """Bits of the virtio feature word: of rings, whatever the device, and of network devices."""

    CSUM = 1 << 0
    """The device takes packets with partial checksums."""
    GUEST_CSUM = 1 << 1
    """The driver takes packets with partial checksums."""
    GUEST_TSO4 = 1 << 7
    """The driver takes TCP/IPv4 segments that are too long for the wire."""
    GUEST_TSO6 = 1 << 8
    """The same for TCP/IPv6."""
    GUEST_ECN = 1 << 9
    """Such segments may have ECN."""
    GUEST_UFO = 1 << 10
    """The driver takes UDP datagrams that are to be fragmented."""
    HOST_TSO4 = 1 << 11
    """The device takes TCP/IPv4 segments that are too long for the wire."""
    HOST_TSO6 = 1 << 12
    """The same for TCP/IPv6."""
    HOST_ECN = 1 << 13
    """Such segments may have ECN."""
    HOST_UFO = 1 << 14
    """The device takes UDP datagrams that are to be fragmented."""
    MRG_RXBUF = 1 << 15
    """A received frame may take several buffers."""
    CTRL_VQ = 1 << 17
    """There is a control virtqueue."""
    MQ = 1 << 22
    """There is more than one queue pair."""
    INDIRECT_DESC = 1 << 28
    """A descriptor may stand for a table of descriptors."""
    EVENT_IDX = 1 << 29
    """Kicks and calls are asked for by index."""
    VERSION_1 = 1 << 32
    """Modern virtio: little-endian, twelve-byte header."""
    ACCESS_PLATFORM = 1 << 33
    """Addresses are IOVAs, which an IOMMU translates."""
    RING_PACKED = 1 << 34
    """Rings have the packed layout."""
    IN_ORDER = 1 << 35
    """The device uses buffers in the order in which they were made available."""
    GUEST_USO4 = 1 << 54
    """The driver takes UDP/IPv4 segments that are too long for the wire."""
    GUEST_USO6 = 1 << 55
    """The same for UDP/IPv6."""
    HOST_USO = 1 << 56
    """The device takes UDP segments that are too long for the wire."""


RING_FEATURES = DriverFeature.INDIRECT_DESC | DriverFeature.EVENT_IDX | DriverFeature.VERSION_1
"""What :func:`~vhostuser.frontend.client.connect` acknowledges unless told otherwise: modern split rings, of any
device."""

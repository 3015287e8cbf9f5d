"""Feature bits of the virtio network device (virtio 1.2, section 5.1.3), as masks."""

from enum import IntFlag

from vhostuser.virtio.features import VirtioFeature


class NetFeature(IntFlag):
    """VIRTIO_NET_F_*. HOST_x: the driver may send such packets. GUEST_x: it can receive them."""

    CSUM = 1 << 0  #: driver may leave checksums to the device
    GUEST_CSUM = 1 << 1  #: driver takes packets whose checksum is partial
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3  #: the device's MTU is in the configuration space
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15  #: a packet may span several receive buffers
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


#: Everything that the device can do, and offers unless told otherwise.
SUPPORTED = (
    NetFeature.CSUM
    | NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_UFO
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.HOST_UFO
    | NetFeature.MRG_RXBUF
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
    | NetFeature.HOST_USO
)

#: Bits without which others mean nothing (section 5.1.3.1): one of the right side must be there.
REQUIRES = {
    NetFeature.GUEST_TSO4: NetFeature.GUEST_CSUM,
    NetFeature.GUEST_TSO6: NetFeature.GUEST_CSUM,
    NetFeature.GUEST_ECN: NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6,
    NetFeature.GUEST_UFO: NetFeature.GUEST_CSUM,
    NetFeature.GUEST_USO4: NetFeature.GUEST_CSUM,
    NetFeature.GUEST_USO6: NetFeature.GUEST_CSUM,
    NetFeature.HOST_TSO4: NetFeature.CSUM,
    NetFeature.HOST_TSO6: NetFeature.CSUM,
    NetFeature.HOST_ECN: NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6,
    NetFeature.HOST_UFO: NetFeature.CSUM,
    NetFeature.HOST_USO: NetFeature.CSUM,
}


def consistent(features: int) -> int:
    """`features` without network bits whose requirement is missing: nothing is offered or used that means nothing."""
    kept = features
    while True:
        before = kept
        for bit, needed in REQUIRES.items():
            if kept & bit and not kept & needed:
                kept &= ~int(bit)
        if kept == before:
            return kept


def header_size(features: int) -> int:
    """Bytes of virtio_net_hdr (5.1.6.1): with num_buffers under VERSION_1 or MRG_RXBUF."""
    return 12 if features & (VirtioFeature.VERSION_1 | NetFeature.MRG_RXBUF) else 10

"""Feature bits that vhost-user's own rules depend on, as masks.

Must not know: what a device makes of its other virtio feature bits; those live with the virtio code.

Both classes keep bits that they have no name for, so that a peer's word survives being wrapped unchanged.
"""

from __future__ import annotations

from enum import IntFlag


class VhostFeature(IntFlag):
    """Bits of the virtio feature word (``GET_FEATURES``, ``SET_FEATURES``) that change vhost-user itself."""

    NET_MTU = 1 << 3
    """VIRTIO_NET_F_MTU: the front-end may tell an MTU."""
    LOG_ALL = 1 << 26
    """VHOST_F_LOG_ALL: every write to guest memory is logged; never shown to the driver."""
    PROTOCOL_FEATURES = 1 << 30
    """VHOST_USER_F_PROTOCOL_FEATURES: the protocol feature requests exist; rings are enabled one by one."""
    ACCESS_PLATFORM = 1 << 33
    """VIRTIO_F_ACCESS_PLATFORM: addresses pass an IOMMU."""
    RING_PACKED = 1 << 34
    """VIRTIO_F_RING_PACKED: rings have the packed layout, hence other limits."""


class ProtocolFeature(IntFlag):
    """Bits of the protocol feature word (``GET_PROTOCOL_FEATURES``, ``SET_PROTOCOL_FEATURES``)."""

    MQ = 1 << 0
    """More than one queue pair, and GET_QUEUE_NUM."""
    LOG_SHMFD = 1 << 1
    """The dirty log is shared memory; SET_LOG_BASE carries its descriptor."""
    RARP = 1 << 2
    """The back-end can announce the guest's address after migration."""
    REPLY_ACK = 1 << 3
    """NEED_REPLY is honoured with an acknowledgement."""
    NET_MTU = 1 << 4
    """NET_SET_MTU."""
    BACKEND_REQ = 1 << 5
    """A second channel on which the back-end sends requests."""
    CROSS_ENDIAN = 1 << 6
    """SET_VRING_ENDIAN for legacy guests of the other byte order."""
    CRYPTO_SESSION = 1 << 7
    """Crypto sessions."""
    PAGEFAULT = 1 << 8
    """Postcopy migration through userfaultfd."""
    CONFIG = 1 << 9
    """The back-end owns the device's configuration space."""
    BACKEND_SEND_FD = 1 << 10
    """The back-end may attach descriptors to its requests."""
    HOST_NOTIFIER = 1 << 11
    """The back-end may hand a notification page to the guest."""
    INFLIGHT_SHMFD = 1 << 12
    """Requests in flight are tracked in shared memory that survives the back-end."""
    RESET_DEVICE = 1 << 13
    """RESET_DEVICE."""
    INBAND_NOTIFICATIONS = 1 << 14
    """Kicks and calls may be messages; needs BACKEND_REQ and REPLY_ACK."""
    CONFIGURE_MEM_SLOTS = 1 << 15
    """Memory regions come and go one by one, and may be more than eight."""
    STATUS = 1 << 16
    """The virtio device status is passed on."""
    XEN_MMAP = 1 << 17
    """Memory regions have two more fields that say how Xen maps them."""
    SHARED_OBJECT = 1 << 18
    """Objects named by UUID are shared between back-ends."""
    DEVICE_STATE = 1 << 19
    """The back-end's internal state migrates through a descriptor."""
    GET_VRING_BASE_INFLIGHT = 1 << 20
    """GET_VRING_BASE may leave requests in flight; needs INFLIGHT_SHMFD."""
    GPA_ADDRESSES = 1 << 21
    """Addresses on the wire are guest-physical."""
    SHMEM = 1 << 22
    """VIRTIO shared memory regions that the back-end asks the front-end to map."""
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23
    """GET_VRING_BASE_SKIP_DRAIN; needs INFLIGHT_SHMFD and GET_VRING_BASE_INFLIGHT."""

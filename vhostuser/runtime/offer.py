"""What a device's back-end offers to front-ends."""

from __future__ import annotations

from vhostuser.device import Device
from vhostuser.session.backend import Offer
from vhostuser.wire.features import ProtocolFeature, VhostFeature

#: Protocol features of every device that runs here; user-mode Linux does not work without BACKEND_REQ.
PROTOCOL_FEATURES = (
    ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.GET_VRING_BASE_INFLIGHT
    | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.GPA_ADDRESSES
)


def offer_of(device: Device, postcopy: bool = False) -> Offer:
    """What a device's back-end offers; whether `postcopy` can be is not the device's matter."""
    protocol = PROTOCOL_FEATURES
    if postcopy:
        protocol |= ProtocolFeature.PAGEFAULT
    if device.mtu_settable:
        protocol |= ProtocolFeature.NET_MTU
    if len(device.groups) > 1:
        protocol |= ProtocolFeature.MQ
    if device.announces:
        protocol |= ProtocolFeature.RARP
    if device.has_config:
        protocol |= ProtocolFeature.CONFIG
    if device.max_state:
        protocol |= ProtocolFeature.DEVICE_STATE
    if device.inband:
        protocol |= ProtocolFeature.INBAND_NOTIFICATIONS
    if device.shares_objects:
        protocol |= ProtocolFeature.SHARED_OBJECT
    if device.shmem_regions:
        protocol |= ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_SEND_FD
    return Offer(device.features | VhostFeature.PROTOCOL_FEATURES | VhostFeature.LOG_ALL, protocol, device.num_rings)

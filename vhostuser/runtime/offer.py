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
    depends = {
        ProtocolFeature.PAGEFAULT: postcopy,
        ProtocolFeature.NET_MTU: device.mtu_settable,
        ProtocolFeature.MQ: len(device.groups) > 1,
        ProtocolFeature.RARP: device.announces,
        ProtocolFeature.CONFIG: device.has_config,
        ProtocolFeature.DEVICE_STATE: device.max_state > 0,
        ProtocolFeature.INBAND_NOTIFICATIONS: device.inband,
        ProtocolFeature.SHARED_OBJECT: device.shares_objects,
        ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_SEND_FD: bool(device.shmem_regions),
    }
    protocol = PROTOCOL_FEATURES
    for feature, offered in depends.items():
        if offered:
            protocol |= feature
    return Offer(device.features | VhostFeature.PROTOCOL_FEATURES | VhostFeature.LOG_ALL, protocol, device.num_rings)

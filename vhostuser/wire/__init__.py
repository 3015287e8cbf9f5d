"""Bytes to messages and back.

=============  ======================================================================
``frames``     header, payload bytes and descriptors as they stand on the socket
``features``   feature bits that the protocol's own rules depend on
``messages``   payload values, and ``Message``
``requests``   the one table of requests
``layouts``    byte layouts, the only user of Construct
``codec``      frames to messages and back
``meanings``   values in words
``dissect``    bytes of any kind, field by field
=============  ======================================================================

Must not know: sockets, Trio, guest memory, rings, or what was said before.

The names below are the public ones: what a program needs that speaks the protocol, at either end.
"""

from vhostuser.wire.codec import decode, decode_reply, describe, encode, encode_ack, encode_refusal, encode_reply
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, VERSION, Frame, Header, HeaderFlags, LentFds
from vhostuser.wire.messages import (
    U64,
    Config,
    CryptoSession,
    DeviceState,
    Inflight,
    Iotlb,
    IotlbType,
    Log,
    MemoryRegion,
    MemoryTable,
    Message,
    Payload,
    SharedObject,
    ShmemConfig,
    ShmemMap,
    SingleRegion,
    VringAddr,
    VringAddrFlags,
    VringArea,
    VringFd,
    VringState,
    XenMmap,
)
from vhostuser.wire.requests import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    BackendRequest,
    Direction,
    FdRule,
    FrontendRequest,
    LegalState,
    Reply,
    RequestSpec,
    spec_of,
)

__all__ = [
    "FrontendRequest",
    "BackendRequest",
    "Direction",
    "FRONTEND_REQUESTS",
    "BACKEND_REQUESTS",
    "RequestSpec",
    "Reply",
    "FdRule",
    "LegalState",
    "spec_of",
    "ProtocolFeature",
    "VhostFeature",
    "Payload",
    "U64",
    "VringState",
    "VringAddr",
    "VringAddrFlags",
    "VringFd",
    "MemoryTable",
    "SingleRegion",
    "MemoryRegion",
    "XenMmap",
    "Log",
    "Iotlb",
    "IotlbType",
    "Config",
    "VringArea",
    "Inflight",
    "SharedObject",
    "DeviceState",
    "ShmemMap",
    "ShmemConfig",
    "CryptoSession",
    "Message",
    "Frame",
    "Header",
    "HeaderFlags",
    "LentFds",
    "VERSION",
    "HEADER_SIZE",
    "MAX_PAYLOAD",
    "MAX_FDS",
    "encode",
    "decode",
    "encode_reply",
    "encode_ack",
    "encode_refusal",
    "decode_reply",
    "describe",
]

"""The checks, a module an area: each registers its own when it is imported, which happens here."""

from vhostuser.conformance.checks import (
    descriptors,
    framing,
    inflight,
    iommu,
    log,
    memory,
    multiqueue,
    negotiation,
    own_requests,
    payloads,
    replies,
    resets,
    ring_descriptors,
    ring_values,
    rings,
    slots,
)

__all__ = [
    "descriptors",
    "framing",
    "inflight",
    "iommu",
    "log",
    "memory",
    "multiqueue",
    "negotiation",
    "own_requests",
    "payloads",
    "replies",
    "resets",
    "ring_descriptors",
    "ring_values",
    "rings",
    "slots",
]

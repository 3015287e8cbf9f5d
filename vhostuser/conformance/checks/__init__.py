"""The checks, a module an area: each registers its own when it is imported, which happens here."""

from vhostuser.conformance.checks import (
    descriptors,
    framing,
    memory,
    multiqueue,
    negotiation,
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
    "memory",
    "multiqueue",
    "negotiation",
    "payloads",
    "replies",
    "resets",
    "ring_descriptors",
    "ring_values",
    "rings",
    "slots",
]

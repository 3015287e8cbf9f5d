"""The checks, a module an area: each registers its own when it is imported, which happens here."""

from vhostuser.conformance.checks import (
    descriptors,
    framing,
    log,
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
    "log",
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

"""The checks, a module an area: each registers its own when it is imported, which happens here."""

from vhostuser.conformance.checks import (
    descriptors,
    framing,
    negotiation,
    payloads,
    replies,
    ring_descriptors,
    ring_values,
    rings,
)

__all__ = [
    "descriptors",
    "framing",
    "negotiation",
    "payloads",
    "replies",
    "ring_descriptors",
    "ring_values",
    "rings",
]

"""The checks, a module an area: each registers its own when it is imported, which happens here."""

from vhostuser.conformance.checks import (
    framing,
    negotiation,
    replies,
    rings,
)

__all__ = ["framing", "negotiation", "replies", "rings"]

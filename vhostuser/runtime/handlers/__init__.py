"""One handler for each request of the table that the runtime supports, a module for each matter.

A handler gets a message that the session has admitted: right size, right number of descriptors, negotiated, legal
now. It carries the request out and returns the body of the request's own reply, or None; it refuses by raising. What
it takes out of the message's descriptors is its own, the rest is closed after it. It does not touch the session's
state: that follows from the outcome.
"""

from vhostuser.runtime.handlers import (
    backend_channel,
    config,
    inflight,
    iommu,
    log,
    memory,
    negotiation,
    net,
    postcopy,
    reset,
    rings,
)
from vhostuser.runtime.handlers.registry import HANDLERS

__all__ = [
    "HANDLERS",
    "backend_channel",
    "config",
    "inflight",
    "iommu",
    "log",
    "memory",
    "negotiation",
    "net",
    "postcopy",
    "reset",
    "rings",
]

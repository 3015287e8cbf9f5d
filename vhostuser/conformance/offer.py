"""What a back-end offers, on which depends what can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostuser.wire.features import ProtocolFeature

if TYPE_CHECKING:
    from enum import IntFlag


@dataclass(frozen=True)
class Offer:
    """What a back-end offers.

    Attributes:
        virtio: The word of GET_FEATURES.
        protocol: The word of GET_PROTOCOL_FEATURES, 0 where there is no such request.
        echo: Whether what a driver sends comes back to it: of network devices, what their port does.
    """

    virtio: int
    protocol: int
    echo: bool = True

    def missing(self, *needs: IntFlag) -> list[str]:
        """Names of the features, of either kind, that are needed and not offered."""
        return [
            name
            for need in needs
            for bit in need.__class__
            if bit & need and not bit & (self.protocol if isinstance(need, ProtocolFeature) else self.virtio)
            if (name := bit.name)
        ]

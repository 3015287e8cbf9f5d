"""What the front-end told us of one vring, and the descriptors that came with it."""

from __future__ import annotations

from dataclasses import dataclass

from vhostuser.fds import OwnedFd
from vhostuser.wire.messages import VringAddr

#: The names of a ring's areas, in the order of :func:`areas`.
AREAS = ("descriptor", "available", "used")


def areas(addr: VringAddr) -> tuple[int, int, int]:
    """A ring's three addresses in the order of ``virtio``: descriptor area, driver area, device area."""
    return addr.descriptor, addr.available, addr.used


@dataclass
class Vring:
    """What the front-end told us of one vring. `polled`: not to be kicked; `live`: it runs in its group's thread."""

    index: int
    num: int = 0
    base: int = 0
    addr: VringAddr | None = None
    kick: OwnedFd | None = None
    call: OwnedFd | None = None
    err: OwnedFd | None = None
    polled: bool = False
    live: bool = False

    def close(self, *names: str) -> None:
        """Close and forget some of the descriptors."""
        for name in names:
            fd = getattr(self, name)
            setattr(self, name, None)
            if fd is not None:
                fd.close()

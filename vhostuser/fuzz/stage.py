"""What every generated conversation plays on: its memory, where its rings lie, its descriptors.

Must not know: messages.

The numbers are those of the smallest guest that has everything: two regions far apart, so that guest-physical,
front-end and file addresses are three different things; rings whose parts do not touch; room for buffers behind them.
"""

from __future__ import annotations

import fcntl

from vhostuser.transcript.entries import Descriptor, Kind

MEMORY_SIZE = 1 << 18
"""Bytes of each memory region."""
REGIONS = (0, 1 << 32)
"""Guest-physical addresses of the regions."""
USERSPACE = 0x7F00_0000_0000
"""From a guest-physical address to the front-end's own."""
RING_SPAN = 0x4000
"""Bytes that the parts of one ring take: descriptors, then the driver's part, then the device's."""
DRIVER_PART, DEVICE_PART = 0x2000, 0x3000
"""Where the second and the third part begin."""
RINGS = 8
"""Rings that have a place."""
SIZES = (1, 2, 8, 64, 128, 256)
"""Numbers of descriptors that fit into a place."""
BUFFERS = RINGS * RING_SPAN
"""Where the rest of the first region begins."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def place(ring: int) -> int:
    """Where a ring begins, in the first region and in its file; those that have no place of their own share."""
    return ring % RINGS * RING_SPAN


def memory(number: int, size: int = MEMORY_SIZE, sealed: bool = False) -> Descriptor:
    """A file with guest memory."""
    return Descriptor(f"memory {number}", Kind.MEMORY, size=size, seals=_SEALS if sealed else 0)


def eventfd(purpose: str, ring: int) -> Descriptor:
    """The eventfd with which a ring is kicked, or called, or told broken."""
    return Descriptor(f"{purpose} {ring}", Kind.EVENTFD)


CHANNEL = Descriptor("channel", Kind.SOCKET)
LOG = Descriptor("log", Kind.MEMORY, size=1 << 18)
INFLIGHT = Descriptor("inflight", Kind.MEMORY, size=1 << 18)
STATE = (Descriptor("state out", Kind.PIPE_WRITE), Descriptor("state in", Kind.PIPE_READ))

ODDITIES = (
    Descriptor("short memory", Kind.MEMORY, size=100),
    Descriptor("empty memory", Kind.MEMORY),
    Descriptor("sparse memory", Kind.MEMORY, size=1 << 40),
    Descriptor("blocking eventfd", Kind.EVENTFD, blocking=True),
    Descriptor("eventfd", Kind.EVENTFD),
    Descriptor("socket", Kind.SOCKET),
    Descriptor("pipe", Kind.PIPE_WRITE),
    Descriptor("other pipe", Kind.PIPE_READ),
    Descriptor("null", Kind.FILE, path="/dev/null"),
    Descriptor("zero", Kind.FILE, path="/dev/zero"),
    Descriptor("root", Kind.FILE, path="/"),
    Descriptor("this connection", Kind.CONNECTION),
)
"""Descriptors of every kind that a request may come with, and should not."""

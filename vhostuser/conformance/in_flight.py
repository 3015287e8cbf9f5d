"""The record of requests in flight, at the front-end's end.

Must not know: which statement is at stake.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import Inflight
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe

TRACKING = ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ
ENTRIES = 64


class Region:
    """The memory that the record is in."""

    def __init__(self, told: Inflight, fd: int, packed: bool) -> None:
        self.told = told
        self.fd = fd
        self.unit = 32 if packed else 16

    @property
    def part_size(self) -> int:
        """Bytes of a ring's part."""
        return part_size(self.unit, self.told.queue_size)

    def write(self, ring: int, at: int, data: bytes) -> None:
        """Write into a ring's part."""
        os.pwrite(self.fd, data, self.told.mmap_offset + ring * self.part_size + at)

    def read(self, ring: int, at: int, length: int) -> bytes:
        """Read out of a ring's part."""
        return os.pread(self.fd, length, self.told.mmap_offset + ring * self.part_size + at)

    def marks(self, ring: int) -> list[int]:
        """The entries that are marked as in flight."""
        entries = range(self.told.queue_size)
        return [entry for entry in entries if self.read(ring, self.unit * (entry + 1), 1) != b"\0"]


def part_size(unit: int, entries: int) -> int:
    """Bytes of a part with so many entries, and one of the header's, of so many bytes each."""
    return -(-unit * (entries + 1) // 64) * 64


async def tracked(
    probe: Probe, virtio: int = 0, protocol: ProtocolFeature = TRACKING, *, start: bool = True
) -> tuple[Driver, Region]:
    """A driver with a region that the back-end made, for rings of 64."""
    driver = await probe.driver(virtio, protocol, start=False)
    asked = Inflight(0, 0, probe.device.rings, ENTRIES)
    answer = await driver.connection.accepted(FrontendRequest.GET_INFLIGHT_FD, asked)
    if not isinstance(answer.value, Inflight) or len(answer.fds) != 1 or not answer.value.mmap_size:
        raise Violation(f"GET_INFLIGHT_FD {asked}: {answer.frame}, expected a region with its descriptor")
    probe.record.name(answer.fds[0], "inflight")
    if start:
        await driver.start_all(size=ENTRIES)
    return driver, Region(answer.value, answer.fds[0], bool(virtio & VhostFeature.RING_PACKED))

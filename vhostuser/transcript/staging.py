"""What a recording lacks to be played again: sizes that were not recorded, and memory that was never in it.

Must not know: sockets, descriptors.

How: fresh memory is all zeros, and so are the indices of a split ring in it. A back-end that is told to go on at
another position would see a driver that skipped thousands of entries, and call the ring broken. So before a ring starts
its indices are written: it is empty, and stands where it stood. A packed ring of zeros is empty wherever it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Said, Wrote
from vhostuser.transcript.wording import payload_of
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import (
    U64,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    Payload,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FrontendRequest as R

_INDEX_OFFSET = 2
"""Of the index in both rings of a split one, behind the flags."""
_NO_INDICES = VhostFeature.RING_PACKED | VhostFeature.ACCESS_PLATFORM
"""With a packed ring there are none, with an IOMMU nobody can tell where they are."""


def staged(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """The entries with their numbers, and with what has to be done before some of them."""
    guest = _Guest()
    for number, entry in enumerate(entries):
        if isinstance(entry, Closed):
            guest = _Guest()
        elif isinstance(entry, Said) and entry.from_front_end and not entry.own_channel and not entry.is_reply:
            payload = payload_of(entry)
            if isinstance(payload, Payload):
                entry = _sized(entry, payload)
                for wrote in guest.follow(entry, payload):
                    yield number, wrote
        yield number, entry


def _sized(said: Said, payload: Payload) -> Said:
    """The message with memory that is as large as it says, where the recording does not know."""
    match payload:
        case MemoryTable(regions):
            sizes = [region.mmap_offset + region.memory_size for region in regions]
        case SingleRegion(region):
            sizes = [region.mmap_offset + region.memory_size]
        case Log(size, offset) | Inflight(size, offset):
            sizes = [offset + size]
        case _:
            return said
    known = [*sizes, *[0] * len(said.fds)]
    return replace(said, fds=tuple(map(_at_least, said.fds, known)))


def _at_least(fd: Descriptor, size: int) -> Descriptor:
    return replace(fd, size=size) if fd.kind is Kind.MEMORY and not fd.size else fd


class _Guest:
    """Where a guest's rings are, as its front-end told."""

    def __init__(self) -> None:
        self._features = 0
        self._protocol_features = 0
        self._memory: list[tuple[MemoryRegion, str]] = []
        self._rings: dict[int, VringAddr] = {}
        self._bases: dict[int, int] = {}

    def follow(self, said: Said, payload: Payload) -> Iterator[Wrote]:
        """Take up a message; what has to be written before it is said."""
        match said.request, payload:
            case R.SET_FEATURES, U64(word):
                self._features = word
            case R.SET_PROTOCOL_FEATURES, U64(word):
                self._protocol_features = word
            case R.SET_MEM_TABLE, MemoryTable(regions):
                self._memory = [(region, fd.name) for region, fd in zip(regions, said.fds, strict=False)]
            case R.ADD_MEM_REG, SingleRegion(region) if said.fds:
                self._memory.append((region, said.fds[0].name))
            case R.REM_MEM_REG, SingleRegion(region):
                gone = self._begin(region)
                self._memory = [place for place in self._memory if self._begin(place[0]) != gone]
            case R.SET_VRING_ADDR, VringAddr(index) as ring:
                self._rings[index] = ring
            case R.SET_VRING_BASE, VringState(index, num):
                self._bases[index] = num
            case (R.SET_VRING_KICK, VringFd(index)) | (R.VRING_KICK, VringState(index)):
                yield from self._empty(index)

    def _empty(self, index: int) -> Iterator[Wrote]:
        ring, base = self._rings.get(index), self._bases.get(index, 0)
        if ring is None or self._features & _NO_INDICES:
            return
        for address in (ring.available, ring.used):
            if (found := self._find(address)) is not None:
                memory, offset = found
                yield Wrote(memory, offset + _INDEX_OFFSET, ((base & 0xFFFF).to_bytes(2, sys.byteorder),))

    def _find(self, address: int) -> tuple[str, int] | None:
        """Name of the memory, and offset in its file."""
        for region, memory in self._memory:
            offset = address - self._begin(region)
            if 0 <= offset < region.memory_size:
                return memory, region.mmap_offset + offset
        return None

    def _begin(self, region: MemoryRegion) -> int:
        """Where a region begins in terms of ring addresses."""
        physical = self._protocol_features & ProtocolFeature.GPA_ADDRESSES
        return region.guest_phys_addr if physical else region.userspace_addr

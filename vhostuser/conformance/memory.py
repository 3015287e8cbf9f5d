"""Guest memory whose every store goes into the record, and which knows what others have stored.

Must not know: who else stores, and why.

How: while it watches, it keeps a copy into which go its own stores alone. Where the two differ, somebody else wrote.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vhostuser.frontend.dirty import PAGE
from vhostuser.frontend.memory import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostuser.conformance.record import Record


class RecordedRam(GuestRam):
    """Guest memory; arguments as for :class:`GuestRam <vhostuser.frontend.memory.GuestRam>`, but for the record."""

    def __init__(self, record: Record, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._record = record
        self._copies: list[bytearray] = []
        for region in self.regions:
            record.name(region.fd.fileno(), f"memory at {region.guest_phys_addr:#x}")

    def write(self, guest_phys_addr: int, data: bytes) -> None:
        """Copy bytes in. Raises MemoryAccessError outside a region."""
        self._note(guest_phys_addr, data)
        super().write(guest_phys_addr, data)

    def place(self, guest_phys_addr: int, data: bytes) -> None:
        """As in the base class."""
        self._note(guest_phys_addr, data)
        super().place(guest_phys_addr, data)

    def store_u16(self, guest_phys_addr: int, value: int) -> None:
        """Write two aligned bytes at once, in native order; the value wraps."""
        self._note(guest_phys_addr, (value & 0xFFFF).to_bytes(2, "little"))
        super().store_u16(guest_phys_addr, value)

    def look(self, guest_phys_addr: int, length: int) -> None:
        """Enter into the record what is there. Raises MemoryAccessError outside a region."""
        region, offset = self._locate(guest_phys_addr, length)
        if offset + length <= os.fstat(region.fd.fileno()).st_size - region.mmap_offset:  # else it has vanished
            data = os.pread(region.fd.fileno(), length, region.mmap_offset + offset)
            self._record.saw(region.fd.fileno(), region.mmap_offset + offset, data)

    def emptied(self) -> None:
        """All pages were taken out of the files: enter it into the record."""
        for region in self.regions:
            self._record.resized(region.fd.fileno(), 0)
            self._record.resized(region.fd.fileno(), region.mmap_offset + region.memory_size)

    def copy(self, other: RecordedRam) -> None:
        """Be as other memory of the same layout is: its content, and what is free of it."""
        for region in other.regions:
            self.write(region.guest_phys_addr, bytes(region.bytes))
        self._free = [*other._free]

    def watch(self) -> None:
        """From now on notice what others write."""
        self._copies = [bytearray(region.bytes) for region in self.regions]

    def foreign(self) -> set[int]:
        """Guest-physical addresses of the pages that others have written to, as far as that shows."""
        return {
            region.guest_phys_addr + offset
            for region, copy in zip(self.regions, self._copies, strict=True)
            if region.bytes != copy
            for offset in range(0, region.memory_size, PAGE)
            if region.bytes[offset : offset + PAGE] != copy[offset : offset + PAGE]
        }

    def absorb(self, pages: Iterable[int]) -> None:
        """Take over what others have written to pages, as a migration copies them."""
        for page in pages:
            for region, copy in zip(self.regions, self._copies, strict=True):
                offset = page - region.guest_phys_addr
                if 0 <= offset < region.memory_size:
                    copy[offset : offset + PAGE] = region.bytes[offset : offset + PAGE]

    def _note(self, guest_phys_addr: int, data: bytes) -> None:
        region, offset = self._locate(guest_phys_addr, len(data))
        self._record.wrote(region.fd.fileno(), region.mmap_offset + offset, data)
        if self._copies:
            self._copies[self.regions.index(region)][offset : offset + len(data)] = data

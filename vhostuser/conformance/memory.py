"""Guest memory whose every store goes into the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostuser.frontend.memory import GuestRam

if TYPE_CHECKING:
    from vhostuser.conformance.record import Record


class RecordedRam(GuestRam):
    """Guest memory; arguments as for :class:`GuestRam <vhostuser.frontend.memory.GuestRam>`, but for the record."""

    def __init__(self, record: Record, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._record = record
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

    def _note(self, guest_phys_addr: int, data: bytes) -> None:
        region, offset = self._locate(guest_phys_addr, len(data))
        self._record.wrote(region.fd.fileno(), region.mmap_offset + offset, data)

"""Guest memory as a front-end has it: files that the guest's memory regions map and the back-end gets descriptors of.

Must not know: what lies where in it; rings and buffers are their users' business.

How: each region is a memfd of its own, mapped here. All addresses are guest-physical. The front-end's own
address of a byte, which is what ring addresses are told in, is made up: the guest-physical one plus a
constant that is no valid guest-physical address, so that a back-end that mixes the two up is found out.
Space is handed out from low to high and never taken back: a test's or a demo's memory lives as long as its
guest.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from vhostuser.errors import MemoryAccessError
from vhostuser.fds import Closing, OwnedFd
from vhostuser.wire.messages import MemoryRegion, MemoryTable

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1 << 20
USERSPACE_BASE = 0x7F00_0000_0000
"""Distance from a guest-physical address to the front-end's own address of the same byte."""
DEFAULT_LAYOUT = ((0, 16 * MIB), (1 << 32, 16 * MIB))
"""Begin and size of two regions, with a hole between them as below every real guest's 4 GiB."""
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""The seals of QEMU's memory backend."""


class RamRegion:
    """One memory region and its file.

    Args:
        guest_phys_addr: Where it begins.
        memory_size: Its length in bytes, a multiple of the page size.
        mmap_offset: Where it begins in its file.
        seals: Seals to put on the file, 0 for none.
        hugetlb: Back it by huge pages; sizes have to be multiples of theirs.
    """

    def __init__(
        self, guest_phys_addr: int, memory_size: int, mmap_offset: int = 0, seals: int = 0, hugetlb: bool = False
    ) -> None:
        self.guest_phys_addr = guest_phys_addr
        self.memory_size = memory_size
        self.mmap_offset = mmap_offset
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if hugetlb else 0)
        self.fd = OwnedFd(os.memfd_create(f"guest-{guest_phys_addr:#x}", flags))
        try:
            os.ftruncate(self.fd.fileno(), mmap_offset + memory_size)
            if seals:
                fcntl.fcntl(self.fd.fileno(), fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(self.fd.fileno(), memory_size, offset=mmap_offset)
        except BaseException:
            self.fd.close()
            raise
        self.bytes = memoryview(self._map)
        # Rings are shared with someone who looks at the same time: an index must be one access, never two
        # bytes.
        self.halfwords = self.bytes.cast("H")

    @property
    def userspace_addr(self) -> int:
        """The front-end's own address of its first byte."""
        return USERSPACE_BASE + self.guest_phys_addr

    def message(self) -> MemoryRegion:
        """The region as SET_MEM_TABLE and ADD_MEM_REG tell it."""
        return MemoryRegion(self.guest_phys_addr, self.memory_size, self.userspace_addr, self.mmap_offset)

    def discard(self) -> None:
        """Take all pages out of the file; they are zeros when they are touched again."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap the region and close its file."""
        self.halfwords.release()
        self.bytes.release()
        self._map.close()
        self.fd.close()


class GuestRam(Closing):
    """All memory of one guest, read and written by guest-physical address.

    Args:
        layout: Begin and size of each region.
        mmap_offset: Where every region begins in its file.
        seals: Seals for the files, 0 for none.
        hugetlb: Back them by huge pages.
    """

    def __init__(
        self,
        layout: Iterable[tuple[int, int]] = DEFAULT_LAYOUT,
        *,
        mmap_offset: int = 0,
        seals: int = SEALED,
        hugetlb: bool = False,
    ) -> None:
        self.regions: list[RamRegion] = []
        self._free: list[tuple[int, int]] = []  # begin and size of what is left of each
        try:
            for begin, size in layout:
                self.add(RamRegion(begin, size, mmap_offset, seals, hugetlb))
        except BaseException:
            self.close()
            raise

    def add(self, region: RamRegion) -> RamRegion:
        """Put a region in, as when memory is plugged in, and return it. The back-end has to be told."""
        self.regions.append(region)
        self._free.append((region.guest_phys_addr, region.memory_size))
        return region

    def remove(self, region: RamRegion) -> None:
        """Take a region out and close it. The back-end should have been told before."""
        index = self.regions.index(region)
        del self.regions[index], self._free[index]
        region.close()

    @property
    def top(self) -> int:
        """Where guest memory ends."""
        return max(region.guest_phys_addr + region.memory_size for region in self.regions)

    def table(self) -> MemoryTable:
        """The payload of SET_MEM_TABLE."""
        return MemoryTable(tuple(region.message() for region in self.regions))

    def fds(self) -> list[int]:
        """The descriptors for it, in the same order; they stay ours."""
        return [region.fd.fileno() for region in self.regions]

    def alloc(self, size: int, align: int = 16, region: int = 0) -> int:
        """Set space aside and return its guest-physical address.

        Args:
            size: Length in bytes.
            align: A power of two.
            region: The region to begin the search with.

        Raises:
            MemoryError: No region from there on has room.
        """
        for i in range(region, len(self._free)):
            begin, room = self._free[i]
            aligned = (begin + align - 1) & -align
            taken = aligned - begin + size
            if taken <= room:
                self._free[i] = (begin + taken, room - taken)
                return aligned
        raise MemoryError(f"no room for {size} bytes in {len(self.regions)} memory regions")

    def userspace_addr(self, guest_phys_addr: int) -> int:
        """The front-end's own address of a byte of guest memory."""
        return USERSPACE_BASE + guest_phys_addr

    def read(self, guest_phys_addr: int, length: int) -> bytes:
        """Copy bytes out. Raises MemoryAccessError outside a region."""
        region, offset = self._locate(guest_phys_addr, length)
        return bytes(region.bytes[offset : offset + length])

    def write(self, guest_phys_addr: int, data: bytes) -> None:
        """Copy bytes in. Raises MemoryAccessError outside a region."""
        region, offset = self._locate(guest_phys_addr, len(data))
        region.bytes[offset : offset + len(data)] = data

    def place(self, guest_phys_addr: int, data: bytes) -> None:
        """Copy bytes into the file behind the memory: a page that was not there appears with all of them at once."""
        region, offset = self._locate(guest_phys_addr, len(data))
        os.pwrite(region.fd.fileno(), data, region.mmap_offset + offset)

    def load_u16(self, guest_phys_addr: int) -> int:
        """Read two aligned bytes at once, in native order."""
        region, offset = self._locate(guest_phys_addr, 2)
        return region.halfwords[offset >> 1]

    def store_u16(self, guest_phys_addr: int, value: int) -> None:
        """Write two aligned bytes at once, in native order; the value wraps."""
        region, offset = self._locate(guest_phys_addr, 2)
        region.halfwords[offset >> 1] = value & 0xFFFF

    def _locate(self, guest_phys_addr: int, length: int) -> tuple[RamRegion, int]:
        for region in self.regions:
            offset = guest_phys_addr - region.guest_phys_addr
            if offset >= 0 and offset + length <= region.memory_size:
                return region, offset
        raise MemoryAccessError(f"{length} bytes at {guest_phys_addr:#x} lie in no memory region of this guest")

    def close(self) -> None:
        """Unmap everything and close the files."""
        for region in self.regions:
            region.close()
        self.regions = []

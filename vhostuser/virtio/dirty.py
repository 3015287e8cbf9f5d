"""The dirty log: a bit for each page of guest memory that the device wrote, for a guest that migrates.

Must not know messages, rings, or what was written.

A :class:`DirtyLog` is the front-end's bitmap, mapped. Bit ``n % 8`` of byte ``n / 8`` stands for the 4096 bytes from
guest-physical address ``4096 * n`` on, whatever the host's pages are. The front-end takes bits out with an atomic
exchange while we put some in, and its other back-ends share the bitmap, so setting one is an atomic OR. One that is
set already is only looked at, which leaves its cache line where it is.

A :class:`RingLog` is one ring's way into it, used in the ring's thread alone: it knows where the ring's own areas are
logged, and finds the guest-physical address of a buffer from where the buffer lies in this process, so that an IOMMU's
addresses never matter.

**Ordering.** The front-end takes a bit, then reads the page. So first the page is written, then comes a full fence,
then the bit is looked at. Without the fence a processor may look first: it finds the bit set, the front-end takes it
and sends the old page, and the bytes that arrive then are lost. The ring puts one fence before whatever it logs.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import cython

from vhostuser.virtio.memory import FileMapping, address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import LOG_PAGE_SHIFT
    from vhostuser.virtio.memory import GuestMemory
    from vhostuser.virtio.primitives import load_u8, set_bit, signal

_LAST = cython.declare(cython.ulonglong, (1 << 64) - 1)
_EINTR = cython.declare(cython.long, -errno.EINTR)
_PAGE = cython.declare(cython.ulonglong, 1 << LOG_PAGE_SHIFT)


class LogMapping(FileMapping):
    """A bitmap's file, mapped."""

    range_rule = file_rule = "VU-LOG-10"


class DirtyLog:
    """The bitmap, mapped.

    Attributes:
        size: its bytes.
    """

    def __init__(self, fd: int, mmap_size: int, mmap_offset: int) -> None:
        """Map it. The descriptor stays the caller's.

        Raises:
            PayloadError, FdError: as :class:`FileMapping` does.
        """
        self.mapping = LogMapping(fd, mmap_size, mmap_offset)
        self.size = mmap_size
        self.bits = self.mapping.host_address
        self.copy: mmap.mmap | None = None
        self.copied = 0

    def close(self) -> None:
        """Unmap it. No ring uses it any more."""
        self.mapping.close()

    def record(self) -> None:
        """Have a second copy of every bit that is set from now on, for an audit: the front-end takes the first one."""
        self.copy = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.copied = address_of(self.copy)

    def recorded(self) -> bytes:
        """The bits since :meth:`record`. No ring's thread turns now."""
        assert self.copy is not None
        return self.copy[:]

    def mark(self, page: cython.ulonglong) -> cython.int:
        """Set a page's bit: 1 if it was clear, 0 if it was set, -1 if the bitmap ends before it."""
        at: cython.ulonglong = page >> 3
        bit: cython.int = page & 7
        if at >= self.size:
            return -1
        if self.copied:
            set_bit(self.copied + at, bit)
        if (load_u8(self.bits + at) >> bit) & 1:
            return 0
        set_bit(self.bits + at, bit)
        return 1


class RingLog:
    """What one ring logs, and where.

    Attributes:
        on: whether anything is logged.
        own: whether writes to the ring's own areas are.
        logged: how often a page's bit was set.
        beyond: how many pages could not be logged since the bitmap ends before them.
    """

    def __init__(self) -> None:
        self.log: DirtyLog | None = None
        self.memory = GuestMemory()
        self.on = self.own = self.elsewhere = self.fresh = False
        self.told: int | None = None
        self.desc = self.device = 0
        self.fd = -1
        self.may_block = False
        self.logged = self.beyond = 0

    # ---- the control side ------------------------------------------------------------------------------------------

    def use(self, log: DirtyLog | None, own: bool, device: int | None, fd: int) -> None:
        """Log there from now on; None: nothing is logged.

        Args:
            log: the bitmap.
            own: whether writes to the ring's own areas are logged as well.
            device: the guest-physical address at which the device area is logged; None: where it is.
            fd: an eventfd or pipe to signal after bits were set; -1: none.
        """
        self.log = log
        self.on = log is not None
        self.own = own
        self.told = device
        self.elsewhere = device is not None
        self.fd = fd
        self.may_block = fd >= 0 and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK

    def place(self, memory: GuestMemory, desc: cython.ulonglong, device: cython.ulonglong) -> None:
        """Take over where the ring's buffers and its two areas lie now."""
        self.memory = memory
        self.desc = desc
        self.device = device if self.told is None else self.told

    # ---- the ring's thread, behind a fence -------------------------------------------------------------------------

    def buffer(self, host: cython.ulonglong, length: cython.ulonglong) -> None:
        """Log bytes that were written to a buffer, or to a part of one that lies in one region."""
        self.mark(self.memory.guest_phys_addr(host), length)

    def desc_area(self, offset: cython.ulonglong, length: cython.ulonglong) -> None:
        """Log bytes that were written to the descriptor area."""
        if self.own:
            self.area(self.desc + offset, length)

    def device_area(self, offset: cython.ulonglong, length: cython.ulonglong) -> None:
        """Log bytes that were written to the device area. The front-end says where that is: it may be anywhere."""
        if self.own and self.elsewhere and self.device > _LAST - offset - length:
            self.beyond += 1
        elif self.own and self.elsewhere:
            self.mark(self.device + offset, length)
        elif self.own:
            self.area(self.device + offset, length)

    def area(self, host: cython.ulonglong, length: cython.ulonglong) -> None:
        """Log bytes of one of the ring's areas, page by page: behind an IOMMU each may be anywhere."""
        part: cython.ulonglong
        while length:
            part = min(length, _PAGE - (host & (_PAGE - 1)))
            self.buffer(host, part)
            host += part
            length -= part

    def mark(self, address: cython.ulonglong, length: cython.ulonglong) -> None:
        """Set the bits of a guest-physical range of at least one byte; nothing beyond the bitmap is touched."""
        page: cython.ulonglong = address >> LOG_PAGE_SHIFT
        last: cython.ulonglong = (address + length - 1) >> LOG_PAGE_SHIFT
        answer: cython.int
        while page <= last and self.log is not None:
            answer = self.log.mark(page)
            if answer < 0:
                self.beyond += last - page + 1
                return
            if answer:
                self.logged += 1
                self.fresh = True
            page += 1

    def poke(self) -> None:
        """Signal the front-end if bits were set since the last time."""
        if self.fresh:
            self.fresh = False
            if self.fd >= 0 and signal(self.fd, self.may_block) == _EINTR:
                self.may_block = True  # as a ring's call

"""The front-end's part in post-copy: a guest whose pages come one by one, when a back-end asks for them.

Must not know what lies in the pages.

How: the guest's memory is emptied and what was in it kept, as if it were still elsewhere. :meth:`PageServer.begin` is
the exchange of messages from POSTCOPY_ADVISE to the acknowledgement of the back-end's addresses. Faults of the
back-end's threads are read from its userfaultfd, which names them by those addresses. A page is put into the file as a
whole, and so appears in every mapping; then whoever waits for it is woken.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING

import trio

from vhostuser.errors import LocalProtocolError
from vhostuser.fds import OwnedFd
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import VERSION, Frame
from vhostuser.wire.messages import MemoryRegion
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.frontend.client import FrontEnd
    from vhostuser.frontend.memory import GuestRam

PAGE = mmap.PAGESIZE
_WAKE = 0x8010AA02  # UFFDIO_WAKE: start, length
_PAGEFAULT = 0x12  # UFFD_EVENT_PAGEFAULT
_MESSAGE = struct.Struct("=B7xQQQ")  # struct uffd_msg: event, and of a fault its flags, its address, a thread


class PageServer:
    """Gives a back-end the pages of a guest's memory as it touches them.

    Args:
        memory: The guest's memory. It is emptied; nobody may touch a page before it was given.

    Attributes:
        asked: Guest-physical addresses of the pages that were asked for, in that order.
        places: The regions, with the back-end's addresses in place of the front-end's.
    """

    def __init__(self, memory: GuestRam) -> None:
        self.asked: list[int] = []
        self.places: list[MemoryRegion] = []
        self._memory = memory
        self._fd: OwnedFd | None = None
        self._given: set[int] = set()
        self._kept: dict[int, bytes] = {}
        for region in memory.regions:
            for offset in range(0, region.memory_size, PAGE):
                if any(page := bytes(region.bytes[offset : offset + PAGE])):
                    self._kept[region.guest_phys_addr + offset] = page
            region.discard()

    async def begin(self, front_end: FrontEnd) -> None:
        """Tell the back-end of the memory, as memory whose pages have to be waited for."""
        _, fds = await front_end.request_with_fds(FrontendRequest.POSTCOPY_ADVISE)
        self.watch(fds.take())
        await front_end.request(FrontendRequest.POSTCOPY_LISTEN)
        front_end.listening = True
        front_end.memory = self._memory
        self.places += await front_end.tell_memory()
        slots = ProtocolFeature.CONFIGURE_MEM_SLOTS in front_end.protocol_features
        acknowledged = FrontendRequest.ADD_MEM_REG if slots else FrontendRequest.SET_MEM_TABLE
        await front_end.send_frame(Frame(acknowledged, VERSION, bytes(8)))

    def watch(self, fd: OwnedFd) -> None:
        """Learn of faults from this userfaultfd, owned from now on; where they are tells :attr:`places`."""
        self._fd = fd

    def give_rest(self) -> None:
        """Put all pages in their places that are not there yet."""
        for page in self._kept.keys() - self._given:
            self.give(page)

    async def end(self, front_end: FrontEnd) -> None:
        """Give what is left, and tell the back-end that this was all."""
        self.give_rest()
        await front_end.request(FrontendRequest.POSTCOPY_END)
        front_end.listening = False
        self.close()

    async def run(self) -> None:
        """Give what is asked for, until cancelled."""
        while True:
            self.give(await self.next_fault())

    async def next_fault(self) -> int:
        """Wait until a page is asked for; its guest-physical address. One page may be asked for more than once."""
        assert self._fd is not None, "there is no userfaultfd yet"
        while True:
            await trio.lowlevel.wait_readable(self._fd.fileno())
            event, _, address, _ = _MESSAGE.unpack(os.read(self._fd.fileno(), _MESSAGE.size))
            if event == _PAGEFAULT:
                self.asked.append(self._guest_phys_addr(address) & -PAGE)
                return self.asked[-1]

    def give(self, page: int) -> None:
        """Put a page in its place unless it is there already, and wake who waits for it."""
        if page not in self._given:
            self._given.add(page)
            self._memory.place(page, self._kept.get(page, bytes(PAGE)))
        for place in self.places:
            if 0 <= page - place.guest_phys_addr < place.memory_size and self._fd is not None:
                address = place.userspace_addr + page - place.guest_phys_addr
                fcntl.ioctl(self._fd.fileno(), _WAKE, struct.pack("QQ", address, PAGE))

    def close(self) -> None:
        """Close the userfaultfd."""
        if self._fd is not None:
            self._fd.close()

    def _guest_phys_addr(self, address: int) -> int:
        for place in self.places:
            if 0 <= address - place.userspace_addr < place.memory_size:
                return place.guest_phys_addr + address - place.userspace_addr
        raise LocalProtocolError(f"a fault at {address:#x}, where the back-end has no memory of this guest")

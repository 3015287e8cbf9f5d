"""An IOMMU in front of a guest's memory, as the front-end has one: it translates, answers misses, and takes back.

Must not know: what is translated, or why.

How: :class:`IommuRam` is guest memory whose every address is an I/O virtual one (IOVA), so drivers and rings work on it
unchanged; what the memory table tells are other addresses, and of :class:`ScatteredRam` in another order.
:class:`Iommu` says which of it the device may use, and answers what the back-end asks on its channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vhostuser.errors import MemoryAccessError
from vhostuser.frontend.memory import DEFAULT_LAYOUT, SEALED, GuestRam
from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.messages import Iotlb, IotlbType, MemoryTable
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.frontend.client import FrontEnd
    from vhostuser.wire.frames import Frame

PAGE = 4096
IOVA_BASE = 1 << 40
"""Distance from a guest-physical address to the IOVA of the same byte."""


class IommuRam(GuestRam):
    """Guest memory that is used by IOVA.

    Args:
        layout: Guest-physical begin and size of each region.
        seals: As for :class:`GuestRam`.
    """

    def __init__(self, layout: Iterable[tuple[int, int]] = DEFAULT_LAYOUT, *, seals: int = SEALED) -> None:
        super().__init__([(IOVA_BASE + begin, size) for begin, size in layout], seals=seals)

    def table(self) -> MemoryTable:
        """The payload of SET_MEM_TABLE, in guest-physical addresses."""
        regions = super().table().regions
        return MemoryTable(
            tuple(
                type(region)(
                    region.guest_phys_addr - IOVA_BASE, region.memory_size, region.userspace_addr, region.mmap_offset
                )
                for region in regions
            )
        )


class ScatteredRam(IommuRam):
    """The same, but pages that follow each other by IOVA do not in guest memory. A translation covers one page.

    Attributes:
        places: By number of a page: the number of the one whose place it has. Others have that of their neighbour.
    """

    def __init__(self, layout: Iterable[tuple[int, int]] = DEFAULT_LAYOUT, *, seals: int = SEALED) -> None:
        super().__init__(layout, seals=seals)
        self.places: dict[int, int] = {}

    def swap(self, iova: int, other: int) -> None:
        """Have two pages change places. What they hold stays where it is."""
        page, with_page = self._place(iova) // PAGE, self._place(other) // PAGE
        self.places |= {iova // PAGE: with_page, other // PAGE: page}

    def userspace_addr(self, iova: int) -> int:
        """The front-end's own address of a byte."""
        return super().userspace_addr(self._place(iova))

    def read(self, iova: int, length: int) -> bytes:
        """Copy bytes out. Raises MemoryAccessError outside a region."""
        return b"".join([IommuRam.read(self, self._place(at), size) for at, size in _by_page(iova, length)])

    def write(self, iova: int, data: bytes) -> None:
        """Copy bytes in. Raises MemoryAccessError outside a region."""
        for at, size in _by_page(iova, len(data)):
            super().write(self._place(at), data[at - iova : at - iova + size])

    def load_u16(self, iova: int) -> int:
        """Read two aligned bytes at once, in native order."""
        return super().load_u16(self._place(iova))

    def store_u16(self, iova: int, value: int) -> None:
        """Write two aligned bytes at once, in native order; the value wraps."""
        super().store_u16(self._place(iova), value)

    def _place(self, iova: int) -> int:
        page, offset = divmod(iova, PAGE)
        return self.places.get(page, page ^ 1) * PAGE + offset


def _by_page(iova: int, length: int) -> Iterator[tuple[int, int]]:
    """A range, cut where pages begin: address and bytes of each part."""
    end = iova + length
    while iova < end:
        size = min(PAGE - iova % PAGE, end - iova)
        yield iova, size
        iova += size


class Iommu:
    """The front-end's side of an IOMMU.

    Args:
        front_end: The connection, with a back-end channel.
        memory: What the IOVAs lead to.
        granule: How much a translation covers, in bytes.

    Attributes:
        permissions: By number of the granule: 1 the device may read it, 2 write, 3 both. Others have `default`.
        default: The permission of the rest; 0 for none.
        misses: The IOVAs and permissions that were asked for.
        failures: The IOVAs and permissions of accesses that the back-end found not to be allowed.
    """

    def __init__(self, front_end: FrontEnd, memory: IommuRam, granule: int = PAGE, default: int = 3) -> None:
        self.permissions: dict[int, int] = {}
        self.default = default
        self.misses: list[tuple[int, int]] = []
        self.failures: list[tuple[int, int]] = []
        self._front_end = front_end
        self._memory = memory
        self._granule = granule

    async def run(self) -> None:
        """Answer the back-end until cancelled, or until it closes its channel."""
        channel = self._front_end.backend_channel
        assert channel is not None, "open_backend_channel has to come first"
        while True:
            frame = await channel.receive()
            with frame.fds:
                done = await self._answer(frame)
            if frame.need_reply:
                await channel.send(encode_ack(frame.request, 0 if done else 1))

    async def _answer(self, frame: Frame) -> bool:
        message = decode(Direction.BACKEND, frame)
        if message.request != BackendRequest.IOTLB_MSG:
            return False
        assert isinstance(message.payload, Iotlb)
        asked = message.payload.iova, message.payload.perm
        if message.payload.type == IotlbType.ACCESS_FAIL:
            self.failures.append(asked)
            return True
        self.misses.append(asked)
        return await self.update(message.payload.iova)

    async def update(self, iova: int) -> bool:
        """Tell the translation of the granule with this address, if there is one."""
        granule = iova // self._granule
        begin, perm = granule * self._granule, self.permissions.get(granule, self.default)
        try:
            self._memory.read(begin, self._granule)
        except MemoryAccessError:
            return False
        if not perm:
            return False
        uaddr = self._memory.userspace_addr(begin)
        await self._tell(Iotlb(begin, self._granule, uaddr, perm, IotlbType.UPDATE))
        return True

    async def invalidate(self, iova: int, size: int) -> None:
        """Withdraw the translations of a range; the device uses them no more when this returns."""
        await self._tell(Iotlb(iova, size, 0, 0, IotlbType.INVALIDATE))

    async def _tell(self, message: Iotlb) -> None:
        await self._front_end.request(FrontendRequest.IOTLB_MSG, message)

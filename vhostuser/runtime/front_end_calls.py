"""What a device asks of its front-end, as requests on the back-end's own channel.

Must not know why a device asks. It sees to the rules that concern the device alone: what it has mapped into shared
memory regions, which must not overlap and goes only as a whole.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress

from vhostuser.errors import LocalProtocolError
from vhostuser.fds import OwnedFd
from vhostuser.runtime.backend_channel import BackendChannel, RefusedError
from vhostuser.wire.messages import SharedObject, ShmemMap, ShmemMapFlags
from vhostuser.wire.requests import BackendRequest


class FrontEndCalls:
    """Implements :class:`vhostuser.device.FrontEnd` for one connection.

    Args:
        channel: where requests go.
        shmem_regions: sizes in bytes of the device's shared memory regions, by their identifiers.

    Raises:
        ValueError: a region is not made of whole pages.
    """

    def __init__(self, channel: BackendChannel, shmem_regions: Mapping[int, int]) -> None:
        self._channel = channel
        for shmid, size in shmem_regions.items():
            if size % mmap.PAGESIZE:
                raise ValueError(f"shared memory region {shmid}: {size:#x} bytes are no multiple of {mmap.PAGESIZE:#x}")
        self._regions = shmem_regions
        self._mapped: list[ShmemMap] = []

    async def config_changed(self) -> None:
        """Have the driver read the configuration space again."""
        await self._channel.request(BackendRequest.CONFIG_CHANGE_MSG)

    async def add_object(self, uuid: bytes) -> None:
        """Announce that :meth:`Device.shared_object` knows this name now."""
        await self._channel.request(BackendRequest.SHARED_OBJECT_ADD, SharedObject(uuid))

    async def remove_object(self, uuid: bytes) -> None:
        """Announce that it knows it no longer."""
        await self._channel.request(BackendRequest.SHARED_OBJECT_REMOVE, SharedObject(uuid))

    async def lookup_object(self, uuid: bytes) -> OwnedFd | None:
        """The descriptor of an object that another back-end shares; None where nobody has it."""
        try:
            _, fds = await self._channel.request(BackendRequest.SHARED_OBJECT_LOOKUP, SharedObject(uuid))
        except RefusedError:
            return None
        with fds:
            return fds.take() if len(fds) else None

    async def map(
        self, region: int, offset: int, length: int, fd: int, fd_offset: int = 0, writable: bool = False
    ) -> None:
        """Map a piece of a file, which stays the caller's, into a shared memory region.

        Raises:
            LocalProtocolError: it is not inside the region, or overlaps what is mapped already.
        """
        place = f"SHMEM_MAP: {offset:#x}+{length:#x}"
        size = self._regions.get(region, 0)
        if not 0 < length <= size - offset:
            raise LocalProtocolError(f"{place} is not inside region {region} of {size:#x} bytes")
        for there in self._mapped:
            apart = there.shmid != region or there.shm_offset >= offset + length
            if not apart and offset < there.shm_offset + there.length:
                raise LocalProtocolError(f"{place} overlaps what is mapped: {there}")
        mapping = ShmemMap(region, fd_offset, offset, length, ShmemMapFlags.WRITABLE if writable else 0)
        self._mapped.append(mapping)
        try:
            await self._channel.request(BackendRequest.SHMEM_MAP, mapping, [fd])
        except BaseException:
            self._let_go(mapping)
            raise

    async def unmap(self, region: int, offset: int) -> None:
        """Take away what was mapped at an offset, as a whole.

        Raises:
            LocalProtocolError: nothing was.
        """
        for mapping in self._mapped:
            if (mapping.shmid, mapping.shm_offset) == (region, offset):
                await self._channel.request(BackendRequest.SHMEM_UNMAP, mapping)
                self._let_go(mapping)
                return
        raise LocalProtocolError(f"SHMEM_UNMAP: nothing is mapped at {offset:#x} of region {region}")

    def _let_go(self, mapping: ShmemMap) -> None:
        with suppress(ValueError):  # a reset came meanwhile
            self._mapped.remove(mapping)

    def forget(self) -> None:
        """The device was reset: the front-end has unmapped everything."""
        self._mapped.clear()

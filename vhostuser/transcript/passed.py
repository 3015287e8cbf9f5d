"""What a front-end has passed to whoever plays its back-end: memory, where rings lie in it, descriptors of rings.

Must not know: sockets, what is answered.

How: pieces of rings have names, made of the field of SET_VRING_ADDR that tells where they are and the ring's number:
``descriptor 0``, ``used 0``, ``available 0``. Memory is written through its file, not through a mapping, which a
front-end that shortens the file could not survive; a file that cannot be written (huge pages) stays as it is.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import fields

from vhostuser.fds import Closing, FdBundle, OwnedFd
from vhostuser.wire.messages import MemoryRegion, MemoryTable, Message, SingleRegion, VringAddr, VringFd
from vhostuser.wire.requests import FrontendRequest

_EVENTS = {
    FrontendRequest.SET_VRING_KICK: "kick",
    FrontendRequest.SET_VRING_CALL: "call",
    FrontendRequest.SET_VRING_ERR: "err",
}


class Passed(Closing):
    """What came on one connection; all of it is closed at its end."""

    def __init__(self) -> None:
        self._own_channel: OwnedFd | None = None
        self._regions: list[tuple[MemoryRegion, OwnedFd]] = []
        self._rings: dict[int, VringAddr] = {}
        self._events: dict[str, OwnedFd] = {}

    def take(self, message: Message) -> None:
        """Take from a request what it brings. What is of no use stays the message's."""
        match message.payload:
            case MemoryTable(regions=regions):
                self._forget(range(1 << 64))
                self._regions = [(region, message.fds.take()) for region in regions]
            case SingleRegion(region) if message.request == FrontendRequest.ADD_MEM_REG:
                self._regions.append((region, message.fds.take()))
            case SingleRegion(region):
                self._forget(range(region.guest_phys_addr, region.guest_phys_addr + 1))
            case VringAddr() as addresses:
                self._rings[addresses.index] = addresses
            case VringFd(index, no_fd=False) if message.request in _EVENTS:
                self._keep(f"{_EVENTS[FrontendRequest(message.request)]} {index}", message.fds)
        if message.request == FrontendRequest.SET_BACKEND_REQ_FD:
            if self._own_channel is not None:
                self._own_channel.close()
            self._own_channel = message.fds.take()

    def take_own_channel(self) -> OwnedFd | None:
        """The socket of SET_BACKEND_REQ_FD, which is the caller's then; None if no new one came."""
        fd, self._own_channel = self._own_channel, None
        return fd

    def write(self, place: str, offset: int, data: bytes) -> None:
        """Write to a piece of a ring, so many bytes behind its begin; nothing if it is not known where that is."""
        field, _, ring = place.partition(" ")
        addresses = self._rings.get(int(ring)) if ring.isdecimal() else None
        if addresses is None or field not in _PLACES:
            return
        at = getattr(addresses, field) + offset
        for region, fd in self._regions:
            for begin in (region.userspace_addr, region.guest_phys_addr):
                if begin <= at and at + len(data) <= begin + region.memory_size:
                    with suppress(OSError, OverflowError):
                        os.pwrite(fd.fileno(), data, region.mmap_offset + at - begin)
                    return

    def signal(self, name: str) -> None:
        """Write to a ring's eventfd, ``call 0`` or ``err 0``, if there is one and it has room."""
        event = self._events.get(name)
        if event is not None and select.select([], [event], [], 0)[1]:
            with suppress(OSError):
                os.write(event.fileno(), (1).to_bytes(8, "little"))

    def _forget(self, begins: range) -> None:
        """Close the regions that begin at one of these guest-physical addresses."""
        gone = [place for place in self._regions if place[0].guest_phys_addr in begins]
        self._regions = [place for place in self._regions if place not in gone]
        for _, fd in gone:
            fd.close()

    def _keep(self, name: str, fds: FdBundle) -> None:
        if (old := self._events.get(name)) is not None:
            old.close()
        self._events[name] = fds.take()

    def close(self) -> None:
        """Close all of it."""
        for fd in (*(fd for _, fd in self._regions), *self._events.values(), self._own_channel):
            if fd is not None:
                fd.close()


_PLACES = frozenset(field.name for field in fields(VringAddr)) - {"index", "flags", "log"}

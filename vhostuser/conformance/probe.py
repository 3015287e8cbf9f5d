"""What a check works with: connections to the back-end, memory and descriptors, all of it recorded and bounded.

Must not know: which statement is at stake.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio

from vhostuser.conformance.connection import Connection, Patience
from vhostuser.conformance.driver import Driver
from vhostuser.conformance.memory import RecordedRam
from vhostuser.conformance.offer import Offer
from vhostuser.conformance.own_channel import OwnChannel
from vhostuser.conformance.record import Record
from vhostuser.conformance.target import BackEnd, TargetError
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.fds import OwnedFd
from vhostuser.frontend.dirty import DirtyBitmap
from vhostuser.limits import Limits
from vhostuser.transport.channel import Channel
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import IntFlag

    from vhostuser.conformance.devices import Device

PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ
"""Protocol features that a check acknowledges unless it says otherwise, as far as they are offered."""
_AFTERMATH = 1.0  # seconds in which something may still come of what was said before a check failed


class Probe:
    """A check's hands and eyes.

    Args:
        back_end: Whom to test.
        offer: What it offers.
        device: What kind of device it is.
        patience: How long is waited.

    Attributes:
        record: What happened.
    """

    def __init__(self, back_end: BackEnd, offer: Offer, device: Device, patience: Patience) -> None:
        self.back_end = back_end
        self.offer = offer
        self.device = device
        self.patience = patience
        self.record = Record()
        self._kept = ExitStack()
        self._owned: dict[int, OwnedFd] = {}
        self._connections: list[Connection] = []
        self._drivers: list[Driver] = []

    def needs(self, *features: IntFlag) -> None:
        """Go on only if these are offered. Raises NotApplicable."""
        if missing := self.offer.missing(*features):
            raise NotApplicable(f"{', '.join(missing)} not offered")

    # ---- connections ---------------------------------------------------------------------------------------------

    async def connect(self, *, beside: bool = False) -> Connection:
        """A connection on which nothing was said yet.

        Args:
            beside: Leave those before it open. A back-end may serve one at a time.
        """
        if not beside:
            for earlier in self._connections:
                earlier.close()
        # the back-end may be slow or gone, which is found out as late as this
        limits = Limits(
            message_timeout=self.patience.answer, send_timeout=self.patience.limit, messages_per_second=math.inf
        )
        try:
            channel = await self.back_end.connect(limits)
        except TargetError as error:
            raise Violation(f"no new connection: {error}") from None
        connection = Connection(channel, self.record, self.patience, self._kept)
        self._connections.append(connection)
        return connection

    async def negotiated(
        self, virtio: int | None = None, protocol: ProtocolFeature = PROTOCOL, *, by_one: bool = True
    ) -> Connection:
        """A connection with a session begun and features acknowledged.

        Args:
            virtio: The features of the driver, as far as they are offered; None: what the device needs.
                PROTOCOL_FEATURES is added.
            protocol: Protocol features, as far as they are offered.
            by_one: Acknowledge PROTOCOL_FEATURES, so that rings are enabled one by one.
        """
        connection = await self.connect()
        await connection.accepted(FrontendRequest.SET_OWNER)
        if self.offer.virtio & VhostFeature.PROTOCOL_FEATURES:
            await connection.accepted(FrontendRequest.SET_PROTOCOL_FEATURES, U64(self.offer.protocol & protocol))
        wanted = self.device.features if virtio is None else virtio
        if by_one:
            wanted |= VhostFeature.PROTOCOL_FEATURES
        await connection.accepted(FrontendRequest.SET_FEATURES, U64(wanted & self.offer.virtio))
        return connection

    async def own_channel(self, connection: Connection) -> OwnChannel:
        """A channel for the back-end's own requests; BACKEND_REQ has to be acknowledged."""
        ours, theirs = socket.socketpair()
        fd = self.keep(theirs.detach(), "own channel")
        channel = Channel(trio.socket.from_stdlib_socket(ours))
        self._kept.callback(channel.close)
        await connection.accepted(FrontendRequest.SET_BACKEND_REQ_FD, None, [fd])
        self.drop(fd)
        return OwnChannel(channel, self.record, self.patience, self._kept)

    async def driver(
        self,
        virtio: int = 0,
        protocol: ProtocolFeature = PROTOCOL,
        *,
        start: bool = True,
        enable: bool = True,
        size: int = 64,
        by_one: bool = True,
        layout: Sequence[tuple[int, int]] = (),
        **memory: Any,
    ) -> Driver:
        """A driver whose memory was told, and whose rings run.

        Args:
            virtio: Features besides those that the device needs, as far as they are offered.
            protocol: As for :meth:`negotiated`.
            start: Whether rings are made and started.
            enable: Whether they are enabled, too.
            size: Descriptors of each ring.
            by_one: As for :meth:`negotiated`.
            layout: Begin and size of each memory region, if not the usual ones.
            **memory: As for :meth:`memory`.
        """
        connection = await self.negotiated(self.device.features | virtio, protocol, by_one=by_one)
        driver = self.drive(connection, self.memory(*layout, **memory))
        await driver.tell_memory()
        if start:
            await driver.start_all(enable=enable, size=size)
        return driver

    def drive(self, connection: Connection, memory: RecordedRam) -> Driver:
        """A driver on a connection, which has told nothing yet."""
        driver = Driver(connection, memory, self.device, self.record, self.patience)
        self._kept.callback(driver.close)
        self._drivers.append(driver)
        return driver

    # ---- memory and descriptors ----------------------------------------------------------------------------------

    def memory(self, *layout: tuple[int, int], **options: Any) -> RecordedRam:
        """Guest memory; regions and options as for :class:`GuestRam <vhostuser.frontend.memory.GuestRam>`."""
        memory = RecordedRam(self.record, *([layout] if layout else []), **options)
        return self._kept.enter_context(memory)

    def dirty_log(self, top: int) -> DirtyBitmap:
        """A dirty log for memory that ends at a guest-physical address."""
        log = self._kept.enter_context(DirtyBitmap(top))
        self.record.name(log.fd.fileno(), "log")
        return log

    def eventfd(self, value: int = 0, flags: int = os.EFD_NONBLOCK, name: str = "eventfd") -> int:
        """A new eventfd."""
        return self.keep(os.eventfd(value, flags | os.EFD_CLOEXEC), name)

    def pipe(self) -> tuple[int, int]:
        """A new pipe: the end for reading and the one for writing, neither of which waits."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return self.keep(reading, "pipe"), self.keep(writing, "pipe")

    def socketpair(self) -> tuple[int, int]:
        """Two connected sockets."""
        ours, theirs = socket.socketpair()
        return self.keep(ours.detach(), "socket"), self.keep(theirs.detach(), "socket")

    def memfd(self, size: int, name: str = "file") -> int:
        """A new file in memory."""
        fd = self.keep(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), name)
        os.ftruncate(fd, size)
        return fd

    async def pause(self, seconds: float) -> None:
        """Let some time pass, and enter it into the record."""
        self.record.paused(seconds)
        await trio.sleep(seconds)

    def resize(self, fd: int, size: int) -> None:
        """Change the length of a file in memory that was passed."""
        self.record.resized(fd, size)
        os.ftruncate(fd, size)

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """An open file."""
        return self.keep(os.open(path, flags | os.O_CLOEXEC), path)

    def signal(self, fd: int, value: int = 1) -> None:
        """Add a number to an eventfd that was passed, as who kicks does."""
        self.record.signalled(fd)
        os.eventfd_write(fd, value)

    def unmapped(self, fd: int) -> bool:
        """Whether nobody has a file in memory mapped for writing; if so it is sealed, and nobody can any more."""
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def poke(self, kick: int, other: int) -> None:
        """Write to the other end of a pipe or socket that was passed to kick with."""
        self.record.signalled(kick)
        os.write(other, (1).to_bytes(8, "little"))

    async def hung_up(self, fd: int) -> bool:
        """Whether nobody has the other end of a pipe or a socket any more, or lets go of it in time."""
        with trio.move_on_after(self.patience.answer):
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    if not os.read(fd, 4096):
                        return True
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    return True
        return False

    def drop(self, fd: int) -> None:
        """Close a descriptor before the check is over."""
        self._owned.pop(fd).close()

    def keep(self, fd: int, name: str) -> int:
        """Own a descriptor until the check is over, under a name for the record."""
        self._owned[fd] = self._kept.enter_context(OwnedFd(fd))
        self.record.name(fd, name)
        return fd

    async def look(self) -> None:
        """Enter into the record what still comes, and what the rings hold after that."""
        for connection in self._connections[-1:]:  # those before were closed
            await connection.overhear(_AFTERMATH)
        self.record.paused(_AFTERMATH)
        for driver in self._drivers[-1:]:
            driver.look()

    def close(self) -> None:
        """Close all connections and descriptors."""
        for connection in self._connections:
            connection.close()
        self._kept.close()

"""A front-end: one connection to a back-end, and the sequences of requests that every front-end needs.

Must not know: what a device does with its rings. It sends what it is told to, in the order it is told.

How: :func:`connect` opens a connection, negotiates and tells the guest's memory, or says nothing yet. What
:class:`FrontEnd` has beyond single requests (:mod:`vhostuser.frontend.conversation`) are the sequences: negotiation,
memory, starting and stopping a ring, the dirty log, memory for requests in flight, the back-end's own channel.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import trio

from vhostuser.errors import FramingError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.conversation import REPLY_TIMEOUT, Conversation, RefusedError
from vhostuser.frontend.features import RING_FEATURES
from vhostuser.frontend.layouts import make_ring
from vhostuser.frontend.memory import GuestRam
from vhostuser.limits import Limits
from vhostuser.transport import endpoints
from vhostuser.transport.channel import Channel
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import (
    U64,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    SingleRegion,
    VringAddr,
    VringAddrFlags,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Sequence

    from vhostuser.frontend.dirty import DirtyBitmap
    from vhostuser.frontend.memory import RamRegion
    from vhostuser.frontend.packed import PackedDriverRing
    from vhostuser.frontend.rings import DriverQueue
    from vhostuser.frontend.split import DriverRing

DEFAULT_PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD
"""What is acknowledged unless told otherwise: what a front-end needs, and nothing that obliges it."""


@asynccontextmanager
async def connect(
    path: str | os.PathLike[str],
    *,
    features: int = RING_FEATURES,
    protocol_features: ProtocolFeature = DEFAULT_PROTOCOL_FEATURES,
    memory: GuestRam | None = None,
    negotiate: bool = True,
    limits: Limits | None = None,
    reply_timeout: float = REPLY_TIMEOUT,
) -> AsyncIterator[FrontEnd]:
    """Connect to a back-end that listens at a path, waiting for it to appear; negotiate, and tell the memory.

    Args:
        path: The socket.
        features: The virtio features to acknowledge if they are offered; PROTOCOL_FEATURES is always added.
        protocol_features: Likewise.
        memory: The guest's memory, which stays the caller's. None: the front-end has its own.
        negotiate: Whether to negotiate and to tell the memory. False: nothing is said, the first word is the caller's.
        limits: What the back-end may take of us.
        reply_timeout: How long to wait for an answer, in seconds.

    Yields:
        The front-end; the connection, its rings and its own memory are closed with the block.

    Raises:
        EndpointError: The path is one where waiting will not help.
        RefusedError: The back-end refused a part of this.
        FramingError: An answer did not come, or is none.
        ConnectionClosedError: The back-end left.
    """
    channel = await endpoints.connect(path, limits)
    async with FrontEnd(channel, memory, reply_timeout) as front_end:
        if negotiate:
            await front_end.negotiate(features, protocol_features)
            await front_end.tell_memory()
        yield front_end


class InflightFile(NamedTuple):
    """The memory in which a back-end records its requests in flight; whoever has it keeps it for the next back-end.

    Attributes:
        told: What it is, as both messages about it have it.
        fd: The file, owned by whoever has this.
    """

    told: Inflight
    fd: OwnedFd


class FrontEnd(Conversation):
    """One connection to a back-end, and what this end of it has: memory, rings, the back-end's own channel.

    Args:
        channel: The connection, owned from now on.
        memory: The guest's memory, which stays the caller's. None: see :attr:`memory`.
        reply_timeout: How long to wait for an answer, in seconds.

    Attributes:
        offered: Virtio features that the back-end offered.
        features: Virtio features that were acknowledged.
        backend_channel: Our end of the back-end's own channel, once :meth:`open_backend_channel` made it.
    """

    def __init__(self, channel: Channel, memory: GuestRam | None = None, reply_timeout: float = REPLY_TIMEOUT) -> None:
        super().__init__(channel, reply_timeout)
        self.offered = 0
        self.features = 0
        self.backend_channel: Channel | None = None
        self._memory = memory
        self._kept = ExitStack()

    @classmethod
    def from_socket(cls, sock: socket.socket, limits: Limits | None = None) -> FrontEnd:
        """Use a connected AF_UNIX stream socket, owned from now on."""
        return cls(Channel(trio.socket.from_stdlib_socket(sock), limits))

    @property
    def memory(self) -> GuestRam:
        """The guest's memory: what was given, or told last; else one of its own, made when it is first asked for."""
        if self._memory is None:
            self._memory = self._kept.enter_context(GuestRam())
        return self._memory

    @memory.setter
    def memory(self, memory: GuestRam) -> None:
        self._memory = memory

    async def aclose(self) -> None:
        """Close the connection and the back-end's channel, then the rings and the memory that were made here."""
        with self._kept:
            if self.backend_channel is not None:
                await self.backend_channel.aclose()
            await self.channel.aclose()

    ####
    # Negotiation and memory
    ####

    async def negotiate(self, features: int, protocol_features: ProtocolFeature = DEFAULT_PROTOCOL_FEATURES) -> None:
        """Begin a session and acknowledge what is both wanted and offered.

        Args:
            features: The virtio features that the driver understands; PROTOCOL_FEATURES is always added.
            protocol_features: The protocol features to use.
        """
        self.offered = await self.word(FrontendRequest.GET_FEATURES)
        wanted = (features | VhostFeature.PROTOCOL_FEATURES) & self.offered
        if wanted & VhostFeature.PROTOCOL_FEATURES:
            offered = ProtocolFeature(await self.word(FrontendRequest.GET_PROTOCOL_FEATURES))
            chosen = offered & protocol_features
            await self.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(chosen))
            self.protocol_features = chosen
        await self.request(FrontendRequest.SET_OWNER)
        await self.request(FrontendRequest.SET_FEATURES, U64(wanted))
        self.features = wanted

    async def tell_memory(self) -> Sequence[MemoryRegion]:
        """Tell all of :attr:`memory`: region by region if CONFIGURE_MEM_SLOTS was acknowledged, else as a table.

        Returns:
            In post-copy the regions with the back-end's addresses, else nothing.
        """
        if ProtocolFeature.CONFIGURE_MEM_SLOTS not in self.protocol_features:
            return await self.set_mem_table()
        regions = zip(self.memory.table().regions, self.memory.fds(), strict=True)
        return [place for region, fd in regions for place in await self._add(region, fd)]

    async def set_mem_table(self, memory: GuestRam | None = None) -> Sequence[MemoryRegion]:
        """Tell all of the guest's memory as a table, in place of what was told before.

        Args:
            memory: What becomes :attr:`memory`. None: what is.

        Returns:
            As for :meth:`tell_memory`.
        """
        if memory is not None:
            self.memory = memory
        table = MemoryTable(tuple(self._told(region) for region in self.memory.table().regions))
        answer = await self.request(FrontendRequest.SET_MEM_TABLE, table, self.memory.fds())
        return answer.regions if isinstance(answer, MemoryTable) else ()

    async def add_mem_reg(self, region: RamRegion) -> Sequence[MemoryRegion]:
        """Add one memory region to those that the back-end knows; as for :meth:`tell_memory`."""
        return await self._add(region.message(), region.fd.fileno())

    async def rem_mem_reg(self, region: RamRegion) -> None:
        """Take a memory region away from the back-end."""
        await self.request(FrontendRequest.REM_MEM_REG, SingleRegion(self._told(region.message())))

    async def _add(self, region: MemoryRegion, fd: int) -> Sequence[MemoryRegion]:
        answer = await self.request(FrontendRequest.ADD_MEM_REG, SingleRegion(self._told(region)), [fd])
        return [answer.region] if isinstance(answer, SingleRegion) else ()

    def _told(self, region: MemoryRegion) -> MemoryRegion:
        """A memory region in the kind of addresses that was negotiated."""
        if ProtocolFeature.GPA_ADDRESSES in self.protocol_features:
            return replace(region, userspace_addr=region.guest_phys_addr)
        return region

    ####
    # The dirty log
    ####

    async def set_log(self, log: DirtyBitmap) -> Payload | None:
        """Tell where the dirty log is, which is on while LOG_ALL is acknowledged (:meth:`log_all`).

        Returns:
            The body of the reply. Back-ends differ: None may mean success, or that it was refused.
        """
        return await self.request(FrontendRequest.SET_LOG_BASE, log.message(), [log.fd.fileno()])

    async def log_all(self, on: bool) -> None:
        """Switch the logging of writes to guest memory; for those to a ring's own areas see :meth:`vring_addr`."""
        features = self.features & ~int(VhostFeature.LOG_ALL) | VhostFeature.LOG_ALL * on
        await self.request(FrontendRequest.SET_FEATURES, U64(features))
        self.features = features

    ####
    # Rings
    ####

    async def add_ring(self, index: int, size: int = 256) -> DriverRing | PackedDriverRing:
        """Make a driver's ring of the negotiated layout in :attr:`memory`, start and enable it.

        Args:
            index: Its number in the device.
            size: Number of descriptors.

        Returns:
            The ring. Its eventfds are closed with the connection, if nobody does so before.
        """
        ring = make_ring(self.memory, index, size, self.features)
        self._kept.callback(ring.close)
        await self.start_ring(ring)
        return ring

    async def start_ring(self, ring: DriverQueue, *, enable: bool = True, log_addr: int | None = None) -> None:
        """Tell a ring's size, position, addresses and eventfds, which starts it, and enable it.

        Args:
            ring: The ring.
            enable: Whether to enable it too; without PROTOCOL_FEATURES rings are always enabled.
            log_addr: Guest-physical address by which writes to its used ring are logged; None for no logging.
        """
        r = FrontendRequest
        await self.request(r.SET_VRING_NUM, VringState(ring.index, ring.size))
        await self.request(r.SET_VRING_BASE, VringState(ring.index, ring.base))
        await self.request(r.SET_VRING_ADDR, self.vring_addr(ring, log_addr))
        vring = VringFd(ring.index)
        await self.request(r.SET_VRING_ERR, vring, [ring.err_fd.fileno()])
        await self.request(r.SET_VRING_CALL, vring, [ring.call_fd.fileno()])
        await self.request(r.SET_VRING_KICK, vring, [ring.kick_fd.fileno()])
        if enable:
            await self.enable_ring(ring)

    async def enable_ring(self, ring: DriverQueue, enable: bool = True) -> None:
        """Enable or disable a ring. Does nothing without PROTOCOL_FEATURES, where there is no such request."""
        if self.features & VhostFeature.PROTOCOL_FEATURES:
            await self.request(FrontendRequest.SET_VRING_ENABLE, VringState(ring.index, int(enable)))

    async def stop_ring(self, ring: DriverQueue, *, skip_drain: bool = False) -> int:
        """Stop a ring; return its position, from which the next start goes on.

        Args:
            ring: The ring.
            skip_drain: Leave requests in flight, recorded as such, rather than wait until they are completed.
        """
        request = FrontendRequest.GET_VRING_BASE_SKIP_DRAIN if skip_drain else FrontendRequest.GET_VRING_BASE
        reply = await self.request(request, VringState(ring.index, 0))
        assert isinstance(reply, VringState), reply  # as the table says
        if reply.index != ring.index:
            raise FramingError(f"GET_VRING_BASE: the answer is about vring {reply.index}, not {ring.index}")
        ring.base = reply.num
        return reply.num

    def vring_addr(self, ring: DriverQueue, log_addr: int | None = None) -> VringAddr:
        """The payload of SET_VRING_ADDR for a ring, in the kind of addresses that was negotiated."""

        def told(address: int) -> int:
            # with an IOMMU the memory's addresses are IOVAs, and so are those of rings
            if self.features & VhostFeature.ACCESS_PLATFORM or ProtocolFeature.GPA_ADDRESSES in self.protocol_features:
                return address
            return ring.memory.userspace_addr(address)

        return VringAddr(
            ring.index,
            VringAddrFlags(0) if log_addr is None else VringAddrFlags.LOG,
            descriptor=told(ring.desc_addr),
            used=told(ring.used_addr),
            available=told(ring.avail_addr),
            log=log_addr or 0,
        )

    ####
    # Inflight memory and the back-end's channel
    ####

    async def get_inflight(self, num_queues: int, queue_size: int) -> InflightFile:
        """Have the back-end make memory for its requests in flight.

        Args:
            num_queues: For how many rings.
            queue_size: Of how many descriptors each.

        Raises:
            RefusedError: The back-end has none.
        """
        asked = Inflight(0, 0, num_queues, queue_size)
        told, fds = await self.request_with_fds(FrontendRequest.GET_INFLIGHT_FD, asked)
        with fds:
            assert isinstance(told, Inflight), told  # as the table says
            if not told.mmap_size or not len(fds):
                raise RefusedError(f"GET_INFLIGHT_FD: {told} with {len(fds)} descriptors")
            return InflightFile(told, fds.take())

    async def set_inflight(self, file: InflightFile) -> None:
        """Give a back-end the memory in which one before it recorded its requests in flight."""
        await self.request(FrontendRequest.SET_INFLIGHT_FD, file.told, [file.fd.fileno()])

    async def open_backend_channel(self) -> Channel:
        """Make the back-end's own channel and hand it one end; the other is :attr:`backend_channel` from now on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            channel = Channel(trio.socket.from_stdlib_socket(ours))
            try:
                await self.request(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        if self.backend_channel is not None:
            await self.backend_channel.aclose()
        self.backend_channel = channel
        return channel

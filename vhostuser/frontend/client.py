"""A front-end: sends requests to a back-end and waits for their answers.

Must not know: what a device does with its rings. It sends what it is told to, in the order it is told.

How: :meth:`FrontEnd.request` reads from the table of requests whether an answer follows, waits for it, and
raises if the back-end refused. On top of it stand the few sequences that every front-end needs:
negotiation, the memory table, starting and stopping a ring. Frames that no table allows go through
:meth:`FrontEnd.send_frame`.

An answer that does not come leaves the stream in a state that nobody can tell, and so does cancellation
while one is awaited; every later request fails then.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import trio

from vhostuser.errors import FramingError, VhostUserError
from vhostuser.fds import FdBundle, OwnedFd
from vhostuser.limits import Limits
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect
from vhostuser.wire.codec import decode_reply, encode
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
from vhostuser.wire.requests import Direction, FrontendRequest, Reply, RequestSpec, spec_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from vhostuser.frontend.dirty import DirtyBitmap
    from vhostuser.frontend.memory import GuestRam, RamRegion
    from vhostuser.frontend.rings import DriverQueue
    from vhostuser.wire.frames import Frame

DEFAULT_PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD
"""What :meth:`FrontEnd.negotiate` acknowledges unless told otherwise: what it needs, and nothing that obliges it."""


class InflightFile(NamedTuple):
    """The memory in which a back-end records its requests in flight; whoever has it keeps it for the next back-end.

    Attributes:
        told: What it is, as both messages about it have it.
        fd: The file, owned by whoever has this.
    """

    told: Inflight
    fd: OwnedFd


class RefusedError(VhostUserError):
    """The back-end refused a request: a non-zero acknowledgement, or an empty reply where one has a payload."""


class FrontEnd(trio.abc.AsyncResource):
    """One connection to a back-end.

    Args:
        channel: The connection, owned from now on.
        reply_timeout: How long to wait for an answer, in seconds.

    Attributes:
        channel: The connection, for those who want to receive themselves.
        offered: Virtio features that the back-end offered.
        features: Virtio features that were acknowledged.
        protocol_features: Protocol features that were acknowledged.
        backend_channel: Our end of the back-end's own channel, once :meth:`open_backend_channel` made it.
        listening: Whether the back-end was told to wait for pages, so that it answers with its own addresses.
    """

    def __init__(self, channel: Channel, reply_timeout: float = 30.0) -> None:
        self.channel = channel
        self.offered = 0
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self.backend_channel: Channel | None = None
        self.listening = False
        self._reply_timeout = reply_timeout
        self._turn = trio.Lock()
        self._unanswered = ""

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], limits: Limits | None = None) -> FrontEnd:
        """Connect to a back-end that listens at a path, waiting for it to appear."""
        return cls(await connect(path, limits))

    @classmethod
    def from_socket(cls, sock: socket.socket, limits: Limits | None = None) -> FrontEnd:
        """Use a connected AF_UNIX stream socket, owned from now on."""
        return cls(Channel(trio.socket.from_stdlib_socket(sock), limits))

    async def aclose(self) -> None:
        """Close the connection, and the back-end's channel if there is one."""
        if self.backend_channel is not None:
            await self.backend_channel.aclose()
        await self.channel.aclose()

    ####
    # Single requests and frames
    ####

    async def request(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        need_reply: bool | None = None,
    ) -> Payload | None:
        """Send a request and wait for its answer, if it has one. Descriptors of the answer are closed.

        Args:
            request: A :class:`FrontendRequest`, or a number that the specification does not know.
            payload: Its value; bytes for an unknown number.
            fds: Descriptors to pass; they stay the caller's.
            need_reply: Whether to set NEED_REPLY. None: where it makes a difference.

        Returns:
            The value of the reply, the acknowledgement (``U64(0)``), or None where nothing is answered.

        Raises:
            RefusedError: The back-end refused.
            FramingError: The answer is none to this request, or did not come in time.
            ConnectionClosedError: The back-end is gone.
            LocalProtocolError: The payload or the descriptors are not what the request has.
        """
        value, passed = await self.request_with_fds(request, payload, fds, need_reply=need_reply)
        passed.close()
        return value

    async def request_with_fds(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Iterable[int] = (),
        *,
        need_reply: bool | None = None,
    ) -> tuple[Payload | None, FdBundle]:
        """As :meth:`request`, but return the answer's descriptors too; they are the caller's."""
        spec = spec_of(Direction.FRONTEND, request)
        if need_reply is None:
            own_reply = spec is not None and spec.reply is Reply.ALWAYS
            need_reply = ProtocolFeature.REPLY_ACK in self.protocol_features and not own_reply
        frame = encode(Direction.FRONTEND, request, payload, fds, need_reply)
        async with self._turn:
            if self._unanswered:
                raise FramingError(f"the answer to {self._unanswered} is still outstanding")
            if not self._is_answered(spec, need_reply, payload):
                await self.channel.send(frame)
                return None, FdBundle()
            answer = await self._exchange(frame, spec.name if spec else f"request {request}")
        try:
            return _judge(spec, request, answer), answer.fds
        except VhostUserError:
            answer.fds.close()
            raise

    async def send_frame(self, frame: Frame) -> None:
        """Send any frame, however wrong. If an answer follows, the caller has to receive it."""
        await self.channel.send(frame)

    async def receive_frame(self) -> Frame:
        """Receive a frame as it is; its descriptors are the caller's."""
        return await self.channel.receive()

    async def _exchange(self, frame: Frame, name: str) -> Frame:
        self._unanswered = name
        await self.channel.send(frame)
        with trio.move_on_after(self._reply_timeout):
            answer = await self.channel.receive()
            self._unanswered = ""
            return answer
        raise FramingError(f"{name}: no answer after {self._reply_timeout:g} s")

    def _is_answered(self, spec: RequestSpec | None, need_reply: bool, payload: object) -> bool:
        if spec is None:
            return need_reply and ProtocolFeature.REPLY_ACK in self.protocol_features
        if spec.reply is Reply.ALWAYS:
            return True
        if spec.reply is Reply.GATED and spec.gate is not None and spec.gate in self.protocol_features:
            return True
        if spec.reply is Reply.POSTCOPY and self.listening:
            return True
        acknowledged = self.protocol_features
        if spec.number is FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(payload, U64):
            acknowledged = ProtocolFeature(payload.value)  # the new bits decide about their own acknowledgement
        return need_reply and ProtocolFeature.REPLY_ACK in acknowledged

    async def _word(self, request: FrontendRequest) -> int:
        reply = await self.request(request)
        assert isinstance(reply, U64), request  # the table says so, and the codec read it by the table
        return reply.value

    ####
    # Sequences
    ####

    async def negotiate(self, features: int, protocol_features: ProtocolFeature = DEFAULT_PROTOCOL_FEATURES) -> None:
        """Begin a session and acknowledge what is both wanted and offered.

        Args:
            features: The virtio features that the driver understands; PROTOCOL_FEATURES is always added.
            protocol_features: The protocol features to use.
        """
        self.offered = await self._word(FrontendRequest.GET_FEATURES)
        wanted = (features | VhostFeature.PROTOCOL_FEATURES) & self.offered
        if wanted & VhostFeature.PROTOCOL_FEATURES:
            offered = ProtocolFeature(await self._word(FrontendRequest.GET_PROTOCOL_FEATURES))
            chosen = offered & protocol_features
            await self.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(chosen))
            self.protocol_features = chosen
        await self.request(FrontendRequest.SET_OWNER)
        await self.request(FrontendRequest.SET_FEATURES, U64(wanted))
        self.features = wanted

    async def set_mem_table(self, memory: GuestRam) -> Sequence[MemoryRegion]:
        """Tell all of a guest's memory; in post-copy the answer has the back-end's addresses of the regions."""
        table = MemoryTable(tuple(self._told(region) for region in memory.table().regions))
        answer = await self.request(FrontendRequest.SET_MEM_TABLE, table, memory.fds())
        return answer.regions if isinstance(answer, MemoryTable) else ()

    async def add_mem_reg(self, region: RamRegion) -> Sequence[MemoryRegion]:
        """Add one memory region to those that the back-end knows; as for :meth:`set_mem_table`."""
        told = SingleRegion(self._told(region.message()))
        answer = await self.request(FrontendRequest.ADD_MEM_REG, told, [region.fd.fileno()])
        return [answer.region] if isinstance(answer, SingleRegion) else ()

    async def rem_mem_reg(self, region: RamRegion) -> None:
        """Take a memory region away from the back-end."""
        await self.request(FrontendRequest.REM_MEM_REG, SingleRegion(self._told(region.message())))

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
        assert isinstance(reply, VringState), reply  # as in _word
        if reply.index != ring.index:
            raise FramingError(f"GET_VRING_BASE: the answer is about vring {reply.index}, not {ring.index}")
        ring.base = reply.num
        return reply.num

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
            assert isinstance(told, Inflight), told  # as in _word
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

    def _told(self, region: MemoryRegion) -> MemoryRegion:
        """A memory region in the kind of addresses that was negotiated."""
        if ProtocolFeature.GPA_ADDRESSES in self.protocol_features:
            return replace(region, userspace_addr=region.guest_phys_addr)
        return region


def _judge(spec: RequestSpec | None, request: int, answer: Frame) -> Payload | None:
    """The value of an answer. Raises RefusedError when it says that the request was refused."""
    if spec is None:
        refused = any(answer.payload)
        if refused or answer.request != request:
            raise RefusedError(f"request {request}: {answer}")
        return None
    value = decode_reply(spec, answer)
    if isinstance(value, U64) and not spec.accepts(value):
        raise RefusedError(f"{spec.name}: refused with {value.value:#x}")
    if not spec.accepts(value) or len(answer.fds) < spec.reply_fds.min:
        raise RefusedError(f"{spec.name}: refused with an empty reply")
    return value

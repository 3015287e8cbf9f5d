"""One front-end's conversation: its requests, each carried out and answered before the next is read.

Must not know what single requests mean (``handlers``), the rules of the protocol (``session``), or how rings come to
run (``rings``). It owns what a connection has, and hands handlers what they need of it.

When the connection ends, for whatever reason, threads end first, then descriptors are closed and memory is unmapped.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import trio

from vhostuser.device import Device
from vhostuser.errors import FdError, PayloadError, UnsupportedRequestError, VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.runtime.complaints import Complaints
from vhostuser.runtime.front_end_calls import FrontEndCalls
from vhostuser.runtime.groups import Group
from vhostuser.runtime.inband import InBand
from vhostuser.runtime.iommu import Iommu
from vhostuser.runtime.offer import offer_of
from vhostuser.runtime.postcopy import Postcopy
from vhostuser.runtime.rings import Rings
from vhostuser.runtime.state_transfer import StateTransfer
from vhostuser.session.backend import BackendSession, Done, Failed, Outcome
from vhostuser.transport.channel import Channel
from vhostuser.virtio.audit import WriteWatch
from vhostuser.wire.codec import decode, describe, undecoded
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import Message, Payload
from vhostuser.wire.requests import Direction

log = logging.getLogger(__name__)

#: Carries out one admitted request: the body of its own reply (with descriptors, as Done), or None. Raises a
#: VhostUserError to refuse.
Handler = Callable[["Connection", Message], Awaitable[Payload | Done | None]]


class Connection:
    """The conversation on one channel.

    Attributes:
        session: the protocol's state.
        rings: the device's rings and their memory.
        backend_channel: for requests of ours to the front-end.
        iommu: translations of the driver's addresses; unused without ACCESS_PLATFORM.
        inband: notifications by message.
        calls: those that the device makes.
        postcopy: memory that is still elsewhere.
        state_transfer: the device's state on its way, until the front-end asks what became of it.
    """

    def __init__(
        self,
        device: Device,
        channel: Channel,
        handlers: Mapping[int, Handler],
        counters: Counter[str] | None = None,
        watch: WriteWatch | None = None,
        userfaults: OwnedFd | None = None,
        group_type: type[Group] = Group,
    ) -> None:
        self.device = device
        self.postcopy = Postcopy(userfaults)
        self.session = BackendSession(offer_of(device, self.postcopy.offered))
        self._channel = channel
        self._complaints = Complaints()
        self.backend_channel = BackendChannel(self.session, self._complaints)
        self.calls = FrontEndCalls(self.backend_channel, device.shmem_regions)
        self.state_transfer: StateTransfer | None = None
        self.iommu = Iommu(self.session, self.backend_channel)
        self.inband = InBand(self.session, self.backend_channel)
        counters = Counter() if counters is None else counters
        self.rings = Rings(device, self.session, self.iommu, self.inband, self._complaints, counters, watch, group_type)
        self._handlers = handlers
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Converse until the peer closes, breaks the framing, or we are cancelled.

        Raises:
            ConnectionClosedError, FramingError: how it ended.
            PortError: the device's host side failed.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = self.inband.nursery = nursery
                self.device.front_end = self.calls
                self.rings.open(nursery)
                if self.postcopy.offered:
                    nursery.start_soon(self._end_postcopy_with_front_end)
                try:
                    while True:
                        await self._exchange(await self._channel.receive())
                finally:
                    self.postcopy.end()
                    nursery.cancel_scope.cancel()
                    self.device.front_end = None
                    self.rings.tell_device()
        finally:
            self._release()

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a task until it is done or the connection ends."""
        assert self._nursery is not None
        self._nursery.start_soon(function)

    def check_foreign(self, fd: OwnedFd, name: str) -> None:
        """Raise FdError for the front-end's own end of this connection: holding it, we would never see it close."""
        if self._channel.is_other_end(fd.fileno()):
            words = f"{name}: the descriptor is the front-end's end of this very connection"
            raise FdError(words, rule="VIO-HOSTILE-1")

    def check_mapped(self, size: int) -> None:
        """Raise PayloadError for a memory table, a log or a record of more bytes than a connection may map."""
        limit = self._channel.limits.mapped_bytes
        if size > limit:
            words = f"{size} bytes are to be mapped; a connection may map {limit} (limit mapped_bytes)"
            raise PayloadError(words, rule="VIO-LIMIT-4")

    async def _end_postcopy_with_front_end(self) -> None:
        """Free threads from pages that will not come; a request that waits for such a thread keeps us from reading."""
        await self._channel.wait_hangup()
        self.postcopy.end()

    async def _exchange(self, frame: Frame) -> None:
        """Carry out one request and answer it."""
        with frame.fds:
            if log.isEnabledFor(logging.DEBUG):  # it costs more than most requests
                log.debug("> %s", describe(Direction.FRONTEND, frame))
            reply = await (self._use_announced() if self.postcopy.is_ack(frame) else self._answer(frame))
            self.rings.tell_device()
            self.backend_channel.rings_changed()
        if reply is not None:
            with reply.fds:
                log.debug("< %s", reply)
                await self._channel.send(reply)
        await self.rings.reap()

    async def _use_announced(self) -> None:
        """The front-end knows where regions are by now. It hears nothing about rings that cannot run in them."""
        try:
            await self.rings.adopt(self.postcopy.take())
            await self.rings.start_waiting(patient=True)
        except VhostUserError as error:
            self._complaints.add("memory was acknowledged, and a ring cannot run in it: %s", error)

    async def _answer(self, frame: Frame) -> Frame | None:
        message, outcome = await self._carry_out(frame)
        if isinstance(outcome, Failed):
            self._complaints.add("refused: %s", outcome.error)
        return self.session.answer(message, outcome)

    async def _carry_out(self, frame: Frame) -> tuple[Message, Outcome]:
        try:
            message = decode(Direction.FRONTEND, frame)
        except (PayloadError, FdError) as error:
            return undecoded(Direction.FRONTEND, frame), Failed(error)
        try:
            self.session.admit(message)
            handler = self._handlers.get(message.request)
            if handler is None:
                raise UnsupportedRequestError(f"{message.name} is not supported", rule="VU-NEVER-1")
            done = await handler(self, message)
            return message, done if isinstance(done, Done) else Done(done)
        except VhostUserError as error:
            return message, Failed(error)

    def _release(self) -> None:
        self.rings.close()
        self.backend_channel.close()
        self.inband.close()
        if self.postcopy.announced is not None:
            self.postcopy.announced.close()

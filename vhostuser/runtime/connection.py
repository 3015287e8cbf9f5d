"""One front-end's conversation: what it told us, and the rings that run because of it.

Must not know what single requests mean (``handlers``) nor the rules of the protocol (``session``). It holds the memory
table, the vrings and the living queue groups, and sees to it that a ring runs exactly while it is started and its
size, addresses and memory are known.

When the connection ends, for whatever reason, threads end first, then descriptors are closed and memory is unmapped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import trio

from vhostuser.device import Device, Queue
from vhostuser.errors import (
    FdError,
    GuestError,
    MemoryAccessError,
    PayloadError,
    PortError,
    UnsupportedRequestError,
    VhostUserError,
)
from vhostuser.fds import OwnedFd
from vhostuser.runtime.audit import Audit
from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.runtime.complaints import Complaints
from vhostuser.runtime.dirty import Logging
from vhostuser.runtime.front_end_calls import FrontEndCalls
from vhostuser.runtime.groups import Group, GroupEndedError
from vhostuser.runtime.inband import InBand
from vhostuser.runtime.inflight import InflightRegion
from vhostuser.runtime.iommu import Iommu
from vhostuser.runtime.offer import offer_of
from vhostuser.runtime.postcopy import Postcopy
from vhostuser.runtime.state_transfer import StateTransfer
from vhostuser.runtime.vring import AREAS, Vring, areas
from vhostuser.session.backend import BackendSession, Done, Failed, Outcome
from vhostuser.session.vrings import check_packed_base, check_ring
from vhostuser.transport.channel import Channel
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.iotlb import Iotlb
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.rings import area_sizes
from vhostuser.wire.codec import decode, describe, undecoded
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import Message, Payload, VringAddr
from vhostuser.wire.requests import Direction

log = logging.getLogger(__name__)

#: Carries out one admitted request: the body of its own reply (with descriptors, as Done), or None. Raises a
#: VhostUserError to refuse.
Handler = Callable[["Connection", Message], Awaitable[Payload | Done | None]]

DRAIN_LIMIT = 10.0  # seconds for a device to complete what it has in flight when its ring shall stop


@dataclass
class LiveGroup:
    """A queue group with at least one live ring; `queue` is where a Python device gets its chains."""

    group: Group
    queue: Queue | None = None
    fault: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Connection:
    """The conversation on one channel.

    Attributes:
        session: the protocol's state.
        memory: the present memory table.
        logging: the dirty log.
        audit: what holds it against what was written, if there is a `watch` for that.
        vrings: what is known of each ring.
        inflight: where rings record what they have in flight.
        backend_channel: for requests of ours to the front-end.
        iommu: translations of the driver's addresses; unused without ACCESS_PLATFORM.
        inband: notifications by message.
        calls: those that the device makes.
        postcopy: memory that is still elsewhere.
        state_transfer: the device's state on its way, until the front-end asks what became of it.
        counters: the counters of the groups that have ended, summed by name.
    """

    def __init__(
        self,
        device: Device,
        channel: Channel,
        handlers: Mapping[int, Handler],
        counters: dict[str, int] | None = None,
        watch: WriteWatch | None = None,
        userfaults: OwnedFd | None = None,
        group_type: type[Group] = Group,
    ) -> None:
        self.device = device
        self._group_type = group_type
        self.postcopy = Postcopy(userfaults)
        self.session = BackendSession(offer_of(device, self.postcopy.offered))
        self.memory = GuestMemory()
        self.audit = Audit(watch, self.in_turns, lambda: [live.group.pump for live in self._groups.values()])
        self.logging = Logging(self.log_anew)
        self.vrings = [Vring(index) for index in range(device.num_rings)]
        self.inflight = InflightRegion(device.num_rings)
        self.counters = {} if counters is None else counters
        self._channel = channel
        self._complaints = Complaints()
        self.backend_channel = BackendChannel(self.session, self._complaints)
        self.calls = FrontEndCalls(self.backend_channel, device.shmem_regions)
        self.state_transfer: StateTransfer | None = None
        self.iommu = Iommu(self.backend_channel)
        self.inband = InBand(self.session, self.backend_channel)
        self._retired: list[GuestMemory] = []  # tables that some thread may still read
        self._handlers = handlers
        self._groups: dict[int, LiveGroup] = {}
        # each ring's group, and its place in there: every request looks at all rings
        self._places = {
            index: (number, place)
            for number, indices in enumerate(device.groups)
            for place, index in enumerate(indices)
        }
        self._running: set[int] = set()  # the rings of which the device knows that they run
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
                nursery.start_soon(self.audit.run)
                if self.postcopy.offered:
                    nursery.start_soon(self._end_postcopy_with_front_end)
                try:
                    while True:
                        await self._exchange(await self._channel.receive())
                finally:
                    self.postcopy.end()
                    nursery.cancel_scope.cancel()
                    self.device.front_end = None
                    self._tell_device(self._running_rings())
        finally:
            self._release()

    def live_counters(self) -> dict[str, int]:
        """All counters up to now: those of ended groups and those of living ones."""
        total = dict(self.counters)
        for live in self._groups.values():
            _add(total, live.group.pump.counters())
        _add(total, self.audit.counters())
        return total

    async def in_turns(self, function: Callable[[int, Pump], None]) -> None:
        """Run `function` in the thread of each living group between two turns; one that ends meanwhile is left out."""
        async with trio.open_nursery() as nursery:
            for number, live in self._groups.items():
                nursery.start_soon(self._in_turn, live.group, partial(function, number, live.group.pump))

    async def log_anew(self) -> None:
        """Have the rings of all groups log as the front-end has told by now."""
        await self.audit.change(self.logging.active, self._log_anew)

    @staticmethod
    async def _in_turn(group: Group, function: Callable[[], None]) -> None:
        with suppress(GroupEndedError):
            await group.call(function)

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
        if self.postcopy.is_ack(frame):
            with frame.fds:
                await self.adopt(self.postcopy.take())
                await self.start_waiting(patient=True)
            return
        with frame.fds:
            if log.isEnabledFor(logging.DEBUG):  # it costs more than most requests
                log.debug("> %s", describe(Direction.FRONTEND, frame))
            message, outcome = await self._carry_out(frame)
            if isinstance(outcome, Failed):
                self._complaints.add("refused: %s", outcome.error)
            reply = self.session.answer(message, outcome)
            self._tell_device(self._running_rings())
            self.backend_channel.rings_changed()
        if reply is not None:
            with reply.fds:
                log.debug("< %s", reply)
                await self._channel.send(reply)
        await self.reap()

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

    def _running_rings(self) -> set[int]:
        """The rings that the host may send to: enabled and not broken, of a driver that is there. At the end none is.

        Front-ends start and stop the rings of a driver one by one. If the host's flows went by those alone that run at
        the moment, what it sent by the others before would be overtaken there. So a ring that was enabled by a request,
        not by default, counts as long as any ring is live.
        """
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            return set()
        live = {vring.index for vring in self.vrings if vring.live}
        processed = {index for index in live if self.session.vrings[index].enabled and not self.ring(index).fault}
        return processed | (self._enabled_by_request() - live if live else set())

    def _enabled_by_request(self) -> set[int]:
        """The rings that a request enabled; where protocol features were not negotiated that is done by default."""
        if not self.session.features & VhostFeature.PROTOCOL_FEATURES:
            return set()
        return {index for index, status in enumerate(self.session.vrings) if status.enabled}

    def _tell_device(self, running: set[int]) -> None:
        """Tell the device which rings began to run, and which do not any more."""
        for index in sorted(self._running ^ running):
            self.device.ring_running(index, index in running)
        self._running = running

    # ---- rings -----------------------------------------------------------------------------------------------------

    def ring(self, index: int) -> Ring:
        """The ring object of a live vring."""
        number, place = self._places[index]
        return self._groups[number].group.pump.rings[place]

    def group(self, index: int) -> Group:
        """The living group of a live vring."""
        return self._groups[self._places[index][0]].group

    def check_addresses(self, index: int, num: int, addr: VringAddr | None) -> None:
        """Judge where a ring lies. What is not known yet is not judged.

        Raises:
            MemoryAccessError: some of it is not in memory.
            PayloadError: its areas overlap.
        """
        if addr is None or not num or not self.memory.mappings:
            return
        sizes = area_sizes(self.session.features, num)
        placed = sorted(zip(areas(addr), sizes, AREAS, strict=True))
        for address, size, name in placed:
            if self._iotlb is None:  # with one, what is not there yet may come
                self.memory.ring_address(address, size, f"vring {index}: {name}")
        for (lower, size, below), (upper, _, above) in pairwise(placed):
            if lower + size > upper:
                words = f"vring {index}: {above} at {upper:#x} overlaps {below} at {lower:#x}+{size:#x}"
                raise PayloadError(words, rule="VU-RING-22")

    def rings_in(self, addresses: range) -> list[int]:
        """The live rings of which some part begins there; behind an IOMMU none, their addresses are others."""
        if self.session.features & VhostFeature.ACCESS_PLATFORM:
            return []
        placed = [(vring.index, vring.addr) for vring in self.vrings if vring.live and vring.addr]
        return [index for index, addr in placed if any(area in addresses for area in areas(addr))]

    def check_base(self, index: int, num: int, base: int) -> None:
        """Judge where a ring of `num` descriptors shall go on; 0: its size is not known yet, nor judged.

        Raises:
            PayloadError: the base is beyond the ring.
        """
        if num and self.session.features & VhostFeature.RING_PACKED:
            check_packed_base(index, base, num)

    async def refresh(self, index: int) -> None:
        """Start a ring that is started for the protocol and has all that it needs; update one that is live.

        Raises:
            MemoryAccessError: its addresses are not in the memory table.
            PayloadError: its size, position or addresses are not those of a ring of this layout.
            PortError: the device's host side refuses what the driver negotiated, or has no descriptors left.
        """
        vring = self.vrings[index]
        if vring.addr is None or not vring.num or not self.memory.mappings:
            return
        if not vring.live:
            packed = bool(self.session.features & VhostFeature.RING_PACKED)
            check_ring(index, vring.num, vring.base, vring.addr, packed)
        self.check_addresses(index, vring.num, vring.addr)
        if vring.live:
            ring = self.ring(index)
            await self.group(index).call(lambda: self._place_ring(ring, vring))
            return
        number, place = self._places[index]
        live = self._groups.get(number) or self._open_group(number)
        ring = live.group.pump.rings[place]
        vring.live = True
        try:
            async with self.audit.resting:
                await live.group.call(partial(self._start, ring, vring, self.inband.notifiers(vring)))
        except BaseException:
            vring.live = False
            raise

    async def start_waiting(self, patient: bool = False) -> None:
        """Start the rings that only waited for memory; `patient`: what some of them need may come later.

        Raises as :meth:`refresh` does.
        """
        for vring in self.vrings:
            if self.session.vrings[vring.index].started and not vring.live:
                with suppress(*[MemoryAccessError] * patient):
                    await self.refresh(vring.index)

    async def drain(self, index: int) -> None:
        """Wait until what a ring has in flight is completed, or too long.

        A device with a pump of its own completes within a turn what it has taken.
        """
        live = self._groups.get(self._places[index][0])
        if self.vrings[index].live and live and live.queue:
            with trio.move_on_after(DRAIN_LIMIT) as scope:
                await live.queue.drain()
            if scope.cancelled_caught:
                self._complaints.add("vring %d: still in flight after %g s, and not waited for", index, DRAIN_LIMIT)

    async def stop(self, index: int, keep: bool = False) -> None:
        """Stop a ring; its position becomes the vring's base. Its kick and call descriptors are closed.

        What it has in flight goes back to its driver, or with `keep` stays recorded as in flight.
        """
        vring = self.vrings[index]
        if vring.live:
            ring = self.ring(index)
            vring.base = await self.group(index).call(lambda: ring.stop(keep))
            vring.live = False
        vring.close("kick", "call")
        vring.polled = False
        if not any(vring.live for vring in self.vrings):
            # what a front-end withdraws while no ring runs, it need not tell
            self.iommu.table = Iotlb(self.memory)

    async def reap(self) -> None:
        """End the groups without live rings; tell the device when none is left."""
        for number, live in list(self._groups.items()):
            if not any(self.vrings[index].live for index in self.device.groups[number]):
                async with self.audit.resting:
                    live.scope.cancel()
                    await live.ended.wait()

    async def adopt(self, memory: GuestMemory) -> None:
        """Use a new memory table everywhere, and unmap what it lacks of the old one, which nobody reads any more then.

        All groups are asked at once: one that is slow to answer keeps none of the others waiting.
        """
        old, self.memory = self.memory, memory
        self._retired.append(old)
        await self.audit.look()
        self.audit.follow(old, memory)
        await self.adopt_iotlb(self.iommu.table.over(memory))
        self._retired.remove(old)
        self.audit.follow(memory)
        old.close(memory)

    async def adopt_iotlb(self, table: Iotlb) -> None:
        """Use a new IOTLB everywhere; no thread uses the old one when this returns."""
        self.iommu.table = table
        async with trio.open_nursery() as nursery:
            for number, live in self._groups.items():
                nursery.start_soon(self._adopt_in_group, number, live.group)

    async def _adopt_in_group(self, number: int, group: Group) -> None:
        adopt = partial(self._adopt, group.pump.rings, self.memory, self._iotlb)
        with suppress(GroupEndedError):  # it reads no memory any more
            for index in await group.call(adopt):
                self._complaints.add("vring %d: group %d: its addresses are not in the new memory table", index, number)

    @property
    def _iotlb(self) -> Iotlb | None:
        return self.iommu.table if self.session.features & VhostFeature.ACCESS_PLATFORM else None

    def _open_group(self, number: int) -> LiveGroup:
        assert self._nursery is not None
        features = self.session.features & ~int(VhostFeature.LOG_ALL)  # no driver acknowledges that
        if not self._groups:
            self._tell_device(self._enabled_by_request())  # first: the carrier of a driver that is there brings packets
            self.device.driver_started(features)
        try:
            pump = self.device.pump(number, features)
        except OSError as error:
            if not self._groups:
                self.device.driver_stopped()
            raise PortError(f"queue group {number} cannot be set up: {error.strerror}") from error
        if self.device.timelines:
            pump.record(self.device.timelines[number])
        queue: Queue | None = None
        group = self._group_type(
            pump,
            (lambda: queue.offer() if queue else None) if isinstance(pump, ChainPump) else None,
            self._complaints,
            on_fault=lambda: live.fault.set(),
            on_question=partial(self.iommu.ask, self._nursery),
        )
        if isinstance(pump, ChainPump):
            queue = Queue(pump, group.call)
        live = self._groups[number] = LiveGroup(group, queue)
        self._nursery.start_soon(self._run_group, number, live)
        return live

    async def _run_group(self, number: int, live: LiveGroup) -> None:
        try:
            with live.scope:
                async with trio.open_nursery() as nursery:
                    if live.queue is not None:
                        nursery.start_soon(self._serve, live.queue)
                    nursery.start_soon(self._watch_faults, live)
                    await live.group.run()
        finally:
            _add(self.counters, live.group.pump.counters())
            del self._groups[number]
            if not self._groups:
                self.device.driver_stopped()
            live.ended.set()

    async def _watch_faults(self, live: LiveGroup) -> None:
        """Tell the device of rings that broke, here, where a port that fails over it ends the connection."""
        while True:
            await live.fault.wait()
            live.fault = trio.Event()
            self._tell_device(self._running_rings())

    async def _serve(self, queue: Queue) -> None:
        """A Python device's chains; a chain that its driver took away or spoiled is the driver's loss alone."""
        while True:
            try:
                await self.device.serve(queue)
            except GuestError as error:
                log.info("device %s: %s", self.device.name, error)

    def _release(self) -> None:
        for vring in self.vrings:
            vring.close("kick", "call", "err")
        self.audit.close()
        _add(self.counters, self.audit.counters())
        self.logging.close()
        self.backend_channel.close()
        self.inband.close()
        for memory in (*self._retired, self.memory, self.postcopy.announced):
            if memory is not None:
                memory.close()
        self.inflight.close()

    # ---- in a group's thread ---------------------------------------------------------------------------------------

    def _start(self, ring: Ring, vring: Vring, notifiers: tuple[int, int, int]) -> None:
        self._place_ring(ring, vring)
        kick, call, err = notifiers
        ring.set_kick(kick)
        ring.set_call(call)
        ring.set_err(err)
        ring.enabled = self.session.vrings[vring.index].enabled
        ring.start(vring.base, self.inflight.part(vring.index, self.session.features))

    def _place_ring(self, ring: Ring, vring: Vring) -> None:
        assert vring.addr is not None
        features = self.session.features
        ring.configure(
            vring.num,
            areas(vring.addr),
            bool(features & VirtioFeature.RING_EVENT_IDX),
            bool(features & VirtioFeature.RING_INDIRECT_DESC),
        )
        ring.adopt(self.memory, self._iotlb)
        self._tell_log(ring, vring.addr)

    def _log_anew(self, number: int, pump: Pump) -> None:
        for ring in pump.rings:
            if ring.started and (addr := self.vrings[ring.index].addr) is not None:
                self._tell_log(ring, addr)

    def _tell_log(self, ring: Ring, addr: VringAddr) -> None:
        self.logging.tell(ring, addr, self.session.features)
        self.audit.excuse(ring)

    @staticmethod
    def _adopt(rings: list[Ring], memory: GuestMemory, iotlb: Iotlb | None = None) -> list[int]:
        lost = []
        for ring in rings:
            if ring.started:
                try:
                    ring.adopt(memory, iotlb)
                except VhostUserError:
                    lost.append(ring.index)
        return lost


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count

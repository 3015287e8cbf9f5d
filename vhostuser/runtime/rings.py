"""The rings of one connection: each runs exactly while it is started and its size, addresses and memory are known.

Must not know the channel, what single requests mean (``handlers``), or the rules of the protocol (``session``), whose
state it reads. It holds the memory table, the vrings and the queue groups that live, and tells the device which rings
run. What changes for a ring that runs changes in the thread of its group, between two turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TypeVar

import trio

from vhostuser.device import Device
from vhostuser.errors import MemoryAccessError, PayloadError, PortError, VhostUserError
from vhostuser.runtime.audit import Audit
from vhostuser.runtime.complaints import Complaints
from vhostuser.runtime.dirty import Logging
from vhostuser.runtime.groups import Group
from vhostuser.runtime.inband import InBand
from vhostuser.runtime.inflight import InflightRegion
from vhostuser.runtime.iommu import Iommu
from vhostuser.runtime.live_group import LiveGroup
from vhostuser.runtime.vring import AREAS, Vring, areas
from vhostuser.session.backend import BackendSession
from vhostuser.session.vrings import check_ring
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.iotlb import IotlbTable
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import Pump
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.rings import area_sizes
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import VringAddr

T = TypeVar("T")

_LIMIT = 1 << 64

DRAIN_LIMIT = 10.0  # seconds for a device to complete what it has in flight when its ring shall stop


class Rings:
    """The rings of one device and one connection.

    Args:
        device: whose rings they are.
        session: the protocol's state, which is read.
        iommu: translations of the driver's addresses; unused without ACCESS_PLATFORM.
        inband: what stands for notifiers that the front-end did not give.
        complaints: where broken rings are told of.
        counters: the counters of the groups that have ended, summed by name; added to.
        watch: what the dirty log is audited with, or None; it stays the caller's.
        group_type: what turns a queue group.

    Attributes:
        memory: the present memory table.
        vrings: what is known of each ring.
        logging: the dirty log.
        audit: what holds it against what was written, if there is a `watch` for that.
        inflight: where rings record what they have in flight.
    """

    def __init__(
        self,
        device: Device,
        session: BackendSession,
        iommu: Iommu,
        inband: InBand,
        complaints: Complaints,
        counters: Counter[str],
        watch: WriteWatch | None,
        group_type: type[Group],
    ) -> None:
        self.memory = GuestMemory()
        self.vrings = [Vring(index) for index in range(device.num_rings)]
        self.logging = Logging(self.log_anew)
        self.audit = Audit(watch, self.in_turns, lambda: [live.pump for live in self._groups.values()])
        self.inflight = InflightRegion(device.num_rings)
        self._device = device
        self._session = session
        self._iommu = iommu
        self._inband = inband
        self._complaints = complaints
        self._counters = counters
        self._group_type = group_type
        self._retired: list[GuestMemory] = []  # tables that some thread may still read
        self._groups: dict[int, LiveGroup] = {}
        # each ring's group, and its number in there: every request looks at all rings
        self._seats = {
            index: (number, place)
            for number, indices in enumerate(device.groups)
            for place, index in enumerate(indices)
        }
        self._running: set[int] = set()  # the rings of which the device knows that they run
        self._nursery: trio.Nursery | None = None

    def open(self, nursery: trio.Nursery) -> None:
        """Rings may start from now on: groups run in `nursery`, and none of them runs any more when it is cancelled."""
        self._nursery = nursery
        nursery.start_soon(self.audit.run)

    def close(self) -> None:
        """Close descriptors and unmap memory. No thread is left."""
        for vring in self.vrings:
            vring.close("kick", "call", "err")
        self.audit.close()
        self._counters.update(self.audit.counters())
        self.logging.close()
        for memory in (*self._retired, self.memory):
            memory.close()
        self.inflight.close()

    def check_addresses(self, index: int, num: int, addr: VringAddr | None) -> None:
        """Judge where a ring lies. What is not known yet is not judged.

        Raises:
            MemoryAccessError: some of it is not in memory.
            PayloadError: its areas overlap, or end past 2^64.
        """
        if addr is None or not num or not self.memory.mappings:
            return
        sizes = area_sizes(self._session.features, num)
        placed = sorted(zip(areas(addr), sizes, AREAS, strict=True))
        for address, size, name in placed:
            if address + size > _LIMIT:
                words = f"vring {index}: {name} at {address:#x} + size {size:#x} wraps past 2^64"
                raise PayloadError(words, rule="VU-RING-21")
            if self._iommu.active is None:  # with one, what is not there yet may come
                self.memory.ring_address(address, size, f"vring {index}: {name}")
        for (lower, size, below), (upper, _, above) in pairwise(placed):
            if lower + size > upper:
                words = f"vring {index}: {above} at {upper:#x} overlaps {below} at {lower:#x}+{size:#x}"
                raise PayloadError(words, rule="VU-RING-22")

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
            packed = bool(self._session.features & VhostFeature.RING_PACKED)
            check_ring(index, vring.num, vring.base, vring.addr, packed)
        self.check_addresses(index, vring.num, vring.addr)
        if vring.live:
            await self.in_turn(index, lambda ring: self._place_ring(ring, vring))
            return
        number, place = self._seats[index]
        live = self._groups.get(number) or self._open_group(number)
        start = partial(self._start, live.pump.rings[place], vring, self._inband.notifiers(vring))
        vring.live = True
        try:
            async with self.audit.resting:
                await live.group.call(start)
        except BaseException:
            vring.live = False
            raise

    async def start_waiting(self, patient: bool = False) -> None:
        """Start the rings that only waited for memory; `patient`: what some of them need may come later.

        Raises as :meth:`refresh` does.
        """
        for vring in self.vrings:
            if self._session.vrings[vring.index].started and not vring.live:
                with suppress(*[MemoryAccessError] * patient):
                    await self.refresh(vring.index)

    async def in_turn(self, index: int, function: Callable[[Ring], T]) -> T:
        """Run `function` with a live ring in its group's thread between two turns, and return or raise what it does."""
        ring = self._ring(index)
        number, _ = self._seats[index]
        return await self._groups[number].group.call(lambda: function(ring))

    async def drain(self, index: int) -> None:
        """Wait until what a ring has in flight is completed, or too long."""
        live = self._groups.get(self._seats[index][0])
        if self.vrings[index].live and live and not await live.drain(DRAIN_LIMIT):
            self._complaints.add("vring %d: still in flight after %g s, and not waited for", index, DRAIN_LIMIT)

    async def stop(self, index: int, keep: bool = False) -> None:
        """Stop a ring; its position becomes the vring's base. Its kick and call descriptors are closed.

        What it has in flight goes back to its driver, or with `keep` stays recorded as in flight.
        """
        vring = self.vrings[index]
        if vring.live:
            vring.base = await self.in_turn(index, lambda ring: ring.stop(keep))
            vring.live = False
        vring.close("kick", "call")
        vring.polled = False
        if not any(vring.live for vring in self.vrings):
            # what a front-end withdraws while no ring runs, it need not tell
            self._iommu.use(IotlbTable(self.memory))

    async def reap(self) -> None:
        """End the groups without live rings; tell the device when none is left."""
        for number, live in list(self._groups.items()):
            if not any(self.vrings[index].live for index in self._device.groups[number]):
                async with self.audit.resting:
                    await live.end()

    # ---- what all of them work with ----------------------------------------------------------------------------------

    async def adopt(self, memory: GuestMemory) -> None:
        """Use a new memory table everywhere, and unmap what it lacks of the old one, which nobody reads any more then.

        All groups are asked at once: one that is slow to answer keeps none of the others waiting.
        """
        old, self.memory = self.memory, memory
        self._retired.append(old)
        await self.audit.look()
        self.audit.follow(old, memory)
        await self.adopt_iotlb(self._iommu.table.over(memory))
        self._retired.remove(old)
        self.audit.follow(memory)
        old.close(memory)

    async def adopt_iotlb(self, table: IotlbTable) -> None:
        """Use a new IOTLB everywhere; no thread uses the old one when this returns."""
        self._iommu.use(table)
        await self.in_turns(self._adopt)  # a group that ends meanwhile reads no memory any more

    async def log_anew(self) -> None:
        """Have the rings of all groups log as the front-end has told by now."""
        await self.audit.change(self.logging.active, self._log_anew)

    async def in_turns(self, function: Callable[[int, Pump], None]) -> None:
        """Run `function` in the thread of each living group between two turns; one that ends meanwhile is left out."""
        async with trio.open_nursery() as nursery:
            for number, live in self._groups.items():
                nursery.start_soon(live.in_turn, partial(function, number, live.pump))

    def live_counters(self) -> Counter[str]:
        """All counters up to now: those of ended groups and those of living ones."""
        total = self._counters.copy()
        for counters in (*[live.pump.counters() for live in self._groups.values()], self.audit.counters()):
            total.update(counters)
        return total

    # ---- what the device is told -------------------------------------------------------------------------------------

    def tell_device(self) -> None:
        """Tell the device which rings began to run, and which do not any more."""
        self._tell_device(self._running_rings())

    def _running_rings(self) -> set[int]:
        """The rings that the host may send to: enabled and not broken, of a driver that is there. At the end none is.

        Front-ends start and stop the rings of a driver one by one. If the host's flows went by those alone that run at
        the moment, what it sent by the others before would be overtaken there. So a ring that was enabled by a request,
        not by default, counts as long as any ring is live.
        """
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            return set()
        live = {vring.index for vring in self.vrings if vring.live}
        processed = {index for index in live if self._session.vrings[index].enabled and not self._ring(index).fault}
        return processed | (self._enabled_by_request() - live if live else set())

    def _enabled_by_request(self) -> set[int]:
        """The rings that a request enabled; where protocol features were not negotiated that is done by default."""
        if not self._session.features & VhostFeature.PROTOCOL_FEATURES:
            return set()
        return {index for index, status in enumerate(self._session.vrings) if status.enabled}

    def _tell_device(self, running: set[int]) -> None:
        for index in sorted(self._running ^ running):
            self._device.ring_running(index, index in running)
        self._running = running

    # ---- groups ------------------------------------------------------------------------------------------------------

    def _open_group(self, number: int) -> LiveGroup:
        assert self._nursery is not None
        features = self._session.features & ~int(VhostFeature.LOG_ALL)  # no driver acknowledges that
        if not self._groups:
            self._tell_device(self._enabled_by_request())  # first: the carrier of a driver that is there brings packets
            self._device.driver_started(features)
        try:
            pump = self._device.pump(number, features)
        except OSError as error:
            if not self._groups:
                self._device.driver_stopped()
            raise PortError(f"queue group {number} cannot be set up: {error.strerror}") from error
        if self._device.timelines:
            pump.record(self._device.timelines[number])
        ask = partial(self._iommu.ask, self._nursery)
        forget = partial(self._forget_group, number)
        live = LiveGroup(self._group_type, self._device, pump, self._complaints, self.tell_device, ask, forget)
        self._groups[number] = live
        self._nursery.start_soon(live.run)
        return live

    def _forget_group(self, number: int) -> None:
        self._counters.update(self._groups.pop(number).pump.counters())
        if not self._groups:
            self._device.driver_stopped()

    def _ring(self, index: int) -> Ring:
        """The ring object of a live vring."""
        number, place = self._seats[index]
        return self._groups[number].pump.rings[place]

    # ---- in a group's thread -----------------------------------------------------------------------------------------

    def _start(self, ring: Ring, vring: Vring, notifiers: tuple[int, int, int]) -> None:
        self._place_ring(ring, vring)
        kick, call, err = notifiers
        ring.set_kick(kick)
        ring.set_call(call)
        ring.set_err(err)
        ring.enabled = self._session.vrings[vring.index].enabled
        ring.start(vring.base, self.inflight.part(vring.index, self._session.features))

    def _place_ring(self, ring: Ring, vring: Vring) -> None:
        assert vring.addr is not None
        features = self._session.features
        ring.configure(
            vring.num,
            areas(vring.addr),
            bool(features & VirtioFeature.RING_EVENT_IDX),
            bool(features & VirtioFeature.RING_INDIRECT_DESC),
        )
        ring.adopt(self.memory, self._iommu.active)
        self._tell_log(ring, vring.addr)

    def _log_anew(self, number: int, pump: Pump) -> None:
        for ring in pump.rings:
            if ring.started and (addr := self.vrings[ring.index].addr) is not None:
                self._tell_log(ring, addr)

    def _tell_log(self, ring: Ring, addr: VringAddr) -> None:
        self.logging.tell(ring, addr, self._session.features)
        self.audit.excuse(ring)

    def _adopt(self, number: int, pump: Pump) -> None:
        for ring in pump.rings:
            if ring.started:
                try:
                    ring.adopt(self.memory, self._iommu.active)
                except VhostUserError as error:
                    self._complaints.add("vring %d: group %d: lost with the new memory: %s", ring.index, number, error)

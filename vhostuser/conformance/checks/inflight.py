"""Requests in flight: the region that records them, what a ring makes of the record of a back-end that died, and stops.

The record of a dead back-end is written by hand here, as one leaves it that was killed in the middle of its work.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.in_flight import ENTRIES, TRACKING, Region, part_size, tracked
from vhostuser.conformance.violation import Violation
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.split import DriverRing
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import Inflight, VringFd
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import DriverQueue

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_LEAVING = TRACKING | P.GET_VRING_BASE_INFLIGHT
_CHOOSING = _LEAVING | P.GET_VRING_BASE_SKIP_DRAIN
_NEEDS = (P.INFLIGHT_SHMFD,)
_SPLIT = struct.Struct("=QHHHH")  # features, version, desc_num, last_batch_head, used_idx
_SPLIT_ENTRY = struct.Struct("=B5xHQ")  # inflight, next, counter
_PACKED_ENTRY = struct.Struct("=BxHHH QHHIQ")  # inflight, next, last, num, counter, id, flags, len, addr
_PACKED = struct.Struct("=QHHHHHHBB")  # features, version, desc_num, free_heads, used_idxs, used_wrap_counters
_VERSION_AT = 8


# ---- the region ------------------------------------------------------------------------------------------------------


@checks("VU-INFLIGHT-1", needs=_NEEDS)
async def a_region_is_made(probe: Probe) -> None:
    driver, region = await tracked(probe, start=False)
    if os.fstat(region.fd).st_size < region.told.mmap_offset + region.told.mmap_size:
        raise Violation(f"GET_INFLIGHT_FD: {region.told}, and the file has {os.fstat(region.fd).st_size} bytes")
    if not fcntl.fcntl(region.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise Violation("GET_INFLIGHT_FD: the file is not sealed against shrinking")
    await driver.start_all(size=ENTRIES)
    await driver.served()
    await driver.stop_all()
    if not any(region.read(driver.work.index, _VERSION_AT, 4)):
        raise Violation("the region of GET_INFLIGHT_FD was not used: its header is as it was made")


@checks("VU-INFLIGHT-1", needs=_NEEDS)
async def a_region_is_brought_back(probe: Probe) -> None:
    driver, region = await tracked(probe)
    await driver.served(3)
    await driver.stop_all()
    for _ in range(2):
        await driver.connection.accepted(R.SET_INFLIGHT_FD, region.told, [region.fd])
        for ring in driver.rings.values():
            await driver.start(ring)
        await driver.served(3)
        await driver.stop_all()


@checks("VIO-INFLIGHT-4", needs=_NEEDS)
async def the_parts_of_split_rings(probe: Probe) -> None:
    await _parts(probe, 0, 16)


@checks("VIO-INFLIGHT-4", needs=(*_NEEDS, V.RING_PACKED))
async def the_parts_of_packed_rings(probe: Probe) -> None:
    await _parts(probe, V.RING_PACKED, 32)


async def _parts(probe: Probe, virtio: int, unit: int) -> None:
    connection = await probe.negotiated(probe.device.features | virtio, TRACKING)
    for size in (1, 7, 64, 256):
        answer = await connection.accepted(R.GET_INFLIGHT_FD, Inflight(0, 0, probe.device.rings, size))
        expected = probe.device.rings * part_size(unit, size)
        if not isinstance(answer.value, Inflight) or answer.value.mmap_size != expected:
            raise Violation(
                f"GET_INFLIGHT_FD of {probe.device.rings} rings of {size}: {answer.value}, not {expected} bytes"
            )


@checks("VU-INFLIGHT-2", needs=(*_NEEDS, P.REPLY_ACK))
async def a_region_for_what_there_is_not(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=TRACKING)
    fd = probe.memfd(1 << 40, "region")
    for queues, size in ((0, 8), (257, 8), (1, 0), (1, 32769), (65535, 65535)):
        await connection.refused(connection.frame(R.GET_INFLIGHT_FD, Inflight(0, 0, queues, size)))
        told = Inflight(1 << 40, 0, queues, size)
        await connection.refused(connection.frame(R.SET_INFLIGHT_FD, told, [fd]))


@checks("VU-INFLIGHT-2", needs=(*_NEEDS, P.REPLY_ACK, P.MQ), devices=("net",))
async def a_region_for_one_ring_too_many(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=TRACKING | P.MQ)
    rings = 2 * await connection.value(R.GET_QUEUE_NUM)
    await connection.refused(connection.frame(R.GET_INFLIGHT_FD, Inflight(0, 0, rings + 1, ENTRIES)))


@checks("VU-INFLIGHT-2", needs=(*_NEEDS, P.REPLY_ACK))
async def a_region_that_is_not_there(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=TRACKING)
    fd = probe.memfd(4096, "region")
    for size, offset in ((191, 0), (4097, 0), (192, 4096), (192, (1 << 64) - 64), ((1 << 64) - 1, 64), (192, 32)):
        frame = connection.frame(R.SET_INFLIGHT_FD, Inflight(size, offset, 1, 8), [fd])
        await connection.refused(frame)
    for other in (probe.pipe()[1], probe.eventfd()):
        frame = connection.frame(R.SET_INFLIGHT_FD, Inflight(192, 0, 1, 8), [other])
        await connection.refused(frame)
    await connection.accepted(R.SET_INFLIGHT_FD, Inflight(192, 64, 1, 8), [fd])


@checks("VU-INFLIGHT-2", needs=_NEEDS)
async def a_new_region_takes_the_place_of_the_old_one(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=TRACKING)
    fds = [probe.memfd(4096, f"region {number}") for number in range(2)]
    for fd in fds:
        await connection.accepted(R.SET_INFLIGHT_FD, Inflight(192, 0, 1, 8), [fd])
    if not probe.unmapped(fds[0]):
        raise Violation("SET_INFLIGHT_FD came with another region, and the old one is still mapped")


@checks("VU-INFLIGHT-3", needs=(*_NEEDS, P.REPLY_ACK))
async def a_region_stays_while_a_ring_is_started(probe: Probe) -> None:
    driver, region = await tracked(probe)
    connection = driver.connection
    await driver.served()
    await connection.refused(connection.frame(R.GET_INFLIGHT_FD, Inflight(0, 0, 1, ENTRIES)))
    await connection.refused(connection.frame(R.SET_INFLIGHT_FD, region.told, [region.fd]))
    await driver.served()
    await driver.stop_all()
    await connection.accepted(R.SET_INFLIGHT_FD, region.told, [region.fd])


@checks("VU-INFLIGHT-3", needs=_NEEDS)
async def a_reset_ends_the_region(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=TRACKING)
    fd = probe.memfd(4096, "region")
    await connection.accepted(R.SET_INFLIGHT_FD, Inflight(192, 0, 1, 8), [fd])
    await connection.accepted(R.RESET_OWNER)
    if not probe.unmapped(fd):
        raise Violation("RESET_OWNER: the region of requests in flight is still mapped")


# ---- the record of a split ring --------------------------------------------------------------------------------------


async def _left(probe: Probe, virtio: int = 0) -> tuple[Driver, Region, DriverQueue, list[int]]:
    """Three jobs in a ring that is not started, with a region whose record is still to be written; their heads."""
    driver, region = await tracked(probe, virtio, start=False)
    driver.make_rings(ENTRIES)
    heads = [driver.give() for _ in range(3)]
    return driver, region, driver.work, heads


async def _resumed(driver: Driver, count: int) -> list[int]:
    """Start all rings; the heads of the chains that are used, in their order."""
    for ring in driver.rings.values():
        await driver.start(ring)
    return [used.head for used in await driver.used(count)]


def _write_split(region: Region, ring: int, counters: dict[int, int], last_batch: int = 0, used_idx: int = 0) -> None:
    """The record of a split ring: chains in flight with their counters."""
    region.write(ring, 0, _SPLIT.pack(0, 1, ENTRIES, last_batch, used_idx))
    for head, counter in counters.items():
        region.write(ring, 16 * (head + 1), _SPLIT_ENTRY.pack(1, 0, counter))


@checks("VIO-INFLIGHT-1", needs=_NEEDS)
async def marked_chains_are_done_again_first(probe: Probe) -> None:
    driver, region, ring, heads = await _left(probe)
    first, second, third = heads
    _write_split(region, ring.index, {second: 1, first: 2})  # taken, in an order of its own, and never used
    order = await _resumed(driver, 3)
    if order != [second, first, third]:
        raise Violation(f"in flight, in the order of their counters: {second}, {first}; new: {third}; used: {order}")


@checks("VIO-INFLIGHT-1", needs=_NEEDS)
async def a_batch_that_the_driver_knows_is_not_done_again(probe: Probe) -> None:
    driver, region, ring, heads = await _left(probe)
    assert isinstance(ring, DriverRing)
    first, second, third = heads
    # killed between used.idx and the taking away of its mark
    _write_split(region, ring.index, {first: 1, second: 2}, last_batch=first)
    ring.memory.write(ring.used_addr + 4, struct.pack("=II", first, 0))
    ring.used_idx = 1
    driver.forget(first)
    order = [used.head for used in driver.collect()]
    order += await _resumed(driver, 2)
    if order != [first, second, third]:
        raise Violation(f"the driver knows of {first}; in flight: {second}; new: {third}; used: {order}")
    await driver.served()


@checks("VIO-INFLIGHT-1", "VIO-INFLIGHT-5", needs=_NEEDS)
async def what_was_used_is_not_marked(probe: Probe) -> None:
    driver, region = await tracked(probe)
    await driver.served(5)
    await driver.stop_all()
    index = driver.work.index
    if marks := region.marks(index):
        raise Violation(f"vring {index} has stopped, all of its chains were used, and entries {marks} are marked")
    *_, used_idx = _SPLIT.unpack(region.read(index, 0, _SPLIT.size))
    if used_idx != 5:
        raise Violation(f"vring {index} has stopped after 5 chains, and the record's used_idx is {used_idx}")


@checks("VIO-INFLIGHT-5", needs=_NEEDS)
async def a_start_goes_on_where_the_region_says(probe: Probe) -> None:
    driver, _ = await tracked(probe)
    await driver.served(5)
    await driver.stop_all()
    driver.work.base = 2  # which is wrong, and does not count
    for ring in driver.rings.values():
        await driver.start(ring)
    await driver.served(2)
    if (position := await driver.stop(driver.work)) != 7:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 7 chains, two of them after SET_VRING_BASE 2")


# ---- the record of a packed ring -------------------------------------------------------------------------------------


def _write_packed(region: Region, ring: PackedDriverRing, chains: Sequence[int]) -> None:
    """The record of a packed ring all of whose slots from 0 on are in flight, in chains of so many slots."""
    at, entries = 0, []
    for counter, slots in enumerate(chains, 1):
        last = at + slots - 1
        for slot in range(at, at + slots):
            addr, length, buffer_id, flags = ring.descriptor(slot)
            head = (1, slot + 1, last, slots, counter) if slot == at else (0, slot + 1, 0, 0, 0)
            entries.append(_PACKED_ENTRY.pack(*head, buffer_id, flags, length, addr))
        at += slots
    entries += [_PACKED_ENTRY.pack(0, entry + 1, 0, 0, 0, 0, 0, 0, 0) for entry in range(at, ENTRIES)]
    region.write(ring.index, 32, b"".join(entries))
    region.write(ring.index, 0, _PACKED.pack(0, 1, ENTRIES, at, at, 0, 0, 1, 1))


@checks("VIO-INFLIGHT-2", needs=(*_NEEDS, V.RING_PACKED))
async def copied_descriptors_are_done_again(probe: Probe) -> None:
    driver, region, ring, heads = await _left(probe, V.RING_PACKED)
    assert isinstance(ring, PackedDriverRing)
    job = probe.device.job(driver.memory)
    slots = len(job.readable) + len(job.writable)
    _write_packed(region, ring, [slots, slots])
    # the ring's own copy may be half overwritten: what counts is the region's
    for slot in range(2 * slots):
        flags = ring.flags(slot)
        ring.memory.write(ring.desc_addr + 16 * slot, bytes(14))
        ring.set_flags(slot, flags)
    order = await _resumed(driver, 3)
    if order != heads:
        raise Violation(f"two chains in flight and a new one: buffer IDs {heads}; used: {order}")
    await driver.served()


@checks("VIO-INFLIGHT-2", "VIO-INFLIGHT-5", needs=(*_NEEDS, V.RING_PACKED))
async def what_a_packed_ring_used_is_not_marked(probe: Probe) -> None:
    driver, region = await tracked(probe, V.RING_PACKED)
    await driver.served(5)
    position = await driver.stop(driver.work)
    index = driver.work.index
    if marks := region.marks(index):
        raise Violation(f"vring {index} has stopped, all of its chains were used, and entries {marks} are marked")
    told = _PACKED.unpack(region.read(index, 0, _PACKED.size))
    _, _, _, free, old_free, used, old_used, wrap, old_wrap = told
    if (free, used, wrap) != (old_free, old_used, old_wrap) or used | wrap << 15 != position & 0xFFFF:
        raise Violation(f"vring {index} has stopped at {position:#x}, and its record says {told}")


@checks("VIO-INFLIGHT-3", needs=(V.RING_PACKED, P.REPLY_ACK))
async def a_position_that_the_slots_contradict(probe: Probe) -> None:
    driver = await probe.driver(V.RING_PACKED)
    await driver.served(3)
    position = await driver.stop(driver.work)
    # a back-end that was killed after this had no chance to tell; its front-end tells where it began
    driver.work.base = driver.work.FRESH
    await driver.set_up(driver.work)
    kick = [driver.work.kick_fd.fileno()]
    frame = driver.connection.frame(R.SET_VRING_KICK, VringFd(driver.work.index), kick)
    await driver.connection.refused(frame)
    driver.work.base = position
    await driver.start(driver.work)
    await driver.served()


@checks("VIO-INFLIGHT-6", needs=(*_NEEDS, P.REPLY_ACK))
async def a_record_that_cannot_be_keeps_its_ring_from_starting(probe: Probe) -> None:
    for at, data in ((_VERSION_AT, b"\x07\0"), (10, b"\x07\0"), (12, b"\xff\xff")):
        driver, region, ring, heads = await _left(probe)
        _write_split(region, ring.index, {heads[0]: 1})
        region.write(ring.index, at, data)
        if at == 12:  # which is looked at if the driver knows of a batch that the record does not
            ring.memory.store_u16(ring.used_addr + 2, 1)
        await driver.set_up(ring)
        frame = driver.connection.frame(R.SET_VRING_KICK, VringFd(ring.index), [ring.kick_fd.fileno()])
        await driver.connection.refused(frame)


# ---- stopping --------------------------------------------------------------------------------------------------------


@checks("VU-VRING-BASE-1")
async def a_stop_follows_what_is_in_flight(probe: Probe) -> None:
    await _stopped_behind_all(probe, P.REPLY_ACK | P.MQ)


@checks("VU-VRING-BASE-1", needs=(P.INFLIGHT_SHMFD, P.GET_VRING_BASE_INFLIGHT, P.GET_VRING_BASE_SKIP_DRAIN))
async def a_stop_follows_what_is_in_flight_where_it_is_chosen(probe: Probe) -> None:
    await _stopped_behind_all(probe, _CHOOSING)


async def _stopped_behind_all(probe: Probe, protocol: ProtocolFeature) -> None:
    """Whenever a ring is stopped in the middle of its work, what it has taken was used by then."""
    driver = await probe.driver(protocol=protocol)
    given = done = 0
    for _ in range(20):
        for _ in range(8):
            driver.give()
            given += 1
        driver.kick(driver.work)
        position = await driver.stop(driver.work)
        done += len(driver.collect())  # nothing more comes from now on
        if position & 0xFFFF != done & 0xFFFF:
            raise Violation(f"GET_VRING_BASE: {position:#x}, and {done} of {given} chains were used by then")
        await driver.left_alone() if done < given else None
        await driver.start(driver.work)
        done += len(await driver.used(given - done))


@checks("VU-VRING-BASE-3", needs=(P.INFLIGHT_SHMFD, P.GET_VRING_BASE_INFLIGHT))
async def a_ring_stops_at_once(probe: Probe) -> None:
    await _recorded_or_done(probe, _LEAVING, R.GET_VRING_BASE)


@checks("VU-VRING-BASE-3", needs=(P.INFLIGHT_SHMFD, P.GET_VRING_BASE_INFLIGHT, P.GET_VRING_BASE_SKIP_DRAIN))
async def a_ring_stops_at_once_where_it_is_chosen(probe: Probe) -> None:
    await _recorded_or_done(probe, _CHOOSING, R.GET_VRING_BASE_SKIP_DRAIN)


async def _recorded_or_done(probe: Probe, protocol: ProtocolFeature, request: FrontendRequest) -> None:
    """Whenever a ring is stopped, each chain before its position was used or is recorded, and is used later, once."""
    driver, region = await tracked(probe, 0, protocol)
    given = done = 0
    for _ in range(20):
        for _ in range(8):
            driver.give()
            given += 1
        driver.kick(driver.work)
        position = await driver.stop(driver.work, request)
        done += len(driver.collect())
        marked = len(region.marks(driver.work.index))
        if position & 0xFFFF != done + marked & 0xFFFF:
            raise Violation(f"{request.name}: {position:#x}, {done} chains were used and {marked} are recorded")
        driver.work.base = position
        await driver.start(driver.work)
        done += len(await driver.used(given - done))

"""Sizes, positions and addresses of rings, and when they are judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.frontend.features import DriverFeature
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import DriverQueue

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_NUM = 64
_ALIGNMENT = {"descriptor": 16, "available": 2, "used": 4}
_LENGTH = {"descriptor": 16 * _NUM, "available": 4 + 2 * _NUM, "used": 4 + 8 * _NUM}  # without EVENT_IDX
_PAGE = 4096
_FRESH_PACKED = 0x8000_8000


@checks("VU-RING-6", needs=(V.PROTOCOL_FEATURES,))
async def a_switch_is_zero_or_one(probe: Probe) -> None:
    for num in (2, 0x100, 0xFFFFFFFF):
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(R.SET_VRING_ENABLE, VringState(0, num)))


@checks("VU-RING-7")
async def a_ring_that_is_not_there(probe: Probe) -> None:
    requests = [R.SET_VRING_NUM, R.SET_VRING_BASE, R.GET_VRING_BASE]
    if probe.offer.virtio & V.PROTOCOL_FEATURES:
        requests.append(R.SET_VRING_ENABLE)
    for index in (0x100, 0x10000, 0x10001, 0xFFFFFFFF):
        for request in requests:
            connection = await probe.negotiated()
            await connection.rejected(connection.frame(request, VringState(index, 1)))
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(R.SET_VRING_ADDR, VringAddr(index, 0, 0, 0, 0, 0)))


@checks("VU-RING-7")
async def a_descriptor_for_a_ring_that_is_not_there(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.eventfd()
    if await _has_ring(connection, 255):
        raise NotApplicable("the device has 256 rings, which is as many as the word can name")
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(request, VringFd(255), [fd]))


async def _has_ring(connection: Connection, index: int) -> bool:
    try:
        await connection.accepted(R.SET_VRING_NUM, VringState(index, _NUM))
    except Violation:
        return False
    return P.REPLY_ACK in connection.protocol


@checks("VU-RING-12")
async def the_size_of_a_split_ring(probe: Probe) -> None:
    for num in (0, 3, 255, 32769, 65536, 0xFFFFFFFF):
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(R.SET_VRING_NUM, VringState(0, num)))
    connection = await probe.negotiated()
    for num in (1, 2, 64, 256):
        await connection.accepted(R.SET_VRING_NUM, VringState(0, num))


@checks("VU-RING-12", needs=(V.RING_PACKED,))
async def the_size_of_a_packed_ring(probe: Probe) -> None:
    packed = probe.device.features | V.RING_PACKED
    for num in (0, 32769, 0xFFFFFFFF):
        connection = await probe.negotiated(packed)
        await connection.rejected(connection.frame(R.SET_VRING_NUM, VringState(0, num)))
    connection = await probe.negotiated(packed)
    for num in (1, 3, 255, 256):
        await connection.accepted(R.SET_VRING_NUM, VringState(0, num))


@checks("VU-RING-13")
async def size_and_position_of_a_started_ring_stay(probe: Probe) -> None:
    driver = await probe.driver()
    connection, index = driver.connection, driver.work.index
    await driver.served()
    await connection.refused(connection.frame(R.SET_VRING_NUM, VringState(index, 32)))
    await connection.refused(connection.frame(R.SET_VRING_BASE, VringState(index, 7)))
    await driver.served()
    if (position := await driver.stop(driver.work)) & 0xFFFF != 2:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 2 chains, SET_VRING_BASE 7 was refused between them")


@checks("VU-RING-14")
async def a_split_position_has_sixteen_bits(probe: Probe) -> None:
    for position in (0x10000, 0x8000_8000, 0xFFFFFFFF):
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(R.SET_VRING_BASE, VringState(0, position)))
    connection = await probe.negotiated()
    await connection.accepted(R.SET_VRING_BASE, VringState(0, 0xFFFF))


@checks("VU-RING-14", needs=(V.RING_PACKED,))
async def a_packed_position_has_thirty_two_bits(probe: Probe) -> None:
    connection = await probe.negotiated(probe.device.features | V.RING_PACKED)
    await connection.accepted(R.SET_VRING_NUM, VringState(0, _NUM))
    for position in (_FRESH_PACKED, 0x0005_8005, 0x8005_0005):
        await connection.accepted(R.SET_VRING_BASE, VringState(0, position))
        answer = await connection.accepted(R.GET_VRING_BASE, VringState(0, 0))
        if answer.value != VringState(0, position):
            raise Violation(f"SET_VRING_BASE {position:#x}, then GET_VRING_BASE: {answer.frame}")


@checks("VU-PACKED-1", needs=(V.RING_PACKED, P.REPLY_ACK))
async def a_packed_position_beyond_the_ring(probe: Probe) -> None:
    packed = probe.device.features | V.RING_PACKED
    connection = await probe.negotiated(packed)
    await connection.accepted(R.SET_VRING_NUM, VringState(0, _NUM))
    for position in (_NUM, _NUM << 16, 0x7FFF_7FFF, 0x8000_8000 | _NUM):
        await connection.refused(connection.frame(R.SET_VRING_BASE, VringState(0, position)))


@checks("VU-PACKED-1", needs=(V.RING_PACKED, P.REPLY_ACK))
async def a_packed_position_beyond_the_ring_at_its_start(probe: Probe) -> None:
    driver = await probe.driver(V.RING_PACKED, start=False)
    connection, ring = driver.connection, driver.make_ring(0, _NUM)
    await connection.accepted(R.SET_VRING_BASE, VringState(0, 0x8000_8000 | _NUM))
    await connection.accepted(R.SET_VRING_NUM, VringState(0, _NUM))
    await connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(ring))
    await connection.refused(connection.frame(R.SET_VRING_KICK, VringFd(0), [ring.kick_fd.fileno()]))
    await connection.accepted(R.SET_VRING_BASE, VringState(0, _FRESH_PACKED))
    await driver.go(ring)


@checks("VU-RING-30")
async def a_split_position_is_what_is_fetched_next(probe: Probe) -> None:
    driver = await probe.driver(start=False)
    driver.make_rings()
    for ring in driver.rings.values():
        ring.reset(0xFFFE)  # indices wrap on the way; the used index is in the ring
        driver.post(ring)
        await driver.start(ring)
    await driver.served(5)
    if (position := await driver.stop(driver.work)) != 3:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 5 chains from 0xfffe on, expected 0x3")


@checks("VU-RING-30", needs=(V.RING_PACKED,))
async def a_packed_position_has_two_halves(probe: Probe) -> None:
    driver = await probe.driver(V.RING_PACKED, size=8, start=False)
    driver.make_rings(8)
    for ring in driver.rings.values():
        ring.reset(0x8006_8006)
        driver.post(ring)
        await driver.start(ring)
    for _ in range(2):
        await driver.served(1)
    position = await driver.stop(driver.work)
    slots = 2 * _slots(driver)
    wrapped = 0x0000_0000 if 6 + slots >= 8 else 0x8000_8000
    expected = wrapped | (6 + slots) % 8 * 0x10001
    if position != expected:
        raise Violation(
            f"GET_VRING_BASE: {position:#010x} after {slots} slots from 0x80068006 on, not {expected:#010x}"
        )
    await driver.start(driver.work)
    await driver.served(1)


def _slots(driver: Driver) -> int:
    """How many slots a job takes."""
    job = driver.device.job(driver.memory)
    return len(job.readable) + len(job.writable)


@checks("VU-RING-31")
async def the_second_word_of_a_stop_is_not_looked_at(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served(2)
    for word in (0xFFFFFFFF, 1):
        answer = await driver.connection.accepted(R.GET_VRING_BASE, VringState(driver.work.index, word))
        if not isinstance(answer.value, VringState) or answer.value.num & 0xFFFF != 2:
            raise Violation(f"GET_VRING_BASE with {word:#x} in its second word, after 2 chains: {answer.frame}")


# ---- addresses -------------------------------------------------------------------------------------------------------


async def _halted(probe: Probe, virtio: int = 0) -> tuple[Driver, DriverQueue]:
    """A driver, and a ring of its that is not told yet."""
    driver = await probe.driver(virtio, start=False)
    return driver, driver.make_ring(driver.device.ring, _NUM)


async def _refused_when_known(driver: Driver, ring: DriverQueue, bad: VringAddr) -> None:
    """Addresses are refused when they come last, and what comes last is refused when they came before."""
    connection, num = driver.connection, VringState(ring.index, _NUM)
    # the size was not told yet
    await connection.accepted(R.SET_VRING_ADDR, bad)
    await connection.refused(connection.frame(R.SET_VRING_NUM, num))
    await connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(ring))
    await connection.accepted(R.SET_VRING_NUM, num)
    await connection.refused(connection.frame(R.SET_VRING_ADDR, bad))


def _misplaced(driver: Driver, good: VringAddr, area: str) -> Iterator[VringAddr]:
    region = driver.memory.regions[0]
    end = driver.address(region.guest_phys_addr + region.memory_size)
    step = _ALIGNMENT[area]
    fitting = (end - _LENGTH[area]) & -step
    for address in (end, end - step, fitting + step, (1 << 64) - step, 1 << 63):
        yield replace(good, **{area: address})


@checks("VU-RING-21", needs=(P.REPLY_ACK,))
async def a_part_outside_memory(probe: Probe) -> None:
    for area in _ALIGNMENT:
        driver, ring = await _halted(probe)
        for number, bad in enumerate(_misplaced(driver, driver.vring_addr(ring), area)):
            if number:
                driver, ring = await _halted(probe)
            await _refused_when_known(driver, ring, bad)


@checks("VU-RING-21", needs=(P.REPLY_ACK,))
async def a_part_at_the_very_end_of_memory(probe: Probe) -> None:
    driver, ring = await _halted(probe)
    good = driver.vring_addr(ring)
    region = driver.memory.regions[1]
    last = driver.address(region.guest_phys_addr + region.memory_size) - _LENGTH["descriptor"]
    await driver.connection.accepted(R.SET_VRING_NUM, VringState(ring.index, _NUM))
    await driver.connection.accepted(R.SET_VRING_ADDR, replace(good, descriptor=last))


@checks("VU-RING-22", needs=(P.REPLY_ACK,))
async def parts_that_overlap(probe: Probe) -> None:
    cases = (
        ("used", "descriptor", 0),
        ("used", "descriptor", 16 * _NUM - 4),
        ("used", "available", 0),
        ("available", "used", 8 * _NUM),
        ("available", "descriptor", 16),
    )
    for area, onto, off in cases:
        driver, ring = await _halted(probe)
        good = driver.vring_addr(ring)
        address = (getattr(good, onto) + off) & -_ALIGNMENT[area]
        await _refused_when_known(driver, ring, replace(good, **{area: address}))


@checks("VU-RING-15")
async def parts_of_a_split_ring_are_aligned(probe: Probe) -> None:
    for area, step in _ALIGNMENT.items():
        await _unaligned(probe, area, step, 0)


@checks("VU-RING-15", needs=(V.RING_PACKED,))
async def parts_of_a_packed_ring_are_aligned(probe: Probe) -> None:
    for area, step in {"descriptor": 16, "available": 4, "used": 4}.items():
        await _unaligned(probe, area, step, V.RING_PACKED)


async def _unaligned(probe: Probe, area: str, step: int, virtio: int) -> None:
    for off in {1, step // 2}:
        driver, ring = await _halted(probe, virtio)
        connection, good = driver.connection, driver.vring_addr(ring)
        await connection.accepted(R.SET_VRING_NUM, VringState(ring.index, _NUM))
        elsewhere = driver.address(driver.memory.alloc(_PAGE, _PAGE))  # where it overlaps nothing
        bad = replace(good, **{area: elsewhere + off})
        await connection.rejected(connection.frame(R.SET_VRING_ADDR, bad))


@checks("VU-RING-16")
async def addresses_may_come_while_the_ring_runs(probe: Probe) -> None:
    driver = await probe.driver()
    for log in (driver.work.used_addr, None):
        await driver.served()
        await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(driver.work, log))
    await driver.served()


@checks("VU-RING-23")
async def a_position_far_from_the_avail_index(probe: Probe) -> None:
    for base, avail in ((1, 0), (0x8000, 0), (0, _NUM + 1)):
        driver = await probe.driver(start=False)
        driver.make_rings(_NUM)
        for ring in driver.rings.values():
            if ring is driver.work:
                ring.memory.store_u16(ring.avail_addr + 2, avail)
                ring.base = base
            await driver.set_up(ring)
            await driver.enable(ring)
            await driver.go(ring)
        await driver.signalled(driver.work.err_fd.fileno(), f"err, for avail.idx {avail} and base {base:#x},")
        await driver.connection.talks()
        await driver.stop(driver.work)


@checks("VU-RING-33", needs=(V.RING_PACKED, P.REPLY_ACK))
async def values_of_the_other_layout(probe: Probe) -> None:
    for request, value in ((R.SET_VRING_BASE, 0x8001_8001), (R.SET_VRING_NUM, _NUM - 1)):
        driver, ring = await _halted(probe)
        connection, index, split = driver.connection, ring.index, driver.connection.features
        await connection.accepted(R.SET_FEATURES, U64(split | DriverFeature.RING_PACKED))
        await connection.accepted(R.SET_VRING_NUM, VringState(index, _NUM))
        await connection.accepted(request, VringState(index, value))
        await connection.accepted(R.SET_FEATURES, U64(split))
        await connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(ring))
        await connection.refused(connection.frame(R.SET_VRING_KICK, VringFd(index), [ring.kick_fd.fileno()]))

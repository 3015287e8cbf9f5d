"""Memory that comes and goes region by region, and addresses that are guest-physical."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.frontend.memory import USERSPACE_BASE, RamRegion
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import MemoryRegion, SingleRegion
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.frames import Frame

P, R = ProtocolFeature, FrontendRequest
_SLOTS = P.CONFIGURE_MEM_SLOTS
_WANTED = P.REPLY_ACK | P.MQ | _SLOTS
_MIB = 1 << 20
_PAGE = 4096
_LAYOUT = ((0, 4 * _MIB), (1 << 32, _MIB), (1 << 33, _MIB))


async def _plugged(probe: Probe, protocol: ProtocolFeature = _WANTED) -> Driver:
    """A driver that runs, whose regions were added one by one."""
    connection = await probe.negotiated(protocol=protocol)
    driver = probe.drive(connection, probe.memory(*_LAYOUT))
    for region in driver.memory.regions:
        await driver.add_region(region)
    await driver.start_all()
    return driver


def _removal(driver: Driver, region: RamRegion) -> Frame:
    return driver.connection.frame(R.REM_MEM_REG, SingleRegion(driver.told(region)))


async def _remove(driver: Driver, region: RamRegion) -> None:
    await driver.connection.accepted(R.REM_MEM_REG, SingleRegion(driver.told(region)))


def _region(at: int, size: int = _PAGE) -> MemoryRegion:
    return MemoryRegion(at, size, USERSPACE_BASE + at, 0)


async def _add(connection: Connection, region: MemoryRegion, fd: int) -> None:
    await connection.accepted(R.ADD_MEM_REG, SingleRegion(region), [fd])


@checks("VU-SLOT-1", needs=(_SLOTS,))
async def regions_come_and_go_under_rings(probe: Probe) -> None:
    driver = await _plugged(probe)
    for number, region in enumerate(driver.memory.regions[1:], 1):
        driver.give(region=number)
        driver.kick(driver.work)
        await driver.used(1)
        await _remove(driver, region)
        await driver.served(2)
        await driver.add_region(region)
        driver.give(region=number)
        driver.kick(driver.work)
        await driver.used(1)


@checks("VU-SLOT-2", needs=(_SLOTS,))
async def a_region_is_unmapped_before_the_answer(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    fds = [probe.memfd(_PAGE, f"memory {number}") for number in range(2)]
    for number, fd in enumerate(fds):
        await _add(connection, _region(number << 32), fd)
    await connection.accepted(R.REM_MEM_REG, SingleRegion(_region(0)))
    if not probe.unmapped(fds[0]):
        raise Violation("REM_MEM_REG was acknowledged, and the region's file is still mapped for writing")
    if probe.unmapped(fds[1]):
        raise Violation("REM_MEM_REG of one region, and the other one's file is not mapped any more")


@checks("VU-SLOT-3", needs=(_SLOTS, P.REPLY_ACK))
async def a_region_with_a_running_ring_stays(probe: Probe) -> None:
    driver = await _plugged(probe)
    home = driver.memory.regions[0]
    for ring in driver.rings.values():
        await driver.connection.refused(_removal(driver, home))
        await driver.stop(ring)
    await _remove(driver, home)
    await driver.add_region(home)
    for ring in driver.rings.values():
        await driver.start(ring)
    await driver.served()


@checks("VU-SLOT-4", needs=(_SLOTS,))
async def what_names_a_region(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    told = _region(1 << 32)
    fd = probe.memfd(2 * _PAGE, "memory")
    for half in (
        replace(told, guest_phys_addr=0),
        replace(told, memory_size=_PAGE - 1),
        replace(told, userspace_addr=told.userspace_addr - _PAGE),
    ):
        connection = await probe.negotiated(protocol=_WANTED)
        await _add(connection, told, fd)
        await connection.rejected(connection.frame(R.REM_MEM_REG, SingleRegion(half)))
    connection = await probe.negotiated(protocol=_WANTED)
    await _add(connection, told, fd)
    await connection.accepted(R.REM_MEM_REG, SingleRegion(replace(told, mmap_offset=_PAGE)))
    if not probe.unmapped(fd):
        raise Violation("REM_MEM_REG with another file offset was acknowledged, and the region is still mapped")


@checks("VU-SLOT-6", needs=(_SLOTS, P.REPLY_ACK))
async def there_are_509_slots(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    if (slots := await connection.value(R.GET_MAX_MEM_SLOTS)) != 509:
        raise Violation(f"GET_MAX_MEM_SLOTS: {slots}")


@checks("VU-SLOT-6", needs=(_SLOTS, P.REPLY_ACK))
async def a_region_too_many_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    fd = probe.memfd(_PAGE, "memory")
    slots = await connection.value(R.GET_MAX_MEM_SLOTS)
    for number in range(slots):
        await _add(connection, _region(number << 16), fd)
    more = connection.frame(R.ADD_MEM_REG, SingleRegion(_region(1 << 40)), [fd])
    await connection.refused(more)
    await connection.accepted(R.REM_MEM_REG, SingleRegion(_region(0)))
    await _add(connection, _region(1 << 40), fd)


@checks("VU-SLOT-7", needs=(_SLOTS, P.REPLY_ACK))
async def a_refused_region_changes_no_other(probe: Probe) -> None:
    driver = await _plugged(probe)
    connection = driver.connection
    fd, pipe = probe.memfd(_MIB, "other memory"), probe.pipe()[1]
    at = _LAYOUT[1][0]
    for bad, of in (
        (_region(at), fd),
        (_region(at + _MIB - 1), fd),
        (_region(1 << 40), pipe),
        (_region(1 << 40, 0), fd),
        (_region(1 << 40, 2 * _MIB), fd),
    ):
        await connection.refused(connection.frame(R.ADD_MEM_REG, SingleRegion(bad), [of]))
    for region in range(len(_LAYOUT)):
        driver.give(region=region)
    driver.kick(driver.work)
    await driver.used(len(_LAYOUT))


@checks("VU-SLOT-8", needs=(_SLOTS,))
async def a_ring_waits_for_the_last_of_its_regions(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    driver = probe.drive(connection, probe.memory(*_LAYOUT))
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.start(ring)
    driver.give()
    for region in driver.memory.regions[:0:-1]:
        await driver.add_region(region)
        await driver.left_alone()
    await driver.add_region(driver.memory.regions[0])
    await driver.used(1)


@checks("VU-SLOT-9", needs=(_SLOTS, P.REPLY_ACK))
async def a_region_that_is_told_again(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    fd = probe.memfd(2 * _PAGE, "memory")
    told = _region(1 << 32)
    for _ in range(3):
        await _add(connection, told, fd)
    for _ in range(3):
        await connection.accepted(R.REM_MEM_REG, SingleRegion(told))
    await connection.refused(connection.frame(R.REM_MEM_REG, SingleRegion(told)))
    if not probe.unmapped(fd):
        raise Violation("a region was told three times and removed three times, and is still mapped")


@checks("VU-SLOT-9", needs=(_SLOTS, P.REPLY_ACK))
async def another_file_at_the_same_place_is_no_repetition(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED)
    fd, other = probe.memfd(2 * _PAGE, "memory"), probe.memfd(2 * _PAGE, "other memory")
    told = _region(1 << 32)
    await _add(connection, told, fd)
    await connection.refused(connection.frame(R.ADD_MEM_REG, SingleRegion(told), [other]))
    shifted = SingleRegion(replace(told, mmap_offset=_PAGE))
    await connection.refused(connection.frame(R.ADD_MEM_REG, shifted, [fd]))


@checks("VU-GPA-1", needs=(P.GPA_ADDRESSES,))
async def ring_addresses_are_guest_physical(probe: Probe) -> None:
    driver = await probe.driver(protocol=P.GPA_ADDRESSES | P.REPLY_ACK | P.MQ)
    await driver.served(2)
    connection = driver.connection
    addr = driver.vring_addr(driver.work)
    moved = {name: getattr(addr, name) + USERSPACE_BASE for name in ("descriptor", "available", "used")}
    await connection.rejected(connection.frame(R.SET_VRING_ADDR, replace(addr, **moved)))


@checks("VU-GPA-1", needs=(P.GPA_ADDRESSES, _SLOTS))
async def user_addresses_are_not_looked_at(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_WANTED | P.GPA_ADDRESSES)
    driver = probe.drive(connection, probe.memory(*_LAYOUT))
    for region in driver.memory.regions:
        told = SingleRegion(replace(driver.told(region), userspace_addr=7))
        await connection.accepted(R.ADD_MEM_REG, told, [region.fd.fileno()])
    await driver.start_all()
    await driver.served()

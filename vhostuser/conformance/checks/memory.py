"""Memory tables: what a region has to be, what replaces what, and memory that vanishes."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.frontend.memory import USERSPACE_BASE
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import MemoryRegion, MemoryTable, VringFd
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.frames import Frame

P, R = ProtocolFeature, FrontendRequest
_MIB = 1 << 20
_PAGE = 4096
_END = 1 << 64
_GOOD = MemoryRegion(0, _MIB, USERSPACE_BASE, 0)
_FAR = MemoryRegion(1 << 40, _MIB, USERSPACE_BASE + (1 << 40), 0)


def _table(connection: Connection, *regions: MemoryRegion, fds: list[int]) -> Frame:
    return connection.frame(R.SET_MEM_TABLE, MemoryTable(regions), fds)


@checks("VU-MEM-1")
async def regions_have_no_fields_of_xens(probe: Probe) -> None:
    # the second region is found, in the table and in memory: the first one ended where it has to
    driver = await probe.driver(layout=((0, _MIB), (1 << 32, _MIB), (1 << 33, _MIB)))
    for region in (0, 1, 2):
        driver.give(region=region)
    driver.kick(driver.work)
    await driver.used(3)


@checks("VU-MEM-1", needs=(P.XEN_MMAP,))
async def regions_need_the_fields_of_xens(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.XEN_MMAP | P.REPLY_ACK)
    memory = probe.memory((0, _MIB))
    await connection.rejected(connection.frame(R.SET_MEM_TABLE, memory.table(), memory.fds()))


@checks("VU-MEM-2")
async def regions_without_room_are_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    memory = probe.memory((0, _MIB))
    table = layouts.build(memory.table())
    for nregions in (0, 2, 9, 0xFFFFFFFF):
        frame = connection.frame(R.SET_MEM_TABLE, struct.pack("=I", nregions) + table[4:], memory.fds())
        await connection.refused(frame)


@checks("VU-MEM-2")
async def room_that_is_left_is_not_looked_at(probe: Probe) -> None:
    connection = await probe.negotiated()
    memory = probe.memory((0, _MIB))
    table = layouts.build(memory.table())
    await connection.accepted(R.SET_MEM_TABLE, table + b"\xff" * 32 * 7, memory.fds())


@checks("VU-MEM-2")
async def a_size_that_no_number_of_regions_explains_closes(probe: Probe) -> None:
    memory = probe.memory((0, _MIB))
    table = layouts.build(memory.table())
    for size in (7, len(table) - 1, len(table) + 1):
        connection = await probe.negotiated()
        await connection.closes(connection.frame(R.SET_MEM_TABLE, (table + bytes(1))[:size], memory.fds()))


@checks("VU-MEM-3")
async def ranges_that_cannot_be_are_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.memfd(_MIB, "memory")
    changes: tuple[dict[str, Any], ...] = (
        {"memory_size": 0},
        {"guest_phys_addr": _END - _MIB + 1},
        {"userspace_addr": _END - _PAGE},
        {"mmap_offset": _END - _PAGE},
        {"memory_size": 1 << 63},
        {"memory_size": 1 << 63, "mmap_offset": 1 << 63},
    )
    for change in changes:
        await connection.refused(_table(connection, replace(_GOOD, **change), _FAR, fds=[fd, fd]))
        await connection.refused(_table(connection, _FAR, replace(_GOOD, **change), fds=[fd, fd]))


@checks("VU-MEM-3")
async def a_region_beyond_its_file_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.memfd(_MIB, "memory")
    changes: tuple[dict[str, Any], ...] = (
        {"mmap_offset": 1},
        {"mmap_offset": _PAGE},
        {"memory_size": _MIB + 1},
        {"mmap_offset": 1 << 40},
    )
    for change in changes:
        await connection.refused(_table(connection, replace(_GOOD, **change), fds=[fd]))
    await connection.refused(_table(connection, _GOOD, fds=[probe.memfd(0, "empty")]))


@checks("VU-MEM-4")
async def what_is_no_memory_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    good = probe.memfd(_MIB, "memory")
    path = f"/proc/self/fd/{good}"
    others = (
        *probe.pipe(),
        probe.socketpair()[1],
        probe.eventfd(),
        probe.open("/"),
        probe.open("/dev/zero", os.O_RDWR),
    )
    for bad in (*others, probe.open(path), probe.open(path, os.O_WRONLY)):
        await connection.refused(_table(connection, _GOOD, _FAR, fds=[bad, good]))
        await connection.refused(_table(connection, _GOOD, _FAR, fds=[good, bad]))
    await connection.accepted(R.SET_MEM_TABLE, MemoryTable((_GOOD,)), [good])


@checks("VU-MEM-4")
async def memory_begins_at_any_offset(probe: Probe) -> None:
    for offset in (_PAGE, 5 * _PAGE):
        driver = await probe.driver(mmap_offset=offset)
        await driver.served(2)


@checks("VU-MEM-4")
async def memory_begins_inside_a_page(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.memfd(2 * _MIB, "memory")
    await connection.accepted(R.SET_MEM_TABLE, MemoryTable((replace(_GOOD, mmap_offset=_PAGE - 16),)), [fd])


@checks("VU-MEM-5")
async def memory_that_shrinks_breaks_its_ring(probe: Probe) -> None:
    driver = await probe.driver(seals=0)
    await driver.served()
    await _vanish(probe, driver)
    driver.kick(driver.work)
    await driver.signalled(driver.work.err_fd.fileno(), "err, of a ring whose memory is gone,")
    await driver.connection.talks()
    await driver.stop(driver.work)


@checks("VU-MEM-5")
async def a_ring_that_starts_in_memory_that_is_gone(probe: Probe) -> None:
    driver = await probe.driver(seals=0, start=False)
    ring = driver.make_ring(driver.device.ring)
    await driver.set_up(ring)
    await driver.enable(ring)
    await _vanish(probe, driver)
    await driver.go(ring)
    for other in range(driver.device.rings):  # some devices begin when all their rings are there
        if other != ring.index:
            await driver.connection.accepted(R.SET_VRING_KICK, VringFd(other), [ring.kick_fd.fileno()])
    driver.kick(ring)
    await driver.signalled(ring.err_fd.fileno(), "err, of a ring whose memory is gone,")
    await driver.connection.talks()


async def _vanish(probe: Probe, driver: Driver) -> None:
    """Take the pages out of the files of the memory."""
    for region in driver.memory.regions:
        os.ftruncate(region.fd.fileno(), 0)
        probe.record.resized(region.fd.fileno(), 0)


@checks("VU-MEM-6")
async def a_new_table_takes_over_under_rings(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served(3)
    for _ in range(3):
        await driver.tell_memory()
        await driver.served(2)
    if (position := await driver.stop(driver.work)) & 0xFFFF != 9:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 9 chains and 3 new memory tables")


@checks("VU-MEM-6")
async def a_new_table_brings_other_memory(probe: Probe) -> None:
    layout = ((0, _MIB), (1 << 32, _MIB))
    driver = await probe.driver(layout=layout)
    await driver.served(3)
    other = probe.memory(*layout)
    other.copy(driver.memory)
    driver.move(other)
    await driver.tell_memory()
    await driver.served(3)


@checks("VU-MEM-6")
async def a_table_that_lacks_a_ring_breaks_it(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    fd = probe.memfd(_MIB, "other memory")
    await driver.connection.accepted(R.SET_MEM_TABLE, MemoryTable((_FAR,)), [fd])
    await driver.signalled(driver.work.err_fd.fileno(), "err, of a ring whose memory the new table lacks,")
    if (position := await driver.stop(driver.work)) & 0xFFFF != 1:
        raise Violation(f"GET_VRING_BASE: {position:#x} after 1 chain, of a ring that lost its memory")
    await driver.tell_memory()
    await driver.stop_all()
    for ring in driver.rings.values():
        await driver.start(ring)
    await driver.served()


@checks("VU-MEM-7")
async def regions_that_overlap_are_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    fd = probe.memfd(2 * _MIB, "memory")
    for other in (
        _GOOD,
        replace(_FAR, guest_phys_addr=_MIB - 1),
        replace(_FAR, guest_phys_addr=_PAGE, memory_size=_PAGE),
        replace(_FAR, userspace_addr=USERSPACE_BASE + _MIB - 1),
        replace(_FAR, userspace_addr=USERSPACE_BASE),
    ):
        await connection.refused(_table(connection, _GOOD, other, fds=[fd, fd]))
        await connection.refused(_table(connection, other, _GOOD, fds=[fd, fd]))
    touching = MemoryRegion(_MIB, _MIB, USERSPACE_BASE + _MIB, _MIB)
    await connection.accepted(R.SET_MEM_TABLE, MemoryTable((_GOOD, touching)), [fd, fd])


@checks("VIO-LIMIT-4")
async def a_table_of_more_than_can_be_mapped(probe: Probe) -> None:
    connection = await probe.negotiated()
    size = 5 << 40
    fd = probe.memfd(size, "five terabytes")
    await connection.refused(_table(connection, replace(_GOOD, memory_size=size), fds=[fd]))
    small = probe.memfd(_MIB, "memory")
    await connection.accepted(R.SET_MEM_TABLE, MemoryTable((_GOOD,)), [small])

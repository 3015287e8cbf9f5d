"""The dirty log: which pages of guest memory it has, and when.

Devices differ in what they write. So a check looks at what has changed in guest memory and was not the driver's doing,
and at what may change: buffers for the device to write to, and the rings' own areas.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.frontend.dirty import PAGE, DirtyBitmap
from vhostuser.frontend.memory import USERSPACE_BASE
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, Log, MemoryRegion, MemoryTable
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import Buffer, DriverQueue

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_NEEDS = (P.LOG_SHMFD, V.LOG_ALL)
_MIB = 1 << 20
_LAYOUT = ((0, 2 * _MIB), (1 << 32, _MIB))
_GAP = 0x8000_0000  # where the layout has no memory, and the log bits all the same
_FULL = 0xFFFFFFFFFFFFFFFE
_PROTOCOL = P.LOG_SHMFD | P.REPLY_ACK | P.MQ


async def _logging(probe: Probe, virtio: int = 0, *, on: bool = True, size: int = 64) -> tuple[Driver, DirtyBitmap]:
    """A driver whose rings run in the second memory region, and lie in the log as buffers in the first one do.

    `size` is that of the ring for work.
    """
    driver = await probe.driver(virtio, _PROTOCOL, start=False, layout=_LAYOUT, seals=0)
    log = probe.dirty_log(driver.memory.top)
    for index in range(probe.device.rings):
        driver.memory.alloc(PAGE, PAGE, 1)  # so that no two rings share a page
        ring = driver.make_ring(index, size if index == probe.device.ring else 64, region=1)
        driver.post(ring)
        await driver.start(ring, log=ring.used_addr)
    await _set_log(driver, log)
    if on:
        await _log_all(driver, True)
    driver.memory.watch()
    return driver, log


async def _set_log(driver: Driver, log: DirtyBitmap) -> None:
    await driver.connection.accepted(R.SET_LOG_BASE, log.message(), [log.fd.fileno()])


async def _log_all(driver: Driver, on: bool) -> None:
    features = driver.connection.features & ~int(V.LOG_ALL) | V.LOG_ALL * on
    await driver.connection.accepted(R.SET_FEATURES, U64(features))


async def _work(driver: Driver, probe: Probe, times: int = 1) -> None:
    """Have the device write to guest memory: the rings in any case, and buffers if it has some to write."""
    for _ in range(times):
        await (driver.effective() if probe.offer.echo else driver.served())


def _pages(buffers: list[Buffer]) -> set[int]:
    return {page for at, length in buffers for page in range(at & -PAGE, at + length, PAGE)}


def _own_area(ring: DriverQueue) -> set[int]:
    """The pages of what a device writes of a ring."""
    if isinstance(ring, PackedDriverRing):
        return _pages([(ring.desc_addr, 16 * ring.size), (ring.used_addr, 4)])
    return _pages([(ring.used_addr, 6 + 8 * ring.size)])


async def _all_is_logged(probe: Probe, virtio: int) -> None:
    driver, log = await _logging(probe, virtio)
    own = {page for ring in driver.rings.values() for page in _own_area(ring)}
    await _work(driver, probe, 5)
    await driver.stop_all()
    logged, written = log.take(), driver.memory.foreign()
    if missing := written - logged:
        raise Violation(f"pages {_shown(missing)} were written and are not in the log when the rings have stopped")
    if others := logged - own - _pages(driver.writable()):
        raise Violation(f"pages {_shown(others)} are in the log, and are nothing that the device may write to")


def _shown(pages: set[int]) -> str:
    return ", ".join(f"{page:#x}" for page in sorted(pages)[:8]) + (", ..." if len(pages) > 8 else "")


@checks("VU-LOG-1", needs=_NEEDS)
async def what_was_written_is_logged(probe: Probe) -> None:
    await _all_is_logged(probe, 0)


@checks("VU-LOG-1", needs=(*_NEEDS, V.RING_PACKED))
async def what_was_written_is_logged_with_packed_rings(probe: Probe) -> None:
    await _all_is_logged(probe, V.RING_PACKED)


@checks("VU-LOG-2", needs=_NEEDS, echo=True)
async def a_buffer_is_logged_as_far_as_it_was_written(probe: Probe) -> None:
    assert probe.device.echo is not None
    driver = await probe.driver(0, _PROTOCOL, start=False, layout=_LAYOUT)
    log = probe.dirty_log(driver.memory.top)
    for index in range(probe.device.rings):
        driver.make_ring(index, region=1)
    receiving = driver.rings[probe.device.echo]
    buffer = driver.memory.alloc(4 * PAGE, PAGE)
    receiving.add(writable=[(buffer, 4 * PAGE)])
    for ring in driver.rings.values():
        await driver.start(ring, log=ring.used_addr)
    await _set_log(driver, log)
    await _log_all(driver, True)
    await driver.served()
    await driver.used(1, receiving)
    await driver.stop_all()
    logged = log.take() & set(range(buffer, buffer + 4 * PAGE, PAGE))
    if logged != {buffer}:
        raise Violation(f"a frame was received at {buffer:#x}, in a buffer of four pages; logged: {_shown(logged)}")


@checks("VU-LOG-3", needs=_NEEDS)
async def a_rings_own_area_is_logged_while_f_log_is_set(probe: Probe) -> None:
    driver, log = await _logging(probe)
    ring = driver.work
    await _work(driver, probe, 2)
    await driver.connection.talks()
    if not _own_area(ring) & log.take():
        raise Violation(f"F_LOG is set, chains were used, and nothing of {_shown(_own_area(ring))} is in the log")
    for other in driver.rings.values():
        await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(other))
    log.take()
    await _work(driver, probe, 2)
    await driver.stop_all()
    own = {page for other in driver.rings.values() for page in _own_area(other)}
    if logged := own & log.take():
        raise Violation(f"F_LOG is not set any more, and pages {_shown(logged)} of the rings are in the log")


@checks("VU-LOG-4", needs=_NEEDS)
async def nothing_is_logged_without_log_all(probe: Probe) -> None:
    driver, log = await _logging(probe, on=False)
    for _ in range(2):
        await _work(driver, probe, 2)
        if logged := log.take():
            raise Violation(f"LOG_ALL is not acknowledged, and pages {_shown(logged)} are in the log")
        await _log_all(driver, True)
        await _work(driver, probe, 2)
        await driver.connection.talks()
        if not log.pages():
            raise Violation("LOG_ALL was acknowledged while rings run, chains were used, and the log is empty")
        await _log_all(driver, False)
        log.take()


@checks("VU-LOG-5", needs=_NEEDS)
async def a_used_ring_is_logged_where_it_was_told(probe: Probe) -> None:
    driver, log = await _logging(probe)
    ring = driver.work
    await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(ring, _GAP))
    log.take()
    await driver.served()
    await driver.stop(ring)
    logged = log.take()
    if _GAP not in logged:
        raise Violation(f"the used ring is to be logged at {_GAP:#x}; logged: {_shown(logged)}")
    if logged & _own_area(ring):
        raise Violation(f"the used ring is to be logged at {_GAP:#x}, and its own page is in the log")


@checks("VU-LOG-1", "VU-LOG-5", needs=_NEEDS)
async def a_used_ring_is_logged_page_by_page(probe: Probe) -> None:
    driver, log = await _logging(probe, size=1024)
    await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(driver.work, _GAP))
    log.take()
    for _ in range(6):  # flags and idx take 4 bytes, an element 8: the second page begins in the 512th one
        await driver.served(100)
    await driver.stop(driver.work)
    logged = log.take()
    for page in (_GAP, _GAP + PAGE):
        if page not in logged:
            raise Violation(
                f"600 elements of a used ring at {_GAP:#x} were written, and page {page:#x} is not in the log"
            )


@checks("VU-LOG-6", needs=_NEEDS)
async def a_file_that_is_mapped_twice(probe: Probe) -> None:
    elsewhere = 1 << 33
    driver = await probe.driver(0, _PROTOCOL, start=False, layout=_LAYOUT)
    file = driver.memory.regions[0]
    again = MemoryRegion(elsewhere, file.memory_size, USERSPACE_BASE + elsewhere, 0)
    regions = (*map(driver.told, driver.memory.regions), again)
    fds = [*driver.memory.fds(), file.fd.fileno()]
    await driver.connection.accepted(R.SET_MEM_TABLE, MemoryTable(regions), fds)
    log = probe.dirty_log(elsewhere + file.memory_size)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.start(ring, log=ring.used_addr)
    await _set_log(driver, log)
    await _log_all(driver, True)
    log.take()
    buffers = await _write_at(probe, driver, elsewhere)
    await driver.stop_all()
    logged, there, here = log.take(), {elsewhere + page for page in _pages(buffers)}, _pages(buffers)
    if there - logged or here & logged:
        raise Violation(
            f"written at {_shown(there)}, which is the file at {_shown(here)}, too; logged: {_shown(logged)}"
        )


async def _write_at(probe: Probe, driver: Driver, elsewhere: int) -> list[Buffer]:
    """Have the device write to buffers so many bytes further up than they are; the buffers."""
    driver.memory.alloc(PAGE, PAGE)  # pages of their own
    job = probe.device.job(driver.memory)
    buffers, filled = [*job.writable], driver.work
    if not buffers:  # what is sent comes back there
        if probe.device.echo is None or not probe.offer.echo:
            raise NotApplicable("the device writes to no buffers")
        buffers, filled = [(driver.memory.alloc(PAGE, PAGE), 2048)], driver.rings[probe.device.echo]
        await driver.stop(filled)
        filled.reset()
        filled.add(writable=[(elsewhere + at, length) for at, length in buffers])
        await driver.start(filled, log=filled.used_addr)
    driver.work.add(job.readable, [(elsewhere + at, length) for at, length in job.writable])
    driver.kick(driver.work)
    await driver.used(1, filled)
    return buffers


@checks("VU-LOG-7", needs=_NEEDS)
async def nothing_beyond_the_log_is_touched(probe: Probe) -> None:
    for far in (None, 0xDEAD_BEEF_0000, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 8):
        driver, log = await _logging(probe)
        end = log.size
        told = 8 * end * PAGE if far is None else far  # the first page without a bit, or any
        os.ftruncate(log.fd.fileno(), end + 16 * PAGE)
        await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(driver.work, told & -4))
        await driver.served(3)
        await driver.stop(driver.work)
        if any(os.pread(log.fd.fileno(), 16 * PAGE, end)):
            raise Violation(
                f"the used ring is to be logged at {told:#x}, which the log has no bit for: bytes behind it are set"
            )


@checks("VU-LOG-8", needs=_NEEDS)
async def a_log_that_vanishes_breaks_its_ring(probe: Probe) -> None:
    driver, log = await _logging(probe)
    await driver.served()
    os.ftruncate(log.fd.fileno(), 0)
    probe.record.resized(log.fd.fileno(), 0)
    driver.give()
    driver.kick(driver.work)
    await driver.signalled(driver.work.err_fd.fileno(), "err, of a ring whose log is gone,")
    await driver.connection.talks()
    await driver.stop(driver.work)


@checks("VU-LOG-9", needs=_NEEDS)
async def the_logs_descriptor_is_signalled(probe: Probe) -> None:
    driver, log = await _logging(probe)
    for _ in range(2):
        fd = probe.eventfd(name="log call")
        await driver.connection.accepted(R.SET_LOG_FD, None, [fd])
        log.take()
        await driver.served()
        await driver.signalled(fd, "the descriptor of the log")


@checks("VU-LOG-9", needs=_NEEDS)
async def the_logs_descriptor_is_not_waited_for(probe: Probe) -> None:
    driver, log = await _logging(probe)
    for flags in (os.EFD_NONBLOCK, 0):
        fd = probe.eventfd(0, flags, "full log call")
        os.eventfd_write(fd, _FULL)
        await driver.connection.accepted(R.SET_LOG_FD, None, [fd])
        for _ in range(2):
            log.take()
            await driver.served()


@checks("VU-LOG-10", needs=_NEEDS)
async def a_log_that_cannot_be_is_refused(probe: Probe) -> None:
    driver, log = await _logging(probe)
    connection, size, fd = driver.connection, log.size, log.fd.fileno()
    for bad in ((0, 0), (3, 0), (size - 1, 0), (1 << 40, 0), (size, 1 << 62), (1 << 63, 1 << 63)):
        await connection.refused(connection.frame(R.SET_LOG_BASE, Log(*bad), [fd]))
    await connection.refused(connection.frame(R.SET_LOG_BASE, Log(size, 0), [probe.eventfd()]))
    await connection.refused(connection.frame(R.SET_LOG_FD, None, [fd]))
    log.take()
    await driver.served()
    await driver.stop(driver.work)
    if not log.take():
        raise Violation("another log was refused, and nothing goes into the one before any more")


@checks("VU-LOG-10", "VU-REP-6", needs=(P.LOG_SHMFD, P.REPLY_ACK))
async def a_log_without_its_feature_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.REPLY_ACK)
    log = probe.dirty_log(_MIB)
    await connection.refused(connection.frame(R.SET_LOG_BASE, log.message(), [log.fd.fileno()]))


@checks("VU-LOG-11", needs=_NEEDS)
async def a_copy_that_is_kept_up_is_the_guests_memory(probe: Probe) -> None:
    driver, log = await _logging(probe)
    for _ in range(8):
        for _ in range(4):
            driver.give()
        driver.kick(driver.work)
        while driver.work.in_flight:  # pages are copied while the device writes
            driver.memory.absorb(log.take())
            await driver.used(1)
    await driver.stop_all()
    driver.memory.absorb(log.take())
    if different := driver.memory.foreign():
        raise Violation(f"pages {_shown(different)} differ from a copy that was kept up by the log")


@checks("VU-LOG-12", needs=_NEEDS)
async def a_log_outlasts_a_while_without_log_all(probe: Probe) -> None:
    driver, log = await _logging(probe)
    await driver.served()
    await _log_all(driver, False)
    await driver.served()
    await _log_all(driver, True)
    log.take()
    await driver.served()
    await driver.stop(driver.work)
    if not log.take():
        raise Violation("LOG_ALL was acknowledged again, and nothing goes into the log that was set before")


@checks("VU-LOG-13", needs=_NEEDS)
async def a_log_is_replaced_while_rings_run(probe: Probe) -> None:
    driver, old = await _logging(probe)
    for _ in range(3):
        await _work(driver, probe)
        new = probe.dirty_log(driver.memory.top + (1 << 30))
        await _set_log(driver, new)
        driver.memory.absorb(old.take())
        await _work(driver, probe)
        await driver.connection.talks()
        if late := old.take():
            raise Violation(f"another log was set and answered, and pages {_shown(late)} came into the old one")
        old = new
    await driver.stop_all()
    driver.memory.absorb(old.take())
    if different := driver.memory.foreign():
        raise Violation(f"pages {_shown(different)} were written and are in none of the logs")


@checks("VU-LOG-14", needs=_NEEDS)
async def a_log_is_forgotten(probe: Probe) -> None:
    for reset in (True, False):
        connection = await probe.negotiated(protocol=_PROTOCOL)
        log = probe.memfd(PAGE, "log")
        await connection.accepted(R.SET_LOG_BASE, Log(PAGE, 0), [log])
        if reset:
            await connection.accepted(R.RESET_OWNER)
        else:
            connection.close()
            await (await probe.connect()).talks()
        if not probe.unmapped(log):
            how = "RESET_OWNER" if reset else "the end of the connection"
            raise Violation(f"SET_LOG_BASE, then {how}: the log is still mapped")


@checks("VU-LOG-15", needs=(*_NEEDS, V.RING_PACKED))
async def a_packed_ring_is_logged_where_it_is(probe: Probe) -> None:
    driver, log = await _logging(probe, V.RING_PACKED)
    ring = driver.work
    await driver.connection.accepted(R.SET_VRING_ADDR, driver.vring_addr(ring, _GAP))
    log.take()
    await driver.served(3)
    await driver.stop(ring)
    logged = log.take()
    if ring.desc_addr & -PAGE not in logged or _GAP in logged:
        raise Violation(f"descriptors at {ring.desc_addr:#x}, told {_GAP:#x}; logged: {_shown(logged)}")

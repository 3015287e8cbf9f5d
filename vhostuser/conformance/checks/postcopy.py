"""Post-copy: memory whose pages are still elsewhere, and a back-end that waits for them.

A driver must not touch its memory before all pages are given: it would make them, as zeros. So work is laid out first,
the memory emptied, and that something was used is learned from calls.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import REQUEST
from vhostuser.conformance.violation import Violation
from vhostuser.fds import OwnedFd
from vhostuser.frontend.postcopy import PageServer
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import MemoryTable, SingleRegion
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.messages import MemoryRegion

P, R = ProtocolFeature, FrontendRequest
_NEEDS = (P.PAGEFAULT,)
_PROTOCOL = P.PAGEFAULT | P.REPLY_ACK | P.MQ
_SLOTS = _PROTOCOL | P.CONFIGURE_MEM_SLOTS
_MIB = 1 << 20
_LAYOUT = ((0, _MIB), (1 << 32, _MIB))


async def _advise(connection: Connection) -> int:
    """Begin; the userfaultfd, which is closed with the probe."""
    answer = await connection.accepted(R.POSTCOPY_ADVISE)
    if len(answer.fds) != 1:
        raise Violation(f"POSTCOPY_ADVISE: {answer.frame}, expected one descriptor")
    return answer.fds[0]


async def _listen(connection: Connection) -> None:
    await connection.accepted(R.POSTCOPY_LISTEN)
    connection.listening = True


async def _tell(driver: Driver) -> list[MemoryRegion]:
    """Tell the memory; the regions as they were answered."""
    if P.CONFIGURE_MEM_SLOTS in driver.connection.protocol:
        places = []
        for region in driver.memory.regions:
            told = SingleRegion(driver.told(region))
            answer = await driver.connection.accepted(R.ADD_MEM_REG, told, [region.fd.fileno()])
            if not isinstance(answer.value, SingleRegion):
                raise Violation(f"ADD_MEM_REG in post-copy: {answer.frame}, expected the region")
            places.append(answer.value.region)
        return places
    table = MemoryTable(tuple(map(driver.told, driver.memory.regions)))
    answer = await driver.connection.accepted(R.SET_MEM_TABLE, table, driver.memory.fds())
    if not isinstance(answer.value, MemoryTable):
        raise Violation(f"SET_MEM_TABLE in post-copy: {answer.frame}, expected the table")
    return [*answer.value.regions]


async def _acknowledge(connection: Connection) -> None:
    """Acknowledge the back-end's addresses, which is not answered."""
    request = R.ADD_MEM_REG if P.CONFIGURE_MEM_SLOTS in connection.protocol else R.SET_MEM_TABLE
    await connection.ignored(connection.frame(request, bytes(8), flags=REQUEST))


@asynccontextmanager
async def _arriving(probe: Probe, protocol: ProtocolFeature) -> AsyncIterator[tuple[Driver, PageServer]]:
    """A driver with a job laid out, all of whose memory is elsewhere; nothing is told of it yet."""
    connection = await probe.negotiated(protocol=protocol)
    driver = probe.drive(connection, probe.memory(*_LAYOUT, seals=0))
    driver.make_rings()
    driver.give()
    fd = await _advise(connection)
    await _listen(connection)
    pages = PageServer(driver.memory)
    driver.memory.emptied()
    pages.watch(OwnedFd(os.dup(fd)))
    try:
        yield driver, pages
    finally:
        pages.close()


async def _start(driver: Driver) -> None:
    for ring in driver.rings.values():
        await driver.enable(ring)  # first, or what is found at the start is thrown away
        await driver.set_up(ring)
        await driver.go(ring)
        driver.kick(ring)


async def _called(driver: Driver, pages: PageServer) -> None:
    """The call for the job has to come, with what pages it takes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pages.run)
        await driver.signalled(driver.work.call_fd.fileno(), "call, for a job whose pages were given,")
        nursery.cancel_scope.cancel()


async def _end(driver: Driver, pages: PageServer) -> None:
    pages.give_rest()
    await driver.connection.accepted(R.POSTCOPY_END)
    driver.connection.listening = False


@checks("VU-POST-1", needs=_NEEDS)
async def advise_brings_a_userfaultfd(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_PROTOCOL)
    for _ in range(3):
        fd = await _advise(connection)
        kind = os.readlink(f"/proc/self/fd/{fd}")
        if kind != "anon_inode:[userfaultfd]":
            raise Violation(f"POSTCOPY_ADVISE: the descriptor is of {kind}")
    await connection.accepted(R.POSTCOPY_END)


@checks("VU-POST-2", needs=(*_NEEDS, P.REPLY_ACK))
async def listen_comes_between_advise_and_memory(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_PROTOCOL)
    await connection.rejected(connection.frame(R.POSTCOPY_LISTEN))
    connection = await probe.negotiated(protocol=_PROTOCOL)
    await _advise(connection)
    memory = probe.memory(*_LAYOUT)
    await connection.accepted(R.SET_MEM_TABLE, memory.table(), memory.fds())
    await connection.rejected(connection.frame(R.POSTCOPY_LISTEN))


async def _answered_with_places(probe: Probe, protocol: ProtocolFeature) -> None:
    async with _arriving(probe, protocol) as (driver, _):
        places = await _tell(driver)
        for place, region in zip(places, driver.memory.regions, strict=True):
            told = driver.told(region)
            rest = (place.guest_phys_addr, place.memory_size, place.mmap_offset)
            if rest != (told.guest_phys_addr, told.memory_size, told.mmap_offset):
                raise Violation(f"told was {told}, and the answer is {place}")
            if place.userspace_addr == told.userspace_addr or place.userspace_addr % 4096:
                raise Violation(f"{place}: the back-end's address is due, the front-end's is {told.userspace_addr:#x}")
        await _acknowledge(driver.connection)


@checks("VU-POST-3", needs=_NEEDS)
async def a_table_is_answered_with_the_back_ends_addresses(probe: Probe) -> None:
    await _answered_with_places(probe, _PROTOCOL)


@checks("VU-POST-3", needs=(*_NEEDS, P.CONFIGURE_MEM_SLOTS))
async def a_region_is_answered_with_the_back_ends_address(probe: Probe) -> None:
    await _answered_with_places(probe, _SLOTS)


async def _acknowledged_first(probe: Probe, protocol: ProtocolFeature) -> None:
    async with _arriving(probe, protocol) as (driver, pages):
        pages.places += await _tell(driver)
        await _start(driver)
        with trio.move_on_after(probe.patience.silence):
            page = await pages.next_fault()
            raise Violation(f"page {page:#x} is asked for, and the back-end's addresses are not acknowledged yet")
        async with trio.open_nursery() as nursery:  # what it may do now takes pages
            nursery.start_soon(pages.run)
            await _acknowledge(driver.connection)
            nursery.cancel_scope.cancel()
        await _called(driver, pages)
        await _end(driver, pages)
        await driver.used(1)


@checks("VU-POST-4", needs=_NEEDS)
async def memory_is_not_touched_before_its_addresses_are_known(probe: Probe) -> None:
    await _acknowledged_first(probe, _PROTOCOL)


@checks("VU-POST-4", needs=(*_NEEDS, P.CONFIGURE_MEM_SLOTS))
async def one_acknowledgement_may_be_for_several_regions(probe: Probe) -> None:
    await _acknowledged_first(probe, _SLOTS)


@checks("VU-POST-5", needs=_NEEDS)
async def a_refused_table_is_answered_all_the_same(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_PROTOCOL)
    await _advise(connection)
    await _listen(connection)
    memory = probe.memory((0, _MIB))
    empty = [probe.memfd(0, "empty")]
    answer = await connection.refused(connection.frame(R.SET_MEM_TABLE, memory.table(), empty, flags=REQUEST))
    if answer.payload:
        raise Violation(f"SET_MEM_TABLE that was refused in post-copy: {answer}")


@checks("VU-POST-7", needs=_NEEDS)
async def rings_run_while_pages_come(probe: Probe) -> None:
    async with _arriving(probe, _PROTOCOL) as (driver, pages):
        pages.places += await _tell(driver)
        await _acknowledge(driver.connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pages.run)
            await _start(driver)
            nursery.cancel_scope.cancel()
        await _called(driver, pages)
        if not pages.asked:
            raise Violation("all memory is elsewhere, a job was done, and no page was asked for")
        await _end(driver, pages)
        await driver.used(1)
        await driver.served(3)


@asynccontextmanager
async def _waiting(probe: Probe) -> AsyncIterator[tuple[Driver, PageServer]]:
    """The same, with a back-end that waits for a page which nobody gives."""
    async with _arriving(probe, _PROTOCOL) as (driver, pages):
        pages.places += await _tell(driver)
        await _acknowledge(driver.connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_start, driver)
            await pages.next_fault()
            nursery.cancel_scope.cancel()
        yield driver, pages


@checks("VU-POST-8", needs=_NEEDS)
async def nobody_waits_for_a_front_end_that_left(probe: Probe) -> None:
    async with _waiting(probe) as (driver, _):
        driver.connection.close()
        await (await probe.connect()).talks()  # the userfaultfd is still open here


@checks("VU-POST-9", needs=_NEEDS)
async def after_the_end_no_page_is_waited_for(probe: Probe) -> None:
    async with _arriving(probe, _PROTOCOL) as (driver, pages):
        pages.places += await _tell(driver)
        await _acknowledge(driver.connection)
        await driver.connection.accepted(R.POSTCOPY_END)
        driver.connection.listening = False
        await _start(driver)  # all pages are zeros
        with trio.move_on_after(probe.patience.silence):
            page = await pages.next_fault()
            raise Violation(f"page {page:#x} is asked for after POSTCOPY_END")
        await driver.connection.talks()
        await driver.stop_all()

"""The descriptors that come with messages: how many, whose, and that none is kept that is not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import REQUEST
from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import HEADER_SIZE, MAX_FDS, LentFds
from vhostuser.wire.messages import Log, MemoryTable, Payload, SingleRegion, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.probe import Probe

P, R = ProtocolFeature, FrontendRequest
_WITHOUT: tuple[tuple[FrontendRequest, Payload | None], ...] = (
    (R.GET_FEATURES, None),
    (R.SET_OWNER, None),
    (R.SET_VRING_NUM, VringState(0, 64)),
    (R.SET_VRING_BASE, VringState(0, 0)),
    (R.GET_VRING_BASE, VringState(0, 0)),
    (R.SET_VRING_ENABLE, VringState(0, 0)),
)
"""Requests that have no descriptor."""
_OF_A_RING = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)


@checks("VU-FD-1")
async def a_descriptor_too_many(probe: Probe) -> None:
    fd = probe.eventfd()
    for request, payload in _WITHOUT:
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(request, payload, [fd]))


@checks("VU-FD-1")
async def a_descriptor_too_few(probe: Probe) -> None:
    connection = await probe.negotiated()
    region = probe.memory((0, 1 << 20)).table()
    await connection.rejected(connection.frame(R.SET_MEM_TABLE, region))
    connection = await probe.negotiated()
    await connection.rejected(connection.frame(R.SET_LOG_FD))


@checks("VU-FD-2")
async def no_fd_means_what_it_says(probe: Probe) -> None:
    fd, other = probe.eventfd(), probe.eventfd()
    for request in _OF_A_RING:
        for no_fd, fds in ((True, [fd]), (False, []), (False, [fd, other])):
            connection = await probe.negotiated()
            await connection.rejected(connection.frame(request, VringFd(0, no_fd=no_fd), fds))
    connection = await probe.negotiated()
    for request in (R.SET_VRING_CALL, R.SET_VRING_ERR):
        await connection.accepted(request, VringFd(0), [fd])
        await connection.accepted(request, VringFd(0, no_fd=True))


@checks("VU-FD-3")
async def a_descriptor_for_each_region(probe: Probe) -> None:
    memory = probe.memory((0, 1 << 20), (1 << 32, 1 << 20))
    for fds in (memory.fds()[:1], [*memory.fds(), memory.fds()[0]]):
        connection = await probe.negotiated()
        await connection.rejected(connection.frame(R.SET_MEM_TABLE, memory.table(), fds))


@checks("VU-FD-3")
async def descriptors_in_the_order_of_the_regions(probe: Probe) -> None:
    connection = await probe.negotiated()
    driver = probe.drive(connection, probe.memory((0, 1 << 20), (1 << 32, 1 << 24)))
    # the table goes from high to low; rings are in the one region, buffers in both
    regions = driver.memory.regions[::-1]
    table = MemoryTable(tuple(map(driver.told, regions)))
    await connection.accepted(R.SET_MEM_TABLE, table, [region.fd.fileno() for region in regions])
    await driver.start_all()
    for region in (0, 1):
        driver.give(region=region)
    driver.kick(driver.work)
    await driver.used(2)


@checks("VU-FD-4", needs=(P.CONFIGURE_MEM_SLOTS,))
async def a_removal_with_and_without_a_descriptor(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
    region = probe.memory((0, 1 << 20)).regions[0]
    for fds in ([], [region.fd.fileno()]):
        await connection.accepted(R.ADD_MEM_REG, SingleRegion(region.message()), [region.fd.fileno()])
        await connection.accepted(R.REM_MEM_REG, SingleRegion(region.message()), fds)


@checks("VU-FD-5", needs=(P.LOG_SHMFD,))
async def a_log_without_a_descriptor(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.LOG_SHMFD | P.REPLY_ACK)
    await connection.rejected(connection.frame(R.SET_LOG_BASE, Log(4096, 0)))
    if not connection.closed:
        log = probe.dirty_log(1 << 20)
        await connection.accepted(R.SET_LOG_BASE, log.message(), [log.fd.fileno()])


@checks("VU-FD-6")
async def descriptors_too_many_are_closed(probe: Probe) -> None:
    connection = await probe.negotiated()
    for count in (1, 9, MAX_FDS):
        ours, theirs = probe.pipe()
        await connection.refused(connection.frame(R.SET_OWNER, None, [theirs] * count))
        probe.drop(theirs)
        if not await probe.hung_up(ours):
            raise Violation(f"SET_OWNER with {count} descriptors: refused, and one of them was kept")


@checks("VU-FD-7")
async def descriptors_on_the_payload(probe: Probe) -> None:
    connection = await probe.negotiated()
    await _send_split(connection, HEADER_SIZE, [], [probe.eventfd()])
    await connection.closes()


@checks("VU-FD-7")
async def descriptors_in_two_blocks(probe: Probe) -> None:
    connection = await probe.negotiated()
    await _send_split(connection, HEADER_SIZE // 2, [probe.eventfd()], [probe.eventfd()])
    await connection.closes()


async def _send_split(connection: Connection, at: int, first: list[int], second: list[int]) -> None:
    """SET_VRING_CALL in two pieces with descriptors of their own, which no frame has."""
    data = connection.frame(R.SET_VRING_CALL, VringFd(0), flags=REQUEST).encode()
    await connection.send_raw(data[:at], LentFds(first))
    await connection.send_raw(data[at:], LentFds(second))


@checks("VU-SLOT-5", needs=(P.CONFIGURE_MEM_SLOTS,))
async def the_descriptor_of_a_removal_is_closed(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
    region = probe.memory((0, 1 << 20)).regions[0]
    await connection.accepted(R.ADD_MEM_REG, SingleRegion(region.message()), [region.fd.fileno()])
    ours, theirs = probe.pipe()
    await connection.accepted(R.REM_MEM_REG, SingleRegion(region.message()), [theirs])
    probe.drop(theirs)
    if not await probe.hung_up(ours):
        raise Violation("REM_MEM_REG with a descriptor: the descriptor was kept")

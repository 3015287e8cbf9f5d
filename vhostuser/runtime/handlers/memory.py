"""The front-end's memory: a whole table at once, or region by region.

QEMU (7.2) adds a region once for each queue pair, and removes it as often. So a region that is told again, the same to
the file, is counted, and is gone when it was removed as often.

A table is never edited. Each of these requests makes a new one, which all rings adopt before the answer goes out; so
when the front-end reads that answer it may take away what the old table alone had.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from vhostuser.errors import PayloadError, StateError
from vhostuser.fds import OwnedFd
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.runtime.vring import areas
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, MemoryRegion, MemoryTable, Message, Payload, SingleRegion
from vhostuser.wire.requests import FrontendRequest as R

#: Regions that a connection can have. Other back-ends say the same, and QEMU refuses one that takes less on reconnect.
MAX_MEM_SLOTS = 509


@handles(R.SET_MEM_TABLE)
async def _set_mem_table(connection: Connection, message: Message) -> Payload | None:
    assert isinstance(message.payload, MemoryTable)
    if not connection.postcopy.listening:
        connection.postcopy.check_acknowledged("SET_MEM_TABLE")
    memory = _map(connection, message.payload.regions, message.fds)
    if connection.postcopy.listening:
        _announce(connection, memory)
        return MemoryTable(tuple(_moved(memory, region) for region in message.payload.regions))
    await connection.rings.adopt(memory)
    await connection.rings.start_waiting()
    return None


@handles(R.GET_MAX_MEM_SLOTS)
async def _get_max_mem_slots(connection: Connection, message: Message) -> Payload:
    return U64(MAX_MEM_SLOTS)


@handles(R.ADD_MEM_REG)
async def _add_mem_reg(connection: Connection, message: Message) -> Payload | None:
    """Add a region. A started ring runs as soon as it finds all of its memory, which this region need not hold."""
    assert isinstance(message.payload, SingleRegion)
    if not connection.postcopy.listening:
        connection.postcopy.check_acknowledged("ADD_MEM_REG")
    present = (connection.postcopy.announced or connection.rings.memory).mappings
    if known := _known(connection, present, message.payload.region, message.fds.filenos()[0]):
        known.claims += 1
        if connection.postcopy.listening:  # it will be acknowledged like any other
            _announce(connection, GuestMemory(present))
            return SingleRegion(replace(message.payload.region, userspace_addr=known.host_address))
        return None
    if len(present) >= MAX_MEM_SLOTS:
        words = f"ADD_MEM_REG: {len(present)} memory regions are known, the limit is {MAX_MEM_SLOTS}"
        raise StateError(words, rule="VU-SLOT-6")
    memory = _map(connection, (message.payload.region,), message.fds, present)
    if connection.postcopy.listening:
        _announce(connection, memory)
        return SingleRegion(_moved(memory, message.payload.region))
    await connection.rings.adopt(memory)
    await connection.rings.start_waiting(patient=True)
    return None


@handles(R.REM_MEM_REG)
async def _rem_mem_reg(connection: Connection, message: Message) -> None:
    """Remove a region: the one with this place, this size and this front-end address. No ring may run in it."""
    assert isinstance(message.payload, SingleRegion)
    connection.postcopy.check_acknowledged("REM_MEM_REG")
    region = message.payload.region
    told = region.guest_phys_addr, region.memory_size, _userspace_addr(connection, region)
    present = connection.rings.memory.mappings
    for mapping in present:
        if (mapping.guest_phys_addr, mapping.memory_size, mapping.userspace_addr) == told:
            break
    else:
        raise PayloadError(f"REM_MEM_REG: there is no memory region {region}", rule="VU-SLOT-4")
    if mapping.claims > 1:
        mapping.claims -= 1
        return
    begin = mapping.userspace_addr
    if rings := _rings_in(connection, range(begin, begin + mapping.memory_size)):
        raise StateError(f"REM_MEM_REG: vrings {rings} run in {mapping!r}", rule="VU-SLOT-3")
    await connection.rings.adopt(GuestMemory(other for other in present if other is not mapping))


def _rings_in(connection: Connection, addresses: range) -> list[int]:
    """The live rings of which some part begins there; behind an IOMMU none, their addresses are others."""
    if connection.session.features & VhostFeature.ACCESS_PLATFORM:
        return []
    placed = [(vring.index, vring.addr) for vring in connection.rings.vrings if vring.live and vring.addr]
    return [index for index, addr in placed if any(area in addresses for area in areas(addr))]


def _map(
    connection: Connection, regions: tuple[MemoryRegion, ...], fds: Iterable[OwnedFd], present: tuple[Mapping, ...] = ()
) -> GuestMemory:
    """A table of regions that are mapped now, and of those that are `present`. Raises as `Mapping` and it do."""
    size = sum(region.memory_size for region in regions)
    connection.check_mapped(size + sum(mapping.memory_size for mapping in present))
    mappings: list[Mapping] = []
    try:
        for region, fd in zip(regions, fds, strict=True):
            told = region.guest_phys_addr, region.memory_size, _userspace_addr(connection, region)
            mappings.append(Mapping(fd.fileno(), *told, region.mmap_offset))
        return GuestMemory((*present, *mappings))
    except BaseException:
        for mapping in mappings:
            mapping.close()
        raise


def _known(connection: Connection, present: tuple[Mapping, ...], region: MemoryRegion, fd: int) -> Mapping | None:
    """The region of which this one is a repetition."""
    status = os.fstat(fd)
    told = region.guest_phys_addr, region.memory_size, _userspace_addr(connection, region)
    origin = status.st_dev, status.st_ino, region.mmap_offset
    for mapping in present:
        if (mapping.guest_phys_addr, mapping.memory_size, mapping.userspace_addr, mapping.origin) == (*told, origin):
            return mapping
    return None


def _announce(connection: Connection, memory: GuestMemory) -> None:
    """Keep a table for when the front-end will have acknowledged it; the one that was kept makes way."""
    earlier = connection.postcopy.announced
    try:
        connection.postcopy.announce(memory, connection.rings.memory)
    except BaseException:
        memory.close(connection.rings.memory, *([earlier] if earlier else []))
        raise
    if earlier is not None:
        earlier.close(connection.rings.memory, memory)


def _moved(memory: GuestMemory, region: MemoryRegion) -> MemoryRegion:
    """A region with its address in this process in place of the front-end's."""
    [address] = [m.host_address for m in memory.mappings if m.guest_phys_addr == region.guest_phys_addr]
    return replace(region, userspace_addr=address)


def _userspace_addr(connection: Connection, region: MemoryRegion) -> int:
    """A region's begin in the terms of ring addresses: with GPA_ADDRESSES these are guest-physical ones."""
    if ProtocolFeature.GPA_ADDRESSES in connection.session.protocol_features:
        return region.guest_phys_addr
    return region.userspace_addr

"""The bytes of payloads: their sizes, their fields and their padding."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import Config, Inflight, MemoryRegion, SharedObject, SingleRegion, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

P, R = ProtocolFeature, FrontendRequest
_MIB = 1 << 20


def _bytes(region: MemoryRegion) -> bytes:
    """A region as it stands in a table."""
    return layouts.build(SingleRegion(region))[8:]


@checks("VU-PAY-1")
async def a_position_comes_back_as_it_was_told(probe: Probe) -> None:
    connection = await probe.negotiated()
    index = probe.device.rings - 1
    await connection.accepted(R.SET_VRING_NUM, VringState(index, 256))
    await connection.accepted(R.SET_VRING_BASE, VringState(index, 0x1234))
    answer = await connection.accepted(R.GET_VRING_BASE, VringState(index, 0))
    if answer.frame.payload != struct.pack("=II", index, 0x1234):
        raise Violation(f"SET_VRING_BASE index={index} num=0x1234, then GET_VRING_BASE: {answer.frame}")


@checks("VU-PAY-1")
async def all_payloads_of_a_start_are_understood(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served(3)
    await driver.stop(driver.work)


@checks("VU-PAY-2")
async def addresses_come_in_their_order(probe: Probe) -> None:
    driver = await probe.driver()
    ring = driver.work
    await driver.served()
    told = driver.vring_addr(ring)
    expected = struct.pack("=IIQQQQ", ring.index, 0, told.descriptor, told.used, told.available, 0)
    if layouts.build(told) != expected or not ring.memory.load_u16(ring.used_addr + 2):
        raise Violation(f"SET_VRING_ADDR {told}: a chain was used, but not where the third address of the message says")


@checks("VU-PAY-3")
async def one_to_eight_regions(probe: Probe) -> None:
    memory = probe.memory(*((i << 30, _MIB) for i in range(9)))
    nine, eight = memory.table(), memory.table().regions[:8]
    connection = await probe.negotiated()
    await connection.rejected(connection.frame(R.SET_MEM_TABLE, bytes(8)))
    connection = await probe.negotiated()
    data = struct.pack("=II", 9, 0) + b"".join(map(_bytes, nine.regions))
    await connection.rejected(connection.frame(R.SET_MEM_TABLE, data, memory.fds()))
    connection = await probe.negotiated()
    await connection.accepted(R.SET_MEM_TABLE, nine.__class__(eight), memory.fds()[:8])


@checks("VU-PAY-3")
async def regions_without_room_for_them(probe: Probe) -> None:
    memory = probe.memory((0, _MIB), (_MIB, _MIB))
    one = _bytes(memory.table().regions[0])
    connection = await probe.negotiated()
    await connection.rejected(connection.frame(R.SET_MEM_TABLE, struct.pack("=II", 2, 0) + one, memory.fds()))


@checks("VU-PAY-4")
async def the_word_of_a_descriptor(probe: Probe) -> None:
    fd = probe.eventfd()
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        for word in (0x200, 0x8000, 1 << 32, 1 << 63):
            connection = await probe.negotiated()
            await connection.rejected(connection.frame(request, struct.pack("=Q", word), [fd]))
    connection = await probe.negotiated()
    for request in (R.SET_VRING_CALL, R.SET_VRING_ERR):
        await connection.accepted(request, struct.pack("=Q", 0), [fd])
        await connection.accepted(request, struct.pack("=Q", 0x100))


@checks("VU-PAY-5", needs=(P.CONFIG,))
async def a_piece_of_configuration_space(probe: Probe) -> None:
    wanted = P.CONFIG | P.REPLY_ACK
    for size, length in ((257, 257), (4, 8), (8, 4)):
        connection = await probe.negotiated(protocol=wanted)
        piece = struct.pack("=III", 0, size, 0) + bytes(length)
        await connection.rejected(connection.frame(R.GET_CONFIG, piece))
    connection = await probe.negotiated(protocol=wanted)
    answer = await connection.accepted(R.GET_CONFIG, Config(0, 0, bytes(4)))
    if not isinstance(answer.value, Config) or len(answer.value.payload) != 4:
        raise Violation(f"GET_CONFIG of 4 bytes: {answer.frame}")


@checks("VU-PAY-6", needs=(P.INFLIGHT_SHMFD,))
async def an_inflight_description_of_20_and_of_24_bytes(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.INFLIGHT_SHMFD | P.REPLY_ACK)
    asked = struct.pack("=QQHH", 0, 0, probe.device.rings, 64)
    for data in (asked, asked + bytes(4)):
        answer = await connection.accepted(R.GET_INFLIGHT_FD, data)
        if len(answer.frame.payload) != 24 or not isinstance(answer.value, Inflight) or len(answer.fds) != 1:
            raise Violation(f"GET_INFLIGHT_FD of {len(data)} bytes: {answer.frame}, expected 24 bytes and a descriptor")
        told = struct.pack("=QQHH", answer.value.mmap_size, answer.value.mmap_offset, probe.device.rings, 64)
        for back in (told, told + bytes(4)):
            await connection.accepted(R.SET_INFLIGHT_FD, back, answer.fds)


@checks("VU-PAY-7", needs=(P.XEN_MMAP,))
async def a_region_has_xens_fields(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.XEN_MMAP | P.REPLY_ACK)
    memory = probe.memory((0, _MIB))
    data = struct.pack("=II", 1, 0) + _bytes(memory.table().regions[0]) + struct.pack("=II", 0, 0)
    await connection.accepted(R.SET_MEM_TABLE, data, memory.fds())


@checks("VU-PAY-8")
async def padding_is_not_looked_at(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS | P.INFLIGHT_SHMFD)
    memory = probe.memory((0, _MIB))
    region = _bytes(memory.table().regions[0])
    table = struct.pack("=II", 1, 0xFFFFFFFF) + region
    await connection.accepted(R.SET_MEM_TABLE, table, memory.fds())
    if P.CONFIGURE_MEM_SLOTS in connection.protocol:
        second = probe.memory((1 << 32, _MIB))
        single = b"\xff" * 8 + _bytes(second.table().regions[0])
        await connection.accepted(R.ADD_MEM_REG, single, second.fds())
        await connection.accepted(R.REM_MEM_REG, single)


@checks("VU-PAY-8", needs=(P.INFLIGHT_SHMFD,))
async def padding_is_sent_as_zero(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.REPLY_ACK | P.INFLIGHT_SHMFD)
    asked = struct.pack("=QQHHI", 0, 0, probe.device.rings, 64, 0xFFFFFFFF)
    answer = await connection.accepted(R.GET_INFLIGHT_FD, asked)
    if any(answer.frame.payload[20:]):
        raise Violation(f"GET_INFLIGHT_FD: {answer.frame.payload.hex()}, the last four bytes are padding")


@checks("VU-PAY-9", needs=(P.SHARED_OBJECT,))
async def a_name_is_taken_as_it_is(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.SHARED_OBJECT | P.REPLY_ACK)
    uuid = bytes(range(0x10, 0x20))
    answer = await connection.accepted(R.GET_SHARED_OBJECT, SharedObject(uuid))
    if answer.frame.payload != uuid:
        raise Violation(f"GET_SHARED_OBJECT of {uuid.hex()}: {answer.frame}")

"""A driver behind an IOMMU: whole conversations in which every address is translated by the front-end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import ask, refused, talking
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of, serving, unharmed
from vhostuser.errors import ConnectionClosedError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.iommu import IOVA_BASE, PAGE, Iommu, IommuRam, ScatteredRam
from vhostuser.frontend.memory import MIB, USERSPACE_BASE, RamRegion
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.transport.channel import Channel
from vhostuser.virtio.layout import IOMMU_READ, IOMMU_WRITE
from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, Iotlb, IotlbType, Log, MemoryRegion, SingleRegion, VringAddr, VringState
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

R = FrontendRequest
LOG_SIZE = ((1 << 32) + 16 * MIB) // PAGE // 8
FEATURES = DRIVER_FEATURES | DriverFeature.ACCESS_PLATFORM
PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | ProtocolFeature.LOG_SHMFD


@dataclass
class Guarded:
    """A session whose driver is behind an IOMMU."""

    victim: Victim
    front_end: FrontEnd
    memory: IommuRam
    iommu: Iommu
    driver: NetDriver
    nursery: trio.Nursery


@pytest.fixture
async def victim(tmp_path: Path, interrupts: None) -> AsyncIterator[Victim]:
    """Offers ACCESS_PLATFORM, which the other tests' victims do not."""
    async with serving(tmp_path / "vhost.sock") as victim:
        victim.device.features |= DriverFeature.ACCESS_PLATFORM
        async with unharmed(victim):
            yield victim


@asynccontextmanager
async def guarded(
    victim: Victim,
    packed: bool = False,
    granule: int = PAGE,
    serve: bool = True,
    protocol_features: ProtocolFeature = PROTOCOL,
    ram: type[IommuRam] = IommuRam,
    size: int = 64,
) -> AsyncIterator[Guarded]:
    with ram() as memory:
        async with await victim.connect() as front_end, trio.open_nursery() as nursery:
            with trio.fail_after(DEADLINE):
                features = FEATURES | DriverFeature.RING_PACKED * packed
                await front_end.negotiate(features, protocol_features)
                assert front_end.features & DriverFeature.ACCESS_PLATFORM
                await front_end.open_backend_channel()
                iommu = Iommu(front_end, memory, granule)
                if serve:
                    nursery.start_soon(iommu.run)
                await front_end.set_mem_table(memory)
                with await NetDriver.open_pair(front_end, size=size) as driver:
                    yield Guarded(victim, front_end, memory, iommu, driver, nursery)
            nursery.cancel_scope.cancel()


@pytest.mark.proves("VU-IOTLB-7", "VU-IOTLB-10", "VU-IOTLB-11")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_packets_by_iova(victim: Victim, packed: bool) -> None:
    async with guarded(victim, packed) as session:
        await exchange(victim, session.driver)
        asked = [iova // PAGE for iova, _ in session.iommu.misses]
        assert session.driver.rx.desc_addr // PAGE in asked
        assert len(asked) == len(set(asked)), "each page was asked for once"


@pytest.mark.proves("VU-SLOT-3")
async def test_a_region_where_ring_addresses_only_seem_to_be(victim: Victim) -> None:
    """They are IOVAs; a front-end address may be the same number, and its region can go."""
    slots = PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS
    async with guarded(victim, protocol_features=slots) as session:
        await exchange(victim, session.driver, 3)
        region = SingleRegion(MemoryRegion(1 << 50, PAGE, session.driver.tx.desc_addr & -PAGE, 0))
        with closing(RamRegion(0, PAGE)) as ram:
            await session.front_end.request(R.ADD_MEM_REG, region, [ram.fd.fileno()])
        await session.front_end.request(R.REM_MEM_REG, region)
        await exchange(victim, session.driver, 3)


@pytest.mark.proves("VU-IOTLB-3")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_invalidations_under_traffic(victim: Victim, packed: bool) -> None:
    """After the reply nothing is used that was withdrawn: the back-end has to ask again, and says so."""
    async with guarded(victim, packed) as session:
        driver = session.driver
        await exchange(victim, driver, 3)
        for i in range(8):
            session.iommu.misses.clear()
            await session.iommu.invalidate(0, 0) if i % 2 else await session.iommu.invalidate(driver.tx.desc_addr, 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.send, frame_of(i))
                await victim.port.send(frame_of(i + 1))
                assert await victim.port.receive() == frame_of(i)
                assert (await driver.receive()).frame == frame_of(i + 1)
            assert driver.tx.desc_addr // PAGE in [iova // PAGE for iova, _ in session.iommu.misses]


@pytest.mark.proves("VU-IOTLB-3")
async def test_a_withdrawn_buffer_is_read_at_its_new_place(victim: Victim) -> None:
    """The same IOVA leads elsewhere from the moment on at which the invalidation is answered."""
    async with guarded(victim) as session:
        driver, memory = session.driver, session.memory
        await exchange(victim, driver, 3)
        address = driver._tx_unused[-1]
        page, other = address & -PAGE, memory.alloc(PAGE, PAGE)
        assert driver.post(frame_of(1))
        memory.write(other, memory.read(page, PAGE))
        memory.write(address, bytes(2048))
        await session.iommu.invalidate(page, PAGE)
        uaddr = memory.userspace_addr(other)
        await session.front_end.request(R.IOTLB_MSG, Iotlb(page, PAGE, uaddr, IOMMU_READ, IotlbType.UPDATE))
        driver.tx.kick(force=True)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-IOTLB-3", "VU-IOTLB-14")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_large_ring_whose_pages_lie_anywhere(victim: Victim, packed: bool) -> None:
    """A page of it that is moved is used at its new place from the moment on at which its withdrawal is answered."""
    async with guarded(victim, packed, ram=ScatteredRam, size=1024) as session:
        driver, memory = session.driver, session.memory
        assert isinstance(memory, ScatteredRam)
        await exchange(victim, driver, 40)
        for ring in (driver.rx, driver.tx):
            page, other = (ring.desc_addr & -PAGE) + PAGE, memory.alloc(PAGE, PAGE)
            memory.write(other, memory.read(page, PAGE))
            memory.swap(page, other)
            session.iommu.misses.clear()
            await session.iommu.invalidate(page, PAGE)
            memory.write(other, b"\xff" * PAGE)
            await exchange(victim, driver, 140)
            assert page // PAGE in [iova // PAGE for iova, _ in session.iommu.misses]


@pytest.mark.proves("VU-IOTLB-8")
async def test_a_receive_buffer_that_may_only_be_read(victim: Victim) -> None:
    async with guarded(victim) as session:
        buffer = session.memory.alloc(PAGE, PAGE)
        session.iommu.permissions[buffer // PAGE] = IOMMU_READ
        await session.iommu.update(buffer)
        await session.front_end.stop_ring(session.driver.rx)
        ring = session.driver.rx
        ring.reset()
        ring.add(writable=[(buffer, PAGE)])
        await session.iommu.update(buffer)
        await session.front_end.start_ring(ring)
        await victim.port.send(frame_of(0))
        while not session.iommu.failures:
            await ring.wait_used()
            await trio.lowlevel.checkpoint()
        assert session.iommu.failures[0] == (buffer, IOMMU_WRITE)
        assert session.memory.read(buffer, PAGE) == bytes(PAGE)


@pytest.mark.proves("VU-IOTLB-9")
async def test_a_front_end_that_never_answers_stalls_only_the_ring(victim: Victim) -> None:
    async with guarded(victim, serve=False) as session:
        await session.driver.send(frame_of(1))
        await talking(session.front_end)
        session.nursery.start_soon(session.iommu.run)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-IOTLB-9")
async def test_a_ring_that_waits_can_be_stopped(victim: Victim) -> None:
    async with guarded(victim, serve=False) as session:
        await session.driver.send(frame_of(1))
        for ring in (session.driver.rx, session.driver.tx):
            assert await session.front_end.stop_ring(ring) == 0
        session.nursery.start_soon(session.iommu.run)
        for ring in (session.driver.rx, session.driver.tx):
            await session.front_end.start_ring(ring)
        assert await victim.port.receive() == frame_of(1)


@pytest.mark.proves("VU-IOTLB-9")
async def test_a_refused_miss_is_asked_again_at_the_next_kick(victim: Victim) -> None:
    async with guarded(victim) as session:
        driver, iommu = session.driver, session.iommu
        await exchange(victim, driver, 1)
        rings = {
            at // PAGE for ring in (driver.rx, driver.tx) for at in (ring.desc_addr, ring.avail_addr, ring.used_addr)
        }
        iommu.default, iommu.permissions = 0, dict.fromkeys(rings, 3)
        await iommu.invalidate(0, 0)
        iommu.misses.clear()
        await driver.send(frame_of(2))
        while not any(perm == IOMMU_READ and iova // PAGE not in rings for iova, perm in iommu.misses):
            await trio.lowlevel.checkpoint()
        iommu.default = 3
        async with trio.open_nursery() as kicker:

            async def kick() -> None:
                while True:
                    driver.tx.kick(force=True)
                    await session.front_end.request(R.GET_FEATURES)

            kicker.start_soon(kick)
            assert await victim.port.receive() == frame_of(2)
            await session.front_end._turn.acquire()  # no answer is left behind
            kicker.cancel_scope.cancel()
            session.front_end._turn.release()


@pytest.mark.proves("VU-IOTLB-4")
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Iotlb(0, 0, 0, 3, IotlbType.UPDATE), id="S5-size-0"),
        pytest.param(Iotlb((1 << 64) - 1, 2, 0, 3, IotlbType.UPDATE), id="S5-wraps"),
        pytest.param(Iotlb(0, PAGE, 0x1000, 3, IotlbType.UPDATE), id="S5-no-memory"),
        pytest.param(Iotlb(0, PAGE, 0x7F00_0000_0000 + (1 << 40), 7, IotlbType.UPDATE), id="S5-perm-7"),
        pytest.param(Iotlb(0, PAGE, 0x7F00_0000_0000 + (1 << 40), 0, IotlbType.UPDATE), id="S5-perm-0"),
        pytest.param(Iotlb(0, PAGE, 0, 3, IotlbType.MISS), id="S5-a-miss"),
        pytest.param(Iotlb(0, PAGE, 0, 3, 9), id="S5-type-9"),
        pytest.param(Iotlb(0x1000, 0, 0, 0, IotlbType.INVALIDATE), id="S5-invalidate-nothing"),
        pytest.param(Iotlb((1 << 64) - 1, 2, 0, 0, IotlbType.INVALIDATE), id="S5-invalidate-wraps"),
    ],
)
async def test_s5_messages_that_are_refused(victim: Victim, message: Iotlb) -> None:
    async with guarded(victim) as session:
        await exchange(victim, session.driver, 1)
        async with session.front_end._turn:
            await refused(session.front_end, ask(R.IOTLB_MSG, message))
        await exchange(victim, session.driver, 1)


@pytest.mark.proves("VU-IOTLB-4")
async def test_translations_without_the_feature_are_refused(victim: Victim) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, PROTOCOL)
        await refused(front_end, ask(R.IOTLB_MSG, Iotlb(0, 0, 0, 0, IotlbType.INVALIDATE)))


@pytest.mark.proves("VU-IOTLB-6")
async def test_a_new_memory_table_under_an_iotlb(victim: Victim) -> None:
    async with guarded(victim) as session:
        await exchange(victim, session.driver, 3)
        session.iommu.misses.clear()
        await session.front_end.set_mem_table(session.memory)
        await exchange(victim, session.driver, 3)
        rings = {ring.desc_addr // PAGE for ring in (session.driver.rx, session.driver.tx)}
        assert not rings & {iova // PAGE for iova, _ in session.iommu.misses}, "they are still known"


@pytest.mark.proves("VU-IOTLB-12")
async def test_translations_end_with_the_last_ring(victim: Victim) -> None:
    async with guarded(victim) as session:
        await exchange(victim, session.driver, 3)
        rings = session.driver.rx, session.driver.tx
        for ring in rings:
            await session.front_end.stop_ring(ring)
        session.iommu.misses.clear()
        for ring in rings:
            await session.front_end.start_ring(ring)
        await exchange(victim, session.driver, 3)
        assert {ring.desc_addr // PAGE for ring in rings} <= {iova // PAGE for iova, _ in session.iommu.misses}


@pytest.mark.proves("VU-IOTLB-13")
@pytest.mark.parametrize(
    ("ram", "size", "rounds"), [(IommuRam, 64, 3), (ScatteredRam, 1024, 270)], ids=["small", "large"]
)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_the_log_is_by_guest_physical_address(
    victim: Victim, packed: bool, ram: type[IommuRam], size: int, rounds: int
) -> None:
    async with guarded(victim, packed, ram=ram, size=size) as session:
        driver, front_end = session.driver, session.front_end
        first, size_of = ("desc_addr", 16) if packed else ("used_addr", 8)
        begins = [getattr(ring, first) for ring in (driver.rx, driver.tx)]

        def page(iova: int) -> int:
            return (session.memory.userspace_addr(iova) - USERSPACE_BASE - IOVA_BASE) // PAGE

        with OwnedFd(os.memfd_create("log")) as fd:
            os.ftruncate(fd.fileno(), LOG_SIZE)
            await front_end.request(R.SET_LOG_BASE, Log(LOG_SIZE, 0), [fd.fileno()])
            await front_end.request(R.SET_FEATURES, U64(front_end.features | VhostFeature.LOG_ALL))
            for ring in (driver.rx, driver.tx):
                await front_end.request(R.SET_VRING_ADDR, front_end.vring_addr(ring, ring.used_addr))
            buffers = set(driver._rx_lent.values())
            await exchange(victim, driver, rounds)
            log = os.pread(fd.fileno(), LOG_SIZE, 0)
        logged = {8 * i + bit for i, byte in enumerate(log) if byte for bit in range(8) if byte >> bit & 1}
        written = {page(address) for address in buffers if session.memory.read(address, 2048).strip(b"\0")}
        assert written
        assert written <= logged
        touched = {page(begin + size_of * at) for begin in begins for at in range(rounds)}
        assert touched <= logged
        assert rounds == 3 or len(touched) > len(begins)
        assert max(logged) < (1 << 32) // PAGE, "no page that the guest does not have"


async def receive_all(channel: Channel) -> None:
    while True:
        (await channel.receive()).fds.close()


async def test_a_back_end_channel_that_answers_nonsense(victim: Victim) -> None:
    async with guarded(victim, serve=False) as session:
        channel = session.front_end.backend_channel
        assert channel is not None
        (await channel.receive()).fds.close()
        await channel.send(encode_ack(7, 0))
        with pytest.raises(ConnectionClosedError):
            await receive_all(channel)
        await talking(session.front_end)


@pytest.mark.proves("VU-RING-21")
async def test_a_ring_past_the_last_address_is_refused(victim: Victim) -> None:
    """Its translation may well end there."""
    last = (1 << 64) - 16
    async with guarded(victim, serve=False) as session:
        front_end, uaddr = session.front_end, session.memory.userspace_addr(IOVA_BASE)
        for ring in (session.driver.rx, session.driver.tx):
            await front_end.stop_ring(ring)
        await front_end.request(R.IOTLB_MSG, Iotlb(last, 16, uaddr, 3, IotlbType.UPDATE))
        addr = VringAddr(0, 0, last, IOVA_BASE, IOVA_BASE + PAGE, 0)
        await refused(front_end, ask(R.SET_VRING_ADDR, addr))


async def next_miss(session: Guarded) -> int:
    """The page of the next miss, which is not answered."""
    channel = session.front_end.backend_channel
    assert channel is not None
    with trio.fail_after(DEADLINE):
        frame = await channel.receive()
    with frame.fds:
        message = decode(Direction.BACKEND, frame)
    assert isinstance(message.payload, Iotlb)
    assert message.payload.type == IotlbType.MISS
    return message.payload.iova & -PAGE


async def acknowledge(session: Guarded, value: int = 0) -> None:
    """Answer the miss that is out."""
    channel = session.front_end.backend_channel
    assert channel is not None
    await channel.send(encode_ack(BackendRequest.IOTLB_MSG, value))


@pytest.mark.proves("VU-IOTLB-9", "VU-IOTLB-10")
async def test_a_page_that_is_withdrawn_again_before_its_miss_is_acknowledged_is_a_new_question(victim: Victim) -> None:
    async with guarded(victim, serve=False) as session:
        first = await next_miss(session)
        assert await session.iommu.update(first)
        await session.iommu.invalidate(first, PAGE)
        await acknowledge(session)
        while await next_miss(session) != first:
            await acknowledge(session)


@pytest.mark.proves("VU-IOTLB-9")
async def test_a_refused_miss_of_a_rings_own_area_is_asked_again_at_the_next_kick(victim: Victim) -> None:
    async with guarded(victim, serve=False) as session:
        asked: set[int] = set()
        async with trio.open_nursery() as kicker:

            async def kick() -> None:
                while True:
                    for ring in (session.driver.rx, session.driver.tx):
                        ring.kick(force=True)
                    await session.front_end.request(R.GET_FEATURES)

            kicker.start_soon(kick)
            while (page := await next_miss(session)) not in asked:
                asked.add(page)
                await acknowledge(session, 1)
            await session.front_end._turn.acquire()  # no answer is left behind
            kicker.cancel_scope.cancel()
            session.front_end._turn.release()


@pytest.mark.proves("VU-IOTLB-8")
async def test_a_forbidden_access_is_told_once(victim: Victim) -> None:
    """Kicks, which have a translation asked for again, do not have it told again."""
    async with guarded(victim) as session:
        driver, iommu = session.driver, session.iommu
        await exchange(victim, driver, 1)
        buffer = session.memory.alloc(PAGE, PAGE)
        iommu.permissions[buffer // PAGE] = IOMMU_WRITE
        await iommu.update(buffer)
        driver.tx.add(readable=[(buffer, 100)])
        driver.tx.kick(force=True)
        while not iommu.failures:
            await trio.lowlevel.checkpoint()
        for _ in range(5):
            driver.tx.kick(force=True)
            await session.front_end.request(R.SET_VRING_ENABLE, VringState(1, 1))
            await session.front_end.request(R.GET_FEATURES)
        assert iommu.failures == [(buffer, IOMMU_READ)]

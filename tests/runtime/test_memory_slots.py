"""Memory regions that come and go one by one, under rings that run (rows M6 and M7 of the hostile inputs, too)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile.attack import Running, ask, borrowed, refused
from tests.hostile.test_memory_control import memfd, region
from tests.hostile.victim import Victim, exchange
from vhostuser.frontend.client import DEFAULT_PROTOCOL_FEATURES, FrontEnd
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import MIB, USERSPACE_BASE, GuestRam, RamRegion
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.runtime.handlers.memory import MAX_MEM_SLOTS
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, SingleRegion
from vhostuser.wire.requests import FrontendRequest as R

SLOTS = DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS
PAGE = 4096
LAYOUT = tuple((i << 32, 4 * MIB) for i in range(4))


@pytest.fixture(params=[False, True], ids=["front-end addresses", "GPA_ADDRESSES"])
async def slots(victim: Victim, request: pytest.FixtureRequest) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated memory slots, and told no memory yet."""
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, SLOTS | ProtocolFeature.GPA_ADDRESSES * request.param)
        assert bool(front_end.protocol_features & ProtocolFeature.GPA_ADDRESSES) is request.param
        yield front_end


@pytest.fixture
async def plugged(slots: FrontEnd) -> AsyncIterator[Running]:
    """The same with rings that run in the first of four regions, all of which were added one by one."""
    with GuestRam(LAYOUT, seals=0) as memory:
        slots.memory = memory
        await slots.tell_memory()
        with closing(await NetDriver.open_pair(slots, 0)) as driver:
            yield Running(slots, memory, driver)


def mappings_of(guest_phys_addr: int) -> int:
    return Path("/proc/self/maps").read_text().count(f"memfd:guest-{guest_phys_addr:#x} ")


def add(fd: int, guest_phys_addr: int) -> Frame:
    return ask(R.ADD_MEM_REG, SingleRegion(region(guest_phys_addr, PAGE, USERSPACE_BASE + guest_phys_addr)), [fd])


@pytest.mark.proves("VU-SLOT-1", "VU-SLOT-2")
async def test_regions_come_and_go_under_packets(victim: Victim, plugged: Running) -> None:
    for one in plugged.memory.regions[1:]:
        await exchange(victim, plugged.driver, 4)
        await plugged.front_end.rem_mem_reg(one)
        await exchange(victim, plugged.driver, 4)
        await plugged.front_end.add_mem_reg(one)
    await exchange(victim, plugged.driver)


@pytest.mark.proves("VU-SLOT-2")
async def test_a_region_is_unmapped_before_the_answer_and_the_others_stay(plugged: Running) -> None:
    for count in (3, 2, 1):
        await plugged.front_end.rem_mem_reg(plugged.memory.regions[count])
        # each region is mapped by the front-end in this process, and by the back-end if it knows it
        assert [mappings_of(begin) for begin, _ in LAYOUT] == [2] * count + [1] * (4 - count)


@pytest.mark.proves("VU-SLOT-3")
async def test_m7_a_region_with_a_running_ring_stays(victim: Victim, plugged: Running) -> None:
    """The region of rings that run, until the last one stopped."""
    home = plugged.memory.regions[0]
    for ring in (plugged.driver.rx, plugged.driver.tx):
        with pytest.raises(RefusedError):
            await plugged.front_end.rem_mem_reg(home)
        await plugged.front_end.stop_ring(ring)
    await plugged.front_end.rem_mem_reg(home)
    await plugged.front_end.add_mem_reg(home)
    for ring in (plugged.driver.rx, plugged.driver.tx):
        await plugged.front_end.start_ring(ring)
    await exchange(victim, plugged.driver)


@pytest.mark.proves("VU-SLOT-4")
async def test_m7_what_has_to_match_to_remove_a_region(victim: Victim, slots: FrontEnd) -> None:
    """Unknown, or known by half. The file offset does not count, nor, with GPA_ADDRESSES, the user address."""
    by_guest_address = ProtocolFeature.GPA_ADDRESSES in slots.protocol_features
    told = region(1 << 32, PAGE)
    with memfd() as fd:
        await slots.request(R.ADD_MEM_REG, SingleRegion(told), [fd])
        for half in (replace(told, guest_phys_addr=0), replace(told, memory_size=PAGE - 1)):
            await refused(slots, ask(R.REM_MEM_REG, SingleRegion(half)))
        other = ask(R.REM_MEM_REG, SingleRegion(replace(told, userspace_addr=USERSPACE_BASE - 1)))
        if not by_guest_address:
            await refused(slots, other)
        await slots.request(R.REM_MEM_REG, SingleRegion(replace(told, mmap_offset=PAGE)))
        await refused(slots, ask(R.REM_MEM_REG, SingleRegion(told)))
        await refused(slots, other)


@pytest.mark.proves("VU-SLOT-5")
async def test_m7_the_descriptor_of_a_removal_is_closed(slots: FrontEnd) -> None:
    with memfd() as fd, borrowed(*os.pipe()) as (_ours, theirs):
        told = SingleRegion(region())
        await slots.request(R.ADD_MEM_REG, told, [fd])
        await slots.request(R.REM_MEM_REG, told, [theirs])
        await refused(slots, ask(R.REM_MEM_REG, told, [theirs]))
        before = len(os.listdir("/proc/self/fd"))
        await slots.request(R.GET_FEATURES)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.proves("VU-SLOT-6")
async def test_m6_there_are_509_slots(slots: FrontEnd) -> None:
    """The 510th is refused; a slot that was emptied can be filled again."""
    assert await slots.request(R.GET_MAX_MEM_SLOTS) == U64(MAX_MEM_SLOTS) == U64(509)
    with memfd(PAGE) as fd:
        for i in range(MAX_MEM_SLOTS):
            await slots.request(R.ADD_MEM_REG, SingleRegion(region(i * PAGE, PAGE, USERSPACE_BASE + i * PAGE)), [fd])
        for _ in range(2):
            await refused(slots, add(fd, 1 << 40))
        first = SingleRegion(region(0, PAGE, USERSPACE_BASE))
        await slots.request(R.REM_MEM_REG, first)
        await slots.request(R.ADD_MEM_REG, SingleRegion(region(1 << 40, PAGE, 1 << 40)), [fd])
        await refused(slots, add(fd, 0))


@pytest.mark.proves("VU-MEM-7", "VU-SLOT-7")
async def test_m6_a_region_that_overlaps_is_refused_alone(victim: Victim, plugged: Running) -> None:
    """By a page, and a descriptor that is no memory: what is there stays."""
    with memfd() as fd, borrowed(*os.pipe()) as (_ours, theirs):
        for at in (LAYOUT[1][0], LAYOUT[1][0] - PAGE // 2, sum(LAYOUT[1]) - 1):
            await refused(plugged.front_end, add(fd, at))
        await refused(plugged.front_end, add(theirs, 1 << 40))
        await refused(plugged.front_end, ask(R.ADD_MEM_REG, SingleRegion(region(1 << 40, 0, 1 << 40)), [fd]))
    await exchange(victim, plugged.driver)


@pytest.mark.proves("VU-SLOT-9")
async def test_a_region_that_is_told_again_has_to_be_removed_as_often(victim: Victim, plugged: Running) -> None:
    """As QEMU does for each queue pair. It takes no further slot and no further mapping."""
    begin, front_end = LAYOUT[1][0], plugged.front_end
    for _ in range(3):
        await front_end.add_mem_reg(plugged.memory.regions[1])
    for _ in range(3):
        await front_end.rem_mem_reg(plugged.memory.regions[1])
        assert mappings_of(begin) == 2
    await front_end.rem_mem_reg(plugged.memory.regions[1])
    assert mappings_of(begin) == 1
    with pytest.raises(RefusedError):
        await front_end.rem_mem_reg(plugged.memory.regions[1])
    await exchange(victim, plugged.driver)


@pytest.mark.proves("VU-SLOT-9")
async def test_m6_another_file_at_the_same_place_is_no_repetition(plugged: Running) -> None:
    """Nor is the same file from another offset."""
    told = plugged.front_end._told(plugged.memory.regions[1].message())
    with memfd(told.memory_size) as fd:
        await refused(plugged.front_end, ask(R.ADD_MEM_REG, SingleRegion(told), [fd]))
    home = plugged.memory.regions[1].fd.fileno()
    os.ftruncate(home, told.memory_size + PAGE)
    shifted = replace(told, mmap_offset=PAGE)
    await refused(plugged.front_end, ask(R.ADD_MEM_REG, SingleRegion(shifted), [home]))


@pytest.mark.proves("VU-SLOT-8")
async def test_a_ring_runs_as_soon_as_all_of_its_memory_is_there(victim: Victim, slots: FrontEnd) -> None:
    with GuestRam(LAYOUT) as memory:
        slots.memory = memory
        with closing(await NetDriver.open_pair(slots, 0)) as driver:
            for one in (*memory.regions[:0:-1], memory.regions[0]):
                assert not victim.port.carrier
                await slots.add_mem_reg(one)
            assert victim.port.carrier
            await exchange(victim, driver)


async def test_a_table_replaces_all_slots(victim: Victim, plugged: Running) -> None:
    await plugged.front_end.set_mem_table(plugged.memory)
    await exchange(victim, plugged.driver)
    with closing(RamRegion(1 << 40, PAGE)) as one:
        await plugged.front_end.add_mem_reg(one)
        await plugged.front_end.set_mem_table(plugged.memory)
        with pytest.raises(RefusedError):
            await plugged.front_end.rem_mem_reg(one)


@pytest.mark.proves("VU-GPA-1")
@pytest.mark.parametrize("slots", [True], indirect=True, ids=["GPA_ADDRESSES"])
async def test_ring_addresses_are_guest_physical(victim: Victim, plugged: Running) -> None:
    """A front-end address, which the region's message has too, is none of the ring's."""
    addr = plugged.front_end.vring_addr(plugged.driver.rx)
    assert addr.descriptor == plugged.driver.rx.desc_addr
    moved = {name: getattr(addr, name) + USERSPACE_BASE for name in ("descriptor", "available", "used")}
    await refused(plugged.front_end, ask(R.SET_VRING_ADDR, replace(addr, **moved)))
    await exchange(victim, plugged.driver)


@pytest.mark.proves("VU-GPA-1")
@pytest.mark.parametrize("slots", [True], indirect=True, ids=["GPA_ADDRESSES"])
async def test_regions_have_no_other_address_than_the_guests(victim: Victim, slots: FrontEnd) -> None:
    with memfd() as fd:
        for at in (0, 1 << 32):
            await slots.request(R.ADD_MEM_REG, SingleRegion(region(at, PAGE, userspace_addr=7)), [fd])


@pytest.mark.proves("VU-NEG-6")
@pytest.mark.parametrize("request_", [R.GET_MAX_MEM_SLOTS, R.ADD_MEM_REG, R.REM_MEM_REG])
async def test_without_the_feature_there_are_no_slots(attacker: FrontEnd, request_: R) -> None:
    with memfd() as fd:
        payload = b"" if request_ is R.GET_MAX_MEM_SLOTS else SingleRegion(region())
        await refused(attacker, ask(request_, payload, [fd] if request_ is R.ADD_MEM_REG else []))

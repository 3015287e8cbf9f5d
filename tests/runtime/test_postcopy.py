"""The conversation around post-copy. What its pages do is the matter of ``test_postcopy_pages``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile.attack import ask, borrowed, eventfd, refused, talking, unanswered
from tests.hostile.test_memory_control import memfd, region
from tests.hostile.victim import Victim, good_session, serving, unharmed
from vhostuser.errors import PortError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import DEFAULT_PROTOCOL_FEATURES, FrontEnd
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import MIB, USERSPACE_BASE, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.postcopy import PageServer
from vhostuser.virtio.memory import Mapping
from vhostuser.virtio.userfault import UserFault, open_source
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import VERSION, Frame
from vhostuser.wire.messages import U64, MemoryTable, SingleRegion, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest as R

POSTCOPY = DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.PAGEFAULT
PAGE = 4096


@pytest.fixture
async def destination(tmp_path: Path, interrupts: None) -> AsyncIterator[Victim]:
    """A back-end that offers post-copy."""
    with open_source() as source:
        async with serving(tmp_path / "vhost.sock", userfaults=source) as victim, unharmed(victim):
            yield victim


@pytest.fixture(params=[False, True], ids=["SET_MEM_TABLE", "ADD_MEM_REG"])
async def arriving(destination: Victim, request: pytest.FixtureRequest) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated post-copy, with or without memory slots."""
    async with await destination.connect() as front_end:
        slots = ProtocolFeature.CONFIGURE_MEM_SLOTS * request.param
        await front_end.negotiate(DRIVER_FEATURES, POSTCOPY | slots)
        yield front_end


async def advise(front_end: FrontEnd) -> OwnedFd:
    """The userfaultfd."""
    _, fds = await front_end.request_with_fds(R.POSTCOPY_ADVISE)
    return fds.take()


@pytest.mark.proves("VU-POST-1")
async def test_advise_brings_a_userfaultfd(arriving: FrontEnd) -> None:
    for _ in range(3):
        with await advise(arriving) as fd:
            assert os.readlink(f"/proc/self/fd/{fd.fileno()}") == "anon_inode:[userfaultfd]"
    assert await arriving.request(R.POSTCOPY_END) == U64(0)


@pytest.mark.proves("VU-POST-2")
async def test_listen_comes_between_advise_and_the_memory(arriving: FrontEnd) -> None:
    await refused(arriving, ask(R.POSTCOPY_LISTEN))
    with GuestRam() as memory, await advise(arriving):
        await arriving.set_mem_table(memory)
        await refused(arriving, ask(R.POSTCOPY_LISTEN))
        await arriving.request(R.POSTCOPY_END)
        await refused(arriving, ask(R.POSTCOPY_LISTEN))


@pytest.mark.proves("VU-POST-3")
async def test_the_answer_has_the_back_ends_addresses(arriving: FrontEnd) -> None:
    """In the order of the request, with everything else as it was told; asked for or not."""
    with GuestRam(((1 << 32, MIB), (0, MIB))) as memory, closing(PageServer(memory)) as pages:
        await pages.begin(arriving)
        maps = Path(f"/proc/{os.getpid()}/maps").read_text()  # noqa: ASYNC240
        for place, told in zip(pages.places, memory.table().regions, strict=True):
            assert replace(place, userspace_addr=0) == replace(told, userspace_addr=0)
            [line] = [line for line in maps.splitlines() if line.startswith(f"{place.userspace_addr:x}-")]
            assert line.endswith(f"memfd:guest-{told.guest_phys_addr:#x} (deleted)")
        await talking(arriving)
        await pages.end(arriving)


@pytest.mark.proves("VU-POST-4")
@pytest.mark.parametrize("payload", [b"", bytes(8)], ids=["empty", "a zero, as QEMU's"])
async def test_the_memory_is_used_once_its_addresses_are_acknowledged(
    destination: Victim, arriving: FrontEnd, payload: bytes
) -> None:
    """Until then a ring that is started waits. No page is missing here: the front-end's mapping has them all."""
    with GuestRam() as memory, await advise(arriving):
        await arriving.request(R.POSTCOPY_LISTEN)
        arriving.listening = True
        arriving.memory = memory
        await arriving.tell_memory()
        slots = ProtocolFeature.CONFIGURE_MEM_SLOTS in arriving.protocol_features
        number = R.ADD_MEM_REG if slots else R.SET_MEM_TABLE
        await refused(arriving, ask(R.POSTCOPY_END))
        with closing(await NetDriver.open_pair(arriving, 0)):
            assert not destination.port.carrier
            await unanswered(arriving, Frame(number, VERSION, payload))
            assert destination.port.carrier
            await arriving.request(R.POSTCOPY_END)


@pytest.mark.proves("VU-POST-4")
async def test_an_acknowledgement_of_nothing_is_a_request_like_others(arriving: FrontEnd) -> None:
    await refused(arriving, ask(R.SET_MEM_TABLE, bytes(8)))
    with await advise(arriving):
        await arriving.request(R.POSTCOPY_LISTEN)
        arriving.listening = True
        await arriving.send_frame(Frame(R.SET_MEM_TABLE, VERSION, bytes(8)))
        assert (await arriving.receive_frame()).payload == b""


@pytest.mark.proves("VU-POST-5")
async def test_a_table_that_is_refused_in_post_copy_is_answered_all_the_same(arriving: FrontEnd) -> None:
    """An empty reply, since the front-end waits for one even where it has not asked for an acknowledgement."""
    with memfd() as fd, await advise(arriving):
        await arriving.request(R.POSTCOPY_LISTEN)
        arriving.listening = True
        bad = region(memory_size=0)
        with pytest.raises(RefusedError):
            await arriving.request(R.SET_MEM_TABLE, MemoryTable((bad,)), [fd], need_reply=False)
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in arriving.protocol_features:
            with pytest.raises(RefusedError):
                await arriving.request(R.ADD_MEM_REG, SingleRegion(bad), [fd], need_reply=False)
        await arriving.request(R.POSTCOPY_END)
        await arriving.request(R.SET_MEM_TABLE, MemoryTable((region(),)), [fd])


@pytest.mark.proves("VU-SLOT-9", "VU-POST-4")
async def test_a_region_that_is_told_again_is_acknowledged_again(destination: Victim) -> None:
    async with await destination.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, POSTCOPY | ProtocolFeature.CONFIGURE_MEM_SLOTS)
        with GuestRam() as memory, await advise(front_end):
            await front_end.request(R.POSTCOPY_LISTEN)
            front_end.listening = True
            places = [[await front_end.add_mem_reg(one) for one in memory.regions] for _ in range(2)]
            for _ in range(2):
                await unanswered(front_end, Frame(R.ADD_MEM_REG, VERSION, bytes(8)))
                places.append([await front_end.add_mem_reg(one) for one in memory.regions])
            assert all(place == places[0] for place in places)


async def test_a_table_told_again_takes_the_place_of_one_that_waits(arriving: FrontEnd) -> None:
    """The fixture finds none of the mappings left, neither after the acknowledgement nor without."""
    with memfd() as fd, await advise(arriving):
        await arriving.request(R.POSTCOPY_LISTEN)
        arriving.listening = True
        for at in (0, 1 << 32, 1 << 40):
            told = region(at, PAGE, USERSPACE_BASE + at)
            await arriving.request(R.SET_MEM_TABLE, MemoryTable((told,)), [fd])
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in arriving.protocol_features:
            await arriving.request(R.ADD_MEM_REG, SingleRegion(region(0, PAGE)), [fd])
            with pytest.raises(RefusedError):
                await arriving.request(R.ADD_MEM_REG, SingleRegion(region(1, PAGE)), [fd])


@asynccontextmanager
async def listening(destination: Victim) -> AsyncIterator[FrontEnd]:
    """A front-end that adds regions one by one, and has said POSTCOPY_LISTEN."""
    async with await destination.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, POSTCOPY | ProtocolFeature.CONFIGURE_MEM_SLOTS)
        with await advise(front_end):
            await front_end.request(R.POSTCOPY_LISTEN)
            front_end.listening = True
            yield front_end


@pytest.mark.proves("VU-POST-4")
async def test_what_was_told_stays_until_it_is_acknowledged(destination: Victim) -> None:
    """A table that is taken away meanwhile would be used by the acknowledgement that comes after."""
    async with listening(destination) as front_end:
        with memfd() as fd:
            told = [SingleRegion(region(at, PAGE, USERSPACE_BASE + at)) for at in (0, 1 << 32)]
            await front_end.request(R.ADD_MEM_REG, told[0], [fd])
            await unanswered(front_end, Frame(R.ADD_MEM_REG, VERSION, bytes(8)))
            await front_end.request(R.ADD_MEM_REG, told[1], [fd])
            for early in (ask(R.REM_MEM_REG, told[0]), ask(R.POSTCOPY_END)):
                await refused(front_end, early)
            with pytest.raises(RefusedError):
                await front_end.request_with_fds(R.POSTCOPY_ADVISE)
            await unanswered(front_end, Frame(R.ADD_MEM_REG, VERSION, bytes(8)))
            for one in told:
                await front_end.request(R.REM_MEM_REG, one)
            await front_end.request(R.POSTCOPY_END)


@pytest.mark.proves("VU-POST-4")
async def test_a_ring_that_cannot_run_in_acknowledged_memory_harms_nobody(destination: Victim) -> None:
    async with listening(destination) as front_end:
        with memfd() as fd:
            await front_end.request(R.SET_VRING_NUM, VringState(0, 64))
            one = VringAddr(0, 0, USERSPACE_BASE, USERSPACE_BASE, USERSPACE_BASE, 0)  # all of it at one place
            await front_end.request(R.SET_VRING_ADDR, one)
            with borrowed(eventfd()) as (kick,):
                await front_end.request(R.SET_VRING_KICK, VringFd(0), [kick])
            await front_end.request(R.ADD_MEM_REG, SingleRegion(region(0, PAGE, USERSPACE_BASE)), [fd])
            await unanswered(front_end, Frame(R.ADD_MEM_REG, VERSION, bytes(8)))
            await front_end.request(R.POSTCOPY_END)
    await destination.alive()


@pytest.mark.proves("VU-POST-6")
async def test_post_copy_is_offered_only_on_demand(victim: Victim, attacker: FrontEnd) -> None:
    offered = await attacker.request(R.GET_PROTOCOL_FEATURES)
    assert isinstance(offered, U64)
    assert not offered.value & ProtocolFeature.PAGEFAULT
    for request in (R.POSTCOPY_ADVISE, R.POSTCOPY_LISTEN, R.POSTCOPY_END):
        await refused(attacker, ask(request))


async def test_there_is_an_end_without_a_begin(destination: Victim, arriving: FrontEnd) -> None:
    assert await arriving.request(R.POSTCOPY_END) == U64(0)
    await arriving.aclose()
    await good_session(destination)


def test_what_makes_no_userfaultfd(tmp_path: Path) -> None:
    with OwnedFd(os.open(tmp_path, os.O_RDONLY)) as source, pytest.raises(PortError, match="post-copy: userfaultfd"):
        UserFault(source)


def test_a_file_whose_pages_nobody_can_provide(tmp_path: Path) -> None:
    """Files on a disk have no missing pages."""
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(PAGE)
        with (
            open_source() as source,
            closing(UserFault(source)) as faults,
            closing(Mapping(file.fileno(), 0, PAGE, 0, 0)) as mapping,
            pytest.raises(PortError, match="post-copy: memory region"),
        ):
            faults.register(mapping)

"""The front-end's sequences of requests against a scripted back-end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.frontend.scripted import FEATURES, PROTOCOL_FEATURES, connected, listening
from vhostuser.errors import ConnectionClosedError, FramingError
from vhostuser.frontend.client import connect
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.features import RING_FEATURES, DriverFeature
from vhostuser.frontend.memory import USERSPACE_BASE, GuestRam
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.split import DriverRing
from vhostuser.transport.endpoints import listen
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, SingleRegion, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
ALL = (1 << 64) - 1
NEGOTIATION = ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "SET_OWNER", "SET_FEATURES"]
START = [
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_ERR",
    "SET_VRING_CALL",
    "SET_VRING_KICK",
    "SET_VRING_ENABLE",
]


async def test_negotiate() -> None:
    async with connected() as (front_end, back_end):
        await front_end.negotiate(1 << 32 | 1 << 5)
        assert back_end.names() == NEGOTIATION
        assert front_end.offered == FEATURES
        assert front_end.features == 1 << 32 | VhostFeature.PROTOCOL_FEATURES
        assert front_end.protocol_features == ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


async def test_negotiate_without_protocol_features() -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[R.GET_FEATURES] = U64(1 << 32)
        await front_end.negotiate(ALL)
        assert back_end.names() == ["GET_FEATURES", "SET_OWNER"]
        await trio.testing.wait_all_tasks_blocked()
        assert back_end.seen[-1] == f"SET_FEATURES value={1 << 32:#x}"


async def test_memory_and_ring(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[R.GET_VRING_BASE] = VringState(1, 17)
        with DriverRing(memory, 1, 64) as ring:
            await front_end.negotiate(ALL)
            await front_end.set_mem_table(memory)
            await front_end.start_ring(ring, log_addr=0x1000)
            assert await front_end.stop_ring(ring) == 17
            assert ring.base == 17
    assert back_end.names() == [*NEGOTIATION, "SET_MEM_TABLE", *START, "GET_VRING_BASE"]
    addresses = back_end.seen[8]
    for address in (ring.desc_addr, ring.avail_addr, ring.used_addr):
        assert f"={USERSPACE_BASE + address:#x}" in addresses
    assert "flags=1" in addresses


async def test_passed_descriptors_are_the_memory_and_the_eventfds(memory: GuestRam) -> None:
    kinds = {R.SET_MEM_TABLE, R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR}
    async with connected(keep=kinds) as (front_end, back_end):
        with DriverRing(memory, 0) as ring:
            await front_end.negotiate(ALL)
            await front_end.set_mem_table(memory)
            await front_end.start_ring(ring)
            files = [os.fstat(fd).st_ino for fd in back_end.kept[R.SET_MEM_TABLE].filenos()]
            assert files == [os.fstat(fd).st_ino for fd in memory.fds()]
            os.eventfd_write(back_end.kept[R.SET_VRING_CALL].filenos()[0], 3)
            assert os.eventfd_read(ring.call_fd.fileno()) == 3
            ring.kick(force=True)
            assert os.eventfd_read(back_end.kept[R.SET_VRING_KICK].filenos()[0]) == 1


async def test_memory_slots_are_told_one_by_one(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        front_end.memory = memory
        front_end.protocol_features = ProtocolFeature.CONFIGURE_MEM_SLOTS
        assert await front_end.tell_memory() == []
        await front_end.word(R.GET_FEATURES)
        regions = memory.table().regions
        assert back_end.seen[:-1] == [f"ADD_MEM_REG {SingleRegion(region)} 1 fd" for region in regions]


async def test_memory_of_its_own_is_made_when_it_is_asked_for(memory: GuestRam) -> None:
    async with connected() as (front_end, _):
        own = front_end.memory
        assert front_end.memory is own
        await front_end.set_mem_table(memory)
        assert front_end.memory is memory
        assert own.regions
    assert not own.regions
    assert memory.regions


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_ring_that_is_added_has_what_was_negotiated(packed: bool) -> None:
    features = DriverFeature.VERSION_1 | DriverFeature.EVENT_IDX | DriverFeature.RING_PACKED * packed
    async with connected() as (front_end, back_end):
        back_end.replies[R.GET_FEATURES] = U64(ALL)
        await front_end.negotiate(features)
        ring = await front_end.add_ring(3, 16)
        assert isinstance(ring, PackedDriverRing if packed else DriverRing)
        assert (ring.index, ring.size, ring.event_idx, ring.in_order) == (3, 16, True, False)
        assert ring.memory is front_end.memory
        assert back_end.names() == [*NEGOTIATION, *START]
    assert ring.kick_fd.closed


async def test_guest_physical_ring_addresses(memory: GuestRam) -> None:
    async with connected() as (front_end, _):
        front_end.protocol_features = ProtocolFeature.GPA_ADDRESSES
        with DriverRing(memory, 0) as ring:
            assert front_end.vring_addr(ring).descriptor == ring.desc_addr


async def test_the_back_ends_channel() -> None:
    async with connected(keep={R.SET_BACKEND_REQ_FD}) as (front_end, back_end):
        await front_end.negotiate(ALL, PROTOCOL_FEATURES)
        channel = await front_end.open_backend_channel()
        with socket.socket(fileno=back_end.kept[R.SET_BACKEND_REQ_FD].take().detach()) as theirs:
            theirs.send(Frame(2, 0x1).encode())
            assert (await channel.receive()).request == 2
        with pytest.raises(ConnectionClosedError):
            await channel.receive()


async def test_a_refused_channel_is_closed() -> None:
    async with connected(acks={R.SET_BACKEND_REQ_FD: 1}) as (front_end, _):
        await front_end.negotiate(ALL, PROTOCOL_FEATURES)
        with pytest.raises(RefusedError):
            await front_end.open_backend_channel()
        assert front_end.backend_channel is None


# ---- connecting ------------------------------------------------------------------------------------------------------


async def test_connect_negotiates_and_tells_memory_of_its_own(tmp_path: Path) -> None:
    async with listening(tmp_path / "sock") as back_end, connect(tmp_path / "sock") as front_end:
        assert back_end.names() == [*NEGOTIATION, "SET_MEM_TABLE"]
        assert front_end.features == RING_FEATURES & FEATURES | VhostFeature.PROTOCOL_FEATURES
        memory = front_end.memory
        assert memory.regions
    assert not memory.regions, "it is closed with the connection"
    assert back_end.left


async def test_connect_with_memory_of_the_caller(tmp_path: Path, memory: GuestRam) -> None:
    wanted = ProtocolFeature.REPLY_ACK
    async with (
        listening(tmp_path / "sock") as back_end,
        connect(tmp_path / "sock", features=1 << 32, protocol_features=wanted, memory=memory) as front_end,
    ):
        assert front_end.memory is memory
        assert front_end.features == 1 << 32 | VhostFeature.PROTOCOL_FEATURES
        assert front_end.protocol_features == wanted
        assert back_end.seen[-1].startswith("SET_MEM_TABLE")
    assert memory.regions, "it stays the caller's"


async def test_connect_says_nothing_if_told_so(tmp_path: Path) -> None:
    async with (
        await listen(tmp_path / "sock") as listener,
        connect(tmp_path / "sock", negotiate=False) as front_end,
        await listener.accept() as channel,
    ):
        await front_end.send_frame(Frame(3, 0x1))
        assert (await channel.receive()).request == 3


async def test_a_refusal_while_connecting_closes_everything(tmp_path: Path) -> None:
    async with listening(tmp_path / "sock") as back_end:
        back_end.acks[R.SET_MEM_TABLE] = 1
        with pytest.raises(RefusedError, match="SET_MEM_TABLE"):
            async with connect(tmp_path / "sock"):
                pytest.fail("it was refused")
    assert back_end.left


async def test_the_time_limit_of_answers_is_the_callers(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with listening(tmp_path / "sock") as back_end:
        back_end.answers[R.GET_FEATURES] = None
        with pytest.raises(FramingError, match=r"no answer after 0\.5 s"):
            async with connect(tmp_path / "sock", reply_timeout=0.5):
                pytest.fail("nothing was answered")

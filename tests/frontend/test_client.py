"""The front-end against a scripted back-end: what it sends, and what it makes of the answers."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.frontend.scripted import FEATURES, PROTOCOL_FEATURES, connected
from vhostuser.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vhostuser.frontend.client import connect
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import USERSPACE_BASE, GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.transport.endpoints import listen
from vhostuser.wire.codec import encode_ack
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, DeviceState, Iotlb, Log, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest

R = FrontendRequest
ALL = (1 << 64) - 1


async def test_negotiate() -> None:
    async with connected() as (front_end, back_end):
        await front_end.negotiate(1 << 32 | 1 << 5)
        assert [line.split()[0] for line in back_end.seen] == [
            "GET_FEATURES",
            "GET_PROTOCOL_FEATURES",
            "SET_PROTOCOL_FEATURES",
            "SET_OWNER",
            "SET_FEATURES",
        ]
        assert front_end.offered == FEATURES
        assert front_end.features == 1 << 32 | VhostFeature.PROTOCOL_FEATURES
        assert front_end.protocol_features == ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


async def test_negotiate_without_protocol_features() -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[R.GET_FEATURES] = U64(1 << 32)
        await front_end.negotiate(ALL)
        assert [line.split()[0] for line in back_end.seen] == ["GET_FEATURES", "SET_OWNER"]
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
    setup = [line.partition(" ")[0] for line in back_end.seen[5:]]
    assert setup == [
        "SET_MEM_TABLE",
        "SET_VRING_NUM",
        "SET_VRING_BASE",
        "SET_VRING_ADDR",
        "SET_VRING_ERR",
        "SET_VRING_CALL",
        "SET_VRING_KICK",
        "SET_VRING_ENABLE",
        "GET_VRING_BASE",
    ]
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


async def test_guest_physical_ring_addresses(memory: GuestRam) -> None:
    async with connected() as (front_end, _):
        front_end.protocol_features = ProtocolFeature.GPA_ADDRESSES
        with DriverRing(memory, 0) as ring:
            assert front_end.vring_addr(ring).descriptor == ring.desc_addr


async def test_an_acknowledgement_is_awaited_only_when_it_comes() -> None:
    async with connected() as (front_end, back_end):
        assert await front_end.request(R.SET_OWNER, need_reply=True) is None
        await front_end.negotiate(ALL)
        assert await front_end.request(R.SET_OWNER) == U64(0)
        assert await front_end.request(R.SET_OWNER, need_reply=False) is None
        assert await front_end.request(R.GET_QUEUE_NUM) == U64(4)
        assert back_end.seen.count("SET_OWNER need_reply") == 3
        assert back_end.seen[-1] == "GET_QUEUE_NUM"


async def test_the_new_bits_decide_whether_they_are_acknowledged() -> None:
    async with connected() as (front_end, _):
        bits = U64(ProtocolFeature.REPLY_ACK)
        assert await front_end.request(R.SET_PROTOCOL_FEATURES, bits, need_reply=True) == U64(0)


async def test_a_gated_reply_comes_once_its_feature_is_acknowledged(memory: GuestRam) -> None:
    log = Log(0x1000, 0)
    answer = Frame(R.SET_LOG_BASE, 0x5, struct.pack("=QQ", 0x1000, 0))
    async with connected(answers={R.SET_LOG_BASE: answer}) as (front_end, _):
        front_end.protocol_features = ProtocolFeature.LOG_SHMFD
        assert await front_end.request(R.SET_LOG_BASE, log, memory.fds()[:1]) == log


async def test_a_refused_request_raises() -> None:
    async with connected(acks={R.SET_VRING_NUM: 1}) as (front_end, _):
        await front_end.negotiate(ALL)
        with pytest.raises(RefusedError, match="SET_VRING_NUM: refused with 0x1"):
            await front_end.request(R.SET_VRING_NUM, VringState(0, 3))
        assert await front_end.request(R.GET_QUEUE_NUM) == U64(4)


async def test_an_empty_reply_is_a_refusal() -> None:
    async with connected(answers={R.GET_QUEUE_NUM: Frame(R.GET_QUEUE_NUM, 0x5)}) as (front_end, _):
        with pytest.raises(RefusedError, match="empty reply"):
            await front_end.request(R.GET_QUEUE_NUM)


async def test_replies_that_are_acknowledgements_in_all_but_name(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies |= {R.IOTLB_MSG: U64(1), R.SET_DEVICE_STATE_FD: U64(0x100), R.CHECK_DEVICE_STATE: U64(1)}
        with pytest.raises(RefusedError):
            await front_end.request(R.IOTLB_MSG, Iotlb(0, 1, 0, 3, 2))
        reply = await front_end.request(R.SET_DEVICE_STATE_FD, DeviceState(0, 0), memory.fds()[:1])
        assert reply == U64(0x100)
        with pytest.raises(RefusedError):
            await front_end.request(R.CHECK_DEVICE_STATE)


async def test_unknown_requests_are_refused_or_passed_over() -> None:
    async with connected() as (front_end, back_end):
        assert await front_end.request(77, b"abc") is None
        await front_end.negotiate(ALL)
        with pytest.raises(RefusedError, match="request 77"):
            await front_end.request(77, b"abc")
        assert back_end.seen[0].startswith("request 77")


@pytest.mark.proves("VU-FRONT-2")
@pytest.mark.parametrize(
    "answer",
    [
        Frame(R.GET_QUEUE_NUM, 0xD, bytes(8)),
        Frame(R.GET_QUEUE_NUM, 0x1, bytes(8)),
        Frame(R.GET_FEATURES, 0x5, bytes(8)),
        Frame(R.GET_QUEUE_NUM, 0x5, bytes(7)),
    ],
)
async def test_what_is_no_answer_raises(answer: Frame) -> None:
    async with connected(answers={R.GET_QUEUE_NUM: answer}) as (front_end, _):
        with pytest.raises(FramingError):
            await front_end.request(R.GET_QUEUE_NUM)


@pytest.mark.proves("VU-FRONT-2")
async def test_silence_has_a_limit(autojump_clock: trio.testing.MockClock) -> None:
    async with connected(answers={R.GET_FEATURES: None}) as (front_end, _):
        with pytest.raises(FramingError, match="GET_FEATURES: no answer after 30 s"):
            await front_end.request(R.GET_FEATURES)
        with pytest.raises(FramingError, match="answer to GET_FEATURES is still outstanding"):
            await front_end.request(R.SET_OWNER)


async def test_a_back_end_that_leaves() -> None:
    async with connected() as (front_end, back_end):
        back_end.leaves_after = R.GET_FEATURES
        with pytest.raises(ConnectionClosedError):
            await front_end.request(R.GET_FEATURES)


async def test_tasks_take_turns() -> None:
    async with connected() as (front_end, back_end):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(front_end.request, R.GET_FEATURES)
                nursery.start_soon(front_end.request, R.GET_QUEUE_NUM)
        assert len(back_end.seen) == 40


async def test_frames_that_no_table_allows() -> None:
    async with connected() as (front_end, back_end):
        with pytest.raises(LocalProtocolError):
            await front_end.request(R.SET_VRING_NUM, U64(1))
        back_end.answers[R.GET_FEATURES] = encode_ack(R.GET_FEATURES, 5)
        await front_end.send_frame(Frame(R.GET_FEATURES, 0x1))
        assert (await front_end.receive_frame()).payload == struct.pack("=Q", 5)


def test_every_request_of_the_table_has_a_name() -> None:
    assert {FrontendRequest[spec.name] for spec in FRONTEND_REQUESTS.values()} == set(FrontendRequest)


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


async def test_connect_by_path(tmp_path: Path) -> None:
    async with (
        await listen(tmp_path / "sock") as listener,
        connect(tmp_path / "sock", negotiate=False) as front_end,
        await listener.accept() as channel,
    ):
        await front_end.send_frame(Frame(3, 0x1))
        assert (await channel.receive()).request == 3

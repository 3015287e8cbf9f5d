"""The network driver, against a device made of the same rings' raw fields: what it sends comes back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address
from typing import Protocol

import pytest
import trio
import trio.testing

from tests.frontend.devices import device_of, make_ring
from tests.frontend.scripted import FEATURES, connected
from vhostuser.errors import ConnectionClosedError, LocalProtocolError, RemoteProtocolError
from vhostuser.frontend import guest as g
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver, NetHeader
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import DriverRing
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest

MAC = bytes.fromhex("525400000001")
FRAME = bytes(range(60))


class NetDevice:
    """Plays the device on one ring: takes chains in order, and uses each at once."""

    def __init__(self, ring: DriverQueue) -> None:
        self.memory = ring.memory
        self.device = device_of(ring)

    @property
    def has_available(self) -> bool:
        return self.device.has_available

    def sent(self) -> bytes:
        """Take one transmitted frame with its header, and give its buffers back."""
        taken = self.device.take()
        assert not any(writable for _, _, writable in taken.buffers)
        self.device.use(taken)
        return b"".join(self.memory.read(addr, length) for addr, length, _ in taken.buffers)

    def deliver(self, *pieces: bytes) -> None:
        """Put each piece into a receive buffer of its own."""
        for piece in pieces:
            taken = self.device.take()
            [(addr, length, writable)] = taken.buffers
            assert writable
            assert len(piece) <= length
            self.memory.write(addr, piece)
            self.device.use(taken, written=len(piece))


class Wire:
    """A driver, and the device at the other side of its rings."""

    def __init__(self, memory: GuestRam, packed: bool, features: int) -> None:
        event_idx = bool(features & DriverFeature.EVENT_IDX)
        self.rings = [make_ring(memory, packed, i, 16, event_idx=event_idx) for i in range(2)]
        self.rx, self.tx = (NetDevice(ring) for ring in self.rings)
        self.driver = NetDriver(self.rings[0], self.rings[1], features, rx_buffer_size=128)
        self.driver.fill()


class WireMaker(Protocol):
    def __call__(self, features: int = DRIVER_FEATURES) -> Wire: ...


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def make_wire(request: pytest.FixtureRequest, memory: GuestRam) -> Iterator[WireMaker]:
    with ExitStack() as stack:

        def make(features: int = DRIVER_FEATURES) -> Wire:
            wire = Wire(memory, request.param, features)
            stack.callback(wire.driver.close)
            return wire

        yield make


@pytest.mark.parametrize(
    ("features", "size"), [(DRIVER_FEATURES, 12), (DriverFeature.VERSION_1, 12), (DriverFeature.MRG_RXBUF, 12), (0, 10)]
)
async def test_a_sent_frame_has_its_header(features: int, size: int, make_wire: WireMaker) -> None:
    wire = make_wire(features)
    await wire.driver.send(FRAME)
    assert wire.tx.sent() == bytes(size) + FRAME


async def test_a_header_is_sent_as_given(make_wire: WireMaker) -> None:
    wire = make_wire()
    header = NetHeader(1, 0x81, 54, 1448, 34, 16)
    await wire.driver.send(FRAME, header)
    sent = wire.tx.sent()
    assert sent[:12] == struct.pack("<BBHHHHH", 1, 0x81, 54, 1448, 34, 16, 0)
    assert NetHeader.parse(sent[:12]) == header


async def test_more_frames_than_the_ring_holds(make_wire: WireMaker) -> None:
    wire = make_wire()
    frames = [bytes([i]) * 60 for i in range(50)]
    sent: list[bytes] = []

    async def send_all() -> None:
        for frame in frames:
            await wire.driver.send(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        while len(sent) < len(frames):
            await trio.testing.wait_all_tasks_blocked()
            while wire.tx.has_available:
                sent.append(wire.tx.sent()[12:])
            os.eventfd_write(wire.rings[1].call_fd.fileno(), 1)
    assert sent == frames
    assert wire.driver.collect_sent() == 0


def test_frames_posted_while_there_is_room(make_wire: WireMaker) -> None:
    wire = make_wire()
    room = wire.driver.tx.size
    assert [wire.driver.post(bytes([i]) * 60) for i in range(room + 1)] == [True] * room + [False]
    assert not wire.tx.sent()[12:].strip(b"\0")
    assert wire.driver.post(FRAME)
    assert [wire.tx.sent()[12:] for _ in range(room)] == [*(bytes([i]) * 60 for i in range(1, room)), FRAME]


async def test_a_frame_that_is_too_long(make_wire: WireMaker) -> None:
    wire = make_wire()
    with pytest.raises(ValueError, match="exceed 2048"):
        await wire.driver.send(bytes(2037))


@pytest.mark.parametrize("features", [DRIVER_FEATURES, DriverFeature.VERSION_1])
async def test_a_received_frame(features: int, make_wire: WireMaker) -> None:
    wire = make_wire(features)
    header = NetHeader(flags=2, num_buffers=1)
    wire.rx.deliver(header.pack(12) + FRAME)
    assert await wire.driver.receive() == (header, FRAME)
    assert wire.driver.poll() is None


async def test_without_mergeable_buffers_their_number_is_not_looked_at(make_wire: WireMaker) -> None:
    wire = make_wire(DriverFeature.VERSION_1)
    wire.rx.deliver(NetHeader(num_buffers=0).pack(12) + FRAME)
    assert await wire.driver.receive() == (NetHeader(num_buffers=0), FRAME)


async def test_a_received_frame_with_a_legacy_header(make_wire: WireMaker) -> None:
    wire = make_wire(0)
    wire.rx.deliver(NetHeader().pack(10) + FRAME)
    assert (await wire.driver.receive()).frame == FRAME


async def test_a_frame_in_several_buffers(make_wire: WireMaker) -> None:
    wire = make_wire()
    first = NetHeader(num_buffers=3).pack(12) + b"a" * 116
    wire.rx.deliver(first, b"b" * 128)
    assert wire.driver.poll() is None
    wire.rx.deliver(b"c" * 5, NetHeader(num_buffers=1).pack(12) + FRAME)
    assert (await wire.driver.receive()).frame == b"a" * 116 + b"b" * 128 + b"c" * 5
    assert (await wire.driver.receive()).frame == FRAME


async def test_buffers_go_round(make_wire: WireMaker) -> None:
    wire = make_wire()
    for i in range(100):
        wire.rx.deliver(NetHeader(num_buffers=1).pack(12) + bytes([i]) * 60)
        assert (await wire.driver.receive()).frame == bytes([i]) * 60
    assert wire.rings[0].in_flight == 16


@pytest.mark.parametrize(
    ("features", "piece", "reason"),
    [
        (DRIVER_FEATURES, bytes(11), "11 bytes are no virtio_net_hdr"),
        (DRIVER_FEATURES, bytes(60), "num_buffers 0, the ring has 16"),
        (DRIVER_FEATURES, NetHeader(num_buffers=17).pack(12), "num_buffers 17"),
    ],
)
async def test_headers_that_cannot_be(features: int, piece: bytes, reason: str, make_wire: WireMaker) -> None:
    wire = make_wire(features)
    wire.rx.deliver(piece)
    with pytest.raises(RemoteProtocolError, match=reason):
        await wire.driver.receive()


async def test_a_guest_answers_over_the_rings(make_wire: WireMaker) -> None:
    wire = make_wire()
    address, peer = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2").packed
    request = g.arp_request(MAC, peer, address.packed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(g.BuiltinGuest(MAC, address).run, wire.driver)
        wire.rx.deliver(NetHeader(num_buffers=1).pack(12) + request)
        await trio.testing.wait_all_tasks_blocked()
        assert wire.tx.sent()[12:] == g.BuiltinGuest(MAC, address).answer(request)
        nursery.cancel_scope.cancel()


@pytest.mark.proves("VU-FRONT-4")
async def test_a_ring_is_kicked_again_once_it_is_started(memory: GuestRam) -> None:
    async with connected() as (front_end, _):
        with closing(await NetDriver.start(front_end, memory, size=16)) as driver:
            assert os.eventfd_read(driver.rx.kick_fd.fileno()) == 2  # one for the buffers, one after the start


async def test_start_brings_a_device_up(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        driver = await NetDriver.start(front_end, memory, size=16)
        assert front_end.features == FEATURES
        assert driver.rx.event_idx
        assert driver.rx.in_flight == 16
        assert [line.split()[0] for line in back_end.seen].count("SET_VRING_ENABLE") == 2
        driver.close()


async def test_further_pairs_have_the_rings_after_it(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        first = await NetDriver.start(front_end, memory, size=16)
        second = await NetDriver.open_pair(front_end, 1, size=16)
        assert (second.rx.index, second.tx.index) == (2, 3)
        assert sum(line.startswith("SET_MEM_TABLE") for line in back_end.seen) == 1
        first.close()
        second.close()


async def test_start_that_fails_leaves_nothing_open(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.acks[FrontendRequest.SET_VRING_NUM] = 1
        with pytest.raises(RefusedError, match="SET_VRING_NUM: refused"):
            await NetDriver.start(front_end, memory, size=16)


OFFERED = FEATURES | DriverFeature.RING_PACKED | DriverFeature.IN_ORDER | DriverFeature.MQ


async def test_the_layout_is_what_was_asked_for(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        with closing(await NetDriver.start(front_end, memory, packed=True, in_order=True, size=7)) as driver:
            assert front_end.features == FEATURES | DriverFeature.RING_PACKED | DriverFeature.IN_ORDER
            assert isinstance(driver.rx, PackedDriverRing)
            assert driver.tx.in_order
            assert driver.tx.event_idx
            assert driver.rx.in_flight == 7
        bases = [line for line in back_end.seen if line.startswith("SET_VRING_BASE")]
        assert bases == [f"SET_VRING_BASE index={i} num=0x80008000 need_reply" for i in range(2)]


async def test_without_being_asked_rings_are_split(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        with closing(await NetDriver.start(front_end, memory, size=16)) as driver:
            assert isinstance(driver.rx, DriverRing)
            assert not driver.rx.in_order


@pytest.mark.parametrize(("asked", "missing"), [("packed", "RING_PACKED"), ("in_order", "IN_ORDER")])
async def test_what_is_asked_for_and_not_offered(asked: str, missing: str, memory: GuestRam) -> None:
    async with connected() as (front_end, _):
        with pytest.raises(LocalProtocolError, match=f"offers {FEATURES:#x}, without .*{missing}"):
            await NetDriver.start(front_end, memory, packed=asked == "packed", in_order=asked == "in_order")


async def test_several_pairs(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        drivers = await NetDriver.start_pairs(front_end, memory, 3, size=16)
        with ExitStack() as stack:
            for driver in drivers:
                stack.enter_context(closing(driver))
            assert [(driver.rx.index, driver.tx.index) for driver in drivers] == [(0, 1), (2, 3), (4, 5)]
        assert front_end.features == FEATURES | DriverFeature.MQ
        requests = [line.split()[0] for line in back_end.seen]
        assert requests.index("GET_QUEUE_NUM") < requests.index("SET_VRING_NUM")
        assert requests.count("SET_MEM_TABLE") == 1
        assert requests.count("SET_VRING_ENABLE") == 6


@pytest.mark.proves("VU-FRONT-3")
async def test_more_pairs_than_there_are(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        with pytest.raises(LocalProtocolError, match="5 queue pairs: the back-end has 4"):
            await NetDriver.start_pairs(front_end, memory, 5)


@pytest.mark.proves("VU-FRONT-3")
async def test_pairs_without_the_protocol_feature(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        back_end.replies[FrontendRequest.GET_PROTOCOL_FEATURES] = U64(ProtocolFeature.REPLY_ACK)
        with pytest.raises(LocalProtocolError, match=r"2 queue pairs: .* protocol feature MQ"):
            await NetDriver.start_pairs(front_end, memory, 2)


async def test_pairs_that_fail_leave_nothing_open(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.replies[FrontendRequest.GET_FEATURES] = U64(OFFERED)
        back_end.leaves_after = FrontendRequest.SET_VRING_ENABLE
        with pytest.raises(ConnectionClosedError):
            await NetDriver.start_pairs(front_end, memory, 2, size=16)

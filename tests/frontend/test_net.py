"""The network driver, against a device made of the same rings' raw fields: what it sends comes back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
import trio
import trio.testing

from tests.frontend.scripted import FEATURES, connected
from vhostuser.errors import RemoteProtocolError
from vhostuser.frontend import guest as g
from vhostuser.frontend.client import RefusedError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver, NetFeature, NetHeader
from vhostuser.frontend.split import DescriptorFlags, DriverRing, SplitRing, Used
from vhostuser.wire.requests import FrontendRequest

MAC = bytes.fromhex("525400000001")
FRAME = bytes(range(60))


class Device:
    """Plays the device on one ring: takes chains in order, uses them when told to."""

    def __init__(self, ring: SplitRing) -> None:
        self.ring = ring
        self.position = ring.avail_idx

    def take(self) -> tuple[int, list[tuple[int, int, int]]]:
        assert self.position != self.ring.avail_idx, "nothing is available"
        head = index = self.ring.avail(self.position)
        self.position = (self.position + 1) & 0xFFFF
        buffers: list[tuple[int, int, int]] = []
        while True:
            descriptor = self.ring.descriptor(index)
            buffers.append((descriptor.addr, descriptor.length, descriptor.flags & DescriptorFlags.WRITE))
            if not descriptor.flags & DescriptorFlags.NEXT:
                return head, buffers
            index = descriptor.next

    def use(self, head: int, written: int = 0) -> None:
        self.ring.set_used(self.ring.used_idx, Used(head, written))
        self.ring.used_idx += 1

    def sent(self) -> bytes:
        """Take one transmitted frame with its header, and give its buffers back."""
        head, buffers = self.take()
        assert not any(writable for _, _, writable in buffers)
        self.use(head)
        return b"".join(self.ring.memory.read(addr, length) for addr, length, _ in buffers)

    def deliver(self, *pieces: bytes) -> None:
        """Put each piece into a receive buffer of its own."""
        for piece in pieces:
            head, [(addr, length, writable)] = self.take()
            assert writable
            assert len(piece) <= length
            self.ring.memory.write(addr, piece)
            self.use(head, len(piece))


class Wire:
    """A driver, and the device at the other side of its rings."""

    def __init__(self, memory: GuestRam, features: int) -> None:
        self.rings = [DriverRing(memory, i, 16, event_idx=bool(features & NetFeature.EVENT_IDX)) for i in range(2)]
        self.rx, self.tx = (Device(ring) for ring in self.rings)
        self.driver = NetDriver(self.rings[0], self.rings[1], features, rx_buffer_size=128)
        self.driver.fill()


@pytest.fixture
def wires(memory: GuestRam) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make_wire(memory: GuestRam, stack: ExitStack, features: int = DRIVER_FEATURES) -> Wire:
    wire = Wire(memory, features)
    stack.callback(wire.driver.close)
    return wire


@pytest.mark.parametrize(
    ("features", "size"), [(DRIVER_FEATURES, 12), (NetFeature.VERSION_1, 12), (NetFeature.MRG_RXBUF, 12), (0, 10)]
)
async def test_a_sent_frame_has_its_header(features: int, size: int, memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires, features)
    await wire.driver.send(FRAME)
    assert wire.tx.sent() == bytes(size) + FRAME


async def test_a_header_is_sent_as_given(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
    header = NetHeader(1, 0x81, 54, 1448, 34, 16)
    await wire.driver.send(FRAME, header)
    sent = wire.tx.sent()
    assert sent[:12] == struct.pack("<BBHHHHH", 1, 0x81, 54, 1448, 34, 16, 0)
    assert NetHeader.parse(sent[:12]) == header


async def test_more_frames_than_the_ring_holds(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
    frames = [bytes([i]) * 60 for i in range(50)]
    sent: list[bytes] = []

    async def send_all() -> None:
        for frame in frames:
            await wire.driver.send(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        while len(sent) < len(frames):
            await trio.testing.wait_all_tasks_blocked()
            while wire.tx.position != wire.tx.ring.avail_idx:
                sent.append(wire.tx.sent()[12:])
            os.eventfd_write(wire.rings[1].call_fd.fileno(), 1)
    assert sent == frames
    assert wire.driver.collect_sent() == 0


async def test_a_frame_that_is_too_long(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
    with pytest.raises(ValueError, match="exceed 2048"):
        await wire.driver.send(bytes(2037))


@pytest.mark.parametrize("features", [DRIVER_FEATURES, NetFeature.VERSION_1])
async def test_a_received_frame(features: int, memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires, features)
    header = NetHeader(flags=2, num_buffers=1)
    wire.rx.deliver(header.pack(12) + FRAME)
    assert await wire.driver.receive() == (header, FRAME)
    assert wire.driver.poll() is None


async def test_without_mergeable_buffers_their_number_is_not_looked_at(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires, NetFeature.VERSION_1)
    wire.rx.deliver(NetHeader(num_buffers=0).pack(12) + FRAME)
    assert await wire.driver.receive() == (NetHeader(num_buffers=0), FRAME)


async def test_a_received_frame_with_a_legacy_header(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires, 0)
    wire.rx.deliver(NetHeader().pack(10) + FRAME)
    assert (await wire.driver.receive()).frame == FRAME


async def test_a_frame_in_several_buffers(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
    first = NetHeader(num_buffers=3).pack(12) + b"a" * 116
    wire.rx.deliver(first, b"b" * 128)
    assert wire.driver.poll() is None
    wire.rx.deliver(b"c" * 5, NetHeader(num_buffers=1).pack(12) + FRAME)
    assert (await wire.driver.receive()).frame == b"a" * 116 + b"b" * 128 + b"c" * 5
    assert (await wire.driver.receive()).frame == FRAME


async def test_buffers_go_round(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
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
async def test_headers_that_cannot_be(
    features: int, piece: bytes, reason: str, memory: GuestRam, wires: ExitStack
) -> None:
    wire = make_wire(memory, wires, features)
    wire.rx.deliver(piece)
    with pytest.raises(RemoteProtocolError, match=reason):
        await wire.driver.receive()


async def test_a_guest_answers_over_the_rings(memory: GuestRam, wires: ExitStack) -> None:
    wire = make_wire(memory, wires)
    address, peer = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2").packed
    request = g.arp_request(MAC, peer, address.packed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(g.BuiltinGuest(MAC, address).run, wire.driver)
        wire.rx.deliver(NetHeader(num_buffers=1).pack(12) + request)
        await trio.testing.wait_all_tasks_blocked()
        assert wire.tx.sent()[12:] == g.BuiltinGuest(MAC, address).answer(request)
        nursery.cancel_scope.cancel()


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
        second = await NetDriver.open_pair(front_end, memory, 1, size=16)
        assert (second.rx.index, second.tx.index) == (2, 3)
        assert sum(line.startswith("SET_MEM_TABLE") for line in back_end.seen) == 1
        first.close()
        second.close()


async def test_start_that_fails_leaves_nothing_open(memory: GuestRam) -> None:
    async with connected() as (front_end, back_end):
        back_end.acks[FrontendRequest.SET_VRING_NUM] = 1
        with pytest.raises(RefusedError, match="SET_VRING_NUM: refused"):
            await NetDriver.start(front_end, memory, size=16)

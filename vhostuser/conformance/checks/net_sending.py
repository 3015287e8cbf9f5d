"""Packets that a driver sends: their headers, their sizes, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.packets import Packet, Pair, frame_of
from vhostuser.conformance.violation import NotApplicable, Violation, about
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.net import NetHeader
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

D, P, R = DriverFeature, ProtocolFeature, FrontendRequest
NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
_TCPV4, _UDP, _TCPV6, _UDP_L4, _ECN = 1, 3, 4, 5, 0x80
_SIZE = 1514
_LONGEST = 65553  # 65535 bytes of IP behind an Ethernet header with a VLAN tag
_ROOM = 70000
_MANY, _HEAVY = 200, 60000  # frames, and bytes of each: more than a socket holds
_REQUIRES = {  # virtio 1.2, 5.1.3.1; the control virtqueue's are the front-end's, which has it
    D.GUEST_TSO4: D.GUEST_CSUM,
    D.GUEST_TSO6: D.GUEST_CSUM,
    D.GUEST_ECN: D.GUEST_TSO4 | D.GUEST_TSO6,
    D.GUEST_UFO: D.GUEST_CSUM,
    D.GUEST_USO4: D.GUEST_CSUM,
    D.GUEST_USO6: D.GUEST_CSUM,
    D.HOST_TSO4: D.CSUM,
    D.HOST_TSO6: D.CSUM,
    D.HOST_ECN: D.HOST_TSO4 | D.HOST_TSO6,
    D.HOST_UFO: D.CSUM,
    D.HOST_USO: D.CSUM,
}
_SENT = D.CSUM | D.HOST_TSO4 | D.HOST_TSO6 | D.HOST_ECN | D.HOST_UFO | D.HOST_USO
_RECEIVED = D.GUEST_CSUM | D.GUEST_TSO4 | D.GUEST_TSO6 | D.GUEST_ECN | D.GUEST_UFO | D.GUEST_USO4 | D.GUEST_USO6
_CSUM = NetHeader(NEEDS_CSUM, csum_start=34, csum_offset=16)
_TSO4 = NetHeader(NEEDS_CSUM, _TCPV4, 54, 1448, 34, 16)
_OFFLOADS = {
    D.CSUM: _CSUM,
    D.HOST_TSO4: _TSO4,
    D.HOST_TSO6: replace(_TSO4, gso_type=_TCPV6),
    D.HOST_ECN: replace(_TSO4, gso_type=_TCPV4 | _ECN),
    D.HOST_UFO: replace(_TSO4, gso_type=_UDP),
    D.HOST_USO: replace(_TSO4, gso_type=_UDP_L4),
}
"""A header that asks for each offload that has a feature of its own."""


# ---- headers ---------------------------------------------------------------------------------------------------------


@checks("VIO-NET-1", devices=("net",), echo=True)
async def the_header_is_as_long_as_the_features_say(probe: Probe) -> None:
    for features in (0, D.MRG_RXBUF, D.VERSION_1, D.VERSION_1 | D.MRG_RXBUF):
        pair = await Pair.start(probe, features)
        pair.post(2048)
        with about(f"a header of {pair.header_size} bytes, features {int(features):#x}"):
            pair.send(frame_of(200), NetHeader(num_buffers=0x5A5A))
            [packet] = await pair.back(frame_of(200))
            if packet.header.num_buffers == 0x5A5A:
                raise Violation("num_buffers came back: it was taken for two bytes of the frame")


@checks("VIO-NET-2", devices=("net",))
async def what_offered_features_require_is_offered(probe: Probe) -> None:
    offered = probe.offer.virtio
    for feature, required in _REQUIRES.items():
        if offered & feature and not offered & required:
            raise Violation(f"{feature.name} is offered without {required.name}")


@checks("VIO-NET-3", devices=("net",), echo=True)
async def offloads_that_were_not_negotiated(probe: Probe) -> None:
    for feature, header in _OFFLOADS.items():
        pair = await Pair.start(probe, D.VERSION_1 | _SENT & ~_without(feature) | _RECEIVED)
        await _dropped(pair, f"{feature.name} is not negotiated", header)


def _without(feature: DriverFeature) -> DriverFeature:
    """A feature, and those that make no sense without it."""
    return _SENT if feature is D.CSUM else feature


@checks("VIO-NET-3", devices=("net",), echo=True, needs=(D.CSUM | D.HOST_TSO4,))
async def headers_that_cannot_be(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1 | _SENT | _RECEIVED)
    await _dropped(pair, "gso_size 0", replace(_TSO4, gso_size=0))
    await _dropped(pair, "hdr_len above the frame", NetHeader(hdr_len=_SIZE + 1))
    for start, offset in ((_SIZE, 0), (_SIZE - 1, 0), (34, _SIZE - 35), (0xFFFF, 35)):
        header = NetHeader(NEEDS_CSUM, csum_start=start, csum_offset=offset)
        await _dropped(pair, f"a checksum at {start} and {offset} in a frame of {_SIZE} bytes", header)
    for kind in (2, 6, 0x20, 0x7F, _ECN, _UDP | _ECN):
        await _dropped(pair, f"gso_type {kind:#x}", replace(_TSO4, gso_type=kind))


async def _dropped(pair: Pair, what: str, header: NetHeader) -> None:
    """A packet does not come back, and one without any offload does."""
    pair.post(2048, count=2)
    pair.send(frame_of(_SIZE, 1), header)
    pair.send(frame_of(_SIZE, 2))
    with about(what):
        await pair.back(frame_of(_SIZE, 2))
        await pair.tx.used(2)


@checks("VIO-NET-4", devices=("net",), echo=True, needs=(D.CSUM | D.GUEST_CSUM,))
async def flags_of_receiving_are_not_sent(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1 | D.CSUM | D.GUEST_CSUM)
    for flags in (DATA_VALID, RSC_INFO, 0xF8, NEEDS_CSUM | DATA_VALID):
        pair.post(2048)
        pair.send(frame_of(_SIZE), replace(_CSUM, flags=flags))
        [packet] = await pair.packets()  # whose checksum may be complete by now
        if packet.header.flags & ~NEEDS_CSUM:
            raise Violation(f"flags {flags:#x} were sent, {packet.header.flags:#x} came back")


@checks("VIO-NET-17", devices=("net",), echo=True, needs=(D.CSUM,))
async def what_the_driver_does_not_accept_is_not_delivered(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1 | _SENT)
    pair.post(2048, count=8)
    for header in (_CSUM, *([_TSO4] if probe.offer.virtio & D.HOST_TSO4 else [])):
        pair.send(frame_of(_SIZE, 1), header)
    pair.send(last := frame_of(_SIZE, 2))
    packets: list[Packet] = []

    def complete() -> bool:
        packets.extend(pair.poll())
        return any(packet.frame == last for packet in packets)

    if not await pair.driver.until(complete):
        raise Violation("a packet without offloads did not come back")
    for packet in packets:
        if packet.header.flags & NEEDS_CSUM or packet.header.gso_type:
            raise Violation(f"no offload was accepted, and a packet came with {packet.header}")


@checks("VIO-NET-19", devices=("net",), echo=True)
async def without_guest_csum_flags_are_zero(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1)
    for flags in (0, DATA_VALID, DATA_VALID | RSC_INFO, 0xFE):
        pair.post(2048)
        pair.send(frame_of(_SIZE), NetHeader(flags))
        [packet] = await pair.back(frame_of(_SIZE))
        if packet.header.flags:
            raise Violation(f"GUEST_CSUM is not accepted, and a packet came with flags {packet.header.flags:#x}")


# ---- frames ----------------------------------------------------------------------------------------------------------


@checks("VIO-NET-5", devices=("net",), echo=True)
@each_layout
async def header_and_frame_may_be_split_in_any_way(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | D.VERSION_1)
    for sizes in ((12,), (1,) * 30, (5, 20, 1), (11, 2), (13,)):
        pair.post(*sizes, 2048)
        with about(f"buffers of {', '.join(map(str, sizes))} bytes, and the rest"):
            pair.send(frame_of(300, len(sizes)), sizes=sizes)
            await pair.back(frame_of(300, len(sizes)))


@checks("VIO-NET-6", devices=("net",), echo=True)
async def frames_of_usual_sizes_are_sent(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1)
    for right, wrong in ((14, 13), (15, 1), (1514, 0), (_LONGEST, _LONGEST + 1), (_LONGEST - 1, _ROOM - 12)):
        pair.post(_ROOM, count=2)
        pair.send(frame_of(wrong, 1))
        pair.send(frame_of(right, 2))
        with about(f"a frame of {wrong} bytes, then one of {right}"):
            await pair.back(frame_of(right, 2))
            await pair.tx.used(2)


@checks("VIO-NET-8", "VIO-PORT-1", devices=("net",), echo=True)
@each_layout
async def what_has_no_room_waits(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | D.VERSION_1, size=512)
    heads = [frame_of(100, number) for number in range(_MANY)]
    rest = (pair.driver.memory.alloc(_HEAVY), _HEAVY)  # in each of the frames
    for head in heads:
        pair.lay(head, rest=[rest])
    pair.tx.kick()
    await pair.nothing("a packet without a buffer")
    pair.post(12 + 100 + _HEAVY, count=_MANY)
    await pair.back(*(head + bytes(_HEAVY) for head in heads))


@checks("VIO-PORT-1", devices=("net",), echo=True, needs=(D.MQ, P.MQ))
async def packets_come_back_on_their_pair(probe: Probe) -> None:
    first = await Pair.start(probe, D.VERSION_1 | D.MQ)
    if await first.driver.connection.value(R.GET_QUEUE_NUM) < 2:
        raise NotApplicable("there is one queue pair")
    second = await first.another(1)
    for pair, other in ((second, first), (first, second)):
        for each in (first, second):
            each.post(2048, count=4)
        frames = [frame_of(100, number) for number in range(4)]
        for frame in frames:
            pair.send(frame)
        await pair.back(*frames)
        await other.nothing("a packet of the other queue pair")


@checks("VIO-NET-18", devices=("net",), echo=True, needs=(P.RARP,))
async def a_guest_is_announced(probe: Probe) -> None:
    pair = await Pair.start(probe, D.VERSION_1, protocol=P.RARP | P.REPLY_ACK | P.MQ)
    mac = bytes.fromhex("525400766809")
    pair.post(2048, count=2)
    await pair.driver.connection.accepted(R.SEND_RARP, mac + bytes(2))
    [packet] = await pair.packets()
    expected = b"\xff" * 6 + mac + bytes.fromhex("8035 0001 0800 06 04 0003") + (mac + bytes(4)) * 2
    if packet.frame[: len(expected)] != expected:
        raise Violation(f"a reverse ARP request of {mac.hex(':')} is due, came {packet.frame.hex()}")
    await pair.nothing("a second announcement")


@checks("VIO-MQ-3", devices=("net",), needs=(P.MQ,))
async def several_pairs_and_no_control_queue(probe: Probe) -> None:
    pairs = await (await probe.negotiated()).value(R.GET_QUEUE_NUM)
    if pairs > 1 and not probe.offer.virtio & D.MQ:
        raise Violation(f"GET_QUEUE_NUM: {pairs}, and MQ is not offered")
    if probe.offer.virtio & D.CTRL_VQ:
        raise Violation("CTRL_VQ is offered, whose queue the front-end keeps")

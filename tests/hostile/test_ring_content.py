"""Rows V of the hostile inputs: what a guest can write into its rings, buffers and packet headers.

What it can write there while the device reads is the matter of ``test_ring_changes``.

The verdicts, which the ``VIO-`` statements hold:

* D: the chain is given back with length 0 and counted, and its ring goes on.
* B: the ring breaks: its err descriptor is signalled, it stands still, the other ring goes on; it can be started again.
* fine: odd, but right.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from tests.hostile.raw import OFFLOADS, RX, SIZE, TX, Raw, RawSession, good, memory, put_packet, raw_session
from tests.hostile.victim import DEADLINE, Victim, frame_of
from tests.virtio.bench import INDIRECT, NEXT, WRITE, put_table, signals
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetHeader
from vhostuser.frontend.split import Used

__all__ = ["memory"]

NOWHERE = 0xDEAD_0000_0000
END = 1 << 64
NAMES = {RX: "rx", TX: "tx"}


# ---- verdict B -------------------------------------------------------------------------------------------------------

Attack = Callable[[RawSession, int], None]
BREAKING: dict[str, Attack] = {}


def on_both_rings(name: str) -> pytest.MarkDecorator:
    """The case of that name, on the receive ring and on the transmit ring."""
    return pytest.mark.parametrize("ring", [pytest.param(ring, id=f"{name}-{NAMES[ring]}") for ring in (RX, TX)])


def breaking(name: str) -> Callable[[Attack], Attack]:
    def register(attack: Attack) -> Attack:
        BREAKING[name] = attack
        return attack

    return register


def add_ahead(name: str, ahead: int) -> None:
    @breaking(name)
    def attack(session: RawSession, ring: int) -> None:
        session.rings[ring].avail_idx += ahead
        session.rings[ring].kick(force=True)


add_ahead("V1-avail-idx-num-plus-1-ahead", SIZE + 1)
add_ahead("V1-avail-idx-32768-ahead", 0x8000)
add_ahead("V1-avail-idx-one-behind", 0xFFFF)


def add_head(name: str, head: int) -> None:
    @breaking(name)
    def attack(session: RawSession, ring: int) -> None:
        session.attack(ring, (*good(ring), 0), head=head)


add_head("V2-head-num", SIZE)
add_head("V2-head-65535", 0xFFFF)


def add_chain(name: str, *links: int) -> None:
    """A chain of good buffers that are linked so."""

    @breaking(name)
    def attack(session: RawSession, ring: int) -> None:
        address, length, flags = good(ring)
        session.attack(ring, *((address, length, flags | NEXT, following) for following in links))


add_chain("V2-next-num", SIZE)
add_chain("V2-next-65535", 0xFFFF)
add_chain("V2-cycle-of-one", 0)
add_chain("V2-cycle-of-three", 1, 2, 0)
add_chain("V2-cycle-behind-the-head", 1, 2, 1)
add_chain("V2-chain-longer-than-num", *range(1, SIZE), 0)


def add_indirect(name: str, length: int, flags: int = 0, address: int = 0x9000) -> None:
    @breaking(name)
    def attack(session: RawSession, ring: int) -> None:
        put_table(session.memory, [(*good(ring), 0)], 0x9000)
        session.attack(ring, (address, length, INDIRECT | flags, 1), (*good(ring), 0))


add_indirect("V3-indirect-len-0", 0)
add_indirect("V3-indirect-len-15", 15)
add_indirect("V3-indirect-len-17", 17)
add_indirect("V3-indirect-with-NEXT", 16, NEXT)
add_indirect("V3-indirect-2^28-entries", 0xFFFFFFF0)
add_indirect("V3-indirect-32769-entries", 16 * 32769)
add_indirect("V3-indirect-table-unmapped", 16, address=NOWHERE)
add_indirect("V3-indirect-table-end-unmapped", 32, address=17 * MIB - 8)
add_indirect("V3-indirect-table-wraps", 32, address=END - 16)


def add_table(name: str, links: list[tuple[int, int]]) -> None:
    """An indirect table of good buffers with these additional flags and `next` fields."""

    @breaking(name)
    def attack(session: RawSession, ring: int) -> None:
        address, length, flags = good(ring)
        table = put_table(session.memory, [(address, length, flags | more, link) for more, link in links])
        session.attack(ring, (*table, INDIRECT, 0))


add_table("V3-nested-indirect", [(NEXT, 1), (INDIRECT, 0)])
add_table("V3-nested-indirect-at-once", [(INDIRECT, 0)])
add_table("V3-indirect-next-beyond-table", [(NEXT, 2), (0, 0)])
add_table("V3-indirect-next-65535", [(NEXT, 0xFFFF), (0, 0)])
add_table("V3-indirect-cycle", [(NEXT, 1), (NEXT, 0)])


@pytest.mark.proves("VIO-RING-8", "VIO-RING-9", "VIO-RING-10", "VIO-RING-15")
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("name", BREAKING)
async def test_what_breaks_a_ring(name: str, ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        BREAKING[name](session, ring)
        await broken(session, ring)


async def broken(session: RawSession, ring: int) -> None:
    """The verdict B, and that a start heals it."""
    await session.until_broken(ring)
    used = session.rings[ring].used_idx
    await session.goes_on(1 - ring, 1)
    session.rings[ring].avail_idx = used
    session.put(ring, (*good(ring), 0))
    await session.goes_on(1 - ring, 2)
    assert session.rings[ring].used_idx == used
    assert session.victim.port.flush() == 0
    assert [signals(driver.err_fd.fileno()) for driver in session.rings] == [0, 0]  # told once, and of one ring
    await session.restart(ring)
    await session.goes_on(ring, 3)


@pytest.mark.proves("VIO-RING-8")
@on_both_rings("V3-indirect-not-negotiated")
async def test_indirect_without_its_feature(ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory, DRIVER_FEATURES & ~DriverFeature.INDIRECT_DESC) as session:
        BREAKING["V3-indirect-len-0"](session, ring)
        await session.until_broken(ring)
        await session.restart(ring)
        table = put_table(memory, [(*good(ring), 0)])
        session.attack(ring, (*table, INDIRECT, 0))
        await session.until_broken(ring)


# ---- verdict D -------------------------------------------------------------------------------------------------------

WRITABLE_FIRST: list[Raw] = [(0x8000, 64, WRITE | NEXT, 1), (0x9000, 64, 0, 0)]
READABLE_FIRST: list[Raw] = [(0x8000, 64, NEXT, 1), (0x9000, 2048, WRITE, 0)]


def like(ring: int, *chain: Raw) -> list[Raw]:
    """The chain with the ring's own direction in every descriptor."""
    return [(address, length, flags | good(ring)[2], following) for address, length, flags, following in chain]


DROPPED: dict[str, Callable[[int], list[Raw]]] = {
    "V4-len-0": lambda ring: like(ring, (0x8000, 0, 0, 0)),
    "V4-len-0-behind-a-good-one": lambda ring: like(ring, (0x8000, 2048, NEXT, 1), (0x9000, 0, 0, 0)),
    "V4-len-0-before-a-good-one": lambda ring: like(ring, (0x8000, 0, NEXT, 1), (0x9000, 2048, 0, 0)),
    "V4-len-ffffffff": lambda ring: like(ring, (0x8000, 0xFFFFFFFF, 0, 0)),
    "V4-len-ffffffff-behind-a-good-one": lambda ring: like(ring, (0x8000, 2048, NEXT, 1), (0x9000, 0xFFFFFFFF, 0, 0)),
    "V4-addr-plus-len-wraps": lambda ring: like(ring, (END - 16, 2048, 0, 0)),
    "V4-addr-at-the-end": lambda ring: like(ring, (END - 1, 1, 0, 0)),
    "V4-unmapped": lambda ring: like(ring, (NOWHERE, 2048, 0, 0)),
    "V4-unmapped-behind-a-good-one": lambda ring: like(ring, (0x8000, 2048, NEXT, 1), (NOWHERE, 64, 0, 0)),
    "V4-last-byte-unmapped": lambda ring: like(ring, (17 * MIB - 2047, 2048, 0, 0)),
    "V4-into-the-hole": lambda ring: like(ring, (17 * MIB - 64, 2048, 0, 0)),
    "V5-all-of-the-other-direction": lambda ring: [(0x8000, 2048, good(1 - ring)[2], 0)],
    "V5-writable-before-readable": lambda ring: WRITABLE_FIRST,
    "V5-readable-before-writable": lambda ring: READABLE_FIRST,
}


async def dropped(session: RawSession, ring: int) -> None:
    """The verdict D on the ring's first chain."""
    if ring == RX:
        await session.victim.port.send(frame_of(7))
    await session.until_used(ring, 1)
    assert session.rings[ring].used(0) == Used(0, 0)
    if ring == RX:  # the packet waited for the next chain
        buffer = session.memory.alloc(2048, 1)
        session.put(RX, (buffer, 2048, WRITE, 0))
        await session.until_used(RX, 2)
        assert session.memory.read(buffer + 12, len(frame_of(7))) == frame_of(7)
    await session.goes_on(ring, 5)
    await session.goes_on(1 - ring, 6)
    assert session.counter(f"{NAMES[ring]}_dropped") == 1
    assert session.victim.port.flush() == 0


@pytest.mark.proves("VIO-RING-5", "VIO-NET-15")
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("name", DROPPED)
async def test_what_drops_a_chain(name: str, ring: int, indirect: bool, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        chain = DROPPED[name](ring)
        if indirect:
            chain = [(*put_table(memory, chain), INDIRECT, 0)]
        session.attack(ring, *chain)
        await dropped(session, ring)


@pytest.mark.proves("VIO-RING-6")
@on_both_rings("V4-sum-over-2^32")
async def test_a_chain_of_more_than_four_gibibytes(ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        chain = [(0, 16 * MIB, good(ring)[2] | NEXT, i + 1) for i in range(256)]
        session.attack(ring, (*put_table(memory, [*chain, (0x8000, 16, good(ring)[2], 0)]), INDIRECT, 0))
        await dropped(session, ring)


@pytest.mark.proves("VIO-RING-7")
@on_both_rings("V4-1001-pieces")
async def test_a_chain_of_more_pieces_than_a_system_call_takes(ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        chain = [(0x8000 + i, 1, good(ring)[2] | NEXT, i + 1) for i in range(1000)]
        session.attack(ring, (*put_table(memory, [*chain, (0x8000, 1, good(ring)[2], 0)]), INDIRECT, 0))
        await dropped(session, ring)


@pytest.mark.proves("VIO-NET-6")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="V6-one-byte"),
        pytest.param(11, id="V6-a-byte-shorter-than-the-header"),
        pytest.param(12, id="V6-the-header-alone"),
        pytest.param(12 + 13, id="V6-a-byte-shorter-than-an-ethernet-header"),
        pytest.param(12 + 65535 + 18 + 1, id="V6-a-byte-longer-than-the-longest-frame"),
        pytest.param(16 * MIB, id="V6-16-MiB"),
    ],
)
async def test_packets_of_impossible_sizes(size: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory, region=1) as session:
        session.attack(TX, (0, size, 0, 0))
        await dropped(session, TX)


@pytest.mark.proves("VIO-NET-15")
@pytest.mark.parametrize("size", [pytest.param(1, id="V7-one-byte"), pytest.param(11, id="V7-a-byte-too-short")])
async def test_receive_buffers_shorter_than_the_header(size: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        session.attack(RX, (0x8000, size, WRITE, 0))
        await dropped(session, RX)


HEADERS = {
    "V8-csum_start-beyond": NetHeader(flags=1, csum_start=500, csum_offset=16),
    "V8-csum_start-65535": NetHeader(flags=1, csum_start=0xFFFF, csum_offset=0xFFFF),
    "V8-csum_offset-beyond": NetHeader(flags=1, csum_start=34, csum_offset=0xFFFF),
    "V8-csum-one-byte-beyond": NetHeader(flags=1, csum_start=len(frame_of(0)) - 17, csum_offset=16),
    "V8-gso_size-0": NetHeader(1, 1, 54, 0, 34, 16),
    "V8-hdr_len-beyond": NetHeader(1, 1, 501, 1448, 34, 16),
    "V8-hdr_len-65535-without-gso": NetHeader(hdr_len=0xFFFF),
    "V8-gso-UFO-not-negotiated": NetHeader(1, 3, 42, 1480, 34, 6),
    "V8-gso-USO-not-negotiated": NetHeader(1, 5, 42, 1480, 34, 6),
    "V8-gso-type-2": NetHeader(1, 2, 54, 1448, 34, 16),
    "V8-gso-type-7f": NetHeader(1, 0x7F, 54, 1448, 34, 16),
    "V8-ECN-alone": NetHeader(1, 0x80, 54, 1448, 34, 16),
    "V8-ECN-not-negotiated": NetHeader(1, 0x81, 54, 1448, 34, 16),
}


@pytest.mark.proves("VIO-NET-3")
@pytest.mark.parametrize("name", HEADERS)
async def test_packet_headers_that_lie(name: str, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory, OFFLOADS) as session:
        session.attack(TX, (*put_packet(session, HEADERS[name]), 0, 0))
        await dropped(session, TX)


@pytest.mark.proves("VIO-NET-3")
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(NetHeader(flags=1, csum_start=34, csum_offset=16), id="V8-checksum-not-negotiated"),
        pytest.param(NetHeader(gso_type=1, gso_size=1448), id="V8-TSO4-not-negotiated"),
        pytest.param(NetHeader(gso_type=4, gso_size=1448), id="V8-TSO6-not-negotiated"),
    ],
)
async def test_offloads_that_were_not_negotiated(header: NetHeader, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        session.attack(TX, (*put_packet(session, header), 0, 0))
        await dropped(session, TX)


# ---- fine ------------------------------------------------------------------------------------------------------------


async def sent(session: RawSession, *chain: Raw) -> None:
    """The chain is transmitted as the frame 9 behind a header of zeros."""
    session.attack(TX, *chain)
    with trio.fail_after(DEADLINE):
        assert await session.victim.port.receive_packet() == bytes(12) + frame_of(9)
    await session.until_used(TX, 1)
    await session.goes_on(TX, 5)
    await session.goes_on(RX, 6)


def pieces(session: RawSession, count: int, size: int = 1) -> list[Raw]:
    """Packet 9 as so many descriptors of `size` bytes, and one with the rest."""
    address, length = session.packet(9)
    chain = [(address + i * size, size, NEXT, i + 1) for i in range(count)]
    return [*chain, (address + count * size, length - count * size, 0, 0)]


@pytest.mark.proves("VIO-NET-5")
async def test_v6_header_in_12_descriptors(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await sent(session, *pieces(session, 12))


@pytest.mark.proves("VIO-RING-16")
async def test_v2_indirect_chain_longer_than_num(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await sent(session, (*put_table(memory, pieces(session, 4 * SIZE)), INDIRECT, 0))


@pytest.mark.proves("VIO-RING-3")
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(16, id="V3-indirect-table-crosses-regions-between-entries"),
        pytest.param(8, id="V3-indirect-table-crosses-regions-inside-an-entry"),
    ],
)
async def test_an_indirect_table_across_regions(before: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        table = put_table(memory, pieces(session, 3), 16 * MIB - before)
        await sent(session, (*table, INDIRECT, 0))


@pytest.mark.proves("VIO-MEM-1")
async def test_v4_buffer_crosses_regions(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        packet = bytes(12) + frame_of(9)
        memory.write(16 * MIB - 20, packet[:20])
        memory.write(16 * MIB, packet[20:])
        await sent(session, (16 * MIB - 20, len(packet), 0, 0))


@pytest.mark.proves("VIO-NET-12")
async def test_v7_too_few_buffers(victim: Victim, memory: GuestRam) -> None:
    """The packet waits, and the ring's other business goes on."""
    async with raw_session(victim, memory) as session:
        frame = bytes(range(250)) * 4
        buffers = [memory.alloc(512, 1) for _ in range(2)]
        session.put(RX, (buffers[0], 512, WRITE, 0), at=0)
        await victim.port.send(frame)
        await session.transmits(1)
        await session.transmits(2)
        assert session.rx.used_idx == 0
        session.put(RX, (buffers[1], 512, WRITE, 0), at=1)
        await session.until_used(RX, 2)
        got = b"".join(memory.read(buffers[i], session.rx.used(i).written) for i in range(2))
        assert (NetHeader.parse(got[:12]).num_buffers, got[12:]) == (2, frame)
        await session.receives(3)


@pytest.mark.proves("VIO-NET-13")
async def test_v7_a_full_ring_is_too_small(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        for _ in range(SIZE):
            session.rx.add(writable=[(memory.alloc(64, 1), 64)])
        session.rx.kick(force=True)
        await victim.port.send(bytes(64 * SIZE))
        await victim.port.send(frame_of(0)[:52])
        await session.until_used(RX, -(-(12 + 52) // 64))
        assert session.counter("rx_dropped") == 1

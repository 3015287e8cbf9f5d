"""Rows V9, V10 and V12 of the hostile inputs: memory that changes while the device reads it, and rings that overlap.

There is no verdict on most of these: what comes of it is the guest's affair. The process is unharmed, the control side
answers, and the ring can be started again.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import trio

from tests.hostile.raw import OFFLOADS, RX, SIZE, TX, RawSession, good, memory, put_packet, raw_session
from tests.hostile.victim import DEADLINE, Victim, frame_of
from tests.ports import MAX_PACKET
from tests.virtio.bench import INDIRECT, NEXT, WRITE, put_table, signals
from vhostuser import edition
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.frontend.split import Used
from vhostuser.wire.requests import FrontendRequest

__all__ = ["memory"]


# ---- V10: event indices and the used ring ----------------------------------------------------------------------------


@pytest.mark.proves("VIO-RING-12")
async def test_v10_event_indices_that_mean_nothing(victim: Victim, memory: GuestRam) -> None:
    """They cost the driver its own calls and nobody anything else."""
    async with raw_session(victim, memory) as session:
        for value in (*range(0, 0x10000, 0x1111), 0xFFFF, 0x7FFF, 0x8000):
            for driver in session.rings:
                driver.used_event = driver.avail_event = value
                driver.avail_flags = driver.used_flags = 0xFFFF
            session.put(TX, (*session.packet(1), 0, 0))
            with trio.fail_after(DEADLINE):
                assert await victim.port.receive() == frame_of(1)
        with trio.fail_after(DEADLINE):
            while session.tx.used_idx != session.tx.avail_idx:  # it is told after the frame has left
                await trio.lowlevel.checkpoint()


@pytest.mark.proves("VIO-RING-12")
async def test_v10_used_ring_overwritten(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        call = session.tx.call_fd.fileno()
        signals(call)
        for i in range(3 * SIZE):
            for driver in session.rings:
                driver.memory.write(driver.used_addr, b"\xff" * (6 + 8 * SIZE))
            session.tx.used_event = i
            session.put(TX, (*session.packet(1), 0, 0))
            with trio.fail_after(DEADLINE):
                assert await victim.port.receive() == frame_of(1)
                await trio.lowlevel.wait_readable(call)
            assert signals(call) == 1
            assert session.tx.used_idx == i + 1
            assert session.tx.used(i) == Used(8, 0)


# ---- V12: rings and buffers that lie over each other -----------------------------------------------------------------

PARTS = ("desc_addr", "avail_addr", "used_addr")


@pytest.mark.proves("VIO-RING-17")
@pytest.mark.parametrize("whose", [RX, TX], ids=["of-rx", "of-tx"])
@pytest.mark.parametrize("part", PARTS)
async def test_v12_transmit_buffer_in_a_ring(part: str, whose: int, victim: Victim, memory: GuestRam) -> None:
    """The host gets what stands there."""
    async with raw_session(victim, memory) as session:
        memory.write(0x8000, bytes(12))
        address = getattr(session.rings[whose], part)
        session.attack(TX, (0x8000, 12, NEXT, 1), (address, 64, 0, 0))
        with trio.fail_after(DEADLINE):
            assert len(await victim.port.receive()) == 64
        await session.until_used(TX, 1)
        await session.goes_on(TX, 1)
        await session.goes_on(RX, 2)


@pytest.mark.proves("VIO-RING-17")
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x41])
@pytest.mark.parametrize("whose", [RX, TX], ids=["of-rx", "of-tx"])
@pytest.mark.parametrize("part", PARTS)
async def test_v12_receive_buffer_in_a_ring(part: str, whose: int, fill: int, victim: Victim, memory: GuestRam) -> None:
    """A host's packet is what the rings say now, whatever comes of it."""
    async with raw_session(victim, memory) as session:
        address = getattr(session.rings[whose], part)
        for i in range(SIZE // 2):
            session.put(RX, (address - 12 if i % 2 else address, 76, WRITE, 0), at=i)
        for _ in range(SIZE // 2):
            await victim.port.send(bytes([fill]) * 64)
        for driver in session.rings:
            driver.kick(force=True)
        for driver in session.rings:  # answered, whatever state they are in
            with trio.fail_after(DEADLINE):
                await session.front_end.stop_ring(driver)
        for ring in (RX, TX):
            session.rings[ring].reset()
            await session.front_end.start_ring(session.rings[ring])
        victim.port.flush()
        await session.goes_on(TX, 1)


@pytest.mark.proves("VIO-RING-17")
@pytest.mark.parametrize("shared", [("desc_addr",), ("avail_addr",), ("used_addr",), PARTS], ids="+".join)
async def test_v12_rings_share_memory(shared: tuple[str, ...], victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        for driver in session.rings:
            await session.front_end.stop_ring(driver)
        apart = {part: getattr(session.tx, part) for part in PARTS}
        for part in shared:
            setattr(session.tx, part, getattr(session.rx, part))
        for driver in session.rings:
            driver.reset()
            await session.front_end.start_ring(driver)
        for i in range(SIZE):
            await victim.port.send(frame_of(i))
            session.put(RX, (0x8000, 2048, WRITE, 0), at=i % 8)
            session.put(TX, (*session.packet(i), 0, 0), at=8 + i % 8)
        for driver in session.rings:
            with trio.fail_after(DEADLINE):
                await session.front_end.stop_ring(driver)
        for part, address in apart.items():
            setattr(session.tx, part, address)
        for driver in session.rings:
            driver.reset()
            await session.front_end.start_ring(driver)
        victim.port.flush()
        await session.goes_on(TX, 1)


# ---- V9: fields that change while they are read ----------------------------------------------------------------------

ROUNDS = 150 if edition.compiled() else 50  # an interpreter is interrupted between any two accesses
WILD = (0, 1, 12, 15, 16, SIZE, 0x7FFF, 0x8000, 0xFFFF)


@contextmanager
def flipping(flip: Callable[[random.Random], None]) -> Iterator[None]:
    """A second processor of the guest: writes the field again and again while the block runs."""
    stop = threading.Event()
    chance = random.Random(9)

    def run() -> None:
        while not stop.is_set():
            flip(chance)

    thread = threading.Thread(target=run, name="flipper")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def half(session: RawSession, address: int, *values: int) -> Callable[[random.Random], None]:
    """Write one of the values, or a wild one, to a 16-bit field."""
    return lambda chance: session.memory.store_u16(address, chance.choice((*values, *values, *values, *WILD)))


def flips(session: RawSession, field: str, ring: int, table: int) -> Callable[[random.Random], None]:
    """What changes `field` of the ring, of descriptor 0, or of the first entry of the table."""
    driver = session.rings[ring]
    descriptor = table if field.startswith("table-") else driver.desc_addr
    flags = int(good(ring)[2]) | int(INDIRECT if descriptor != table else 0)
    match field.removeprefix("table-"):
        case "addr-low":
            return half(session, descriptor, table if descriptor != table else 0x8000)
        case "addr-high":
            return half(session, descriptor + 6, 0)
        case "len":
            return half(session, descriptor + 8, 16, 32, 72, 2048)
        case "len-high":
            return half(session, descriptor + 10, 0)
        case "flags":
            return half(session, descriptor + 12, flags, *range(8))
        case "next":
            return half(session, descriptor + 14, 0, 1, 2)
        case "avail-idx":
            # the honest driver of the main thread counts on; this one jumps to and fro
            return lambda chance: setattr(driver, "avail_idx", driver.used_idx + chance.randint(-2, SIZE + 1))
        case "avail-ring":
            return lambda chance: driver.set_avail(chance.randrange(SIZE), chance.choice((0, 0, 0, 1, SIZE, 0xFFFF)))
        case "used":
            return lambda chance: driver.set_used(chance.randrange(SIZE), Used(chance.getrandbits(32), 0))
        case "used_event":
            return lambda chance: setattr(driver, "used_event", chance.getrandbits(16))
    raise ValueError(field)


FIELDS = [
    *("addr-low", "addr-high", "len", "len-high", "flags", "next"),
    *(f"table-{field}" for field in ("addr-low", "addr-high", "len", "len-high", "flags", "next")),
    *("avail-idx", "avail-ring", "used", "used_event"),
]


@pytest.mark.proves("VIO-RING-14")
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("field", [pytest.param(field, id=f"V9-flip-{field}") for field in FIELDS])
async def test_fields_that_change(field: str, ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        driver = session.rings[ring]
        address, length, flags = good(ring)
        table, size = put_table(memory, [(address, length, flags | NEXT, 1), (address, length, flags, 0)])
        with flipping(flips(session, field, ring, table)):
            for _ in range(ROUNDS):
                session.attack(ring, (table, size, INDIRECT, 0), (address, length, flags, 0))
                if ring == RX:
                    offer_packet(victim)
                await session.front_end.request(FrontendRequest.GET_FEATURES)
                for packet in packets(victim):
                    assert 12 + 14 <= len(packet) <= 12 + 65535 + 18
                if signals(driver.err_fd.fileno()):
                    await session.restart(ring)
        await session.restart(ring)
        victim.port.flush()
        await session.goes_on(TX, 1)


@pytest.mark.proves("VIO-NET-3", "VIO-RING-14")
async def test_v9_packet_headers_that_change(victim: Victim, memory: GuestRam) -> None:
    """The host sees no header that would not pass."""
    async with raw_session(victim, memory, OFFLOADS) as session:
        buffer, length = put_packet(session, NetHeader(1, 1, 54, 1448, 34, 16))
        seen: list[NetHeader] = []

        def flip(chance: random.Random) -> None:
            memory.store_u16(buffer, chance.choice((0, 0x0101, 0x8101, 0x0301, 0xFFFF)))
            memory.store_u16(buffer + 4, chance.choice((0, 1448)))
            memory.store_u16(buffer + 6, chance.choice((34, 0xFFFF)))
            memory.store_u16(buffer + 8, chance.choice((16, 0xFFFF)))

        rounds = 0
        # the two threads decide how often a header changes, so it goes on until both verdicts came up
        with flipping(flip), trio.fail_after(DEADLINE):
            while rounds < 10 * ROUNDS or not seen or not session.counter("tx_dropped"):
                session.attack(TX, (buffer, length, 0, 0))
                await session.until_used(TX, session.tx.avail_idx)
                seen += [NetHeader.parse(packet[:12]) for packet in packets(victim)]
                rounds += 1
        for header in seen:
            assert header.flags in (0, 1)
            assert header.gso_type in (0, 1)
            assert not header.gso_type or header.gso_size
            assert not header.flags or (header.csum_start, header.csum_offset) == (34, 16)
        assert len(seen) + session.counter("tx_dropped") == rounds
        await session.goes_on(RX, 2)


def offer_packet(victim: Victim) -> None:
    """Send a frame to the guest unless the port is full."""
    with suppress(BlockingIOError):
        os.write(victim.port.host.fileno(), bytes(12) + frame_of(0))


def packets(victim: Victim) -> Iterator[bytes]:
    """What the host has received by now."""
    with suppress(BlockingIOError):
        while True:
            yield os.read(victim.port.host.fileno(), MAX_PACKET)

"""Rows V of the hostile inputs for packed rings: what a guest can write into the slots and event words.

The verdicts are those of ``test_ring_content``; what is in packets and buffers is no matter of the layout.
"""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any, cast

import pytest
import trio

from tests.hostile.raw import LAYOUT, OFFLOADS, RX, SIZE, TX, Session, memory
from tests.hostile.test_ring_content import HEADERS
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of
from tests.virtio.bench import signals
from tests.virtio.packed import AVAIL, DESC, INDIRECT, NEXT, USED, WRITE, PackedDriver, Slot
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.split import full_fence
from vhostuser.virtio.features import VirtioFeature

__all__ = ["memory"]

NOWHERE = 0xDEAD_0000_0000
END = 1 << 64
FEATURES = DRIVER_FEATURES | VirtioFeature.RING_PACKED
on_both_rings = pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])


def good(ring: int) -> tuple[int, int, int]:
    """A buffer that the ring's device can use, and its flags."""
    return 0x8000, 2048, WRITE if ring == RX else 0


class PackedSession(Session[PackedDriver]):
    """A front-end whose two packed rings run and are empty."""

    def attack(self, ring: int, *chain: tuple[int, int, int], name: int = 0) -> None:
        """Make raw descriptors available, and kick."""
        self.rings[ring].offer(*chain, name=name)
        self.rings[ring].kick(force=True)

    async def until_used(self, ring: int, number: int) -> None:
        """Wait until so many chains were used since the last reset."""
        driver = self.rings[ring]
        with trio.fail_after(DEADLINE):
            while driver.used_idx < number:
                driver.used_event = number - 1
                full_fence()
                if driver.used_idx < number:
                    await trio.lowlevel.wait_readable(driver.call_fd.fileno())
                    signals(driver.call_fd.fileno())

    async def goes_on(self, ring: int, number: int) -> None:
        """Prove that a ring runs: the frame of that number goes through it."""
        frame, driver = frame_of(number), self.rings[ring]
        buffer = self.memory.alloc(2048, 1)
        with trio.fail_after(DEADLINE):
            if ring == TX:
                self.memory.write(buffer, bytes(12) + frame)
                self.attack(TX, (buffer, 12 + len(frame), 0))
                assert await self.victim.port.receive() == frame
            else:
                self.attack(RX, (buffer, 2048, WRITE))
                await self.victim.port.send(frame)
            await self.until_used(ring, driver.avail_idx)
        if ring == RX:
            assert self.memory.read(buffer + 12, len(frame)) == frame


@asynccontextmanager
async def packed_session(victim: Victim, memory: GuestRam, features: int = FEATURES) -> AsyncIterator[PackedSession]:
    """Negotiate, tell the memory, and start two empty rings."""
    async with await victim.connect() as front_end:
        with trio.fail_after(DEADLINE):
            await front_end.negotiate(features)
            await front_end.set_mem_table(memory)
        assert front_end.features & VirtioFeature.RING_PACKED
        event_idx = bool(front_end.features & VirtioFeature.RING_EVENT_IDX)
        with (
            closing(PackedDriver(memory, RX, SIZE, event_idx=event_idx)) as rx,
            closing(PackedDriver(memory, TX, SIZE, event_idx=event_idx)) as tx,
        ):
            with trio.fail_after(DEADLINE):
                for ring in (rx, tx):
                    await front_end.start_ring(cast(Any, ring))
            victim.port.flush()
            yield PackedSession(victim, front_end, memory, (rx, tx))


# ---- verdict B -------------------------------------------------------------------------------------------------------

Raw = tuple[int, int, int]
BREAKING: dict[str, Callable[[int], list[Raw]]] = {
    "V2-chain-all-around": lambda ring: [(*good(ring)[:2], good(ring)[2] | NEXT)] * SIZE,
    "V3-indirect-len-0": lambda ring: [(0x9000, 0, INDIRECT)],
    "V3-indirect-len-15": lambda ring: [(0x9000, 15, INDIRECT)],
    "V3-indirect-len-17": lambda ring: [(0x9000, 17, INDIRECT)],
    "V3-indirect-with-NEXT": lambda ring: [(0x9000, 16, INDIRECT | NEXT), good(ring)],
    "V3-indirect-behind-a-buffer": lambda ring: [(*good(ring)[:2], good(ring)[2] | NEXT), (0x9000, 16, INDIRECT)],
    "V3-indirect-nested": lambda ring: [(0xA000, 16, INDIRECT)],
    "V3-indirect-2^28-entries": lambda ring: [(0x9000, 0xFFFFFFF0, INDIRECT)],
    "V3-indirect-32769-entries": lambda ring: [(0x9000, 16 * 32769, INDIRECT)],
    "V3-indirect-table-unmapped": lambda ring: [(NOWHERE, 16, INDIRECT)],
    "V3-indirect-table-end-unmapped": lambda ring: [(17 * MIB - 8, 32, INDIRECT)],
    "V3-indirect-table-wraps": lambda ring: [(END - 16, 32, INDIRECT)],
}


@pytest.mark.proves("VIO-PACKED-5", "VIO-RING-15")
@on_both_rings
@pytest.mark.parametrize("name", BREAKING)
async def test_a_ring_breaks_and_the_other_one_goes_on(victim: Victim, memory: GuestRam, name: str, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        tables = session.rings[ring]
        tables.table([good(ring)], 0x9000)
        tables.table([(0x9000, 16, INDIRECT)], 0xA000)
        session.attack(ring, *BREAKING[name](ring))
        if ring == RX:
            await victim.port.send(frame_of(0))
        await session.until_broken(ring)
        await session.goes_on(1 - ring, 1)
        await session.restart(ring)
        victim.port.flush()
        if ring == TX:
            await session.goes_on(ring, 2)


# ---- verdict D -------------------------------------------------------------------------------------------------------

DROPPED: dict[str, Callable[[int], list[Raw]]] = {
    "V4-len-0": lambda ring: [(0x8000, 0, good(ring)[2])],
    "V4-len-0xffffffff": lambda ring: [(0x8000, 0xFFFFFFFF, good(ring)[2])],
    "V4-address-wraps": lambda ring: [(END - 16, 32, good(ring)[2])],
    "V4-unmapped": lambda ring: [(NOWHERE, 64, good(ring)[2])],
    "V4-unmapped-in-the-middle": lambda ring: [
        (*good(ring)[:2], good(ring)[2] | NEXT),
        (NOWHERE, 64, good(ring)[2] | NEXT),
        good(ring),
    ],
    "V5-wrong-direction": lambda ring: [(*good(ring)[:2], good(ring)[2] ^ WRITE)],
    "V5-writable-before-readable": lambda ring: [(0x8000, 64, WRITE | NEXT), (0x8000, 64, 0)],
}


@pytest.mark.proves("VIO-RING-5", "VIO-PACKED-2")
@on_both_rings
@pytest.mark.parametrize("name", DROPPED)
async def test_a_chain_is_given_back_unused(victim: Victim, memory: GuestRam, name: str, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        session.attack(ring, *DROPPED[name](ring), name=5)
        await session.goes_on(ring, 1)
        used = session.rings[ring].reap()
        assert used[0] == (5, 0)
        assert len(used) == 2
        assert victim.server.counters()[f"vring{ring}_chains_dropped"] == 1


PACKETS: dict[str, bytes | int] = {
    **{f"V6-{size}-bytes": size for size in (1, 11, 12, 12 + 13, 12 + 65535 + 18 + 1, 16 * MIB)},
    **{f"V8-packed-{name[3:]}": header.pack(12) + frame_of(0) for name, header in HEADERS.items()},
}
"""What is no packet: so many bytes of zero, or these."""


@pytest.mark.proves("VIO-NET-3", "VIO-NET-6")
@pytest.mark.parametrize("name", PACKETS)
async def test_what_is_no_packet(victim: Victim, memory: GuestRam, name: str) -> None:
    async with packed_session(victim, memory, OFFLOADS | VirtioFeature.RING_PACKED) as session:
        content = PACKETS[name]
        at, size = (0, content) if isinstance(content, int) else (0x8000, len(content))
        if isinstance(content, bytes):
            memory.write(at, content)
        session.attack(TX, (at, size, 0), name=5)
        await session.goes_on(TX, 1)
        assert session.rings[TX].reap()[0] == (5, 0)
        assert victim.server.counters()["tx_packets"] == 1


@pytest.mark.proves("VIO-NET-15")
@pytest.mark.parametrize("size", [pytest.param(1, id="V7-one-byte"), pytest.param(11, id="V7-a-byte-too-short")])
async def test_receive_buffers_shorter_than_the_header(victim: Victim, memory: GuestRam, size: int) -> None:
    async with packed_session(victim, memory) as session:
        session.attack(RX, (0x8000, size, WRITE), name=5)
        await session.goes_on(RX, 1)
        assert session.rings[RX].reap()[0] == (5, 0)


@pytest.mark.proves("VIO-PACKED-8")
async def test_v10_event_words_that_mean_nothing(victim: Victim, memory: GuestRam) -> None:
    """They cost the driver its own calls and nobody anything else; the device's own are not read back."""
    async with packed_session(victim, memory) as session:
        for number in range(3 * SIZE):
            place = number * 0x1111 & 0xFFFF
            for driver in session.rings:
                for address in (driver.avail_addr, driver.used_addr):
                    driver.set_event(address, number % 4, place)
            driver = session.rings[TX]
            frame = frame_of(number)
            memory.write(0x8000, bytes(12) + frame)
            session.attack(TX, (0x8000, 12 + len(frame), 0))
            with trio.fail_after(DEADLINE):
                assert await victim.port.receive() == frame
                while not driver.reap():
                    await trio.lowlevel.checkpoint()


# ---- V11: what only packed rings have --------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PACKED-4")
@on_both_rings
@pytest.mark.parametrize("name", [pytest.param(n, id=f"V11-id-{n}") for n in (SIZE, 0x7FFF, 0xFFFF)])
async def test_an_id_beyond_the_ring_comes_back(victim: Victim, memory: GuestRam, name: int, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        session.attack(ring, (0x8000, 0, good(ring)[2]), name=name)
        await session.goes_on(ring, 1)
        assert session.rings[ring].reap()[0] == (name, 0)


@pytest.mark.proves("VIO-PACKED-4")
async def test_v11_one_id_for_all_chains(victim: Victim, memory: GuestRam) -> None:
    async with packed_session(victim, memory) as session:
        for number in range(1, 2 * SIZE):
            await session.goes_on(TX, number)
            assert session.rings[TX].reap() == [(0, 0)]


@pytest.mark.proves("VIO-PACKED-3")
@on_both_rings
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(0, id="V11-neither-flag"),
        pytest.param(USED, id="V11-the-other-lap"),
        pytest.param(AVAIL | USED, id="V11-used-by-the-driver"),
    ],
)
async def test_flags_that_say_nothing_are_no_chain(victim: Victim, memory: GuestRam, flags: int, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        driver = session.rings[ring]
        driver.write(0, Slot(*good(ring)[:2], 0, flags | good(ring)[2]))
        driver.kick(force=True)
        await session.goes_on(1 - ring, 1)
        assert driver.read(0).flags == flags | good(ring)[2], "untouched"
        await session.goes_on(ring, 2)


@pytest.mark.proves("VIO-PACKED-8")
@on_both_rings
@pytest.mark.parametrize(
    "place", [pytest.param(n, id=f"V11-off_wrap-{n:#x}") for n in (SIZE, 0x7FFF, 0x8000 | SIZE, 0xFFFF)]
)
async def test_an_event_word_beyond_the_ring(victim: Victim, memory: GuestRam, place: int, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        driver = session.rings[ring]
        for number in range(SIZE + 2):
            driver.set_event(driver.avail_addr, DESC, place)
            driver.set_event(driver.used_addr, DESC, place)  # ours: it is not read back
            await session.goes_on(ring, number)
            driver.reap()


@pytest.mark.proves("VIO-PACKED-6")
async def test_v11_all_slots_available_for_ever(victim: Victim, memory: GuestRam) -> None:
    """A driver that makes every slot available again as soon as it was used: the other ring has its turns."""
    async with packed_session(victim, memory) as session:
        driver, done = session.rings[TX], threading.Event()

        def flood() -> None:
            for number in range(4000):
                place = driver.ahead(driver.next, number)
                driver.write(place.slot, Slot(0x8000, 0, 0, AVAIL if place.wrap else USED))
                driver.kick(force=number % 16 == 0)
            done.set()

        thread = threading.Thread(target=flood)
        thread.start()
        await session.goes_on(RX, 1)
        await trio.to_thread.run_sync(done.wait)
        thread.join()
        await session.restart(TX)
        await session.goes_on(TX, 2)


@pytest.mark.proves("VIO-RING-14")
@on_both_rings
async def test_v9_slots_that_change_while_they_are_read(victim: Victim, memory: GuestRam, ring: int) -> None:
    """Whatever comes of it, drops or a broken ring: the other ring goes on, and this one after a restart."""
    async with packed_session(victim, memory) as session:
        driver, dice = session.rings[ring], random.Random(9)
        flags = [0, NEXT, WRITE, INDIRECT, NEXT | WRITE, AVAIL, USED, AVAIL | NEXT, USED | NEXT, AVAIL | INDIRECT]

        def scribble() -> None:
            for _ in range(20_000):
                slot = dice.randrange(SIZE)
                address, length = dice.choice([0x8000, 0x9000, NOWHERE, END - 8]), dice.choice([0, 16, 64, 0xFFFFFFFF])
                driver.write(slot, Slot(address, length, dice.randrange(1 << 16), dice.choice(flags)))
            driver.kick(force=True)

        thread = threading.Thread(target=scribble)
        thread.start()
        for number in range(10):
            driver.kick(force=True)
            await session.goes_on(1 - ring, number)
            if ring == TX:
                victim.port.flush()
        await trio.to_thread.run_sync(thread.join)
        await session.restart(ring)
        victim.port.flush()
        await session.goes_on(TX, 11)


@pytest.mark.proves("VIO-RING-17")
@on_both_rings
async def test_v12_a_buffer_in_the_ring_itself(victim: Victim, memory: GuestRam, ring: int) -> None:
    async with packed_session(victim, memory) as session:
        driver = session.rings[ring]
        session.attack(ring, (driver.desc_addr, 16 * SIZE, good(ring)[2]))
        if ring == RX:
            await victim.port.send(frame_of(3))
        await session.goes_on(1 - ring, 1)
        await session.restart(ring)
        victim.port.flush()
        await session.goes_on(TX, 2)


@pytest.mark.parametrize("size", [3, 100, 256])
@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
async def test_the_front_ends_own_packed_rings(victim: Victim, size: int, in_order: bool) -> None:
    """Written apart from the device's side, and from the driver of these tests."""
    features = FEATURES | (VirtioFeature.IN_ORDER if in_order else 0)
    with GuestRam() as ram, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, ram, features=features, size=size)) as driver:
                assert isinstance(driver.tx, PackedDriverRing)
                victim.port.flush()
                for _ in range(4):
                    await exchange(victim, driver, 2 * size // 3)
                    for ring in (driver.rx, driver.tx):
                        assert await front_end.stop_ring(ring) == ring.base
                        await front_end.start_ring(ring)


@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
async def test_a_good_driver_of_packed_rings(victim: Victim, in_order: bool) -> None:
    """The attacks above are attacks on what works."""
    with GuestRam(LAYOUT) as ram:
        async with packed_session(victim, ram, FEATURES | (VirtioFeature.IN_ORDER if in_order else 0)) as session:
            for driver in session.rings:
                driver.in_order = in_order
            for number in range(3 * SIZE):
                for ring in (RX, TX):
                    await session.goes_on(ring, number)
                    assert len(session.rings[ring].reap()) == 1

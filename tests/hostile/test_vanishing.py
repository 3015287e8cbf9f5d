"""Guest memory that vanishes: the peer truncates its file while rings run. One ring breaks; nothing else happens.

The test has mapped the lost region as well, and nothing guards that: once it is truncated, only the device touches it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.devices.entropy import entropy
from tests.hostile.raw import RX, TX, RawSession, raw_session
from tests.hostile.victim import DEADLINE, Victim, frame_of, good_session
from tests.virtio.bench import INDIRECT, NEXT, WRITE, put_table, signals
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.split import DriverRing

LOST = 1  # the region that is truncated
LOST_ADDRESS = 1 << 32
PARTS = ("desc_addr", "avail_addr", "used_addr")


@pytest.fixture(params=["memfd", "hugetlb"])
def memory(request: pytest.FixtureRequest) -> Iterator[GuestRam]:
    huge = request.param == "hugetlb"
    if huge:
        request.getfixturevalue("hugepages")
    with GuestRam([(0, 4 * MIB), (LOST_ADDRESS, 4 * MIB)], seals=0, hugetlb=huge) as ram:
        yield ram


def truncate(memory: GuestRam) -> None:
    os.ftruncate(memory.regions[LOST].fd.fileno(), 0)


async def alone_broken(session: RawSession, ring: int) -> None:
    """That ring is broken, the other one goes on, and the control side answers."""
    await session.until_broken(ring)
    await session.goes_on(1 - ring, 3)
    assert signals(session.rings[1 - ring].err_fd.fileno()) == 0
    with trio.fail_after(DEADLINE):
        await session.front_end.stop_ring(session.rings[ring])


# ---- the ring itself -------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("parts", [PARTS, *((part,) for part in PARTS)], ids=["all-of-the-ring", *PARTS])
async def test_a_ring_that_vanishes(parts: tuple[str, ...], ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await session.move(ring, LOST, *parts)
        await session.goes_on(ring, 1)
        buffer = memory.alloc(2048, 1)
        address, length = session.packet(2)
        driver = session.rings[ring]
        truncate(memory)
        if "desc_addr" not in parts:
            chain = (buffer, 2048, WRITE, 0) if ring == RX else (address, length, 0, 0)
            put_table(memory, [chain], driver.desc_addr)
        if "avail_addr" not in parts:
            driver.set_avail(driver.avail_idx, 0)
            driver.avail_idx += 1
        if ring == RX:
            await victim.port.send(frame_of(2))
        os.eventfd_write(driver.kick_fd.fileno(), 1)
        await session.until_broken(ring)
        if ring == TX:
            victim.port.flush()  # sent before its use could not be told
            await session.receives(3)
        else:
            await session.transmits(3)
        with trio.fail_after(DEADLINE):
            await session.front_end.stop_ring(driver)


@pytest.mark.proves("VIO-MEM-4")
async def test_both_rings_vanish(victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        for ring in (RX, TX):
            await session.move(ring, LOST, *PARTS)
        for ring in (RX, TX):
            await session.goes_on(ring, 1)
        truncate(memory)
        # one page holds both: whoever comes first meets the loss, the other one finds indices of zero or the same
        for driver in session.rings:
            os.eventfd_write(driver.kick_fd.fileno(), 1)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for ring in (RX, TX):
                    nursery.start_soon(session.until_broken, ring)


# ---- what its chains point to ----------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("what", ["packet", "header", "frame", "second-part-of-the-header"])
async def test_a_transmit_buffer_that_vanishes(what: str, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await session.transmits(1)
        address, length = session.packet(2)
        chains = {
            "packet": [(LOST_ADDRESS, 512, 0, 0)],
            "header": [(LOST_ADDRESS, 12, NEXT, 1), (address + 12, length - 12, 0, 0)],
            "frame": [(address, 12, NEXT, 1), (LOST_ADDRESS, 512, 0, 0)],
            "second-part-of-the-header": [
                (address, 6, NEXT, 1), (LOST_ADDRESS, 6, NEXT, 2), (address + 12, length - 12, 0, 0),
            ],
        }  # fmt: skip
        truncate(memory)
        session.attack(TX, *chains[what])
        await session.until_broken(TX)
        victim.port.flush()
        await session.receives(3)
        with trio.fail_after(DEADLINE):
            await session.front_end.stop_ring(session.tx)


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("what", ["whole-buffer", "header", "rest", "second-of-a-merged-packet"])
async def test_a_receive_buffer_that_vanishes(what: str, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await session.receives(1)
        kept = memory.alloc(64, 1)
        chains = {
            "whole-buffer": [(LOST_ADDRESS, 2048, WRITE, 0)],
            "header": [(LOST_ADDRESS, 12, WRITE | NEXT, 1), (kept, 64, WRITE, 0)],
            "rest": [(kept, 12, WRITE | NEXT, 1), (LOST_ADDRESS, 2048, WRITE, 0)],
            "second-of-a-merged-packet": [(kept, 64, WRITE, 0)],
        }
        truncate(memory)
        session.attack(RX, *chains[what])
        if what == "second-of-a-merged-packet":
            session.put(RX, (LOST_ADDRESS, 2048, WRITE, 0))
        await victim.port.send(frame_of(2).ljust(300))
        await alone_broken(session, RX)


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
async def test_an_indirect_table_that_vanishes(ring: int, victim: Victim, memory: GuestRam) -> None:
    async with raw_session(victim, memory) as session:
        await session.goes_on(ring, 1)
        truncate(memory)
        session.attack(ring, (LOST_ADDRESS, 32, INDIRECT, 0))
        await alone_broken(session, ring)


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("ring", [RX, TX], ids=["rx", "tx"])
async def test_memory_that_vanishes_under_traffic(ring: int, victim: Victim, memory: GuestRam) -> None:
    """At some moment of a stream of packets, wherever the device's turn is."""
    async with raw_session(victim, memory) as session:
        chain = (LOST_ADDRESS, 512, WRITE if ring == RX else 0, 0)
        driver = session.rings[ring]
        flowing = trio.Event()

        async def stream() -> None:
            while True:
                if driver.used_idx >= 50:
                    flowing.set()
                while (driver.avail_idx - driver.used_idx) & 0xFFFF < driver.size:
                    session.put(ring, chain, at=0)
                if ring == RX:
                    with suppress(BlockingIOError):  # never wait for room: the device may be waiting for buffers
                        os.write(victim.port.host.fileno(), bytes(12) + frame_of(0))
                else:
                    victim.port.flush()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            with trio.fail_after(DEADLINE):
                await flowing.wait()
            truncate(memory)
            await session.until_broken(ring)
            nursery.cancel_scope.cancel()
        victim.port.flush()
        with trio.fail_after(DEADLINE):
            await session.front_end.stop_ring(driver)


@pytest.mark.proves("VIO-MEM-4")
async def test_only_the_tail_vanishes(victim: Victim, memory: GuestRam) -> None:
    """What is left of the region goes on; a page beyond it breaks the ring."""
    async with raw_session(victim, memory) as session:
        os.ftruncate(memory.regions[LOST].fd.fileno(), 2 * MIB)
        memory.write(LOST_ADDRESS, bytes(12) + frame_of(5))
        session.attack(TX, (LOST_ADDRESS, 12 + len(frame_of(5)), 0, 0))
        with trio.fail_after(DEADLINE):
            assert await victim.port.receive() == frame_of(5)
        session.attack(TX, (LOST_ADDRESS + 2 * MIB, 512, 0, 0))
        await alone_broken(session, TX)


# ---- other processes -------------------------------------------------------------------------------------------------


@contextmanager
def program(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An entropy device's program, listening at `path`; it has to end cleanly."""
    command = [sys.executable, "-m", "vhostuser", "rng", "--socket-path", str(path)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(DEADLINE)
    assert status == 0


@pytest.mark.proves("VIO-MEM-4")
async def test_another_process_is_untouched(victim: Victim, memory: GuestRam, tmp_path: Path) -> None:
    with program(tmp_path / "rng.sock") as process, GuestRam([(0, MIB)]) as other:
        async with entropy(tmp_path / "rng.sock", other) as bystander:
            assert len(await bystander.draw(64)) == 64
            async with raw_session(victim, memory) as session:
                truncate(memory)
                session.attack(TX, (LOST_ADDRESS, 512, 0, 0))
                await alone_broken(session, TX)
            assert len(await bystander.draw(64)) == 64
            await good_session(victim)
            assert len(await bystander.draw(64)) == 64
        assert process.poll() is None


@pytest.mark.proves("VIO-MEM-4")
@pytest.mark.parametrize("what", ["buffer", "indirect-table", "ring", "used-ring"])
async def test_a_program_whose_guest_loses_memory(what: str, memory: GuestRam, tmp_path: Path) -> None:
    """The entropy device: chains in Python's hands, in a process of their own, which serves the next session."""
    path = tmp_path / "rng.sock"
    with program(path) as process:
        async with entropy(path, memory) as driver:
            ring = driver.ring
            assert isinstance(ring, DriverRing)
            assert len(await driver.draw(64)) == 64
            if what in ("ring", "used-ring"):
                await driver.front_end.stop_ring(ring)
                for part in PARTS if what == "ring" else ("used_addr",):
                    setattr(ring, part, memory.alloc(1024, 16, LOST))
                ring.reset()
                await driver.front_end.start_ring(ring)
                assert len(await driver.draw(64)) == 64
            truncate(memory)
            if what == "buffer":
                ring.add(writable=[(LOST_ADDRESS, 64)])
            elif what == "indirect-table":
                put_table(memory, [(LOST_ADDRESS, 16, INDIRECT, 0)], ring.desc_addr)
                ring.set_avail(ring.avail_idx, 0)
                ring.avail_idx += 1
            elif what == "used-ring":
                put_table(memory, [(0x8000, 64, WRITE, 0)], ring.desc_addr)
                ring.set_avail(ring.avail_idx, 0)
                ring.avail_idx += 1
            os.eventfd_write(ring.kick_fd.fileno(), 1)
            with trio.fail_after(DEADLINE):
                await trio.lowlevel.wait_readable(ring.err_fd.fileno())
                await driver.front_end.stop_ring(ring)
        with GuestRam([(0, MIB)]) as fresh:
            async with entropy(path, fresh) as driver:
                assert len(await driver.draw(64)) == 64
        assert process.poll() is None

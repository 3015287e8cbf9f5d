"""The entropy device, through the server and the front-end: a device written in Python from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.devices.entropy import entropy
from tests.hostile.conftest import interrupts
from tests.hostile.victim import DEADLINE
from vhostuser.devices.rng import RngDevice
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.rings import Used
from vhostuser.frontend.split import DriverRing
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen

__all__ = ["interrupts"]

either_layout = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
async def socket_path(tmp_path: Path, interrupts: None) -> AsyncIterator[Path]:
    """An entropy device listens here."""
    async with await listen(tmp_path / "rng.sock") as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(Server(RngDevice(), endpoint).run)
        yield tmp_path / "rng.sock"
        nursery.cancel_scope.cancel()


@pytest.mark.proves("VIO-RNG-1")
@pytest.mark.parametrize("sizes", [(1,), (64,), (1, 2, 3), (4096, 60_000), (64 * 1024,)], ids=str)
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@either_layout
async def test_buffers_are_filled(
    sizes: tuple[int, ...], indirect: bool, socket_path: Path, ram: GuestRam, packed: bool
) -> None:
    async with entropy(socket_path, ram, packed=packed) as driver:
        got = await driver.draw(*sizes, indirect=indirect)
        assert len(got) == sum(sizes)
        if len(got) >= 64:
            assert len(set(got)) > 16
            assert got != await driver.draw(*sizes)


async def test_no_more_than_64_kib_at_once(socket_path: Path, ram: GuestRam) -> None:
    async with entropy(socket_path, ram) as driver:
        assert len(await driver.draw(64 * 1024, 1)) == 64 * 1024


@either_layout
async def test_many_requests_one_after_another(socket_path: Path, ram: GuestRam, packed: bool) -> None:
    async with entropy(socket_path, ram, packed=packed) as driver:
        assert len({await driver.draw(16) for _ in range(200)}) == 200


@either_layout
async def test_a_chain_without_room_is_given_back_empty(socket_path: Path, ram: GuestRam, packed: bool) -> None:
    async with entropy(socket_path, ram, packed=packed) as driver:
        head = driver.ring.add(readable=[(0x8000, 64)])
        driver.ring.kick()
        with trio.fail_after(DEADLINE):
            await driver.ring.wait_used()
        assert driver.ring.reap() == [Used(head, 0)]
        assert len(await driver.draw(64)) == 64


@pytest.mark.proves("VIO-MEM-3")
@either_layout
async def test_the_memory_table_changes_under_requests(socket_path: Path, ram: GuestRam, packed: bool) -> None:
    """Whatever chain the device has in hand at that moment: it is served, once, into the memory of now."""
    async with entropy(socket_path, ram, packed=packed) as driver:
        for _ in range(100):
            driver.ring.add(writable=[(ram.alloc(64, 1), 64)])
            driver.ring.kick(force=True)
            await driver.front_end.set_mem_table(ram)
            with trio.fail_after(DEADLINE):
                await driver.ring.wait_used()
            assert [used.written for used in driver.ring.reap()] == [64]


@either_layout
async def test_a_stop_under_requests(socket_path: Path, ram: GuestRam, packed: bool) -> None:
    """The position says which chains were not served, and the next start goes on with them."""
    async with entropy(socket_path, ram, packed=packed) as driver:
        for _ in range(50):
            for _ in range(2):
                driver.ring.add(writable=[(ram.alloc(64, 1), 64)])
            driver.ring.kick(force=True)
            base = await driver.front_end.stop_ring(driver.ring)
            if isinstance(driver.ring, DriverRing):
                assert base == driver.ring.used_idx
            else:
                assert base >> 16 == base & 0xFFFF
            assert len(driver.ring.reap()) + driver.ring.in_flight == 2
            await driver.front_end.start_ring(driver.ring)
            with trio.fail_after(DEADLINE):
                while driver.ring.in_flight:
                    await driver.ring.wait_used()
                    assert {used.written for used in driver.ring.reap()} == {64}


async def test_a_second_session(socket_path: Path, ram: GuestRam) -> None:
    for _ in range(3):
        with GuestRam([(0, MIB)]) as memory:
            async with entropy(socket_path, memory) as driver:
                assert len(await driver.draw(32)) == 32

"""A hostile driver: its rings run in a real session, and every field of them is the test's to write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, cast

import pytest
import trio

from tests.hostile.victim import DEADLINE, Victim, frame_of
from tests.virtio.bench import WRITE, D, offer, signals
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import MIB, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetHeader
from vhostuser.frontend.split import Descriptor, DescriptorFlags, DriverRing, full_fence

RX, TX = 0, 1
SIZE = 16  # descriptors of a ring
LAYOUT = ((0, 16 * MIB), (16 * MIB, MIB), (1 << 32, MIB))
OFFLOADS = DRIVER_FEATURES | DriverFeature.CSUM | DriverFeature.HOST_TSO4 | DriverFeature.HOST_TSO6
Raw = tuple[int, int, int, int]
"""A descriptor's fields as they stand: addr, len, flags, next."""


@pytest.fixture
def memory() -> Iterator[GuestRam]:
    """Two regions that touch, and one far away."""
    with GuestRam(LAYOUT) as ram:
        yield ram


def good(ring: int) -> tuple[int, int, DescriptorFlags]:
    """A buffer that the ring's device can use, and its flags."""
    return 0x8000, 2048, WRITE if ring == RX else DescriptorFlags(0)


@dataclass
class Session(Generic[D]):
    """A front-end whose two rings run and are empty.

    Attributes:
        victim: the back-end.
        front_end: the control side.
        memory: the guest's memory.
        rings: the receive ring and the transmit ring.
    """

    victim: Victim
    front_end: FrontEnd
    memory: GuestRam
    rings: tuple[D, D]

    async def until_broken(self, ring: int) -> None:
        """Wait until the ring's err descriptor is signalled."""
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(self.rings[ring].err_fd.fileno())
        assert signals(self.rings[ring].err_fd.fileno()) == 1

    async def restart(self, ring: int) -> None:
        """Stop the ring, forget everything in it, and start it again."""
        driver = self.rings[ring]
        await self.front_end.stop_ring(cast(Any, driver))
        driver.reset()
        signals(driver.err_fd.fileno())
        await self.front_end.start_ring(cast(Any, driver))


class RawSession(Session[DriverRing]):
    """The same with split rings."""

    @property
    def rx(self) -> DriverRing:
        """The receive ring."""
        return self.rings[RX]

    @property
    def tx(self) -> DriverRing:
        """The transmit ring."""
        return self.rings[TX]

    def counter(self, name: str) -> int:
        """One of the server's counters."""
        return self.victim.server.counters()[name]

    def packet(self, number: int) -> tuple[int, int]:
        """A buffer with a header of zeros and the frame of that number."""
        data = bytes(12) + frame_of(number)
        address = self.memory.alloc(len(data), 1)
        self.memory.write(address, data)
        return address, len(data)

    async def transmits(self, number: int) -> None:
        """Prove that the transmit ring runs: the frame of that number arrives at the host."""
        used = self.tx.used_idx
        with trio.fail_after(DEADLINE):
            self.put(TX, (*self.packet(number), 0, 0))
            assert await self.victim.port.receive() == frame_of(number)
            await self.until_used(TX, used + 1)

    async def receives(self, number: int) -> None:
        """Prove that the receive ring runs: a frame from the host arrives in a buffer that is posted now."""
        used = self.rx.used_idx
        buffer = self.memory.alloc(2048, 1)
        with trio.fail_after(DEADLINE):
            self.put(RX, (buffer, 2048, WRITE, 0))
            await self.victim.port.send(frame_of(number))
            await self.until_used(RX, used + 1)
        assert self.memory.read(buffer + 12, len(frame_of(number))) == frame_of(number)

    async def goes_on(self, ring: int, number: int) -> None:
        """Prove that a ring runs."""
        await (self.transmits(number) if ring == TX else self.receives(number))

    def put(self, ring: int, *chain: tuple[int, int, int, int], at: int = 8) -> None:
        """Write a chain to descriptors `at` and following (its `next` fields count from there), and kick."""
        driver = self.rings[ring]
        for i, (address, length, flags, following) in enumerate(chain):
            driver.set_descriptor(at + i, Descriptor(address, length, flags, at + following))
        driver.set_avail(driver.avail_idx, at)
        driver.avail_idx += 1
        driver.kick(force=True)

    def attack(self, ring: int, *chain: tuple[int, int, int, int], head: int = 0) -> None:
        """Write raw descriptors from index 0 on, make the chain at `head` available, and kick."""
        offer(self.rings[ring], *chain, head=head)
        self.rings[ring].kick(force=True)

    async def until_used(self, ring: int, index: int) -> None:
        """Wait until ``used.idx`` has come to `index`."""
        driver = self.rings[ring]
        with trio.fail_after(DEADLINE):
            while (driver.used_idx - index) & 0x8000:
                driver.used_event = driver.used_idx
                full_fence()
                if (driver.used_idx - index) & 0x8000:
                    await trio.lowlevel.wait_readable(driver.call_fd.fileno())
                    signals(driver.call_fd.fileno())

    async def move(self, ring: int, region: int, *parts: str) -> None:
        """Stop a ring and start it again with some of its parts in another memory region."""
        driver = self.rings[ring]
        await self.front_end.stop_ring(driver)
        for part in parts:
            setattr(driver, part, self.memory.alloc(6 + 16 * driver.size, 16, region))
        driver.reset()
        await self.front_end.start_ring(driver)


@asynccontextmanager
async def raw_session(
    victim: Victim, memory: GuestRam, features: int = DRIVER_FEATURES, size: int = SIZE, region: int = 0
) -> AsyncIterator[RawSession]:
    """Negotiate, tell the memory, and start two empty rings that lie in memory region `region`."""
    async with await victim.connect() as front_end:
        with trio.fail_after(DEADLINE):
            await front_end.negotiate(features)
            await front_end.set_mem_table(memory)
        memory.alloc(64, region=region)  # so that tests can point to what lies before a ring
        event_idx = bool(front_end.features & 1 << 29)
        with (
            DriverRing(memory, RX, size, event_idx=event_idx, region=region) as rx,
            DriverRing(memory, TX, size, event_idx=event_idx, region=region) as tx,
        ):
            with trio.fail_after(DEADLINE):
                await front_end.start_ring(rx)
                await front_end.start_ring(tx)
            victim.port.flush()
            yield RawSession(victim, front_end, memory, (rx, tx))


def put_packet(session: RawSession, header: NetHeader) -> tuple[int, int]:
    """A buffer with that header and a frame of 60."""
    data = header.pack(12) + frame_of(0)
    address = session.memory.alloc(len(data), 1)
    session.memory.write(address, data)
    return address, len(data)

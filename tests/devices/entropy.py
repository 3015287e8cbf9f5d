"""A driver of the entropy device, in a session of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from tests.hostile.victim import DEADLINE
from vhostuser.frontend import RING_FEATURES, DriverFeature, DriverQueue, FrontEnd, GuestRam, connect


@dataclass(frozen=True)
class EntropyDriver:
    """One ring that asks for random bytes."""

    front_end: FrontEnd
    memory: GuestRam
    ring: DriverQueue

    async def draw(self, *sizes: int, indirect: bool = False) -> bytes:
        """Ask for random bytes in buffers of these sizes, which hold zeros: what came."""
        buffers = [(self.memory.alloc(size, 1), size) for size in sizes]
        self.ring.add(writable=buffers, indirect=indirect)
        self.ring.kick()
        with trio.fail_after(DEADLINE):
            await self.ring.wait_used()
        [used] = self.ring.reap()
        return b"".join(self.memory.read(address, size) for address, size in buffers)[: used.written]


@asynccontextmanager
async def entropy(
    path: str | os.PathLike[str], memory: GuestRam, size: int = 8, packed: bool = False
) -> AsyncIterator[EntropyDriver]:
    """Connect to the device that listens at `path`, and start its ring."""
    features = RING_FEATURES | (DriverFeature.RING_PACKED if packed else 0)
    async with AsyncExitStack() as stack:
        with trio.fail_after(DEADLINE):
            front_end = await stack.enter_async_context(connect(path, features=features, memory=memory))
            ring = await front_end.add_ring(0, size)
        yield EntropyDriver(front_end, memory, ring)

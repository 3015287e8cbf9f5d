"""A driver of the entropy device, in a session of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.hostile.victim import DEADLINE
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature

FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.RING_EVENT_IDX | VirtioFeature.RING_INDIRECT_DESC


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
    with trio.fail_after(DEADLINE):
        front_end = await FrontEnd.connect(Path(path))
    async with front_end:
        with (PackedDriverRing if packed else DriverRing)(memory, 0, size, event_idx=True) as ring:
            with trio.fail_after(DEADLINE):
                await front_end.negotiate(FEATURES | (VirtioFeature.RING_PACKED if packed else 0))
                await front_end.set_mem_table(memory)
                await front_end.start_ring(ring)
            yield EntropyDriver(front_end, memory, ring)

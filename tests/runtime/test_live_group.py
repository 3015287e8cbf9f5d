"""A device's tasks, and what they make of chains that are not the device's any more."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from tests.hostile.victim import DEADLINE
from vhostuser.device import Chain, Device, Queue
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.virtio.features import VirtioFeature


class Hasty(Device):
    """Works on each chain in a task of its own, and gives the first one back twice."""

    name, groups = "hasty", ((0,),)

    def __init__(self) -> None:
        self.count = 0

    async def serve(self, queue: Queue) -> None:
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            nursery.start_soon(trio.sleep, 0)
            async for chain in queue:
                inner.start_soon(self.work, chain)

    async def work(self, chain: Chain) -> None:
        self.count += 1
        await chain.complete()
        if self.count == 1:
            await chain.complete(b"more")


async def test_a_chain_that_is_lost_in_a_task_of_the_device_is_the_only_loss(
    tmp_path: Path, interrupts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "hasty.sock"
    with trio.fail_after(DEADLINE), GuestRam() as memory, DriverRing(memory, 0, 8) as ring:
        async with await listen(path) as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(Server(Hasty(), endpoint).run)
            async with connect(path, features=VirtioFeature.VERSION_1, memory=memory) as front_end:
                await front_end.start_ring(ring)
                for _ in range(3):
                    ring.add(writable=[(memory.alloc(16), 16)])
                    ring.kick()
                    await ring.wait_used()
                    ring.reap()
            nursery.cancel_scope.cancel()
    assert [r.getMessage() for r in caplog.records if "no longer the device's" in r.getMessage()] == [
        "device hasty: chain 1 of vring 0 is no longer the device's"
    ]

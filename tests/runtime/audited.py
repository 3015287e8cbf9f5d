"""Every kind of write to guest memory, each to a page of its own, under an audit of the dirty log.

Run as a program over a copy of the package with a fault in it, it prints what the audit named, and which page is whose.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import trio

from tests.ports import PairPort
from vhostuser.device import Device
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.rng import RngDevice
from vhostuser.frontend.client import FrontEnd, connect
from vhostuser.frontend.dirty import PAGE, DirtyBitmap
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import DriverRing
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.virtio.audit import WriteWatch
from vhostuser.wire.requests import FrontendRequest

DEADLINE = 20.0
SPLIT_SIZE, PACKED_SIZE = 1024, 512  # such that a ring's areas take several pages


class Names(logging.Handler):
    """What the audit said."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@asynccontextmanager
async def audited(device: Device, features: int, memory: GuestRam) -> AsyncIterator[tuple[FrontEnd, DirtyBitmap]]:
    """A front-end of a device under audit, which has told its memory and switched its log on."""
    with tempfile.TemporaryDirectory() as folder, closing(WriteWatch()) as watch, DirtyBitmap(memory.top) as bitmap:
        path = Path(folder) / "vhost.sock"
        async with await listen(path) as endpoint, trio.open_nursery() as nursery:
            server = Server(device, endpoint, watch)
            nursery.start_soon(server.run)
            async with connect(path, features=features, memory=memory) as front_end:
                await front_end.set_log(bitmap)
                await front_end.log_all(True)
                yield front_end, bitmap
            async with connect(path, negotiate=False) as another:
                await another.request(FrontendRequest.GET_FEATURES)  # when this is answered, the first session is over
            counters = server.counters()
            assert counters["log_audited_pages"] >= 4
            nursery.cancel_scope.cancel()


def make_ring(memory: GuestRam, index: int, packed: bool) -> DriverQueue:
    """A ring whose next used entry is in another page than its used index and its event field."""
    if packed:
        return PackedDriverRing(memory, index, PACKED_SIZE, event_idx=True)
    ring = DriverRing(memory, index, SPLIT_SIZE, event_idx=True)
    ring.reset((PAGE - ring.used_addr % PAGE) // 8 + 8)
    return ring


def own_pages(ring: DriverQueue) -> dict[str, int]:
    """Where the device writes next to the ring's own areas."""
    if isinstance(ring, PackedDriverRing):
        return {"packed descriptor": ring.desc_addr & -PAGE, "device event": ring.used_addr & -PAGE}
    return {
        "used element": ring.used_addr + 4 + 8 * ring.base & -PAGE,
        "used idx": ring.used_addr + 2 & -PAGE,
        "avail_event": ring.used_addr + 4 + 8 * SPLIT_SIZE & -PAGE,
    }


async def receive(packed: bool) -> dict[str, int]:
    """Receive one packet."""
    port = PairPort()
    with GuestRam() as memory, port.host, closing(NetDevice(port)) as device:
        features = DRIVER_FEATURES | (DriverFeature.RING_PACKED if packed else 0)
        async with audited(device, features, memory) as (front_end, _):
            with make_ring(memory, 0, packed) as ring:
                pages = own_pages(ring)
                header, payload = memory.alloc(PAGE, PAGE), memory.alloc(PAGE, PAGE)
                await front_end.start_ring(ring, log_addr=ring.used_addr)
                ring.add(writable=[(header, 12), (payload, PAGE)])
                ring.kick(force=True)
                await port.send(bytes(60))
                await ring.wait_used()
                await front_end.stop_ring(ring)
        return {**pages, "num_buffers": header, "payload": payload}


async def draw() -> dict[str, int]:
    """Fill a buffer with random bytes."""
    with GuestRam() as memory:
        async with audited(RngDevice(), DRIVER_FEATURES, memory) as (front_end, _):
            with make_ring(memory, 0, False) as ring:
                buffer = memory.alloc(PAGE, PAGE)
                await front_end.start_ring(ring, log_addr=ring.used_addr)
                ring.add(writable=[(buffer, PAGE)])
                ring.kick(force=True)
                await ring.wait_used()
                await front_end.stop_ring(ring)
        return {"rng buffer": buffer}


async def scenario(kind: str) -> tuple[dict[str, int], list[str]]:
    """One of ``split``, ``packed``, ``rng``: which page is whose, and what the audit said."""
    names = Names()
    logger = logging.getLogger("vhostuser")
    logger.addHandler(names)
    try:
        with trio.fail_after(DEADLINE):
            return await (draw() if kind == "rng" else receive(kind == "packed")), names.lines
    finally:
        logger.removeHandler(names)


if __name__ == "__main__":
    allow_interrupts()
    pages, lines = trio.run(scenario, sys.argv[1])
    print(json.dumps({"pages": pages, "lines": lines}))

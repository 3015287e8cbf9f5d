"""Time to the first packet, with the package's own front-end as the driver of every contender.

`start`: from the program's first instruction to its guest's first frame at the tap. `reconnect`: from a front-end's
going to its successor's first frame.
"""

from __future__ import annotations

import time
from functools import partial

import trio

from scripts.benchmark.observe import Link
from scripts.benchmark.runs import Measurement, Metric, Values
from scripts.benchmark.subjects import TAP, DpdkBackEnd, Ours, Start, Subject
from tests.rig.netns import Netns
from vhostuser.frontend.client import connect
from vhostuser.frontend.guest import ethernet
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver

METRICS = {
    "start": Metric("ms from the program's start to the first frame", more=False),
    "reconnect": Metric("ms from one front-end's end to the next one's first frame", more=False),
}

_FRAME = ethernet(b"\xff" * 6, bytes.fromhex("525400766804"), 0x88B5, bytes(46))  # EtherType for local experiments


def measurements(ours: list[Ours]) -> list[Measurement]:
    """All of this module."""
    starts: dict[str, Start] = {one.name: one.start for one in ours}
    starts["DPDK"] = DpdkBackEnd
    contenders = {name: partial(first_frames, start) for name, start in starts.items()}
    return [Measurement("start", "Time to the first packet", METRICS, contenders)]


def first_frames(start: Start) -> Values:
    """Start a contender, send a frame, go, come back, send another."""
    with Netns(quiet=True) as netns:
        begin = time.monotonic()
        with start(netns) as subject, Link(netns, TAP) as link:
            again = trio.run(_send_first, subject, link)
            values = {"start": 1000 * (again - begin)}
            done = trio.run(_send_first, subject, link)
            return values | {"reconnect": 1000 * (done - again)}


async def _send_first(subject: Subject, link: Link) -> float:
    """Come, send until a frame is at the tap, go: when that frame was there."""
    assert subject.socket is not None
    before = link.packets().rx
    with GuestRam() as memory:
        async with connect(subject.socket, negotiate=False) as front_end:
            driver = await NetDriver.start(front_end, memory)
            try:
                await driver.send(_FRAME)
                arrived = partial(link.wait_for, lambda packets: packets.rx > before, "the first frame")
                return await trio.to_thread.run_sync(arrived)
            finally:
                driver.close()

"""Frames a second, one way at a time, with DPDK's virtio-user as the driver: small ones and of 64 KiB.

Out of the guest: the driver sends as fast as it can, the kernel counts at the tap. Into the guest, drained: the
back-end is stopped (SIGSTOP; DPDK by its command) while the tap's queue is filled, then continued; what the driver has
received is divided by the time from the queue's first frame to its last. So neither the load nor its cost is in the
figure. Into the guest, flooded: a load that never ends shares the driver's core; what counts is what the driver got.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from scripts.benchmark.observe import Link, cpu_seconds, is_stopped
from scripts.benchmark.programs import program
from scripts.benchmark.runs import Measurement, Metric, Values
from scripts.benchmark.subjects import (
    TAP,
    DpdkBackEnd,
    KernelLimit,
    Ours,
    Start,
    Subject,
    counters_of,
    driver_core,
    on_core,
)
from tests.rig.netns import Netns
from tests.rig.process import RigError, run, wait_until
from tests.rig.testpmd import FRONT_END_MAC, Testpmd, virtio_user

MILLION = 1_000_000


@dataclass(frozen=True)
class Shape:
    """What frames are like.

    Attributes:
        size: bytes.
        segments: the same in testpmd's words.
        fill: how many the tap's queue is filled with.
        options: what testpmd needs to have them.
    """

    size: int
    segments: str
    fill: int
    options: tuple[str, ...] = ()


# DPDK's tap is sent a real-time signal a packet. One that is more than may be pending becomes a SIGIO, which ends it.
SMALL = Shape(60, "60", min(50_000, resource.getrlimit(resource.RLIMIT_SIGPENDING)[0] // 2))

#: As long as Linux makes them. The driver accepts TSO (0x1c: both checksums, LRO). Its buffers of 16 KiB are about as
#: much memory as those of the kernel's limit, so that caches help both alike.
LARGE = Shape(
    65226,
    "16384,16384,16384,16074",
    4_000,
    ("--mbuf-size=18432", "--total-num-mbufs=2048", "--rx-offloads=0x1c"),
)

METRICS = {
    "packets": Metric("packets/s", more=True),
    "cpu": Metric("CPU s / million packets", more=False),
    "kicks": Metric("kicks / million packets", more=False),
    "calls": Metric("calls / million packets", more=False),
    "lost": Metric("packets lost", more=False),
}


class Measure(Protocol):
    """One way to measure a contender once."""

    def __call__(self, start: Start, shape: Shape, seconds: float, queues: int = 1) -> Values:
        """Start it, load it, and tell."""


def measurements(ours: list[Ours], seconds: float) -> list[Measurement]:
    """All of this module.

    Args:
        ours: our back-ends, the one to compare with first.
        seconds: how long each window is.
    """
    variants = [one for one in (*ours, ours[0].variant("--io-uring", "off")) if one.available]
    small: dict[str, Start] = {one.name: one.start for one in variants} | {"DPDK": DpdkBackEnd}
    # DPDK's tap takes no frames of this size
    large: dict[str, Start] = {one.name: one.start for one in ours}
    write, read = partial(_against_limit, "write", seconds), partial(_against_limit, "read", seconds)
    return [
        write("tx", "60-byte frames out of the guest", transmit, SMALL, small),
        read("rx", "60-byte frames into the guest, a full queue drained", drain, SMALL, small),
        read("rx-flood", "60-byte frames into the guest, under a flood", flood, SMALL, small),
        write("tx-64k", "64 KiB out of the guest", transmit, LARGE, large),
        read("rx-64k", "64 KiB into the guest, a full queue drained", drain, LARGE, large),
        *_queues(ours, 2, seconds),
        *_queues(ours, 4, seconds),
    ]


def _against_limit(
    way: str, seconds: float, name: str, title: str, measure: Measure, shape: Shape, starts: dict[str, Start]
) -> Measurement:
    """A measurement of some contenders and of the kernel's limit."""
    starts = {**starts, "kernel limit": partial(KernelLimit, way, shape.size)}
    contenders = {contender: partial(measure, start, shape, seconds) for contender, start in starts.items()}
    return Measurement(name, title, METRICS, contenders)


def _queues(ours: list[Ours], pairs: int, seconds: float) -> Iterator[Measurement]:
    """What more pairs cost: one core for all of a back-end's pairs, one for the driver's. None without ours."""
    variants = [one.variant("--queues", str(pairs)) for one in ours]
    starts: dict[str, Start] = {one.name: one.start for one in variants if one.available}
    if starts:
        starts["DPDK"] = partial(DpdkBackEnd, queues=pairs)
        contenders = {name: partial(transmit, start, SMALL, seconds, pairs) for name, start in starts.items()}
        title = f"60-byte frames out of the guest, {pairs} queue pairs"
        yield Measurement(f"queues-{pairs}", title, METRICS, contenders)


# ---- measuring once --------------------------------------------------------------------------------------------------


@dataclass
class Path:
    """A contender between a driver, unless it makes its own frames, and a tap that nobody else uses."""

    netns: Netns
    subject: Subject
    front_end: Testpmd | None
    link: Link


@contextmanager
def path(start: Start, shape: Shape, mode: str, queues: int = 1) -> Iterator[Path]:
    """Start a contender and its driver in a namespace whose stack sends nothing of its own."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns(quiet=True))
        subject = stack.enter_context(start(netns))
        front_end = None
        if subject.socket is not None:
            device = virtio_user(subject.socket, queues=queues)
            front_end = stack.enter_context(
                Testpmd([device], queues=queues, worker=driver_core(), memory=256, options=shape.options)
            )
            front_end.forward(mode, shape.segments)
        yield Path(netns, subject, front_end, stack.enter_context(Link(netns, TAP)))


def transmit(start: Start, shape: Shape, seconds: float, queues: int = 1) -> Values:
    """Frames from the guest, counted at the tap in a window of the driver's continuous sending."""
    with path(start, shape, "txonly", queues) as here:
        # until the driver has used all of its buffers, every frame costs page faults
        here.link.wait_for(lambda packets: packets.rx >= shape.fill, "the first frames at the tap")
        before = counters_of(here.subject)
        packets, cpu, begin = here.link.packets().rx, cpu_seconds(here.subject.program.pid), time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - begin
        packets = here.link.packets().rx - packets
        cpu = cpu_seconds(here.subject.program.pid) - cpu
        values = {"packets": packets / elapsed, "cpu": _per_million(cpu, packets)}
        values |= _notifications(before, counters_of(here.subject))
        if here.front_end is not None:
            here.front_end.stop_forwarding()
            sent = here.front_end.stats().tx_packets
            values["lost"] = sent - _at_rest(here)
    return values


def drain(start: Start, shape: Shape, seconds: float, queues: int = 1) -> Values:
    """Frames from a full queue to the driver, as often as it takes to be at it for some seconds."""
    offered = elapsed = cpu = 0.0
    with path(start, shape, "rxonly", queues) as here:
        here.netns.ip("link", "set", TAP, "txqueuelen", str(shape.fill))
        # until the driver has used all of its buffers, every frame costs page faults
        _settled(here, _received(here) + _drain_once(here, shape)[0])
        before, received = counters_of(here.subject), _received(here)
        while elapsed < seconds:
            frames, took, spent = _drain_once(here, shape)
            offered, elapsed, cpu = offered + frames, elapsed + took, cpu + spent
        received = _settled(here, received + offered) - received
        values = {"packets": received / elapsed, "cpu": _per_million(cpu, received), "lost": offered - received}
        return values | _notifications(before, counters_of(here.subject))


def _drain_once(here: Path, shape: Shape) -> tuple[int, float, float]:
    """How many frames there were, the seconds from the first to the last that left, the processor's seconds for it."""
    with _held(here.subject):
        before = here.link.packets().tx
        offered = load(here, shape, shape.fill, 10)
    if offered < shape.fill:
        raise RigError(f"the tap's queue took {offered} of {shape.fill} frames")
    start = here.link.wait_for(lambda packets: packets.tx > before, "the first frame to leave the queue")
    cpu = cpu_seconds(here.subject.program.pid)
    end = here.link.wait_for(lambda packets: packets.tx - before >= offered, f"{offered} frames to leave the queue")
    return offered, end - start, cpu_seconds(here.subject.program.pid) - cpu


@contextmanager
def _held(subject: Subject) -> Iterator[None]:
    """Keep a contender from reading its tap."""
    if isinstance(subject, DpdkBackEnd):
        # its tap is sent a signal a packet; were it stopped, it would have to handle all of them at its start
        subject.stop_forwarding()
        try:
            yield
        finally:
            subject.program.type_line("start")
        return
    pid = subject.program.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(pid), 5, "the back-end to stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def flood(start: Start, shape: Shape, seconds: float, queues: int = 1) -> Values:
    """Frames that the driver gets while more are offered than anybody can take."""
    with path(start, shape, "rxonly", queues) as here:
        received, cpu = _received(here), cpu_seconds(here.subject.program.pid)
        load(here, shape, 1 << 62, seconds)
        cpu = cpu_seconds(here.subject.program.pid) - cpu
        received = _received(here) - received
        return {"packets": received / seconds, "cpu": _per_million(cpu, received)}


def load(here: Path, shape: Shape, count: int, seconds: float) -> int:
    """Send frames into the tap from the driver's core: how many the link accepted."""
    words = [str(program("load")), TAP, FRONT_END_MAC, str(shape.size), str(count), str(seconds)]
    return int(json.loads(run(here.netns.argv([*on_core(driver_core()), *words]), seconds + 30))["sent"])


def _received(here: Path) -> int:
    """What arrived: in the driver, or at the contender that has none."""
    return here.link.packets().tx if here.front_end is None else here.front_end.stats().rx_packets


def _settled(here: Path, expected: float) -> int:
    """What has arrived once it is as much as expected, or after a second: what is not there then is lost."""
    with suppress(RigError):
        wait_until(lambda: _received(here) >= expected, 1, "the last frames")
    return _received(here)


def _at_rest(here: Path) -> int:
    """What the tap got, once that has stayed the same for a while."""
    last, since = here.link.packets().rx, time.monotonic()
    while time.monotonic() - since < 0.1:
        if (now := here.link.packets().rx) != last:
            last, since = now, time.monotonic()
    return last


def _per_million(amount: float, packets: float) -> float:
    return amount * MILLION / packets if packets else 0.0


def _notifications(before: dict[str, int], after: dict[str, int]) -> Values:
    """Kicks and calls for each million of packets, from our own counters; nothing for the others."""
    packets = after.pop("chains", 0) - before.pop("chains", 0)
    return {name: _per_million(after[name] - before[name], packets) for name in after}

"""Many guests in one process (``vhostuser serve``): what each costs, and whether the silent ones cost the busy one.

All guests are drivers of the package's own front-end in this process. The first answers round trips; then it makes room
for DPDK's virtio-user, which sends as fast as it can while all others stay attached and silent.
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import trio

from scripts.benchmark.frames import SMALL
from scripts.benchmark.observe import Link, descriptors, private_memory, threads
from scripts.benchmark.runs import Measurement, Metric, Values
from scripts.benchmark.subjects import Ours, driver_core, help_of
from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX
from tests.rig.netns import Netns
from tests.rig.process import Program
from tests.rig.testpmd import Testpmd, virtio_user
from vhostuser.frontend.client import connect
from vhostuser.frontend.guest import UDP_ECHO_PORT, BuiltinGuest
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver

GUESTS = (1, 4, 16, 64)

METRICS = {
    "memory": Metric("MiB of its own, all guests attached", more=False),
    "threads": Metric("threads", more=False),
    "descriptors": Metric("descriptors", more=False),
    "packets": Metric("packets/s of a busy guest", more=True),
    "p50": Metric("µs there and back, median", more=False),
    "p99": Metric("µs there and back, 99th percentile", more=False),
}

_ROUND_TRIPS = 500


def measurements(ours: list[Ours], seconds: float) -> list[Measurement]:
    """All of this module; none where no tree can serve several guests."""
    able = [back_end for back_end in ours if help_of(back_end.tree, "serve")]
    contenders = {
        f"{back_end.name}, {count} guest{'s' * (count > 1)}": partial(measure, back_end, count, seconds)
        for count in GUESTS
        for back_end in able
    }
    return [Measurement("growth", "Many guests in one process", METRICS, contenders)] if able else []


class Serving:
    """One process for several guests, each with a socket and a tap of its own.

    Attributes:
        program: the process.
        sockets, taps: of the guests, in order.
    """

    def __init__(self, ours: Ours, netns: Netns, count: int, folder: Path) -> None:
        """Start it and wait for all of its taps."""
        self.sockets = [folder / f"guest{number}.sock" for number in range(count)]
        self.taps = [f"tap{number}" for number in range(count)]
        guests = zip(self.sockets, self.taps, strict=True)
        tables = [f'[[net]]\nsocket-path = "{path}"\ntap = "{tap}"\n' for path, tap in guests]
        description = folder / "guests.toml"
        description.write_text("\n".join(tables))
        limits = ["prlimit", "--nofile=8192:"]
        words = [*ours.prefix, *limits, sys.executable, "-m", "vhostuser", "serve", str(description)]
        self.program = Program(netns.argv(words), folder / "serve.log")
        self.program.wait_for(lambda: all(path.exists() for path in self.sockets), 20, "its sockets")
        netns.wait_for_link(self.taps[-1])


@contextmanager
def serving(ours: Ours, count: int) -> Iterator[tuple[Netns, Serving]]:
    """So many guests' places in a namespace."""
    with tempfile.TemporaryDirectory(prefix="vhu-growth-") as folder, Netns() as netns:
        served = Serving(ours, netns, count, Path(folder))
        with served.program:
            yield netns, served


def measure(ours: Ours, count: int, seconds: float) -> Values:
    """Attach all guests and measure."""
    with serving(ours, count) as (netns, served):
        return trio.run(_with_guests, netns, served, seconds)


async def _with_guests(netns: Netns, served: Serving, seconds: float) -> Values:
    async with AsyncExitStack() as stack:
        for path in served.sockets[1:]:
            await stack.enter_async_context(_Attached(path))
        async with _Attached(served.sockets[0]) as first:
            values = await _round_trips(netns, served, first.driver)
            pid = served.program.pid
            values |= {"memory": private_memory(pid), "threads": threads(pid), "descriptors": descriptors(pid)}
        return values | await trio.to_thread.run_sync(_busy, netns, served, seconds)


class _Attached:
    """A guest's driver, attached."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Attached:
        memory = self._stack.enter_context(GuestRam())
        front_end = await self._stack.enter_async_context(connect(self._path, negotiate=False))
        self.driver = await NetDriver.start(front_end, memory)
        self._stack.callback(self.driver.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def _round_trips(netns: Netns, served: Serving, driver: NetDriver) -> Values:
    guest = BuiltinGuest(bytes.fromhex("525400766805"), IPv4Address(GUEST_ADDRESS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run, driver)
        times = await trio.to_thread.run_sync(_echoes, netns, served.taps[0])
        nursery.cancel_scope.cancel()
    hundredths = statistics.quantiles(times, n=100)
    return {"p50": hundredths[49], "p99": hundredths[98]}


def _echoes(netns: Netns, tap: str) -> list[float]:
    """Microseconds of each of many round trips to the guest's echo."""
    netns.add_address(tap, f"{HOST_ADDRESS}/{PREFIX}")
    times = []
    with netns.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(5)
        udp.connect((GUEST_ADDRESS, UDP_ECHO_PORT))
        for _ in range(_ROUND_TRIPS + 1):
            begin = time.monotonic()
            udp.send(bytes(18))
            udp.recv(64)
            times.append((time.monotonic() - begin) * 1e6)
    return times[1:]  # the first one waited for ARP


def _busy(netns: Netns, served: Serving, seconds: float) -> Values:
    """The first guest again, sending all it can."""
    front_end = Testpmd([virtio_user(served.sockets[0])], worker=driver_core())
    with front_end, Link(netns, served.taps[0]) as link:
        enough = link.packets().rx + SMALL.fill // 10
        front_end.forward("txonly", SMALL.segments)
        link.wait_for(lambda packets: packets.rx > enough, "the first frames at the tap")
        packets, begin = link.packets().rx, time.monotonic()
        time.sleep(seconds)
        return {"packets": (link.packets().rx - packets) / (time.monotonic() - begin)}

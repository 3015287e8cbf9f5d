"""Three guests on one back-end process: one storms it with requests, one floods it with packets, one must not notice.

:func:`neighbours` is the run. The back-end and each guest are processes of their own, this module run as a program: the
back-end serves three network devices on taps in one event loop, a guest is the library's front-end.
"""

from __future__ import annotations

import gc
import json
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import trio

from tests.rig.netns import Netns
from tests.rig.process import Program, RigError
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.tap import open_tap
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.frontend.packed import EventFlags, PackedDescriptor, PackedDriverRing
from vhostuser.frontend.rings import DescriptorFlags, DriverQueue
from vhostuser.frontend.split import Descriptor, DriverRing
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.wire.frames import VERSION, Frame
from vhostuser.wire.requests import FrontendRequest

NAMES = ("storm", "flood", "third")
REPLY_LIMIT = 0.1  # seconds that a reply to the third guest may take
SHARE_LIMIT = 0.8  # of what each thread of the back-end would get if all got the same
MARGIN = 5.0  # seconds for which guests go on after the measurement
RING = 1024
FRAME = 60

# ---- the run ---------------------------------------------------------------------------------------------------------


def neighbours(seconds: float, layout: str = "split") -> dict[str, Any]:
    """Let the three at the back-end at once, with rings that are "split" or "packed", and see how the third one fares.

    Returns:
        The third guest's replies, how often the first one was answered, the processor time of the back-end's threads.

    Raises:
        RigError: a reply came too late, or the third guest's thread got less than its share.
    """
    with Netns() as netns, tempfile.TemporaryDirectory(prefix="vhu-neighbours-") as name:
        folder = Path(name)
        started: list[Program] = []

        def start(*words: str) -> Program:
            argv = netns.argv([sys.executable, "-m", "tests.rig.neighbours", words[0], str(folder), *words[1:]])
            started.append(Program(argv, folder / f"{words[0]}.log"))
            return started[-1]

        try:
            backend = start("serve")
            backend.wait_for_output("ready", 20)
            threads = {"event loop": _threads(backend.pid)}
            guests = {}
            for guest in ("flood", "third", "storm"):
                before = _threads(backend.pid)
                guests[guest] = start(guest, str(seconds + MARGIN), layout)
                guests[guest].wait_for_output("started", 20)
                threads[guest] = _threads(backend.pid) - before
            before_run = _processor_time(backend.pid)
            overslept = _longest_oversleep(seconds)
            spent = _processor_time(backend.pid)
            outcome = {guest: json.loads(_last_line(program)) for guest, program in guests.items()}
        finally:
            for program in reversed(started):
                program.stop()
    times = {name: sum(spent[tid] - before_run[tid] for tid in tids) for name, tids in threads.items() if tids}
    share = times["third"] / statistics.mean(times.values())
    result = {
        "seconds": seconds,
        "replies to the third guest": outcome["third"],
        "a process that asks nobody overslept at most": round(overslept, 5),
        "requests answered a second": {
            guest: round(outcome[guest]["requests"] / (seconds + MARGIN)) for guest in ("storm", "third")
        },
        "packets": {guest: outcome[guest]["packets"] for guest in ("flood", "third")},
        "processor seconds of the back-end's threads": {name: round(value, 3) for name, value in times.items()},
        "the third guest's part of an equal share": round(share, 3),
    }
    if outcome["third"]["longest"] > REPLY_LIMIT:
        raise RigError(f"a reply took {outcome['third']['longest']:.3f} s, the limit is {REPLY_LIMIT} s: {result}")
    if share < SHARE_LIMIT:
        raise RigError(f"the third guest's thread got {share:.2f} of an equal share, not {SHARE_LIMIT}: {result}")
    return result


def _longest_oversleep(seconds: float) -> float:
    """Sleep so long in pieces of a millisecond. How late the kernel was to wake us is no fault of the back-end."""
    longest, before, end = 0.0, time.monotonic(), time.monotonic() + seconds
    while before < end:
        time.sleep(0.001)
        now = time.monotonic()
        longest, before = max(longest, now - before - 0.001), now
    return longest


def _threads(pid: int) -> set[str]:
    return {task.name for task in Path(f"/proc/{pid}/task").iterdir()}


def _processor_time(pid: int) -> dict[str, float]:
    """Seconds on a processor by thread."""
    tasks = Path(f"/proc/{pid}/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()}


def _last_line(program: Program) -> str:
    program.wait(MARGIN + 20)
    return program.output.strip().rpartition("\n")[2]


# ---- the back-end ----------------------------------------------------------------------------------------------------


async def serve(folder: Path) -> None:
    """Serve three network devices until SIGTERM."""
    allow_interrupts()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with AsyncExitStack() as stack:
            servers = []
            for name in NAMES:
                device = stack.enter_context(closing(NetDevice(open_tap(name))))
                servers.append(Server(device, await stack.enter_async_context(await listen(folder / name))))
            nursery = await stack.enter_async_context(trio.open_nursery())
            for server in servers:
                nursery.start_soon(server.run)
            gc.freeze()  # as the command line does
            print("ready", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()


# ---- the guests ------------------------------------------------------------------------------------------------------


def storm(folder: Path, seconds: float) -> dict[str, Any]:
    """Ask the same question as fast as it is answered, a hundred at a time."""
    question = Frame(FrontendRequest.GET_FEATURES, int(VERSION), b"").encode() * 100
    count, end = 0, time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(folder / "storm"))
        print("started", flush=True)
        while time.monotonic() < end:
            sock.sendall(question)
            left = 100 * 20
            while left:
                left -= len(sock.recv(left))
            count += 100
    return {"requests": count}


async def flood(folder: Path, seconds: float, layout: str) -> dict[str, Any]:
    """Have the transmit ring full all the time."""
    with GuestRam() as memory:
        async with connect(folder / "flood", negotiate=False) as front_end:
            driver = await NetDriver.start(front_end, memory, packed=layout == "packed", size=RING)
            with closing(driver), _Feeder(driver.tx) as feeder:
                print("started", flush=True)
                await trio.sleep(seconds)
                return {"packets": feeder.packets}


async def third(folder: Path, seconds: float, layout: str) -> dict[str, Any]:
    """The same, and every ten milliseconds a request, every other one into the ring's thread."""
    took: list[float] = []
    with GuestRam() as memory:
        async with connect(folder / "third", negotiate=False) as front_end:
            driver = await NetDriver.start(front_end, memory, packed=layout == "packed", size=RING)
            with closing(driver), _Feeder(driver.tx) as feeder:
                print("started", flush=True)
                end = trio.current_time() + seconds
                while (asked := trio.current_time()) < end:
                    if len(took) % 2:
                        await front_end.enable_ring(driver.tx)
                    await front_end.request(FrontendRequest.GET_FEATURES)
                    took.append(trio.current_time() - asked)
                    await trio.sleep(0.01)
                packets = feeder.packets
    return {
        "requests": len(took),
        "packets": packets,
        "median": round(statistics.median(took), 5),
        "99 of 100": round(statistics.quantiles(took, n=100)[98], 5),
        "longest": round(max(took), 5),
    }


class _Feeder:
    """A thread that makes a transmit ring's chains available again as soon as they are used, past the driver."""

    def __init__(self, ring: DriverQueue) -> None:
        self.packets = 0
        self._ring = ring
        self._laps = _SplitLaps(ring) if isinstance(ring, DriverRing) else _PackedLaps(ring)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def _feed(self) -> None:
        while not self._ending.wait(0.0001):
            self.packets += self._laps.refill()
            self._ring.kick(force=self._laps.wants_kick)

    def __enter__(self) -> _Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        del self._laps  # its views of memory that is closed next


class _SplitLaps:
    """Every descriptor is a chain, and stands in the available ring for good: the index alone moves."""

    wants_kick = False  # beyond what the driver knows itself

    def __init__(self, ring: DriverRing) -> None:
        self._ring = ring
        self._used = 0
        frame = ring.memory.alloc(12 + FRAME)
        for index in range(ring.size):
            ring.set_descriptor(index, Descriptor(frame, 12 + FRAME))
            ring.set_avail(index, index)

    def refill(self) -> int:
        """Make available what was used: how many chains."""
        now = self._ring.used_idx
        fresh = (now - self._used) & 0xFFFF
        self._used = now
        self._ring.avail_idx = now + self._ring.size
        return fresh


class _PackedLaps:
    """Every descriptor is a chain with the buffer ID of its place; the device overwrites its length and flags."""

    def __init__(self, ring: DriverQueue) -> None:
        assert isinstance(ring, PackedDriverRing)
        self._ring = ring
        self._at, self._wrap = 0, True
        begin, words = (ring.desc_addr - ring.memory.regions[0].guest_phys_addr) // 2, ring.memory.regions[0].halfwords
        self._lengths, self._flags = (words[begin + i : begin + 8 * ring.size : 8] for i in (4, 7))
        frame = ring.memory.alloc(12 + FRAME)
        for index in range(ring.size):
            ring.set_descriptor(index, PackedDescriptor(frame, 12 + FRAME, index, int(DescriptorFlags.AVAIL)))

    @property
    def wants_kick(self) -> bool:
        """Whether the device wants to be kicked, if not for this chain then for one of those that follow."""
        return self._ring.device_event.flags != EventFlags.DISABLE

    def refill(self) -> int:
        """Make available what was used: how many chains, a lap at most."""
        used, unused = int(DescriptorFlags.AVAIL | DescriptorFlags.USED), 0
        count = 0
        while count < self._ring.size and self._flags[self._at] & used == (used if self._wrap else unused):
            self._lengths[self._at] = 12 + FRAME
            self._flags[self._at] = int(DescriptorFlags.USED if self._wrap else DescriptorFlags.AVAIL)
            count += 1
            self._at += 1
            if self._at == self._ring.size:
                self._at, self._wrap = 0, not self._wrap
        return count


def main() -> None:
    """Be the back-end or a guest."""
    role, folder, *words = sys.argv[1:]
    match role, words:
        case "serve", []:
            trio.run(serve, Path(folder))
        case "storm", [seconds, _]:
            print(json.dumps(storm(Path(folder), float(seconds))))
        case "flood", [seconds, layout]:
            print(json.dumps(trio.run(flood, Path(folder), float(seconds), layout)))
        case "third", [seconds, layout]:
            print(json.dumps(trio.run(third, Path(folder), float(seconds), layout)))


if __name__ == "__main__":
    main()

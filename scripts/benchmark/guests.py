"""TCP and round trips with a real Linux guest, and what the back-end costs once the guest is silent.

The guest's processor is on the last core in all contests: QEMU's thread for it, or user-mode Linux as a whole. The
back-end is on the first, with QEMU's main loop, which is the back-end where QEMU has the tap itself. Programs on the
host's side are where the kernel puts them. All QEMU contenders have the same interrupt (INTx). DPDK's testpmd forwards
no offloads, so guest and tap do without them there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from scripts.benchmark.narrow import NarrowDpdk
from scripts.benchmark.observe import Link, context_switches, cpu_seconds
from scripts.benchmark.runs import Measurement, Metric, Values
from scripts.benchmark.subjects import TAP, DpdkBackEnd, Ours, Start, Subject, back_end_core, driver_core
from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX, ping
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import RigError
from tests.rig.qemu import Qemu, TapNic, VhostUserNic
from tests.rig.traffic import Host, iperf_mbits, round_trips
from tests.rig.uml import Uml

METRICS = {
    "tcp-out": Metric("Mbit/s guest to host", more=True),
    "tcp-in": Metric("Mbit/s host to guest", more=True),
    "p50": Metric("µs there and back, median", more=False),
    "p99": Metric("µs there and back, 99th percentile", more=False),
    "idle-cpu": Metric("% of a core, silent guest", more=False),
    "idle-switches": Metric("context switches/s, silent guest", more=False),
}

Guest = Qemu | Uml

#: Boots a guest behind a contender, which is None where the machine itself is the back-end.
Boot = Callable[[GuestImage, Netns, Subject | None], Guest]


def measurements(ours: list[Ours], image: GuestImage, seconds: float) -> list[Measurement]:
    """All of this module."""
    variants = (*ours, ours[0].variant("--poll-us", "50"))
    starts: dict[str, Start] = {one.name: one.start for one in variants if one.available}
    measured: dict[str, Place] = {name: partial(attached, start) for name, start in starts.items()}
    qemu = measured | {"QEMU's tap": own_tap, "DPDK": partial(attached, DpdkBackEnd, offloads=False)}
    uml = measured | {"DPDK": partial(attached, NarrowDpdk, offloads=False)}
    return [
        _measurement("qemu", "A Linux guest in QEMU", qemu, boot_qemu, image, seconds),
        _measurement("uml", "User-mode Linux", uml, boot_uml, image, seconds),
    ]


def _measurement(
    name: str, title: str, places: dict[str, Place], boot: Boot, image: GuestImage, seconds: float
) -> Measurement:
    contenders = {contender: partial(measure, place, boot, image, seconds) for contender, place in places.items()}
    return Measurement(name, title, METRICS, contenders)


# ---- contenders with a guest behind them -----------------------------------------------------------------------------


class Machine:
    """A guest that answers.

    Attributes:
        netns: where its tap is.
        guest: runs commands.
        back_end: the process id of what moves its packets and does nothing else; None where QEMU does.
    """

    def __init__(self, netns: Netns, guest: Guest, back_end: int | None) -> None:
        self.netns = netns
        self.guest = guest
        self.back_end = back_end


#: Boots a guest behind one contender.
Place = Callable[[Boot, GuestImage], AbstractContextManager[Machine]]


@contextmanager
def attached(start: Start, boot: Boot, image: GuestImage, *, offloads: bool = True) -> Iterator[Machine]:
    """A guest behind a vhost-user back-end."""
    with Netns() as netns, start(netns) as subject:
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        with boot(image, netns, subject) as guest:
            yield _answering(netns, guest, subject.program.pid, offloads)


@contextmanager
def own_tap(boot: Boot, image: GuestImage) -> Iterator[Machine]:
    """A guest whose machine has the tap itself."""
    with Netns() as netns, boot(image, netns, None) as guest:
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        yield _answering(netns, guest, None, offloads=True)


def _answering(netns: Netns, guest: Guest, back_end: int | None, offloads: bool) -> Machine:
    if not offloads:
        guest.run("ethtool -K eth0 tx off")
        netns.run("ethtool", "-K", TAP, "tx", "off")
    guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
    ping(netns)
    return Machine(netns, guest, back_end)


def boot_qemu(image: GuestImage, netns: Netns, subject: Subject | None) -> Qemu:
    """QEMU, its guest's processor on the last core and all else of it on the first."""
    if subject is None:
        guest = Qemu(image, [TapNic(TAP)], netns=netns)
    else:
        assert subject.socket is not None
        guest = Qemu(image, [VhostUserNic(subject.socket)])
    pin(guest.program.pid, back_end_core())
    for processor in guest.qmp("query-cpus-fast"):
        os.sched_setaffinity(processor["thread-id"], {driver_core()})
    return guest


def boot_uml(image: GuestImage, netns: Netns, subject: Subject | None) -> Uml:
    """User-mode Linux, on the last core."""
    assert subject is not None
    assert subject.socket is not None
    guest = Uml(image, subject.socket)
    # the program is the shell around it; the guest's processes are below it
    for pid in descendants(guest.program.pid):
        pin(pid, driver_core())
    return guest


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process on a core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in descendants(int(child)))]


# ---- measuring once --------------------------------------------------------------------------------------------------


def measure(place: Place, boot: Boot, image: GuestImage, seconds: float) -> Values:
    """Boot, measure TCP, round trips and silence."""
    with place(boot, image) as machine:
        host, guest = Host(machine.netns, image), machine.guest
        whole = max(1, round(seconds))
        values = {
            "tcp-out": iperf_mbits(guest, host, HOST_ADDRESS, whole),
            "tcp-in": iperf_mbits(guest, host, HOST_ADDRESS, whole, reverse=True),
        }
        trips = round_trips(host, guest, GUEST_ADDRESS, count=max(100, round(500 * seconds)))
        values |= {"p50": trips["p50_us"], "p99": trips["p99_us"]}
        if machine.back_end is not None:
            values |= silence(machine.netns, machine.back_end, seconds)
        return values


def silence(netns: Netns, pid: int, seconds: float) -> Values:
    """What a back-end does while no packet passes. Raises RigError when packets passed in every one of ten windows."""
    with Link(netns, TAP) as link:
        for _ in range(10):
            before, cpu, switches = link.packets(), cpu_seconds(pid), context_switches(pid)
            time.sleep(seconds)
            cpu, switches = cpu_seconds(pid) - cpu, context_switches(pid) - switches
            if link.packets() == before:
                return {"idle-cpu": 100 * cpu / seconds, "idle-switches": switches / seconds}
    raise RigError(f"packets passed {TAP} in every window of {seconds:g} s")

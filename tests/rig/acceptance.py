"""What a back-end has to stand, as runs of any length.

The guest tests call these with short arguments and ``scripts/soak`` with long ones. Each raises :class:`RigError` when
the back-end fails and returns what it measured, ready for JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import RigError, wait_until
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.testpmd import Testpmd, virtio_user
from tests.rig.traffic import End, Flow, Host, Tally
from vhostuser.peer.footprint import Footprint

HOST_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
PREFIX = 24

T = TypeVar("T")

#: One thread's voluntary switches, involuntary switches and clock ticks.
Activity = tuple[int, int, int]


def ping(netns: Netns, count: int = 3, timeout: float = 20.0) -> None:
    """Ping the guest until ``count`` answers in a row came. Raises RigError."""

    def answered() -> bool:
        try:
            output = netns.run("ping", "-c", str(count), "-i", "0.05", "-W", "1", GUEST_ADDRESS)
        except RigError:
            return False
        return " 0% packet loss" in output

    wait_until(answered, timeout, f"{count} answers of {GUEST_ADDRESS} in a row")


def checked_traffic(guest: End, host: End, seconds: float) -> dict[str, Any]:
    """TCP and UDP, both ways at once, with every byte checked. Raises RigError when one is wrong."""
    flows = two_way_flows(guest, host, seconds)
    return {name: asdict(judged(name, flow.finish())) for name, flow in flows.items()}


def two_way_flows(guest: End, host: End, seconds: float) -> dict[str, Flow]:
    """Four flows that run at once: TCP and UDP, each both ways."""
    return {
        f"{protocol} {way}": Flow(source, sink, address, seconds, protocol=protocol, rate=500)
        for protocol in ("tcp", "udp")
        for way, source, sink, address in (
            ("guest to host", guest, host, HOST_ADDRESS),
            ("host to guest", host, guest, GUEST_ADDRESS),
        )
    }


def judged(name: str, tally: Tally) -> Tally:
    """The tally of a flow, when nothing in it was wrong. Raises RigError."""
    if not tally.intact or (name.startswith("tcp") and tally.lost):
        raise RigError(f"{name}: {tally}")
    return tally


def hotplug(guest: Qemu, host: Host, backend: Backend, *, cycles: int, seconds: float) -> dict[str, Any]:
    """Plug and unplug a DIMM under checked traffic both ways.

    Args:
        guest: a machine with a free DIMM slot.
        host: the other end of the traffic.
        backend: what serves the guest.
        cycles: how often.
        seconds: how long the traffic runs; the cycles have to fit.

    Raises:
        RigError: traffic was damaged, TCP stopped, or the back-end holds other mappings than before.
    """
    before = backend.footprint()
    flows = two_way_flows(guest, host, seconds)
    end = time.monotonic() + seconds
    for cycle in range(cycles):
        guest.plug_dimm(f"dimm{cycle}", 128)
        guest.unplug_dimm(f"dimm{cycle}")
    if time.monotonic() > end:
        raise RigError(f"{cycles} hot-plug cycles took longer than the {seconds:g} s of traffic around them")
    tallies = {name: asdict(judged(name, flow.finish())) for name, flow in flows.items()}
    backend.wait_for_footprint(before)
    return {"cycles": cycles, "flows": tallies}


def restart_back_end(image: GuestImage, *, cycles: int) -> dict[str, Any]:
    """Kill the back-end and start it again under a guest that reconnects.

    Raises:
        RigError: the guest was not reached again, or the new process holds other things than the first.
    """
    with Netns() as netns, tempfile.TemporaryDirectory(prefix="vhu-restart-") as folder:
        path = Path(folder) / "vhost-user.sock"
        backend = serving_back_end(netns, path)
        try:
            with Qemu(image, [VhostUserNic(path, reconnect=1)]) as guest:
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
                first = backend.footprint()
                for _ in range(cycles):
                    backend.kill()
                    backend = serving_back_end(netns, path)
                    ping(netns)
                    backend.wait_for_footprint(first)
        finally:
            backend.close()
    return {"cycles": cycles, "footprint": describe(first)}


def restart_front_end(*, cycles: int) -> dict[str, Any]:
    """Let front-ends come, send and go; every other one is killed in the middle of its traffic.

    Raises:
        RigError: one was not served, or the back-end holds other things afterwards.
    """
    with Netns() as netns, Backend(netns) as backend:
        assert backend.tap is not None
        before = None
        for cycle in range(cycles + 1):
            start = netns.rx_packets(backend.tap)
            with Testpmd([virtio_user(backend.socket)]) as front_end:
                front_end.forward("txonly", 60)
                wait_for_packets(netns, backend.tap, start + 1)
                if cycle % 2:
                    front_end.program.kill()
            if before is None:
                # the first one may have made the back-end load what it keeps
                before = settled(backend.footprint)
            else:
                backend.wait_for_footprint(before)
    assert before is not None
    return {"cycles": cycles, "footprint": describe(before)}


def restart_listening_front_end(image: GuestImage, *, cycles: int) -> dict[str, Any]:
    """A back-end in client mode, whose QEMU is killed and started again.

    Raises:
        RigError: the new guest was not reached, or the back-end holds other things afterwards.
    """
    with Netns() as netns, Backend(netns, client=True) as backend:
        assert backend.tap is not None
        netns.add_address(backend.tap, f"{HOST_ADDRESS}/{PREFIX}")
        before = None
        for _ in range(cycles + 1):
            with Qemu(image, [VhostUserNic(backend.socket, server=True)]) as guest:
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
                guest.program.kill()
            if before is None:
                before = settled(backend.footprint)
            else:
                backend.wait_for_footprint(before)
    assert before is not None
    return {"cycles": cycles, "footprint": describe(before)}


def idle(netns: Netns, backend: Backend, *, seconds: float) -> dict[str, Any]:
    """With a guest attached and no packets, no thread of the back-end may run.

    A window in which the kernel of either side sent a packet of its own proves nothing and is measured again.

    Raises:
        RigError: a thread ran, or there was no quiet window.
    """
    assert backend.tap is not None
    for _ in range(10):
        packets, before = link_packets(netns, backend.tap), activity(backend.program.pid)
        time.sleep(seconds)
        after = activity(backend.program.pid)
        if link_packets(netns, backend.tap) != packets:
            continue
        if after != before:
            raise RigError(f"the back-end ran in {seconds:g} s without a packet: {before}, then {after}")
        return {"seconds": seconds, "threads": len(after)}
    raise RigError(f"no {seconds:g} s without a packet at {backend.tap}")


def serving_back_end(netns: Netns, socket_path: Path | None = None, options: Sequence[str] = ()) -> Backend:
    """A back-end whose tap has the host's address."""
    backend = Backend(netns, socket_path=socket_path, options=options)
    assert backend.tap is not None
    netns.add_address(backend.tap, f"{HOST_ADDRESS}/{PREFIX}")
    return backend


def wait_for_packets(netns: Netns, tap: str, count: int) -> None:
    """Wait until the tap has counted so many packets from the guest. Raises RigError."""
    wait_until(lambda: netns.rx_packets(tap) >= count, 20, f"{count} packets at {tap}")


def link_packets(netns: Netns, tap: str) -> tuple[int, int]:
    """Packets that went through a tap, each way."""
    stats = netns.link(tap)["stats64"]
    return stats["rx"]["packets"], stats["tx"]["packets"]


def settled(measure: Callable[[], T]) -> T:
    """A measure, once it stayed the same for half a second. Raises RigError."""
    last, since = measure(), time.monotonic()

    def quiet() -> bool:
        nonlocal last, since
        if (now := measure()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_until(quiet, 20, "the back-end to settle")
    return last


def activity(pid: int) -> dict[str, Activity]:
    """How often each thread of a process was switched, and the clock ticks it used."""
    found: dict[str, Activity] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        ticks = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = (
            int(status["voluntary_ctxt_switches"]),
            int(status["nonvoluntary_ctxt_switches"]),
            int(ticks[11]) + int(ticks[12]),  # utime and stime, fields 14 and 15 of the whole line
        )
    return found


def describe(footprint: Footprint) -> dict[str, Any]:
    """A footprint for JSON."""
    return {"fds": dict(footprint.fds), "mappings": dict(footprint.mappings), "tasks": footprint.tasks}

"""Back-ends and QEMUs killed with SIGKILL in the middle of their traffic, and what became of it.

The tap outlives the back-ends, so that the host's end of the traffic notices nothing but a pause.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.rig.acceptance import (
    GUEST_ADDRESS,
    HOST_ADDRESS,
    PREFIX,
    describe,
    link_packets,
    ping,
    settled,
    two_way_flows,
)
from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import RigError, wait_until
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import Host, Tally

TAP = "tap0"
#: Packets each way after which traffic has resumed: more than were on their way in any queue.
RESUMED = 300
#: Chains that a back-end takes before it publishes: as many may be sent again by the next.
BURST = 64
#: Seconds of traffic for each kill.
SECONDS = 6.0
#: KiB by which a process may grow and still be what it was: the allocator keeps some.
SLACK = 4096


@contextmanager
def host_side() -> Iterator[Netns]:
    """A namespace with a tap that stays, whoever serves it."""
    with Netns() as netns:
        netns.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        yield netns


def kill_back_ends(image: GuestImage, *, cycles: int, seed: int = 1) -> dict[str, Any]:
    """Kill the back-end again and again under checked traffic both ways; QEMU connects to the next one by itself.

    Raises:
        RigError: traffic did not resume, bytes were damaged or lost by TCP, more was sent twice than a burst a kill,
            or the last process holds other things than the first.
    """
    chance = random.Random(seed)
    pauses: list[float] = []
    with host_side() as netns, tempfile.TemporaryDirectory(prefix="vhu-kill-") as folder:
        path = Path(folder) / "vhost-user.sock"
        backend = Backend(netns, tap=TAP, socket_path=path)
        try:
            with Qemu(image, [VhostUserNic(path, reconnect=1)]) as guest:
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
                first = settled(backend.footprint)
                flows = two_way_flows(guest, Host(netns, image), cycles * SECONDS)
                end = time.monotonic() + cycles * SECONDS
                for _ in range(cycles):
                    wait_for_traffic(netns)
                    time.sleep(chance.uniform(0, 1))  # anywhere in the traffic
                    backend.kill()
                    killed = time.monotonic()
                    backend = Backend(netns, tap=TAP, socket_path=path)
                    wait_for_traffic(netns)
                    pauses.append(time.monotonic() - killed)
                if time.monotonic() > end:
                    raise RigError(f"{cycles} kills took longer than their {cycles * SECONDS:g} s of traffic")
                tallies = {name: judged(name, flow.finish(), cycles) for name, flow in flows.items()}
                backend.wait_for_footprint(first)
        finally:
            backend.close()
    pauses.sort()
    return {
        "kills": cycles,
        "seconds until traffic resumed": {"median": round(pauses[cycles // 2], 2), "longest": round(pauses[-1], 2)},
        "flows": tallies,
        "footprint": describe(first),
    }


def wait_for_traffic(netns: Netns) -> None:
    """Wait until packets have gone both ways. Raises RigError."""
    start = link_packets(netns, TAP)

    def moved() -> bool:
        return all(now >= then + RESUMED for now, then in zip(link_packets(netns, TAP), start, strict=True))

    wait_until(moved, 30, f"{RESUMED} packets each way at {TAP}")


def judged(name: str, tally: Tally, kills: int) -> dict[str, Any]:
    """The tally of a flow through so many kills. Raises RigError.

    What a back-end had sent and not published is sent again by the next one: a guest's datagrams may come twice.
    """
    twice = BURST * kills if name == "udp guest to host" else 0
    if not tally.received or tally.damaged or tally.doubled > twice or (name.startswith("tcp") and tally.lost):
        raise RigError(f"{name}: {tally}; {twice} may come twice")
    return asdict(tally)


def kill_back_end_of_packed_ring(image: GuestImage) -> dict[str, Any]:
    """QEMU keeps no position of a packed ring whose back-end died: the next one refuses it and says why.

    Raises:
        RigError: it did not refuse, or the guest is not reached again when it starts its rings anew.
    """
    with host_side() as netns, tempfile.TemporaryDirectory(prefix="vhu-kill-") as folder:
        path = Path(folder) / "vhost-user.sock"
        backend = Backend(netns, tap=TAP, socket_path=path)
        try:
            with Qemu(image, [VhostUserNic(path, reconnect=1, options="packed=on")]) as guest:
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
                backend.kill()
                backend = Backend(netns, tap=TAP, socket_path=path)
                reason = backend.program.wait_for_output(r"vring \d: it cannot go on at .*").group(0)
                guest.reset()
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
        finally:
            backend.close()
    return {"the new back-end says": reason, "after a reset of the guest": "answers"}


def kill_qemus(image: GuestImage, *, cycles: int) -> dict[str, Any]:
    """Kill QEMU again and again in the middle of its traffic; one back-end serves them all.

    Raises:
        RigError: a guest was not reached, or the back-end holds other things, or more memory, than after the first.
    """
    with host_side() as netns, Backend(netns, tap=TAP) as backend:
        before, grown = None, 0
        for cycle in range(cycles + 1):
            with Qemu(image, [VhostUserNic(backend.socket)]) as guest:
                guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
                ping(netns)
                flows = two_way_flows(guest, Host(netns, image), 60)
                wait_for_traffic(netns)
                guest.program.kill()
                for flow in flows.values():
                    flow.abandon()
            if before is None:
                # the first one may have made the back-end load what it keeps
                before, memory = settled(backend.footprint), anonymous_kib(backend.program.pid)
            else:
                backend.wait_for_footprint(before)
                grown = anonymous_kib(backend.program.pid) - memory
                if grown > SLACK:
                    raise RigError(f"the back-end has grown by {grown} KiB of {memory} after {cycle} QEMUs")
    assert before is not None
    return {"kills": cycles, "grown by KiB": grown, "of KiB": memory, "footprint": describe(before)}


def anonymous_kib(pid: int) -> int:
    """KiB of a process that no file is behind."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, value, *_ = line.split()
        if name == "Anonymous:":
            return int(value)
    raise RigError(f"process {pid} has no memory")

"""Long acceptance runs with real peers, whose results are kept as evidence.

Runs as ``scripts/soak NAME...``. Each run writes ``evidence/NAME.json``: what was run, where, and what it measured or
how it failed. The tests run the same code in short form.
"""

from __future__ import annotations

import inspect
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click

from tests.rig import acceptance, debian, kills, wild_rings
from tests.rig.acceptance import GUEST_ADDRESS, PREFIX, serving_back_end
from tests.rig.backend import Backend
from tests.rig.crash import CrashError
from tests.rig.datapath import Plan
from tests.rig.datapath import datapath as run_datapath
from tests.rig.flood import flood_without_buffers
from tests.rig.image import guest_image
from tests.rig.matrix import matrix as run_matrix
from tests.rig.migration import against_dpdk
from tests.rig.mutations import mutations
from tests.rig.neighbours import neighbours as run_neighbours
from tests.rig.netns import Netns
from tests.rig.process import RigError
from tests.rig.qemu import Qemu, VhostUserNic, accelerator
from tests.rig.seeded import seeded as seeded_faults
from tests.rig.traffic import Host
from tests.rig.wild_frames import wild_frames
from tests.virtio.fences import LAYOUTS, LOST_WITHOUT, stress, without_fence
from vhostuser import edition

EVIDENCE = Path("evidence")
FRAMES = 1_000_000
MUTATIONS = 1_000_000
RING_OPERATIONS = 10_000_000
FRAMES_PER_SECOND = 20_000  # both ways together, in the run `datapath`


@contextmanager
def machine() -> Iterator[tuple[Netns, Backend, Host, Qemu]]:
    """A QEMU guest behind a back-end, both with an address."""
    image = guest_image()
    with (
        Netns() as netns,
        serving_back_end(netns) as backend,
        Qemu(image, [VhostUserNic(backend.socket)], dimm_slots=2) as guest,
    ):
        guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
        acceptance.ping(netns)
        yield netns, backend, Host(netns, image), guest


def reconnect() -> dict[str, Any]:
    """Either side goes away and comes back a hundred times."""
    image = guest_image()
    return {
        "back-end killed and restarted": acceptance.restart_back_end(image, cycles=100),
        "front-ends come and go": acceptance.restart_front_end(cycles=100),
        "listening front-end killed and restarted": acceptance.restart_listening_front_end(image, cycles=100),
    }


def kill(cycles: int = 50) -> dict[str, Any]:
    """The back-end, then QEMU, killed fifty times in the middle of checked traffic; and a packed ring's back-end."""
    image = guest_image()
    return {
        "back-end killed": kills.kill_back_ends(image, cycles=cycles),
        "back-end of a packed ring killed": kills.kill_back_end_of_packed_ring(image),
        "QEMU killed": kills.kill_qemus(image, cycles=cycles),
    }


def hotplug() -> dict[str, Any]:
    """DIMMs plugged and unplugged a hundred times under checked traffic."""
    with machine() as (_, backend, host, guest):
        return acceptance.hotplug(guest, host, backend, cycles=100, seconds=120)


def idle(seconds: float = 10) -> dict[str, Any]:
    """No thread runs in ten seconds without packets."""
    with machine() as (netns, backend, _, _):
        return acceptance.idle(netns, backend, seconds=seconds)


def flood(seconds: float = 10) -> dict[str, Any]:
    """A host floods guests that give no receive buffers, for ten seconds a layout: no thread runs."""
    return {
        "split": flood_without_buffers(seconds),
        "packed": flood_without_buffers(seconds, packed=True),
    }


def traffic(seconds: float = 600) -> dict[str, Any]:
    """Ten minutes of checked traffic, TCP and UDP, both ways at once."""
    with machine() as (_, _, host, guest):
        return acceptance.checked_traffic(guest, host, seconds)


def datapath(seconds: float = 300) -> dict[str, Any]:
    """Checked frames both ways, five minutes a layout: the memory table replaced every second, the port every ten."""
    results = {}
    for layout in ("split", "packed"):
        results[layout] = run_datapath(Plan(seconds, layout == "packed"))
        if results[layout]["frames a second, both ways"] < FRAMES_PER_SECOND:
            raise RigError(f"{layout}: less than {FRAMES_PER_SECOND} frames a second: {results}")
    return results


def matrix() -> dict[str, Any]:
    """DPDK's virtio-user in every mode, with one, two and four queue pairs: every frame comes back as it was."""
    return run_matrix()


def neighbours(seconds: float = 20) -> dict[str, Any]:
    """Three guests on one process: one storms it with requests, one floods it with packets, the third is measured."""
    return {layout: run_neighbours(seconds, layout) for layout in ("split", "packed")}


def migration(packed: bool, pairs: int) -> dict[str, Any]:
    """A guest migrates there and back twenty times under traffic both ways, over this back-end and over DPDK's."""
    return against_dpdk(guest_image(), 20, packed, pairs)


def fences() -> dict[str, Any]:
    """A driver and a device in two processes: a million sleeps and wake-ups, and what is lost without a fence."""
    results: dict[str, Any] = {}
    for layout, event_idx in product(LAYOUTS, (False, True)):
        outcome = stress(1_000_000, layout=layout, event_idx=event_idx)
        name = f"{layout}, by {'position' if event_idx else 'flags'}"
        results[name] = {"whole": outcome}
        if outcome["lost"]:
            raise RigError(f"{name}: lost a {outcome['lost']}: {outcome}")
    for layout, method in product(LAYOUTS, LOST_WITHOUT):
        with without_fence(method, layout) as tree:
            for event_idx in (False, True):
                name = f"{layout}, by {'position' if event_idx else 'flags'}"
                outcome = stress(2_000_000, layout=layout, event_idx=event_idx, tree=tree, timeout=2)
                results[name][f"without the fence of {method}"] = outcome
                if outcome["lost"] != LOST_WITHOUT[method]:
                    raise RigError(f"{name}, without the fence of {method}: {outcome}")
    return results


def decode(seed: int = 1) -> dict[str, Any]:
    """A million mutations of recorded messages are taken apart: each byte is in one field, and nothing raises."""
    return mutations(MUTATIONS, seed)


def seeded(seconds: float = 600) -> dict[str, Any]:
    """The faults of tests/faults, each in a copy: found by the conformance suite or the fuzzer in ten minutes each?"""
    return seeded_faults(seconds)


def hostile(seed: int = 1) -> dict[str, Any]:
    """A million random and mutated frames, ten million ring operations on hostile memory: nothing crashes or stays."""
    results: dict[str, Any] = {"frames": wild_frames(FRAMES, seed)}
    with tempfile.TemporaryDirectory() as folder:
        for layout in wild_rings.LAYOUTS:
            log = Path(folder) / "log"
            operations = RING_OPERATIONS // len(wild_rings.LAYOUTS) + 1
            results[f"ring operations, {layout}"] = wild_rings.wild_rings(operations, layout, seed, log)
    return {"seed": seed, **results}


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "reconnect": reconnect,
    "hostile": hostile,
    "seeded": seeded,
    "decode": decode,
    "kill": kill,
    "hotplug": hotplug,
    "idle": idle,
    "flood": flood,
    "traffic": traffic,
    "datapath": datapath,
    "fences": fences,
    **{
        f"migration-{'packed' if packed else 'split'}-{pairs}": partial(migration, packed, pairs)
        for packed, pairs in product((False, True), (1, 4))
    },
    "matrix": matrix,
    "neighbours": neighbours,
}


def evidence_of(name: str, seconds: float | None = None) -> dict[str, Any]:
    """Run one, for so many seconds if it goes by time, and describe the run, its surroundings and what came of it."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    evidence: dict[str, Any] = {
        "run": name,
        "what": _what(RUNS[name]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "edition": edition.name(),
        "accelerator": accelerator(guest_image())[1],
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    if seconds is not None:
        evidence["seconds given"] = seconds
    start = time.monotonic()
    try:
        by_time = seconds is not None and "seconds" in inspect.signature(RUNS[name]).parameters
        evidence |= {"ok": True, "result": RUNS[name](seconds) if by_time else RUNS[name]()}
    except CrashError as crash:  # a peer's fault, as far as it goes: what we saw of it stands apart
        evidence |= {"ok": False, "a peer crashed": str(crash).splitlines(), "seen as": str(crash.__context__ or "")}
    except RigError as error:
        evidence |= {"ok": False, "error": str(error)}
    return evidence | {"seconds": round(time.monotonic() - start, 1)}


def _what(run: Callable[..., Any]) -> str | None:
    return (run.func if isinstance(run, partial) else run).__doc__


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(RUNS)))
@click.option("--seconds", type=click.FloatRange(min=1), help="Measure for so long, in place of a run's own time.")
def main(names: tuple[str, ...], seconds: float | None) -> None:
    """Run long acceptance tests by name and keep the evidence."""
    debian.install(debian.PEERS)
    EVIDENCE.mkdir(exist_ok=True)
    ok = True
    for name in names:
        evidence = evidence_of(name, seconds)
        (EVIDENCE / f"{name}.json").write_text(json.dumps(evidence, indent=2) + "\n")
        click.echo(json.dumps(evidence, indent=2))
        ok = ok and evidence["ok"]
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

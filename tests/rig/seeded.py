"""Faults that were put into copies of the package: which of them the tools for any back-end find, from the rules alone.

Each copy is served as a program and looked at from its socket, first by the conformance suite, then, if that finds
nothing wrong, by the fuzzer. The tools themselves are the sound ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.copies import ROOT, faulty_copy
from tests.faults.table import FAULTS, Fault
from tests.rig.process import RigError

#: All that an interpreted back-end of ours can offer, and packets that come back.
OPTIONS = ("--loop", "--queues=2", "--mtu=1500", "--features=+ACCESS_PLATFORM", "--inband")
FEWER = ("--loop", "--queues=2", "--mtu=1500")
OURS = f"{sys.executable} -X dev -m vhostuser net --socket-path={{socket}}"
JOBS = 8  # back-ends at a time in the suite, most of whose checks wait
WORKERS = 2
SUITE_TIME = 600.0  # seconds
_KEPT = ("pass", "not applicable")


def seeded(seconds: float, faults: Sequence[Fault] = FAULTS) -> dict[str, Any]:
    """Look for each fault with the conformance suite, then for those that it does not see with the fuzzer.

    Args:
        seconds: How long the fuzzer looks for each.
        faults: Which ones.

    Returns:
        Of each fault what found it, and how many were found.

    Raises:
        RigError: the suite finds something in the sound package, so that what it finds elsewhere tells nothing.
    """
    with tempfile.TemporaryDirectory(prefix="vhu-seeded-") as name:
        sound = Path(name) / "sound"
        sound.mkdir()
        (sound / "vhostuser").symlink_to(ROOT / "vhostuser")
        if wrong := _conformance(sound):
            raise RigError(f"in the sound package the conformance suite finds {wrong}")
        trees = {fault.name: Path(name) / str(number) for number, fault in enumerate(faults)}
        for fault in faults:
            faulty_copy(trees[fault.name], fault.module, fault.changes)
        told = {what: _looked_for(what, "conform", partial(_conformance, tree)) for what, tree in trees.items()}
        for what, tree in trees.items():
            if not told[what]["by"]:
                told[what] = _looked_for(what, "fuzz", partial(_fuzzing, tree, seconds))
    return {"faults": told, "found": sum(bool(one["by"]) for one in told.values()), "of": len(told)}


def _looked_for(fault: str, tool: str, find: Callable[[], list[str]]) -> dict[str, Any]:
    begin = time.monotonic()
    found = find()
    print(f"{fault}: {tool}: {'; '.join(found) or 'nothing'}", file=sys.stderr, flush=True)
    return {"by": tool if found else None, "what": found, "seconds": round(time.monotonic() - begin)}


def _conformance(tree: Path) -> list[str]:
    """The statements that it does not keep, and did not keep when they were tried once more; with what came first."""
    failed = _failed(tree, ())
    again = _failed(tree, failed) if failed else {}
    return [f"{name}: {told}" for name, told in failed.items() if name in again]


def _failed(tree: Path, only: Iterable[str]) -> dict[str, str]:
    words = ["conform", "--format=json", "--keep", "--first", f"--jobs={JOBS}", f"--spawn={_command(tree, OPTIONS)}"]
    told = json.loads(run_tool([*words, *(f"--only={name}" for name in only)], SUITE_TIME))
    rows = [row for row in told["results"] if row["verdict"] not in _KEPT]
    return {row["statement"]: next(f["text"] for f in row["findings"] if f["verdict"] not in _KEPT) for row in rows}


def _fuzzing(tree: Path, seconds: float) -> list[str]:
    """What was found, and shown again."""
    file = tree / "report.json"
    words = ["fuzz", f"--spawn={_command(tree, FEWER)}", f"--duration={seconds}", f"--workers={WORKERS}"]
    run_tool([*words, f"--json={file}", f"--findings={tree / 'findings'}"], 2 * seconds + 120)
    findings = json.loads(file.read_text())["findings"]
    return [f"{one['kind']}: {one['signature']}" for one in findings if one["confirmed"].startswith("3")]


def _command(tree: Path, options: Sequence[str]) -> str:
    env = f"env PYTHONPATH={tree} VHOSTUSER_EDITION=interpreted VHOSTUSER_REQUIRE_COMPILED=0"
    return f"{env} {OURS} {' '.join(options)}"


def run_tool(words: list[str], seconds: float) -> str:
    """What a tool of ours prints. Raises RigError if it cannot work, or does not end."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vhostuser", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RigError(f"vhostuser {' '.join(words)}: no end in {seconds:g} s") from None
    if done.returncode not in (0, 1):
        raise RigError(f"vhostuser {' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout

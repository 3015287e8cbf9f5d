"""All checks of the project, some at a time where they do not disturb each other.

Runs as ``scripts/test``, which makes the virtual environment first. A test that was deselected, skipped or expected to
fail counts as failed: what is not shown to work is not known to work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig import debian
from tests.rig.image import guest_image

LOGS = Path(".cache/checks")
PYTHON = sys.executable
GUEST_TESTS = "tests/guest"
HOSTILE_TESTS = "tests/hostile"

#: The tools for any back-end or front-end; where they are tried on ours, it is a program with an edition of its own.
TOOLS = [f"tests/{name}" for name in ("conformance", "fuzz", "fuzzing", "peer", "spec", "transcript")]

#: These try nothing that is compiled, or have processes of their own that choose the edition, so one run is enough.
ONE_EDITION = [
    *(f"--ignore={path}" for path in TOOLS),
    *(f"--ignore=tests/{name}" for name in (
        "wire",
        "session",
        "transport",
        "specification",
        "faults",
        "hostile/test_framing.py",
        "hostile/test_storms.py",
    )),
]  # fmt: skip

#: About half of the time that tests without guests and hostile inputs take.
FIRST_HALF = ["tests/virtio", "tests/faults"]

#: Guest tests whose peers poll without a pause, or that count what a loaded machine would lose.
_POLLING = ("benchmark", "conformance", "datapath", "dpdk", "multiqueue", "timeline")
POLLING = [f"{GUEST_TESTS}/test_{name}.py" for name in _POLLING]

#: Guest tests that the interpreted edition runs too; the others repeat what these and the unit tests show.
SHORT_GUEST_TESTS = [f"{GUEST_TESTS}/test_{name}.py" for name in ("qemu", "uml", "rng")]
SHORT_POLLING = [f"{GUEST_TESTS}/test_dpdk.py"]

INTERPRETED = {"VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0"}


@dataclass(frozen=True)
class Check:
    """One program that has to end with status 0."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return LOGS / f"{self.name.replace(' ', '-')}.log"


@dataclass
class Outcome:
    """What came of a check; both counts are 0 for what is not a test run."""

    ok: bool
    collected: int = 0
    passed: int = 0


def pytest(name: str, *words: str, env: dict[str, str] | None = None) -> Check:
    """A test run; without the cache, which parallel runs would share."""
    return Check(name, [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", *words], env or {})


#: Those that take longest come first, so that what is left at the end is short.
SIDE_BY_SIDE = [
    pytest("tests interpreted", f"--ignore={GUEST_TESTS}", *ONE_EDITION, env=INTERPRETED),
    pytest("guests compiled", GUEST_TESTS, *(f"--ignore={path}" for path in POLLING)),
    pytest("rings and faults compiled", *FIRST_HALF),
    pytest("other tests compiled", *(f"--ignore={path}" for path in (GUEST_TESTS, HOSTILE_TESTS, *FIRST_HALF, *TOOLS))),
    pytest("tools", *TOOLS),
    pytest("hostile inputs compiled", HOSTILE_TESTS),
    pytest("guests interpreted", *SHORT_GUEST_TESTS, env=INTERPRETED),
    Check("mypy", [PYTHON, "-m", "mypy"]),
    Check("ruff", [PYTHON, "-m", "ruff", "check"]),
    Check("layout of the source", [PYTHON, "-m", "ruff", "format", "--check"]),
    Check("specification coverage", [PYTHON, "scripts/spec-coverage"]),
]

#: Peers that poll need the machine for themselves.
ALONE = [
    pytest("polling peers compiled", *POLLING),
    pytest("polling peers interpreted", *SHORT_POLLING, env=INTERPRETED),
]


def run(check: Check) -> Outcome:
    """Run a check and say how it went."""
    start = time.monotonic()
    with check.log.open("w") as log:
        status = subprocess.run(
            check.argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **check.env}, check=False
        ).returncode
    text = check.log.read_text(errors="replace")
    outcome = Outcome(ok=status == 0)
    if "pytest" in check.argv:
        outcome.collected, outcome.passed = counted(text)
        outcome.ok = outcome.ok and 0 < outcome.collected == outcome.passed
    last = text.strip().rpartition("\n")[2].strip("= ")
    print(f"{'ok  ' if outcome.ok else 'FAIL'} {check.name} ({time.monotonic() - start:.0f} s): {last}", flush=True)
    if not outcome.ok:
        print("\n".join(text.splitlines()[-60:]), flush=True)
    return outcome


def counted(output: str) -> tuple[int, int]:
    """How many tests pytest collected, deselected ones included, and how many passed.

    >>> counted("collected 3 items\\n==== 2 passed, 1 skipped in 0.1s ====")
    (3, 2)
    """
    collected = re.search(r"^collected (\d+) items?", output, re.MULTILINE)
    passed = re.search(r"(\d+) passed", output.strip().rpartition("\n")[2])
    return int(collected[1]) if collected else 0, int(passed[1]) if passed else 0


def main() -> int:
    """Run all checks and count. Returns the exit status."""
    debian.install(debian.PEERS)
    LOGS.mkdir(parents=True, exist_ok=True)
    guest_image()
    with ThreadPoolExecutor(max_workers=3) as pool:  # tests wait a third of their time
        outcomes = list(pool.map(run, SIDE_BY_SIDE))
    outcomes += map(run, ALONE)
    collected, passed = sum(o.collected for o in outcomes), sum(o.passed for o in outcomes)
    failed_checks = sum(not outcome.ok for outcome in outcomes)
    if failed_checks:
        print(f"{failed_checks} of {len(outcomes)} checks failed; their logs are in {LOGS}")
        print(f"{passed} passed, {max(collected - passed, 1)} failed")
        return 1
    print(f"{passed} passed, 0 failed")
    print(f"collected {collected} = passed {passed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A driver and a device in two processes that share a ring, with all fences in place or with one of them cut out.

The device is ours, run in its own process (``ring_device.py``); the driver is a C program (``ring_driver.c``). What
they prove holds for this machine's processors and compilers: a million rounds without a lost notification, and, so
that this means something, a notification lost soon after the start when a fence is missing.

A device without a fence is a copy of the package in which one line of ``split.py`` was taken out, compiled anew.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vhostuser
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = Path(vhostuser.__file__).resolve().parent
MODULE = "vhostuser.virtio.split"

NUM = 16
MEMORY = 1 << 20

#: The methods of the device's ring with a full fence, and what is lost without it.
LOST_WITHOUT = {"publish": "call", "arm": "kick"}


@functools.cache
def ring_driver() -> Path:
    """The compiled driver; it goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="vhu-driver-")
    program = Path(folder.name) / "ring_driver"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, HERE / "ring_driver.c"], check=True)
    _kept.append(folder)
    return program


_kept: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def without_fence(method: str) -> Iterator[Path]:
    """A tree with the package, whose ring has no fence in `method`; what is compiled here is compiled there."""
    with tempfile.TemporaryDirectory(prefix="vhu-fence-") as name:
        tree = Path(name)
        shutil.copytree(PACKAGE, tree / "vhostuser")  # with the times of the files, so that nothing else is built
        source = tree / "vhostuser" / "virtio" / "split.py"
        source.write_text(cut(source.read_text(), method))
        shutil.copy(ROOT / "setup.py", tree)
        build = (
            "import runpy, sys; from vhostuser import edition; edition.MODULES = (sys.argv.pop(),); "
            "runpy.run_path('setup.py')"
        )
        words = [sys.executable, "-c", build, "-q", "build_ext", "--inplace", MODULE]
        built = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        yield tree


def cut(source: str, method: str) -> str:
    """The source of a module without the one call of ``fence`` in `method`."""
    head, body = re.split(rf"(?<=\n)(?=    def {method}\()", source)
    assert body.count("        fence()\n") >= 1, f"{method} has no fence"
    return head + body.replace("        fence()\n", "", 1)


def on_cpu(place: int) -> list[str]:
    """Words that keep a program on one of our processors: two that wake each other would end up on the same one."""
    return ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[place])]


@contextmanager
def device(tree: Path, ram: GuestRam, driver: DriverRing, edition: str) -> Iterator[None]:
    """The device's process, from the package in `tree`."""
    fds = ram.fds()[0], driver.kick_fd.fileno(), driver.call_fd.fileno()
    told = {
        "memfd": fds[0],
        "size": MEMORY,
        "num": driver.size,
        "areas": [driver.desc_addr, driver.avail_addr, driver.used_addr],
        "event_idx": driver.event_idx,
        "kick": fds[1],
        "call": fds[2],
    }
    words = [*on_cpu(0), sys.executable, str(HERE / "ring_device.py"), json.dumps(told)]
    required = str(int(edition == "compiled"))
    environment = {"PYTHONPATH": str(tree), "VHOSTUSER_EDITION": edition, "VHOSTUSER_REQUIRE_COMPILED": required}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, pass_fds=fds
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready {tree / 'vhostuser'}\n"
            yield
        finally:
            process.communicate(timeout=20)


def stress(
    rounds: int, *, event_idx: bool, tree: Path = PACKAGE.parent, timeout: float = 10.0, edition: str = "compiled"
) -> dict[str, Any]:
    """Have the two sides send each other to sleep so many times.

    Args:
        rounds: bursts of one to three chains.
        event_idx: whether notifications are suppressed by index rather than by flags.
        tree: where the device's package is.
        timeout: seconds until a notification counts as lost.
        edition: the device's.

    Returns:
        What the driver counted: rounds, kicks, calls, sleeps, and what was lost.
    """
    with (
        GuestRam([(0, MEMORY)]) as ram,
        DriverRing(ram, 0, NUM, event_idx=event_idx) as driver,
        device(tree, ram, driver, edition),
    ):
        fds = ram.fds()[0], driver.kick_fd.fileno(), driver.call_fd.fileno()
        areas = driver.desc_addr, driver.avail_addr, driver.used_addr
        numbers = (fds[0], MEMORY, *areas, NUM, int(event_idx), fds[1], fds[2], rounds, int(timeout * 1000))
        words = [*on_cpu(-1), str(ring_driver()), *map(str, numbers)]
        ran = subprocess.run(words, capture_output=True, text=True, pass_fds=fds, check=False)
        assert ran.returncode == 0, ran.stderr
        outcome = json.loads(ran.stdout)
        assert isinstance(outcome, dict)
        return outcome

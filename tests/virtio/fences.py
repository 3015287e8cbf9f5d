"""A driver and a device in two processes that share a ring, with all fences in place or with one of them cut out.

The device is ours, run in its own process (``ring_device.py``); the driver is a C program (``ring_driver.c``). What
they prove holds for this machine's processors and compilers: a million rounds without a lost notification, and, so
that this means something, a notification lost soon after the start when a fence is missing.

A device without a fence is a copy of the package in which one line of a layout's module was taken out, compiled anew.
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
from vhostuser.virtio.features import VirtioFeature

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = Path(vhostuser.__file__).resolve().parent

NUM = 16
MEMORY = 1 << 20

#: The layouts of ``vhostuser.virtio``, by module, and the features that choose them.
LAYOUTS: dict[str, int] = {
    "split": VirtioFeature.VERSION_1,
    "packed": VirtioFeature.VERSION_1 | VirtioFeature.RING_PACKED,
}

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
def without_fence(method: str, layout: str = "split") -> Iterator[Path]:
    """A tree with the package, whose ring has no fence in `method`; what is compiled here is compiled there."""
    with tempfile.TemporaryDirectory(prefix="vhu-fence-") as name:
        tree = Path(name)
        shutil.copytree(PACKAGE, tree / "vhostuser")  # with the times of the files, so that nothing else is built
        source = tree / "vhostuser" / "virtio" / f"{layout}.py"
        source.write_text(cut(source.read_text(), method))
        shutil.copy(ROOT / "setup.py", tree)
        build = (
            "import runpy, sys; from vhostuser import edition; edition.MODULES = (sys.argv.pop(),); "
            "runpy.run_path('setup.py')"
        )
        words = [sys.executable, "-c", build, "-q", "build_ext", "--inplace", f"vhostuser.virtio.{layout}"]
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
def device(tree: Path, ring: dict[str, Any], edition: str) -> Iterator[None]:
    """The device's process, from the package in `tree`."""
    words = [*on_cpu(0), sys.executable, str(HERE / "ring_device.py"), json.dumps(ring)]
    required = str(int(edition == "compiled"))
    environment = {"PYTHONPATH": str(tree), "VHOSTUSER_EDITION": edition, "VHOSTUSER_REQUIRE_COMPILED": required}
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        pass_fds=(ring["memfd"], ring["kick"], ring["call"]),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready {tree / 'vhostuser'}\n"
            yield
        finally:
            process.communicate(timeout=20)


def stress(
    rounds: int,
    *,
    event_idx: bool,
    layout: str = "split",
    tree: Path = PACKAGE.parent,
    timeout: float = 10.0,
    edition: str = "compiled",
) -> dict[str, Any]:
    """Have the two sides send each other to sleep so many times.

    Args:
        rounds: bursts of one to three chains.
        event_idx: whether notifications are suppressed by position rather than by flags.
        layout: the ring's.
        tree: where the device's package is.
        timeout: seconds until a notification counts as lost.
        edition: the device's.

    Returns:
        What the driver counted: rounds, kicks, calls, sleeps, and what was lost.
    """
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
    with GuestRam([(0, MEMORY)]) as ram, closing_fds(fds):
        areas = [ram.alloc(16 * NUM), ram.alloc(6 + 2 * NUM), ram.alloc(6 + 8 * NUM)]
        (memfd,), (kick, call) = ram.fds(), fds
        ring = {"features": int(LAYOUTS[layout]), "memfd": memfd, "size": MEMORY, "areas": areas, "num": NUM}
        with device(tree, {**ring, "event_idx": event_idx, "kick": kick, "call": call}, edition):
            words = [int(layout == "packed"), memfd, MEMORY, *areas, NUM, int(event_idx), kick, call]
            words += [rounds, int(timeout * 1000)]
            argv = [*on_cpu(-1), str(ring_driver()), *map(str, words)]
            ran = subprocess.run(argv, capture_output=True, text=True, pass_fds=(memfd, kick, call), check=False)
        assert ran.returncode == 0, ran.stderr
        outcome = json.loads(ran.stdout)
        assert isinstance(outcome, dict)
        return outcome


@contextmanager
def closing_fds(fds: list[int]) -> Iterator[None]:
    """Close descriptors at the end of the block."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)

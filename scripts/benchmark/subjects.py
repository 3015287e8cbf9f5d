"""The contenders: what moves packets between a socket, or nothing, and a tap.

Each is a context manager that lives in a network namespace, runs on the first core (drivers run on the last), and shows
its process and its tap. One that has no socket makes its own frames.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from scripts.benchmark.programs import program
from tests.rig.backend import Backend
from tests.rig.netns import Netns
from tests.rig.process import Program
from tests.rig.testpmd import Testpmd, tap_port, vhost_back_end

TAP = "tap0"

#: Requests a system call, everywhere: ours, DPDK's burst is half of it, and the kernel's limit.
BATCH = 64


class Subject(Protocol):
    """A running contender."""

    @property
    def program(self) -> Program:
        """Its process."""

    @property
    def socket(self) -> Path | None:
        """Where it listens; None when it makes its own frames."""


#: Starts a contender in a namespace, on its tap ``TAP``.
Start = Callable[[Netns], AbstractContextManager[Subject]]


def back_end_core() -> int:
    """The core that back-ends run on."""
    return min(os.sched_getaffinity(0))


def driver_core() -> int:
    """The core that drivers, loads and guests run on."""
    return max(os.sched_getaffinity(0))


def on_core(core: int) -> list[str]:
    """The words before a command line that keep it on a core."""
    return ["taskset", "-c", str(core)]


@dataclass(frozen=True)
class Ours:
    """This back-end: of one revision, with options.

    Attributes:
        name: what the results call it.
        tree: the folder that holds the compiled package.
        options: more words for its command line.
    """

    name: str
    tree: Path
    options: tuple[str, ...] = ()

    def variant(self, *options: str) -> Self:
        """The same with more options."""
        return replace(self, name=" ".join((self.name, *options)), options=(*self.options, *options))

    @property
    def available(self) -> bool:
        """Whether the tree's program knows all of the options."""
        text = help_of(self.tree, "net")
        return all(word in text for word in self.options if word.startswith("--"))

    @property
    def prefix(self) -> list[str]:
        """The words before its command line: its core, its tree."""
        return [*on_core(back_end_core()), "env", "-C", str(self.tree)]

    def start(self, netns: Netns) -> Backend:
        """Start it."""
        return Backend(netns, tap=TAP, options=self.options, prefix=self.prefix)


@functools.cache
def help_of(tree: Path, *command: str) -> str:
    """What the program of a tree says about a command; empty when it has no such command."""
    words = [sys.executable, "-m", "vhostuser", *command, "--help"]
    return subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False).stdout


class DpdkBackEnd(Testpmd):
    """DPDK's net_vhost and net_tap, joined by testpmd's io forwarding, polling."""

    def __init__(self, netns: Netns, *, queues: int = 1, start: bool = True) -> None:
        """Start it. ``start`` False leaves its queues alone until told to forward."""
        self._place = tempfile.TemporaryDirectory(prefix="vhu-dpdk-")
        self.socket = Path(self._place.name) / "vhost-user.sock"
        devices = [vhost_back_end(self.socket, queues=queues), tap_port(TAP)]
        # unless told not to, it throws away at each start what waits in its tap
        options = ["--forward-mode=io", "--no-flush-rx", *(["--auto-start"] if start else [])]
        super().__init__(devices, queues=queues, memory=256, worker=back_end_core(), netns=netns, options=options)

    def close(self) -> None:
        """End it."""
        super().close()
        self._place.cleanup()


class KernelLimit:
    """A C loop over io_uring on a tap of its own: the same frames and batches, no ring, no guest."""

    socket = None

    def __init__(self, way: str, size: int, netns: Netns) -> None:
        """Start it. ``way`` is ``write`` (what a back-end does with what a guest sends) or ``read``."""
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-limit-")
        words = [*on_core(back_end_core()), str(program("limit")), way, TAP, str(size), str(BATCH)]
        self.program = Program(netns.argv(words), Path(self._folder.name) / "limit.log")
        self.program.wait_for_output("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.kill()
        self._folder.cleanup()


def counters_of(subject: Subject) -> dict[str, int]:
    """Our back-end's own counters, of all rings together: chains, kicks and calls. Empty for the others."""
    if not isinstance(subject, Backend):
        return {}
    names = ("chains", "kicks", "calls")
    counters = subject.counters()
    return {name: sum(value for key, value in counters.items() if key.endswith(f"_{name}")) for name in names}

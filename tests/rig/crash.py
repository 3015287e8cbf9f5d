"""Crashes of peers, told apart from what went wrong because of us, each with where it was.

A :class:`~tests.rig.process.Program` that is given a folder for its core leaves one there, if the kernel writes cores
to where a process is (``core_pattern``) and the limits allow it. What it shares with others is left out: a guest's
memory would fill the disk.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from tests.rig.process import Program, RigError
from vhostuser.peer.death import explain

PATTERN = Path("/proc/sys/kernel/core_pattern")

#: What ends a program for a mistake of its own. The rig ends programs with others.
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}


class CrashError(RigError):
    """A peer crashed; the text shows where. What the rig noticed of it meanwhile is the context."""


def check_crash(program: Program, executable: Path, folder: Path) -> None:
    """Judge how a program ended.

    Args:
        program: it has ended.
        executable: what ran in it at last.
        folder: where it was to leave a core.

    Raises:
        CrashError: it crashed.
    """
    if (number := program.ended_by) not in CRASHES:
        return
    core = next(folder.glob("core*"), None)
    death = explain(-number, program.output, core, executable)
    report = f"{executable.name} crashed, {death}"
    if core is None:
        report += f"\nno backtrace: it left no core in {folder} (core_pattern is {PATTERN.read_text().strip()!r})"
    elif not death.frames:
        report += f"\nno backtrace: {'gdb says nothing' if shutil.which('gdb') else 'gdb is not installed'}"
    raise CrashError(report)

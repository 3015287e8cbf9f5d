"""A peer that crashes is reported as that, with a backtrace, whatever the run noticed of it."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts import soak
from tests.rig.crash import CrashError, check_crash
from tests.rig.image import GuestImage
from tests.rig.process import Program
from tests.rig.qemu import Qemu

pytestmark = pytest.mark.guest

SHELL = Path("/bin/sh")
SHARED = 64 << 20
SHARES = f"import mmap, os; mmap.mmap(-1, {SHARED}).write(bytes({SHARED})); os.abort()"


def ended(folder: Path, argv: Sequence[str]) -> Program:
    """A program that has ended, in a folder for its core."""
    program = Program(argv, folder / "log", core_folder=folder)
    program.wait()
    return program


def test_a_qemu_that_crashes_is_told_apart_with_a_backtrace(
    image: GuestImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> dict[str, Any]:
        with Qemu(image, [], incoming=tmp_path / "road") as guest:
            guest.program.send_signal(signal.SIGSEGV)
            guest.program.wait()
            return {"status": guest.qmp("query-status")}

    monkeypatch.setitem(soak.RUNS, "idle", run)
    evidence = soak.evidence_of("idle")
    assert not evidence["ok"]
    crash = "\n".join(evidence["a peer crashed"])
    assert crash.startswith("qemu-system-x86_64 crashed, SIGSEGV: ")
    assert re.search(r"\n  at (main_loop|monitor|qmp|qemu)_\w+\+\d+\n", crash), crash  # it waits, or still answers
    assert evidence["seen as"] == "QEMU closed its monitor"


def test_a_core_holds_no_memory_that_is_shared(tmp_path: Path) -> None:
    ended(tmp_path, [sys.executable, "-c", SHARES])
    assert 0 < (tmp_path / "core").stat().st_blocks * 512 < SHARED


def test_what_the_rig_ends_has_not_crashed(tmp_path: Path) -> None:
    program = ended(tmp_path, [str(SHELL), "-c", "kill -KILL $$"])
    assert program.ended_by == signal.SIGKILL
    check_crash(program, SHELL, tmp_path)


def test_a_backtrace_that_is_not_to_be_had_is_missed_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ended(tmp_path, [str(SHELL), "-c", "kill -SEGV $$"])
    with pytest.raises(CrashError, match=r"sh crashed, SIGSEGV: (\S+)\n  at \1\n  at "):
        check_crash(program, SHELL, tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(CrashError, match="no backtrace: gdb is not installed"):
            check_crash(program, SHELL, tmp_path)
    (tmp_path / "core").unlink()
    with pytest.raises(CrashError, match=r"no backtrace: it left no core in .* \(core_pattern is '.+'\)"):
        check_crash(program, SHELL, tmp_path)

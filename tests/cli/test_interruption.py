"""SIGINT and SIGTERM end a run of the tools in order: nothing is left of it but the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.conformance.test_suite import SCRIPTED
from vhostuser.cli.interruption import run_until_signal

DEADLINE = 30.0
STUCK = "sh -c 'sleep 1000 & echo $! > {fifo}; wait' {{socket}}"
SERVES = "sh -c 'echo $$ > {fifo}; exec {python} {scripted} nothing $0' {{socket}}"


class Numbers:
    """Process ids that programs write to a FIFO, a line each."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pids"
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._text = ""

    async def next(self) -> int:
        while "\n" not in self._text:
            await trio.lowlevel.wait_readable(self._fd)
            self._text += os.read(self._fd, 100).decode()
        line, _, self._text = self._text.partition("\n")
        return int(line)

    def close(self) -> None:
        os.close(self._fd)


def is_gone(pid: int) -> bool:
    """Whether a process ended, though nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("words", "spawn", "programs", "number", "told"),
    [
        (["fuzz", "--duration=600", "--workers=2"], STUCK, 1, signal.SIGINT, "0 conversations"),
        (["fuzz", "--duration=600", "--workers=2"], SERVES, 3, signal.SIGTERM, " conversations"),
        (["fuzz-frontend", "--duration=600"], STUCK, 1, signal.SIGTERM, "0 conversations"),
        (["conform", "--device=rng", "--keep"], SERVES, 3, signal.SIGINT, " statements, "),
        (["conform", "--device=rng", "--format=json"], STUCK, 1, signal.SIGTERM, '"peer"'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_run_ends_in_order(
    words: list[str], spawn: str, programs: int, number: signal.Signals, told: str, tmp_path: Path
) -> None:
    temporary, fuzzes = tmp_path / "tmp", words[0].startswith("fuzz")
    temporary.mkdir()
    numbers = Numbers(tmp_path)
    command = spawn.format(fifo=numbers.path, python=sys.executable, scripted=SCRIPTED)
    files = [f"--json={tmp_path / 'report'}", f"--findings={tmp_path / 'findings'}"] if fuzzes else []
    run = [sys.executable, "-m", "vhostuser", *words, *files, f"--spawn={command}"]
    with trio.fail_after(DEADLINE), (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = await trio.lowlevel.open_process(
            run, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(temporary)}
        )
        try:
            pids = [await numbers.next() for _ in range(programs)]
            process.send_signal(number)
            status = await process.wait()
        finally:
            process.kill()
            numbers.close()
    assert (status, (tmp_path / "err").read_text()) == (128 + number, f"ended by {number.name}\n")
    assert told in (tmp_path / "out").read_text()
    assert all(map(is_gone, pids))
    assert list(temporary.iterdir()) == []
    if fuzzes:
        assert "conversations" in json.loads((tmp_path / "report").read_text())


def test_a_run_that_nothing_ends_comes_to_its_end() -> None:
    assert run_until_signal(trio.lowlevel.checkpoint) is None


def test_a_signal_cancels_what_runs() -> None:
    async def run() -> None:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    assert run_until_signal(run) is signal.SIGTERM

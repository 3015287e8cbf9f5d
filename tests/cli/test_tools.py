"""How all tools end: what could not be done, or was not read, looks like no verdict."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vhostuser.cli.commands import main
from vhostuser.cli.tools import TOOLS, Tool
from vhostuser.errors import PortError

SESSION = str(Path(__file__).parents[2] / "protocol-spec" / "transcripts" / "dpdk2211-virtio-user-packed.jsonl")
MESSAGE = "0c000000 01000000 08000000 0101000000000000"


def printing(words: list[str], output: int) -> tuple[int, str]:
    """The status of a tool that prints there, and what it says of that."""
    run = [sys.executable, "-m", "vhostuser", *words]
    done = subprocess.run(run, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [["decode", MESSAGE], ["conform", "--help"], ["replay", SESSION, "--against", SESSION]],
    ids=lambda words: words[0],
)
def test_a_reader_that_left_ends_it_as_sigpipe_would(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert printing(words, writer) == (141, "")
    finally:
        os.close(writer)


def test_output_that_finds_no_room_is_told_in_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        assert printing(["decode", MESSAGE], full.fileno()) == (2, "Error: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (PortError("the tap is gone"), 2, "Error: the tap is gone\n"),
        (ExceptionGroup("", [ExceptionGroup("", [PortError("it is gone")])]), 2, "Error: it is gone\n"),
        (PermissionError(13, "Permission denied", "x.jsonl"), 2, "Error: x.jsonl: Permission denied\n"),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_goes_wrong_has_a_status_of_its_own(error: BaseException, status: int, told: str) -> None:
    def fail() -> None:
        raise error

    result = CliRunner().invoke(Tool("tool", callback=fail))
    assert (result.exit_code, result.stderr) == (status, told)


@pytest.mark.parametrize("name", TOOLS)
def test_the_help_of_each_names_the_status_of_what_could_not_be_done(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, Tool)
    assert re.search(r"2(:| if) it could not be done", " ".join((command.help or "").split()))


@pytest.mark.parametrize(
    "words",
    [
        ["fuzz", "x.sock", "--duration"],
        ["fuzz", "x.sock", "--patience"],
        ["fuzz-frontend", "--spawn=x", "--duration"],
        ["conform", "x.sock", "--patience"],
        ["replay", __file__, "x.sock", "--patience"],
    ],
    ids=str,
)
@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_seconds_are_a_number_and_end(words: list[str], seconds: str) -> None:
    result = CliRunner().invoke(main, [*words, seconds])
    assert result.exit_code == 2
    assert f"Invalid value for '{words[-1]}': {seconds}" in result.stderr


@pytest.mark.parametrize(
    ("tool", "option", "reason"),
    [
        (["fuzz", "x.sock"], "--json=/nowhere/x", "No such file or directory"),
        (["fuzz", "x.sock"], "--findings=/proc/nowhere", "No such file or directory"),
        (["fuzz-frontend", "--spawn=x {socket}"], "--corpus=/dev/null/x", "Not a directory"),
        (["conform", "x.sock"], "--save=/proc/nowhere", "No such file or directory"),
        (["conform", "x.sock"], "--save=/proc", "No such file or directory"),
        (["trace", "x.sock", "y.sock"], "--record=/nowhere/x", "No such file or directory"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_told_before_the_start(
    tool: list[str], option: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*tool, option])
    assert (result.exit_code, result.stderr) == (2, f"Error: {option.replace('=', ' ')}: {reason}\n")

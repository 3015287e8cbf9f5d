"""``vhostuser conform``: what it is asked, what it shows, and what the exit status says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio
from click.testing import CliRunner, Result

from vhostuser.cli import main
from vhostuser.conformance.check import all_checks
from vhostuser.transcript.file import load

SCRIPTED = Path(__file__).parents[1] / "conformance" / "scripted.py"
DIES, WELL, CUTS, HANGS = (
    f"{sys.executable} {SCRIPTED} {wrong} {{socket}}" for wrong in ("dies", "nothing", "cuts", "hangs")
)
DEADLINE = 30.0
OWNER = "negotiation.an_owner_*"


def conform(*words: object) -> Result:
    """What the command says, and its status."""
    return CliRunner().invoke(main, ["conform", "--device=rng", *map(str, words)])


def test_the_help_has_an_example() -> None:
    result = conform("--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Example: vhostuser conform --spawn 'vhostuser net --loop --socket-path={socket}'" in result.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "exactly one of PATH and --spawn is needed"),
        (["x.sock", "--spawn=y {socket}"], "exactly one of PATH and --spawn is needed"),
        (["x.sock", "--keep"], "--keep needs --spawn"),
        (["x.sock", "--only=VU-NO-*"], "--only VU-NO-*: no statement that has a check, and no check, is called so"),
        (["/nowhere/x.sock"], "/nowhere/x.sock: No such file or directory"),
        (["--spawn=no-such-program {socket}"], "no-such-program"),
        (["--spawn=true"], "{socket}"),
        (["--peer=windows", "x.sock"], "'windows' is not one of 'libvhost-user', 'dpdk', 'rust-vmm'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_told(words: list[str], text: str) -> None:
    result = conform(*words)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert text in result.stderr.splitlines()[-1]


def test_what_passes_is_a_line() -> None:
    result = conform(f"--spawn={WELL}", "--only=VU-NEG-1", "--only=framing.reserved_*")
    assert result.exit_code == 0, result.output
    *rows, totals = result.output.splitlines()
    assert sorted(row.split()[:2] for row in rows) == [["pass", "VU-HDR-5"], ["pass", "VU-NEG-1"]]
    assert totals.endswith("2 were run: 2 pass, 0 fail, 0 differs by choice; 0 not applicable")
    assert result.stderr == ""
    assert "\x1b" not in result.output


def test_what_fails_is_told_and_saved_and_played_again(tmp_path: Path) -> None:
    result = conform(f"--spawn={DIES}", f"--only={OWNER}", f"--save={tmp_path / 'saved'}")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("fail ")
    assert "the back-end died: SIGABRT" in lines[1]
    (path,) = (tmp_path / "saved").iterdir()
    assert lines[2] == f"    transcript: {path}; played again, it went the same way"
    assert "the back-end died: SIGABRT" in load(path).scene


def test_a_transcript_that_cannot_be_saved_is_told(tmp_path: Path) -> None:
    (path,) = (tmp_path / f"{check.name}.jsonl" for check in all_checks() if fnmatchcase(check.name, OWNER))
    path.mkdir()
    result = conform(f"--spawn={DIES}", f"--only={OWNER}", f"--save={tmp_path}")
    assert (result.exit_code, result.stderr) == (2, f"Error: {path}: Is a directory\n")


def test_the_first_failure_may_be_enough() -> None:
    words = (f"--spawn={CUTS}", "--jobs=1", "--only=VU-NEG-1", "--only=VU-HDR-1")
    assert "2 were run: 0 pass, 2 fail" in conform(*words).output
    result = conform(*words, "--first")
    assert result.exit_code == 1
    assert "1 were run: 0 pass, 1 fail" in result.output


def test_who_does_not_say_what_it_offers_fails() -> None:
    result = conform(f"--spawn={CUTS}", "--only=VU-NEG-1")
    assert result.exit_code == 1
    assert "came request 1 flags 0x5 size 4 payload 00000000" in result.output
    assert "1 were run: 0 pass, 1 fail" in result.output


@pytest.mark.parametrize(("spawn", "only", "failed"), [(WELL, "VU-NEG-1", False), (DIES, OWNER, True)])
def test_other_programs_read_it(spawn: str, only: str, failed: bool) -> None:
    result = conform(f"--spawn={spawn}", f"--only={only}", "--format=json", "--keep")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["peer"]) == (failed, spawn)
    assert {row["verdict"] for row in told["results"]} == {"fail" if failed else "pass"}
    junit = conform(f"--spawn={spawn}", f"--only={only}", "--format=junit")
    suite = ElementTree.fromstring(junit.stdout)
    assert (junit.exit_code, len(suite)) == (failed, len(told["results"]))
    assert (suite.attrib["failures"] != "0") is failed


def test_what_is_known_of_a_peer_is_named() -> None:
    result = conform(f"--spawn={DIES}", f"--only={OWNER}", "--peer=rust-vmm")
    assert "    known: one-owner: a second SET_OWNER is refused" in result.output.splitlines()


async def test_a_statement_is_shown_when_its_checks_are_done() -> None:
    only = f"--only={OWNER}", "--only=VIO-PACKED-1"
    words = ["conform", "--device=rng", "--jobs=2", "--patience=60", f"--spawn={HANGS}", *only]
    with trio.fail_after(DEADLINE):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "vhostuser", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert process.stdout is not None
            shown = await process.stdout.receive_some()  # while the other check waits for an answer
            assert shown.startswith(b"not applicable "), shown
            process.send_signal(signal.SIGINT)
            shown += b"".join([more async for more in process.stdout])
            assert await process.wait() == 128 + signal.SIGINT
        finally:
            process.kill()
    assert b"have a check; 0 were run: 0 pass, 0 fail" in shown

"""``vhostuser fuzz-frontend`` as a program: what it prints, and its status."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fuzz.front_ends import GULLIBLE
from vhostuser.cli.commands import main
from vhostuser.fuzz.campaign import Campaign
from vhostuser.fuzz.establish import Found
from vhostuser.fuzz.verdict import Finding, Trouble


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["fuzz-frontend", *words])
    return result.exit_code, result.output


def test_what_was_found_is_told_without_colours_and_as_json(tmp_path: Path) -> None:
    command = f"{sys.executable} -I -S {GULLIBLE} {{socket}} hurries leaves oversteps"
    words = ["--spawn", command, "--duration", "3", "--findings", str(tmp_path), "--json", str(tmp_path / "report")]
    code, output = run(*words, "--patience", "0.1")
    assert (code, "VU-NEG-6" in output, "\x1b" in output) == (1, True, False), output
    report = json.loads((tmp_path / "report").read_text())
    assert "VU-NEG-6" in [finding["signature"] for finding in report["findings"]]
    assert all(Path(finding["transcript"]).name in output for finding in report["findings"])


def test_what_was_done_is_told_when_it_cannot_go_on(tmp_path: Path) -> None:
    taken = tmp_path / "wrong-request--VU-NEG-6.jsonl"
    taken.mkdir()
    command = f"{sys.executable} -I -S {GULLIBLE} {{socket}} hurries leaves oversteps"
    code, output = run("--spawn", command, "--findings", str(tmp_path), "--patience", "0.1")
    assert (code, "VU-NEG-6" in output) == (2, True), output
    assert output.endswith(f"Error: {taken}: Is a directory\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "Missing option '--spawn'"),
        (["--spawn", "cat"], "{socket} has to stand where the path of the socket belongs"),
        (["--spawn", "false {socket}"], "Error: it ended before it said anything: exit status 1\n"),
        (["--spawn", "true {socket}", "--connect"], "it ended before it listened"),
        (["--spawn", "true {socket}", "--duration", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_fuzzed_is_told_in_one_sentence(words: list[str], complaint: str) -> None:
    code, output = run(*words)
    assert (code, complaint in output) == (2, True), output


def test_its_help_has_an_example() -> None:
    code, output = run("--help")
    assert code == 0
    assert "Example: vhostuser fuzz-frontend" in output


@pytest.mark.parametrize(
    ("trouble", "confirmed", "status", "title"),
    [
        (Trouble.HANG, 0, 0, "Met, but not shown again"),
        (Trouble.HANG, 1, 1, "Findings"),
        (Trouble.CRASH, 0, 1, "Findings"),
    ],
)
def test_what_was_met_and_not_shown_again_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: Trouble, confirmed: int, status: int, title: str
) -> None:
    async def run_a_little(campaign: Campaign) -> None:
        campaign.progress.found["it"] = Found(Finding(trouble, "after SET_OWNER"), (), confirmed)

    monkeypatch.setattr(Campaign, "run", run_a_little)
    code, output = run("--spawn", "false {socket}", "--findings", str(tmp_path))
    assert code == status
    assert output.count("after SET_OWNER") == 1
    assert re.search(rf"{title}.*after SET_OWNER", output, re.DOTALL), output
    assert ("nothing was found" in output) == (status == 0)


@pytest.mark.parametrize("tool", ["fuzz", "fuzz-frontend"])
def test_the_example_of_a_help_can_be_copied_from_a_narrow_terminal(tool: str) -> None:
    output = CliRunner().invoke(main, [tool, "--help"], terminal_width=80).output
    example = output[output.index("Example: ") : output.index("Options:")]
    *words, command = shlex.split(example)
    assert words == ["Example:", "vhostuser", tool, "--duration", "600", "--spawn"]
    told = {"fuzz": "--socket-path={socket}", "fuzz-frontend": "virtio-net-pci,netdev=n,vectors=0"}
    assert told[tool] == command.split()[-1]
    assert all(len(line) < 78 for line in example.splitlines())

"""The conventions for back-end programs, by which management software finds and starts them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from vhostuser.cli.commands import main

ROOT = Path(__file__).parents[2]


@pytest.mark.proves("VU-PROG-5")
@pytest.mark.parametrize("others", [[], ["--fd=x"], ["--no-such-option", "word"], ["--tap", "a", "--null"]], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_capabilities_are_told_whatever_else_is_asked_for(others: list[str], first: bool) -> None:
    wanted = ["--print-capabilities"]
    result = CliRunner().invoke(main, ["net", *(wanted + others if first else others + wanted)])
    assert (result.exit_code, result.output) == (0, '{"type": "net", "features": []}\n')


@pytest.mark.proves("VU-PROG-1")
def test_the_description_names_the_program_and_its_type() -> None:
    (path,) = (ROOT / "share" / "qemu" / "vhost-user").glob("*.json")
    description = json.loads(path.read_text())
    capabilities = json.loads(CliRunner().invoke(main, ["net", "--print-capabilities"]).output)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert description["type"] == capabilities["type"]
    assert Path(description["binary"]).name in project["project"]["scripts"]
    assert description["description"]
    assert path.relative_to(ROOT).as_posix() in project["tool"]["setuptools"]["data-files"]["share/qemu/vhost-user"]


@pytest.mark.proves("VU-PROG-4")
@pytest.mark.parametrize("sockets", [[], ["--socket-path=s", "--fd=7"]], ids=["none", "both"])
def test_there_is_one_socket(sockets: list[str]) -> None:
    result = CliRunner().invoke(main, ["net", "--null", *sockets])
    assert result.exit_code == 2
    assert "exactly one of --socket-path and --fd is needed" in result.output

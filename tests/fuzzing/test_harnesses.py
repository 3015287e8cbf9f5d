"""Every harness takes its seeds and any other bytes, and notices a mistake in what it fuzzes; without Atheris."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzing import corpus
from tests.fuzzing.replay import EXAMPLES

FOLDER = Path(corpus.__file__).parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A program over the interpreted edition, whichever one the tests run over."""
    environment = {**os.environ, "VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_there_are_harnesses() -> None:
    assert len(corpus.names()) >= 6


@pytest.mark.parametrize("name", corpus.names())
def test_a_harness_takes_its_seeds_and_any_other_bytes(name: str) -> None:
    ran = run("tests.fuzzing.replay", name)
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert done["seeds"] >= 5
    assert done["examples"] >= EXAMPLES


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("fuzz_codec", "bytes-reversed"),
        ("fuzz_dissect", "nothing-broken"),
        ("fuzz_layouts", "bytes-reversed"),
        ("fuzz_session", "refusals-committed"),
        ("fuzz_session", "refusals-silent"),
        ("fuzz_rings", "buffers-misplaced"),
        ("fuzz_rings", "used-entries-behind"),
        ("fuzz_inflight", "links-forgotten"),
    ],
)
def test_a_harness_notices_a_mistake(name: str, mistake: str) -> None:
    ran = run("tests.fuzzing.replay", name, mistake)
    assert ran.returncode == 1
    assert "Error" in ran.stderr.splitlines()[-1]


def test_a_harness_can_be_prefixed_with_lines_of_others() -> None:
    """OSS-Fuzz puts code in front of it to measure coverage, and ``from __future__`` has to come first in a file."""
    for name in corpus.names():
        assert "from __future__" not in (FOLDER / f"{name}.py").read_text()

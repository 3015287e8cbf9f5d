"""Processes share what Hypothesis found: one begins where another ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LARGE = 1 << 32


def hunt(folder: Path | None, *words: str) -> list[int]:
    """What a process tried that shares examples in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "VHOSTUSER_EXAMPLES"}
    if folder:
        environment["VHOSTUSER_EXAMPLES"] = str(folder)
    command = [sys.executable, "-m", "tests.fuzzing.hunt", *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    tried = json.loads(ran.stdout)
    assert isinstance(tried, list)
    return tried


def test_what_one_process_found_is_the_first_that_another_tries(tmp_path: Path) -> None:
    first = hunt(tmp_path)
    assert first[0] < LARGE <= first[-1]
    assert hunt(tmp_path)[0] in [number for number in first if number >= LARGE]
    assert hunt(tmp_path / "elsewhere")[0] < LARGE


def test_what_a_fuzzer_found_is_the_first_that_a_process_tries(tmp_path: Path) -> None:
    found = hunt(tmp_path, "fuzz")[-1]
    assert found >= LARGE
    assert hunt(tmp_path)[0] == found

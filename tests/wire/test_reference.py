"""The generated reference and the register of statements are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


COMMANDS = (("spec-messages", "--check"), ("spec-coverage",), ("spec-support", "--check"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_script_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    script, *options = command
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *options], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}(scripts/{script} writes or explains it)"

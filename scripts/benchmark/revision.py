"""Another revision of this repository as a contender: checked out, compiled, installed apart, removed at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark.subjects import Ours
from tests.rig.process import RigError, run


@contextmanager
def checked_out(revision: str) -> Iterator[Ours]:
    """The back-end of a revision.

    Raises:
        RigError: there is no such revision, or it cannot be built.
    """
    commit = run(["git", "rev-parse", "--verify", "--short", f"{revision}^{{commit}}"]).strip()
    with tempfile.TemporaryDirectory(prefix="vhu-revision-") as folder:
        tree = Path(folder) / commit
        run(["git", "worktree", "add", "--detach", tree, commit], timeout=120)
        try:
            _install(tree, Path(folder) / "installed")
            yield Ours(f"vhostuser@{commit}", Path(folder) / "installed")
        finally:
            run(["git", "worktree", "remove", "--force", tree], timeout=120)


def _install(tree: Path, target: Path) -> None:
    """Install a tree, without what it depends on, as anybody would: with the build tools that it names."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(tree)]
    done = subprocess.run(
        words,
        env={**os.environ, "VHOSTUSER_REQUIRE_COMPILED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RigError(f"{tree.name} cannot be built: {done.stdout[-2000:]}")

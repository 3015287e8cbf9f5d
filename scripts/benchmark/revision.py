"""Another revision of this repository as a contender: checked out, compiled in its own tree, removed at the end."""

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
        RigError: there is no such revision, or it does not compile.
    """
    commit = run(["git", "rev-parse", "--verify", "--short", f"{revision}^{{commit}}"]).strip()
    with tempfile.TemporaryDirectory(prefix="vhu-revision-") as folder:
        tree = Path(folder) / commit
        run(["git", "worktree", "add", "--detach", tree, commit], timeout=120)
        try:
            _compile(tree)
            yield Ours(f"vhostuser@{commit}", tree)
        finally:
            run(["git", "worktree", "remove", "--force", tree], timeout=120)


def _compile(tree: Path) -> None:
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        words,
        cwd=tree,
        env={**os.environ, "VHOSTUSER_REQUIRE_COMPILED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RigError(f"{tree.name} does not compile: {done.stdout[-2000:]}")

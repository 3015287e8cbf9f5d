"""Copies of the package in which some text of a module is another."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ("*.so", "*.c")


def faulty_copy(tree: Path, module: str, changes: tuple[tuple[str, str], ...]) -> None:
    """Put the package into `tree`, not compiled, with changes of `module`, a file below it.

    Raises:
        AssertionError: a text that is to be changed is not there exactly once.
    """
    shutil.copytree(ROOT / "vhostuser", tree / "vhostuser", ignore=shutil.ignore_patterns(*COMPILED))
    change(tree / "vhostuser" / module, changes)


def change(path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    """Change texts of a file. Raises AssertionError as :func:`changed` does."""
    path.write_text(changed(path.read_text(), changes, str(path)))


def changed(text: str, changes: tuple[tuple[str, str], ...], place: str) -> str:
    """A text with changes.

    Raises:
        AssertionError: what is to be changed is not there exactly once.
    """
    for old, new in changes:
        assert text.count(old) == 1, f"{place}: the text of a fault is there {text.count(old)} times, not once: {old!r}"
        text = text.replace(old, new)
    return text

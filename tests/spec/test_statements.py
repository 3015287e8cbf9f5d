"""The statements that the package carries are those of ``protocol-spec/``."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

from vhostuser.spec.statements import Statement, statements

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "protocol-spec" / "statements.toml"


def test_every_statement_is_there() -> None:
    rows = tomllib.loads(FILE.read_text())["statement"]
    assert list(statements()) == [row["id"] for row in rows]
    assert statements()["VU-HDR-2"] == Statement(
        "VU-HDR-2",
        "must",
        "Header",
        "The lowest two flag bits are the version, which is 1; with any other the connection closes.",
    )
    assert {statement.kind for statement in statements().values()} == {"must", "should", "choice"}


def test_there_is_one_file_which_an_installation_copies() -> None:
    carried = ROOT / "vhostuser" / "spec" / "statements.toml"
    assert carried.resolve() == FILE
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert any(fnmatch(carried.name, pattern) for pattern in data)

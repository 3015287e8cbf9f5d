"""The statements of ``protocol-spec/`` that show at a back-end's socket, and those that show elsewhere."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).resolve().parents[2] / "protocol-spec" / "statements.toml"
SOCKET = "socket"


@dataclass(frozen=True)
class Statement:
    """What the specification states, or what this project makes of what it leaves open.

    Attributes:
        id: Its identifier.
        kind: ``must``, ``should``, or ``choice``, from which others may differ.
        section: Where the specification treats the matter.
        text: What it says.
        seen: Where it shows: at the socket, or elsewhere.
    """

    id: str
    kind: str
    section: str
    text: str
    seen: str = SOCKET

    @property
    def choice(self) -> bool:
        """Whether others may do otherwise."""
        return self.kind == "choice"


def statements() -> dict[str, Statement]:
    """All statements by their identifiers, in their order."""
    rows = tomllib.loads(_FILE.read_text())["statement"]
    names = Statement.__dataclass_fields__
    found = [Statement(**{key: value for key, value in row.items() if key in names}) for row in rows]
    return {statement.id: statement for statement in found}

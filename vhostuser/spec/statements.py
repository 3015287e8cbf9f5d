"""The numbered statements of ``protocol-spec/statements.toml``, for who shows what a rule says.

Must not know: anything else of the project. An installed package has its own copy of the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Statement:
    """One rule.

    Attributes:
        id: What errors and tests call it: ``VU-RING-12``.
        kind: ``must`` or ``should``, if the specification says so; ``choice``, where it leaves the matter open, or
            peers differ from it, and this is what we do.
        section: Where the specification treats the matter.
        text: The rule in one sentence.
        seen: Where it shows: at the back-end's ``socket``, or where the file's head says.
    """

    id: str
    kind: str
    section: str
    text: str
    seen: str = "socket"

    @property
    def choice(self) -> bool:
        """Whether others may do otherwise."""
        return self.kind == "choice"

    @property
    def at_the_socket(self) -> bool:
        """Whether a front-end sees if it is kept."""
        return self.seen == "socket"


@cache
def statements() -> Mapping[str, Statement]:
    """All statements by their identifiers, in the file's order."""
    told = tomllib.loads((files("vhostuser.spec") / "statements.toml").read_text(encoding="utf-8"))
    names = ("id", "kind", "section", "text", "seen")
    rows = (Statement(**{name: row[name] for name in names if name in row}) for row in told["statement"])
    return MappingProxyType({row.id: row for row in rows})

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
    """

    id: str
    kind: str
    section: str
    text: str


@cache
def statements() -> Mapping[str, Statement]:
    """All statements by their identifiers, in the file's order."""
    told = tomllib.loads((files("vhostuser.spec") / "statements.toml").read_text(encoding="utf-8"))
    rows = (Statement(row["id"], row["kind"], row["section"], row["text"]) for row in told["statement"])
    return MappingProxyType({row.id: row for row in rows})

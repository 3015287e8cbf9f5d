"""What a conversation did to a target: nothing, or a finding with a signature.

Must not know: how conversations are made, which end of the protocol the target is.

Signatures are short and the same whenever the same fault shows: they name the place of a crash, and else the request
and the rule, never a value or an address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from vhostuser.peer.death import Death
from vhostuser.peer.footprint import Footprint
from vhostuser.session.witness import Breach
from vhostuser.spec.statements import statements
from vhostuser.transcript.entries import Entry, Said
from vhostuser.wire.requests import spec_of

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_LONGEST = 100


class Trouble(Enum):
    """Kinds of findings, the worst first."""

    CRASH = "crash"
    EXIT = "exit"
    HANG = "hang"
    STARVED = "starved next client"
    FD_LEAK = "descriptor leak"
    MEMORY_LEAK = "memory leak"
    WRONG_REPLY = "wrong reply"
    WRONG_REQUEST = "wrong request"
    ACCEPTED = "accepted against a rule"


DEADLY = frozenset({Trouble.CRASH, Trouble.EXIT})
"""These end a target's program."""

FATAL = DEADLY | {Trouble.HANG, Trouble.STARVED}
"""After these a target is of no use any more."""


@dataclass(frozen=True)
class Finding:
    """Something that should not have happened.

    Attributes:
        trouble: What kind of thing.
        signature: What tells it from others.
        detail: What happened, in words.
        entry: Number of the entry after which; None where that cannot be told.
        rule: Identifier of the rule that was broken, where there is one.
    """

    trouble: Trouble
    signature: str
    detail: str = ""
    entry: int | None = None
    rule: str | None = None

    @property
    def name(self) -> str:
        """Kind and signature."""
        return f"{self.trouble.value}: {self.signature}"


class Played(Protocol):
    """How a play went."""

    played: int


P = TypeVar("P", bound=Played)


@dataclass(frozen=True)
class Examined(Generic[P]):
    """A conversation that was tried.

    Attributes:
        performance: How it went.
        findings: What came of it.
    """

    performance: P
    findings: tuple[Finding, ...]

    @property
    def fatal(self) -> bool:
        """Whether the target is of no use any more."""
        return any(finding.trouble in FATAL for finding in self.findings)


def of_death(death: Death, entry: int) -> Finding:
    """That it died after an entry."""
    kind = Trouble.CRASH if death.by_signal or "Error" in death.signature else Trouble.EXIT
    return Finding(kind, _words_of(death), str(death), entry)


def _words_of(death: Death) -> str:
    """A death's signature; for want of a place, with the last words, but for their numbers."""
    if death.signature != death.cause or not death.output.strip():
        return death.signature
    words = _NUMBER.sub("#", death.output.strip().splitlines()[-1])
    return f"{death.cause}: {words[:_LONGEST]}"


def of_growth(before: Footprint, after: Footprint) -> list[Finding]:
    """What it holds more than before, each kind by itself: they have different reasons, and come in any company."""
    kinds = sorted((after.fds - before.fds).keys() | (after.mappings - before.mappings).keys())
    detail = f"after the conversation it holds {before.difference(after)}"
    return [Finding(Trouble.FD_LEAK, kind.strip(), detail) for kind in kinds]


def is_open(rule: str | None) -> bool:
    """Whether the specification leaves the matter open: what a peer does there is its own choice."""
    statement = statements().get(rule or "")
    return statement is not None and statement.kind == "choice"


def of_breach(breach: Breach, number: int, trouble: Trouble) -> Finding:
    """That it broke a rule.

    Who answers one request wrongly mostly answers others so, too: bad messages are told apart by the rule alone.
    """
    name, _, rest = breach.text.partition(" ")
    name = name.rstrip(":")
    if rest.startswith("was accepted"):
        return Finding(Trouble.ACCEPTED, f"{name} {breach.rule or ''}".strip(), breach.text, number, breach.rule)
    return Finding(trouble, breach.rule or name, breach.text, number, breach.rule)


def request_name(entries: Sequence[Entry], number: int) -> str:
    """The name of the last request up to an entry."""
    for entry in reversed(entries[: number + 1]):
        if isinstance(entry, Said):
            spec = spec_of(entry.direction, entry.request)
            return spec.name if spec else "an unknown request"
    return "nothing"

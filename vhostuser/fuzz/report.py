"""What a campaign tells at its end: as data, for whoever prints it or keeps it.

Must not know: terminals.
"""

from __future__ import annotations

from typing import Any

from vhostuser.fuzz.campaign import Progress, Settings
from vhostuser.fuzz.establish import CONFIRMATIONS, Found
from vhostuser.fuzz.verdict import Trouble
from vhostuser.transcript.entries import Said


def report(progress: Progress, settings: Settings, seconds: float) -> dict[str, Any]:
    """Everything about a campaign, ready for JSON."""
    return {
        "seconds": round(seconds, 1),
        "seed": settings.seed,
        "workers": settings.workers,
        "conversations": progress.conversations,
        "messages": progress.messages,
        "targets": progress.targets,
        "corpus": progress.corpus,
        "findings": [_finding(found) for found in ordered(progress)],
        "reached": {
            name: {column: list(cell) for column, cell in zip(progress.reached.columns, row, strict=True)}
            for name, row in progress.reached.rows()
        },
        "not reached": progress.reached.unvisited(),
    }


def ordered(progress: Progress) -> list[Found]:
    """The findings, the worst first, and of one kind the earliest."""
    kinds = list(Trouble)
    return sorted(progress.found.values(), key=lambda found: (kinds.index(found.finding.trouble), found.seconds))


def messages_of(found: Found) -> int:
    """How many messages show it."""
    return sum(isinstance(entry, Said) for entry in found.entries)


def _finding(found: Found) -> dict[str, Any]:
    return {
        "kind": found.finding.trouble.value,
        "signature": found.finding.signature,
        "rule": found.finding.rule,
        "detail": found.finding.detail,
        "messages": messages_of(found),
        "confirmed": f"{found.confirmed} of {CONFIRMATIONS}",
        "certain": found.certain,
        "seen": found.seen,
        "after seconds": round(found.seconds, 1),
        "transcript": str(found.path) if found.path else None,
    }

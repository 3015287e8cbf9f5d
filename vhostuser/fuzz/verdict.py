"""What a conversation did to a target: nothing, or a finding with a signature.

Must not know: how conversations are made.

Signatures are short and the same whenever the same fault shows: they name the place of a crash, and else the request
and the rule, never a value or an address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import trio

from vhostuser.fuzz.target import Target
from vhostuser.peer.footprint import Footprint
from vhostuser.session.witness import Breach, Side
from vhostuser.transcript.entries import Entry, Said
from vhostuser.transcript.player import Performance, play
from vhostuser.wire.requests import Direction, spec_of

_DYING = 0.5  # seconds from the last sign of life to the end of a process that writes a core
_LEAVING = 0.3  # seconds for a target to let go of a connection
_LOOK = 0.005  # seconds between two looks at what it holds


class Trouble(Enum):
    """Kinds of findings, the worst first."""

    CRASH = "crash"
    EXIT = "exit"
    HANG = "hang"
    STARVED = "starved next client"
    FD_LEAK = "descriptor leak"
    MEMORY_LEAK = "memory leak"
    WRONG_REPLY = "wrong reply"
    ACCEPTED = "accepted against a rule"


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


@dataclass(frozen=True)
class Examined:
    """A conversation that was tried.

    Attributes:
        performance: How it went.
        findings: What came of it.
    """

    performance: Performance
    findings: tuple[Finding, ...]

    @property
    def fatal(self) -> bool:
        """Whether the target is of no use any more."""
        return any(finding.trouble in (Trouble.CRASH, Trouble.EXIT, Trouble.HANG, Trouble.STARVED)
                   for finding in self.findings)  # fmt: skip


async def examine(
    entries: Sequence[Entry], target: Target, patience: float, before: Footprint | None = None
) -> Examined:
    """Say it to a target and look what became of both.

    Args:
        entries: The conversation.
        target: The back-end.
        patience: Seconds to wait for an answer.
        before: What the target held; None if leaks are not looked for.
    """
    performance = await play(entries, target.connect, patience=patience)
    findings = [*_replies(entries, performance)]
    fatal = await _fate(entries, performance, target)
    if fatal is not None:
        return Examined(performance, (fatal, *findings))
    if before is not None and (leak := await _leak(entries, before, target)) is not None:
        findings.append(leak)
    return Examined(performance, tuple(findings))


async def _fate(entries: Sequence[Entry], performance: Performance, target: Target) -> Finding | None:
    """Whether it still serves, and what happened to it if not."""
    last = performance.hung if performance.hung is not None else max(performance.played - 1, 0)
    asked = request_name(entries, last)
    if performance.hung is None and await target.serves():
        return None
    death = await target.death(_DYING)
    if death is not None:
        # a core takes its time: what follows the fatal message may still have been sent
        kind = Trouble.CRASH if death.by_signal or "Error" in death.signature else Trouble.EXIT
        return Finding(kind, death.signature, str(death), (performance.closed or [last])[-1])
    if performance.hung is not None:
        return Finding(Trouble.HANG, f"after {asked}", "it neither answers nor closes the connection", last)
    return Finding(Trouble.STARVED, f"after {asked}", "the next front-end is not served", last)


async def _leak(entries: Sequence[Entry], before: Footprint, target: Target) -> Finding | None:
    with trio.move_on_after(_LEAVING):
        while target.footprint() != before:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(_LOOK)
        return None
    after = await target.settled()
    if after is None or not (kept := _more(before, after)):
        return None
    return Finding(Trouble.FD_LEAK, kept, f"after the conversation it holds {before.difference(after)}")


def _more(before: Footprint, after: Footprint) -> str:
    """The kinds of descriptors and mappings of which there are more."""
    kinds = sorted((after.fds - before.fds).keys() | (after.mappings - before.mappings).keys())
    return ", ".join(kind.strip() for kind in kinds)


def _replies(entries: Sequence[Entry], performance: Performance) -> list[Finding]:
    """The rules that its answers broke, each once."""
    findings: dict[str, Finding] = {}
    for number, breach in performance.breaches:
        if breach.blame is Side.BACKEND:
            finding = _of_breach(breach, number)
            findings.setdefault(finding.name, finding)
    for number in performance.missed:
        if performance.hung is None and not performance.closed:
            signature = f"no answer to {request_name(entries, number)}"
            findings.setdefault(signature, Finding(Trouble.WRONG_REPLY, signature, signature, number))
    return list(findings.values())


def _of_breach(breach: Breach, number: int) -> Finding:
    """Who answers one request wrongly mostly answers others so, too: bad answers are told apart by the rule alone."""
    name, _, rest = breach.text.partition(" ")
    name = name.rstrip(":")
    if rest.startswith("was accepted"):
        return Finding(Trouble.ACCEPTED, f"{name} {breach.rule or ''}".strip(), breach.text, number, breach.rule)
    return Finding(Trouble.WRONG_REPLY, breach.rule or name, breach.text, number, breach.rule)


def request_name(entries: Sequence[Entry], number: int) -> str:
    """The name of the last request up to an entry."""
    for entry in reversed(entries[: number + 1]):
        if isinstance(entry, Said):
            spec = spec_of(Direction.FRONTEND, entry.request)
            return spec.name if spec else "an unknown request"
    return "nothing"

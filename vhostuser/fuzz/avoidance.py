"""What is known to end a target or to keep it silent, so that a campaign gets further than to its first finding.

Must not know: targets, findings.

A shape is what a message looks like to the rules: its request, the rule that it breaks in the state it is said in, the
kinds of its descriptors. Messages of a shape that led to a finding are mostly left out from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from vhostuser.fuzz.model import Known, Model
from vhostuser.transcript.entries import Entry, Said

_LEFT_OUT = 0.97
_LEFT_OUT_IF_LEGAL = 0.6
"""A legal message is where the next thing may begin."""

Shape = tuple[int, bool, str | None, tuple[str, ...]]


class Avoidance:
    """The shapes to be avoided."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._shapes: set[Shape] = set()

    def learn(self, entries: Sequence[Entry]) -> None:
        """Avoid the last message of this conversation, which shows a finding and no more than that."""
        model, last = Model(self._known), None
        for entry in entries:
            if isinstance(entry, Said):
                last = _shape(entry, model)
            model.follow(entry)
        if last is not None:
            self._shapes.add(last)

    def spared(self, random: Random, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """The conversation without most of the messages to be avoided."""
        if not self._shapes:
            return tuple(entries)
        model, kept = Model(self._known), []
        for entry in entries:
            if isinstance(entry, Said) and (shape := _shape(entry, model)) in self._shapes:
                legal = shape[1] and shape[2] is None
                if random.random() < (_LEFT_OUT_IF_LEGAL if legal else _LEFT_OUT):
                    continue
            kept.append(entry)
            model.follow(entry)
        return tuple(kept)


def _shape(said: Said, model: Model) -> Shape:
    error = model.judge(said)
    broken = None if error is None else error.rule or type(error).__name__
    return said.request, said.whole, broken, tuple(sorted({fd.kind.value for fd in said.fds}))

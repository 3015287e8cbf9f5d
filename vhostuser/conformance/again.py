"""Whether a conversation that a check failed in goes the same way when it is played to another back-end.

Must not know: what the check expected.

How: what is compared is what the back-end said, where it closed, what rings held in the end, and what became of it.
Values that differ from run to run, addresses in answers of more than a word, count by their length alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from vhostuser.conformance.harm import DIED, Harm, at_rest, harm_of
from vhostuser.errors import VhostUserError
from vhostuser.limits import Limits
from vhostuser.transcript.entries import Closed, Said, Side
from vhostuser.transcript.player import play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.conformance.connection import Patience
    from vhostuser.conformance.target import BackEnd, Target
    from vhostuser.transcript.entries import Entry
    from vhostuser.transcript.player import Performance
    from vhostuser.transport.channel import Channel

_WORD = 8
Told = tuple[int, int, bytes | int]


async def goes_otherwise(target: Target, entries: Sequence[Entry], harm: str, patience: Patience) -> str:
    """Play a conversation to a back-end and compare; empty if it goes the same way, or what is different.

    Args:
        target: Where back-ends come from.
        entries: What was said and done.
        harm: The kind of harm that came of it, if any did.
        patience: How long is waited.
    """
    try:
        async with target.back_end() as back_end:
            return await _played(back_end, entries, harm, patience)
    except VhostUserError as error:
        return str(error)


async def _played(back_end: BackEnd, entries: Sequence[Entry], harm: str, patience: Patience) -> str:
    async def connect() -> Channel:
        return await back_end.connect(Limits(message_timeout=patience.answer, send_timeout=patience.answer))

    before = await at_rest(back_end, patience)
    performance = await play(entries, connect, patience=patience.answer, awaited=_answered(entries).__contains__)
    after = await harm_of(back_end, before, patience)
    if harm == DIED and after and after.kind == DIED:
        return ""  # how far it came is a matter of moments
    if not harm and performance.differing:
        return "memory is not as it was in the end"
    return _difference(entries, performance) or _other_harm(harm, after)


def _answered(entries: Sequence[Entry]) -> set[int]:
    """Numbers of what the front-end said that something came for, whether the rules promise it or not."""
    spoken = [(at, entry) for at, entry in enumerate(entries) if isinstance(entry, Said) and not entry.own_channel]
    pairs = pairwise(spoken)
    return {at for (at, one), (_, next_one) in pairs if one.from_front_end and not next_one.from_front_end}


def _difference(entries: Sequence[Entry], performance: Performance) -> str:
    for own_channel, name in ((False, "the back-end"), (True, "the back-end, on its own channel,")):
        said = [_told(entry.request, entry.flags, entry.payload) for entry in _said(entries, own_channel)]
        heard = [
            _told(heard.frame.request, heard.frame.flags, heard.frame.payload)
            for heard in performance.heard
            if heard.own_channel is own_channel
        ]
        if said != heard:
            at = next((at for at, (one, other) in enumerate(zip(said, heard, strict=False)) if one != other), None)
            where = f"message {at + 1} is another one" if at is not None else f"{len(heard)} messages, not {len(said)}"
            return f"{name} said something else: {where}"
    closed = sum(isinstance(entry, Closed) and entry.side is Side.BACKEND for entry in entries)
    if closed != len(performance.closed):
        return f"the back-end closed {len(performance.closed)} connections, not {closed}"
    return ""


def _said(entries: Sequence[Entry], own_channel: bool) -> list[Said]:
    """What the back-end said."""
    said = (entry for entry in entries if isinstance(entry, Said) and entry.side is Side.BACKEND)
    return [entry for entry in said if entry.own_channel is own_channel]


def _told(request: int, flags: int, payload: bytes) -> Told:
    return request, flags, payload if len(payload) <= _WORD else len(payload)


def _other_harm(harm: str, after: Harm | None) -> str:
    kind = after.kind if after else ""
    if kind == harm:
        return ""
    return f"it did no harm (there: {harm})" if not after else f"it did other harm: {after.text}"

"""What a check, or whoever talked to it, has done to a back-end: it has to live, serve the next one, and keep nothing.

Must not know: what was said to it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import trio

from vhostuser.conformance.connection import Connection
from vhostuser.conformance.record import Record
from vhostuser.conformance.violation import Violation
from vhostuser.errors import VhostUserError
from vhostuser.limits import Limits

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Patience
    from vhostuser.conformance.target import BackEnd
    from vhostuser.peer.footprint import Footprint

DIED, SILENT, KEPT = "died", "silent", "kept"
_LOOK = 0.01  # seconds between two looks


class Harm(NamedTuple):
    """What a back-end has come to.

    Attributes:
        kind: ``died``; ``silent``, it does not serve the next front-end; ``kept``, it holds more than before.
        text: The same in words, with what is known of it.
    """

    kind: str
    text: str


async def at_rest(back_end: BackEnd, patience: Patience) -> Footprint | None:
    """What a back-end holds when nobody is connected; it has served somebody before, so that all of it is there.

    Raises:
        Violation: It does not serve anybody.
    """
    if fault := await _greets(back_end, patience):
        raise Violation(f"before the check: {fault}")
    held = back_end.footprint()
    with trio.move_on_after(patience.answer):
        while (later := await _later(back_end)) != held:
            held = later
    return held


async def harm_of(back_end: BackEnd, before: Footprint | None, patience: Patience) -> Harm | None:
    """What it has come to since it held that; None if it is as it was."""
    if death := await back_end.death(_LOOK):
        return Harm(DIED, f"the back-end died: {death}")
    if fault := await _greets(back_end, patience):
        death = await back_end.death(patience.silence)
        return Harm(DIED, f"the back-end died: {death}") if death else Harm(SILENT, f"afterwards: {fault}")
    kept = ""
    with trio.move_on_after(patience.answer):
        while kept := _growth(before, back_end.footprint()):  # noqa: ASYNC110 - nothing tells
            await trio.sleep(_LOOK)
    return Harm(KEPT, f"left behind: {kept}") if kept else None


async def _later(back_end: BackEnd) -> Footprint | None:
    await trio.sleep(_LOOK)
    return back_end.footprint()


def _growth(before: Footprint | None, after: Footprint | None) -> str:
    return "" if before is None or after is None else before.growth(after)


async def _greets(back_end: BackEnd, patience: Patience) -> str:
    """Whether it answers a front-end that comes now; empty, or why not."""
    with ExitStack() as kept:
        try:
            channel = await back_end.connect(Limits(send_timeout=patience.answer))
            kept.callback(channel.close)
            await Connection(channel, Record(), patience, kept).talks()
        except VhostUserError as fault:
            return str(fault)
    return ""

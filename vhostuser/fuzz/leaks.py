"""What stays in a target when a conversation is over.

Must not know: which end of the protocol the target is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from vhostuser.fuzz.verdict import Finding, of_growth
from vhostuser.peer.footprint import Footprint

_LEAVING = 0.3  # seconds for a target to let go of a connection
_LOOK = 0.005  # seconds between two looks at what it holds


async def leaks(
    before: Footprint, now: Callable[[], Footprint | None], settled: Callable[[], Awaitable[Footprint | None]]
) -> list[Finding]:
    """What a target holds more than before.

    Args:
        before: What it held before the conversation.
        now: What it holds at the moment; None where that cannot be told.
        settled: What it holds once that no longer changes, likewise.
    """
    with trio.move_on_after(_LEAVING):
        while now() != before:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(_LOOK)
        return []
    after = await settled()
    return [] if after is None else of_growth(before, after)

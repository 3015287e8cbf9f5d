"""No more of something than so many a second: who asks for more waits.

Must not know what is counted. A peer that is too fast is not closed, since nothing it did is wrong: it is read later,
and the kernel makes it wait when the socket is full.
"""

from __future__ import annotations

import math

import trio

PAUSE = 0.01
"""Seconds of the shortest wait: to sleep before every single message would cost more than the message."""


class Pace:
    """Lets so many a second pass; after a time without any, a second's worth at once.

    Args:
        rate: how many a second; may be infinite.
    """

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._due = -math.inf

    async def turn(self) -> None:
        """Wait until one more may pass. No checkpoint while there is room."""
        now = trio.current_time()
        # `due` is when all that has passed would have passed at an even pace. It may be a second ahead of the clock.
        if self._due > now + 1:
            now = self._due - 1 + PAUSE
            await trio.sleep_until(now)
        self._due = max(self._due, now) + self._interval

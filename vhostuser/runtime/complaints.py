"""What a session's peer does wrong, told in the log without letting the peer fill it.

Must not know what is complained about. A front-end that is refused in a loop, or a driver that breaks its ring in a
loop, would otherwise write a line each time, thousands a second.
"""

from __future__ import annotations

import itertools
import logging

log = logging.getLogger(__name__)

COMPLAINTS_LOGGED = 10  # of a session, as warnings


class Complaints:
    """The complaints of one session; any thread may add one."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def add(self, text: str, *words: object) -> None:
        """Warn, the first few times; later ones are for who debugs."""
        count = next(self._count)
        log.log(logging.WARNING if count <= COMPLAINTS_LOGGED else logging.DEBUG, text, *words)
        if count == COMPLAINTS_LOGGED:
            log.warning("further complaints of this session are logged with -vv only")

"""Where a handler says which requests it carries out."""

from __future__ import annotations

from collections.abc import Callable

from vhostuser.runtime.connection import Handler
from vhostuser.wire.requests import FrontendRequest

#: Every supported request and its handler.
HANDLERS: dict[int, Handler] = {}


def handles(*requests: FrontendRequest) -> Callable[[Handler], Handler]:
    """Make a function the handler of these requests."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(requests, handler))
        return handler

    return register

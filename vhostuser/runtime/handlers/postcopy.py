"""The three requests around post-copy; the memory between them is the matter of ``memory``."""

from __future__ import annotations

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.session.backend import Done
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.POSTCOPY_ADVISE)
async def _postcopy_advise(connection: Connection, message: Message) -> Done:
    return Done(None, (connection.postcopy.advise(),))


@handles(R.POSTCOPY_LISTEN)
async def _postcopy_listen(connection: Connection, message: Message) -> None:
    connection.postcopy.listen(connection.rings.memory)


@handles(R.POSTCOPY_END)
async def _postcopy_end(connection: Connection, message: Message) -> Payload:
    connection.postcopy.check_acknowledged("POSTCOPY_END")
    connection.postcopy.end()
    return U64(0)

"""The channel for the back-end's own requests."""

from __future__ import annotations

from vhostuser.errors import FdError
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.wire.messages import Message
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.SET_BACKEND_REQ_FD)
async def _set_backend_req_fd(connection: Connection, message: Message) -> None:
    fd = message.fds.take()
    try:
        connection.check_foreign(fd, message.name)
        connection.backend_channel.open(fd)
    except FdError:
        fd.close()
        raise

"""The dirty log."""

from __future__ import annotations

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.dirty import check_covers
from vhostuser.runtime.handlers.registry import handles
from vhostuser.runtime.handlers.rings import take_notifier
from vhostuser.virtio.dirty import DirtyLog
from vhostuser.wire.messages import Log, Message, Payload
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.SET_LOG_BASE)
async def _set_log_base(connection: Connection, message: Message) -> Payload:
    """Log there from now on; the answer follows when nobody uses the log before it any more."""
    assert isinstance(message.payload, Log)
    log = message.payload
    connection.check_mapped(log.mmap_size)
    check_covers(log.mmap_size, connection.rings.memory)
    with message.fds.take() as fd:
        mapped = DirtyLog(fd.fileno(), log.mmap_size, log.mmap_offset)
    await connection.rings.logging.use(mapped)
    return log


@handles(R.SET_LOG_FD)
async def _set_log_fd(connection: Connection, message: Message) -> None:
    await connection.rings.logging.notify(take_notifier(connection, message))

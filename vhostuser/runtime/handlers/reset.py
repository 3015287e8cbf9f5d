"""The device's status, and its resets: the driver's (SET_STATUS 0), the front-end's, and the deprecated one."""

from __future__ import annotations

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.GET_STATUS)
async def _get_status(connection: Connection, message: Message) -> Payload:
    return U64(connection.session.status)


@handles(R.SET_STATUS)
async def _set_status(connection: Connection, message: Message) -> None:
    """Stop everything at a reset. Rings keep their positions: QEMU resets first and asks for them then."""
    assert isinstance(message.payload, U64)
    if message.payload.value == 0:
        await _stop_all(connection)
        _reset(connection)


@handles(R.RESET_DEVICE)
async def _reset_device(connection: Connection, message: Message) -> None:
    await _stop_all(connection)
    for vring in connection.rings.vrings:
        vring.num = vring.base = 0
        vring.addr = None
    _reset(connection)


@handles(R.RESET_OWNER)
async def _reset_owner(connection: Connection, message: Message) -> None:
    await _stop_all(connection)
    await connection.rings.logging.reset()


def _reset(connection: Connection) -> None:
    connection.device.reset()
    connection.calls.forget()


async def _stop_all(connection: Connection) -> None:
    for vring in connection.rings.vrings:
        await connection.rings.stop(vring.index)
    connection.rings.inflight.close()  # the rings will be new ones, with nothing in flight

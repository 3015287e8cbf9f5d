"""Requests in flight that outlive a back-end: their region, and stopping a ring without waiting for them."""

from __future__ import annotations

from vhostuser.errors import StateError
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.session.backend import Done
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import Inflight, Message, Payload, VringState
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.GET_INFLIGHT_FD)
async def _get_inflight_fd(connection: Connection, message: Message) -> Done:
    """Make a region and use it: a front-end need not send the one back that it has just got."""
    assert isinstance(message.payload, Inflight)
    _check_stopped(connection, message)
    return Done(*connection.rings.inflight.make(message.payload, connection.session.features))


@handles(R.SET_INFLIGHT_FD)
async def _set_inflight_fd(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, Inflight)
    _check_stopped(connection, message)
    connection.check_mapped(message.payload.mmap_size)
    with message.fds.take() as fd:
        connection.rings.inflight.take(message.payload, fd, connection.session.features)


@handles(R.GET_VRING_BASE)
async def _get_vring_base(connection: Connection, message: Message) -> Payload:
    """Stop a ring when its requests in flight are completed, unless they may stay so.

    A front-end that knows GET_VRING_BASE_SKIP_DRAIN asks with that when it does not want to wait.
    """
    acknowledged = connection.session.protocol_features
    waits = (
        ProtocolFeature.GET_VRING_BASE_INFLIGHT not in acknowledged
        or ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN in acknowledged
        or not connection.rings.inflight.present
    )
    return await _stop(connection, message, waits)


@handles(R.GET_VRING_BASE_SKIP_DRAIN)
async def _get_vring_base_skip_drain(connection: Connection, message: Message) -> Payload:
    return await _stop(connection, message, waits=False)


async def _stop(connection: Connection, message: Message, waits: bool) -> Payload:
    assert isinstance(message.payload, VringState)
    vring = connection.rings.vrings[message.payload.index]
    if waits:
        await connection.rings.drain(vring.index)
    await connection.rings.stop(vring.index, keep=not waits)
    return VringState(vring.index, vring.base)


def _check_stopped(connection: Connection, message: Message) -> None:
    if not connection.session.suspended:
        words = f"{message.name}: a vring is started, and records what it has in flight"
        raise StateError(words, rule="VU-INFLIGHT-3")

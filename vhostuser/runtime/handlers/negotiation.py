"""Features and rings: most of what the two sides agree on, the session keeps."""

from __future__ import annotations

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.runtime.handlers.rings import enable
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import U64, Message, Payload
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.GET_FEATURES)
async def _get_features(connection: Connection, message: Message) -> Payload:
    return U64(connection.session.offer.virtio_features)


@handles(R.GET_PROTOCOL_FEATURES)
async def _get_protocol_features(connection: Connection, message: Message) -> Payload:
    return U64(connection.session.offer.protocol_features)


@handles(R.GET_QUEUE_NUM)
async def _get_queue_num(connection: Connection, message: Message) -> Payload:
    """The queues as the device type counts them: for a network device pairs, with which QEMU compares its own."""
    return U64(len(connection.device.groups))


@handles(R.SET_FEATURES)
async def _set_features(connection: Connection, message: Message) -> None:
    """The session keeps them. What rings that run have to follow: LOG_ALL, and that all are enabled without bit 30."""
    assert isinstance(message.payload, U64)
    features = message.payload.value
    await connection.rings.logging.switch(bool(features & VhostFeature.LOG_ALL))
    if not features & VhostFeature.PROTOCOL_FEATURES:
        for vring in connection.rings.vrings:
            await enable(connection, vring)


@handles(R.SET_PROTOCOL_FEATURES, R.SET_OWNER)
async def _nothing_else_to_do(connection: Connection, message: Message) -> None:
    """The session takes it over from the outcome."""

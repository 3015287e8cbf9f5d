"""What only a network device is asked."""

from __future__ import annotations

import sys

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.wire.messages import U64, Message
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.NET_SET_MTU)
async def _net_set_mtu(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, U64)
    connection.device.set_mtu(message.payload.value)


@handles(R.SEND_RARP)
async def _send_rarp(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, U64)
    connection.device.announce(message.payload.value.to_bytes(8, sys.byteorder)[:6])

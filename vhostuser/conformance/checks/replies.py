"""What is answered, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

R = FrontendRequest


@checks("VU-REP-1", needs=(ProtocolFeature.REPLY_ACK,))
async def an_own_reply_and_no_acknowledgement(probe: Probe) -> None:
    connection = await probe.negotiated()
    await connection.accepted(R.GET_FEATURES, flags=NEED_REPLY)
    await connection.talks()
    await connection.accepted(R.GET_VRING_BASE, VringState(0, 0), flags=NEED_REPLY)
    await connection.talks()


@checks("VU-REP-2", needs=(ProtocolFeature.REPLY_ACK,))
async def done_and_failed_are_told_apart(probe: Probe) -> None:
    connection = await probe.negotiated()
    await connection.accepted(R.SET_VRING_NUM, VringState(0, 64), flags=NEED_REPLY)
    await connection.refused(connection.frame(R.SET_VRING_NUM, VringState(0xFFFF, 64), flags=NEED_REPLY))


@checks("VU-REP-3")
async def without_reply_ack_nothing_is_acknowledged(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=ProtocolFeature(0))
    await connection.ignored(connection.frame(R.SET_VRING_NUM, VringState(0, 64), flags=NEED_REPLY))
    await connection.ignored(connection.frame(R.SET_FEATURES, U64(connection.features), flags=NEED_REPLY))

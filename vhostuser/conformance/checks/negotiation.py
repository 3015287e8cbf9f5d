"""What is offered, what is acknowledged, and what that makes legal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import Violation, checks
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

R = FrontendRequest


@checks("VU-NEG-1")
async def features_are_told_at_any_time(probe: Probe) -> None:
    connection = await probe.connect()
    before = await connection.value(R.GET_FEATURES)
    await connection.accepted(R.SET_OWNER)
    await connection.accepted(R.SET_FEATURES, U64(before & (probe.device.features | VhostFeature.PROTOCOL_FEATURES)))
    if (after := await connection.value(R.GET_FEATURES)) != before:
        raise Violation(f"GET_FEATURES: {before:#x} before negotiation, {after:#x} after it")


@checks("VU-NEG-2", needs=(VhostFeature.PROTOCOL_FEATURES,))
async def protocol_features_need_an_offer_only(probe: Probe) -> None:
    connection = await probe.connect()
    offered = await connection.value(R.GET_PROTOCOL_FEATURES)
    await connection.accepted(R.SET_PROTOCOL_FEATURES, U64(offered))

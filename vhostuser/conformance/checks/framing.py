"""Headers, and where messages begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY, REPLY, REQUEST
from vhostuser.wire.frames import MAX_PAYLOAD
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe

R = FrontendRequest


@checks("VU-HDR-2")
async def another_version_closes(probe: Probe) -> None:
    for version in (0, 2, 3):
        for request in (R.GET_FEATURES, R.SET_OWNER):
            connection = await probe.negotiated()
            await connection.closes(connection.frame(request, flags=version))


@checks("VU-HDR-3")
async def a_request_with_the_reply_flag_closes(probe: Probe) -> None:
    for flags in (REPLY, REPLY | NEED_REPLY):
        connection = await probe.negotiated()
        await connection.closes(connection.frame(R.GET_FEATURES, flags=flags))


@checks("VU-HDR-4")
async def a_payload_too_long_closes(probe: Probe) -> None:
    for size in (MAX_PAYLOAD + 1, 0x10000, 0xFFFFFFFF):
        connection = await probe.negotiated()
        await connection.closes(connection.frame(R.SET_MEM_TABLE, size=size))


@checks("VU-HDR-5")
async def reserved_flags_are_tolerated(probe: Probe) -> None:
    connection = await probe.negotiated()
    for bits in (0x10, 0x8000, 0x80000000, 0xFFFFFFF0):
        await connection.accepted(R.GET_FEATURES, flags=REQUEST | bits)


@checks("VU-HDR-8")
async def an_unknown_request_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    for number in (0, 46, 0xFFFFFFFF):
        await connection.ignored(connection.frame(number, flags=REQUEST))
        await connection.refused(connection.frame(number))

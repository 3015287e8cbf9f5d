"""In-band notifications at the front-end: a driver's eventfds on one side, messages on the other.

Must not know: what the rings are for. Drivers go on as ever; who speaks for them here sends a message for each kick,
and signals each call and error that comes as one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from vhostuser.wire.codec import decode, encode_ack
from vhostuser.wire.messages import VringState
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.frontend.client import FrontEnd
    from vhostuser.frontend.rings import DriverQueue


async def start_ring(front_end: FrontEnd, ring: DriverQueue) -> None:
    """Tell all of a ring but descriptors; its first kick, which starts it, is sent too."""
    r = FrontendRequest
    await front_end.request(r.SET_VRING_NUM, VringState(ring.index, ring.size))
    await front_end.request(r.SET_VRING_BASE, VringState(ring.index, ring.base))
    await front_end.request(r.SET_VRING_ADDR, front_end.vring_addr(ring))
    await front_end.enable_ring(ring)
    await front_end.request(r.VRING_KICK, VringState(ring.index, 0))


async def relay(front_end: FrontEnd, rings: Sequence[DriverQueue]) -> None:
    """Turn the drivers' kicks into messages, and the back-end's messages into calls, until cancelled."""
    async with trio.open_nursery() as nursery:
        for ring in rings:
            nursery.start_soon(_send_kicks, front_end, ring)
        await _signal_calls(front_end, rings)


async def _send_kicks(front_end: FrontEnd, ring: DriverQueue) -> None:
    while True:
        await trio.lowlevel.wait_readable(ring.kick_fd.fileno())
        os.eventfd_read(ring.kick_fd.fileno())
        await front_end.request(FrontendRequest.VRING_KICK, VringState(ring.index, 0))


async def _signal_calls(front_end: FrontEnd, rings: Sequence[DriverQueue]) -> None:
    channel = front_end.backend_channel
    assert channel is not None, "open_backend_channel has to come first"
    by_index = {ring.index: ring for ring in rings}
    while True:
        frame = await channel.receive()
        with frame.fds:
            message = decode(Direction.BACKEND, frame)
        assert isinstance(message.payload, VringState), message
        ring = by_index[message.payload.index]
        fd = ring.call_fd if message.request == BackendRequest.VRING_CALL else ring.err_fd
        os.eventfd_write(fd.fileno(), 1)
        if frame.need_reply:
            await channel.send(encode_ack(frame.request, 0))

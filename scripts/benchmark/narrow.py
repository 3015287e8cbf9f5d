"""DPDK's back-end with a narrower offer, for a front-end that takes too much of it.

DPDK offers the control queue (and what needs it) and leaves that queue to a machine monitor. User-mode Linux has none,
and would wait for an answer in it for ever; nor can it start a packed ring. So a program stands between their sockets
and takes these features out of the answer to GET_FEATURES. Packets do not pass it: memory and notifiers are handed on.

    python -m scripts.benchmark.narrow LISTEN CONNECT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import trio

from scripts.benchmark.subjects import DpdkBackEnd
from tests.rig.netns import Netns
from tests.rig.process import Program
from vhostuser.errors import ConnectionClosedError
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect, listen
from vhostuser.wire.frames import Frame
from vhostuser.wire.requests import FrontendRequest

#: CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR, RING_PACKED.
_WITHHELD = 0x7F << 17 | 1 << 34


class NarrowDpdk(DpdkBackEnd):
    """DPDK's back-end behind the program of this module."""

    def __init__(self, netns: Netns) -> None:
        """Start both."""
        super().__init__(netns)
        listening = self.socket.with_name("narrow.sock")
        words = [sys.executable, "-m", "scripts.benchmark.narrow", str(listening), str(self.socket)]
        self._between = Program(words, listening.with_suffix(".log"))
        self._between.wait_for(listening.exists, 20, f"{listening}")
        self.socket = listening

    def close(self) -> None:
        """End both."""
        self._between.stop()
        super().close()


async def stand_between(listening: Path, back_end: Path) -> None:
    """Serve one front-end."""
    async with (
        await listen(listening) as listener,
        await listener.accept() as front,
        await connect(back_end) as back,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_hand_on, front, back, nursery.cancel_scope)
        nursery.start_soon(_hand_on, back, front, nursery.cancel_scope)


async def _hand_on(source: Channel, target: Channel, scope: trio.CancelScope) -> None:
    try:
        while True:
            frame = await source.receive()
            try:
                await target.send(_narrowed(frame))
            finally:
                frame.fds.close()
    except ConnectionClosedError:
        scope.cancel()


def _narrowed(frame: Frame) -> Frame:
    if not frame.is_reply or frame.request != FrontendRequest.GET_FEATURES:
        return frame
    features = int.from_bytes(frame.payload, "little") & ~_WITHHELD
    return replace(frame, payload=features.to_bytes(8, "little"))


if __name__ == "__main__":
    trio.run(stand_between, Path(sys.argv[1]), Path(sys.argv[2]))

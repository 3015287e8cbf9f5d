"""A whole conversation with our own back-end, through somebody who looks on: nobody breaks a rule."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import pytest
import trio

from tests.hostile.attack import ask
from tests.hostile.victim import DEADLINE, Victim, exchange
from vhostuser.errors import ConnectionClosedError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.session.witness import Judgement, Side, Witness
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, Frame
from vhostuser.wire.messages import U64, VringState
from vhostuser.wire.requests import FrontendRequest as R

ACKS = ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS | ProtocolFeature.CONFIGURE_MEM_SLOTS


@dataclass
class Onlooker:
    """Passes everything on, and has a witness judge it."""

    witness: Witness = field(default_factory=Witness)
    judgements: list[Judgement] = field(default_factory=list)

    @asynccontextmanager
    async def between(self, victim: Victim) -> AsyncIterator[FrontEnd]:
        """A front-end that speaks to the victim through this one."""
        near, far = socket.socketpair()
        ours, theirs = Channel(trio.socket.from_stdlib_socket(near)), await connect(victim.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, ours, theirs, self.witness.request)
            nursery.start_soon(self._pass_on, theirs, ours, self.witness.reply)
            async with FrontEnd.from_socket(far) as front_end:
                yield front_end

    async def _pass_on(self, source: Channel, target: Channel, judge: Callable[[Frame], Judgement]) -> None:
        async with source, target:
            try:
                while True:
                    frame = await source.receive()
                    with frame.fds:
                        self.judgements.append(judge(frame))
                        await target.send(frame)
            except (ConnectionClosedError, trio.ClosedResourceError):
                pass


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("protocol", [ACKS, ProtocolFeature.STATUS], ids=["acks", "no acks"])
async def test_nothing_is_wrong_between_a_driver_and_our_back_end(
    victim: Victim, packed: bool, protocol: ProtocolFeature
) -> None:
    onlooker = Onlooker()
    with trio.fail_after(DEADLINE), GuestRam() as memory:
        async with onlooker.between(victim) as front_end:
            front_end.memory = memory
            await front_end.negotiate(DRIVER_FEATURES | packed * VhostFeature.RING_PACKED, protocol)
            await front_end.tell_memory()
            with closing(await NetDriver.open_pair(front_end)) as driver:
                await front_end.word(R.GET_FEATURES)  # its answer shows that the rings are enabled, acknowledged or not
                await exchange(victim, driver)
                for ring in (driver.rx, driver.tx):
                    await front_end.enable_ring(ring, False)
                    await front_end.stop_ring(ring)
                await front_end.word(R.GET_FEATURES)
    names = {judgement.name for judgement in onlooker.judgements}
    assert names >= {"GET_FEATURES", "SET_FEATURES", "SET_VRING_ADDR", "SET_VRING_KICK", "GET_VRING_BASE"}
    assert [breach for judgement in onlooker.judgements for breach in judgement.breaches] == []
    assert onlooker.witness.unanswered == 0


async def test_what_a_front_end_does_wrong_is_its_own_breach(victim: Victim) -> None:
    """Our back-end refuses it, which is no breach of its."""
    onlooker = Onlooker()
    with trio.fail_after(DEADLINE):
        async with onlooker.between(victim) as front_end:
            await front_end.negotiate(DRIVER_FEATURES)
            for frame in (
                ask(R.SET_VRING_NUM, VringState(0, 3)),
                ask(R.SET_FEATURES, U64(1 << 63)),
                ask(R.GET_VRING_BASE, VringState(77, 0)),
                Frame(99, VERSION | 8),
            ):
                await front_end.send_frame(frame)
                await front_end.receive_frame()
    breaches = [breach for judgement in onlooker.judgements for breach in judgement.breaches]
    assert {breach.blame for breach in breaches} == {Side.FRONTEND}
    assert [breach.rule for breach in breaches] == ["VU-RING-12", "VU-NEG-4", "VU-HDR-8"]
    assert onlooker.witness.unanswered == 0

"""Kicks and calls as messages, and with them a conversation in a single thread that is the same each time."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import closing

import pytest
import trio
from trio.testing import MockClock

from tests.hostile.attack import accepted, ask, refused
from tests.hostile.victim import DEADLINE, Victim, exchange, frame_of
from tests.ports import PairPort
from vhostuser.devices.net.device import NetDevice
from vhostuser.frontend import inband
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import Descriptor, DriverRing
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers import HANDLERS
from vhostuser.runtime.loop_group import LoopGroup
from vhostuser.transport.channel import Channel
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | ProtocolFeature.INBAND_NOTIFICATIONS
ROUNDS = 12


async def open_driver(front_end: FrontEnd, memory: GuestRam, packed: bool, nursery: trio.Nursery) -> NetDriver:
    """A driver whose rings were given no descriptors."""
    await front_end.negotiate(DRIVER_FEATURES | DriverFeature.RING_PACKED * packed, PROTOCOL)
    assert front_end.protocol_features == PROTOCOL
    await front_end.open_backend_channel()
    await front_end.set_mem_table(memory)
    layout = PackedDriverRing if packed else DriverRing
    rings: list[DriverQueue] = [layout(memory, index, 64, event_idx=True) for index in range(2)]
    driver = NetDriver(rings[0], rings[1], front_end.features)
    driver.fill()
    for ring in rings:
        await inband.start_ring(front_end, ring)
    nursery.start_soon(inband.relay, front_end, rings)
    return driver


@pytest.mark.proves("VU-INBAND-1", "VU-INBAND-2")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_packets_without_any_descriptor(victim: Victim, packed: bool) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end, trio.open_nursery() as nursery:
            with closing(await open_driver(front_end, memory, packed, nursery)) as driver:
                await exchange(victim, driver)
                counters = victim.server.counters()
                assert min(counters["vring1_kicks"], counters["vring0_calls"]) > 0
                for ring in (driver.rx, driver.tx):
                    await front_end.stop_ring(ring)
            nursery.cancel_scope.cancel()


@pytest.mark.proves("VU-INBAND-3")
async def test_a_broken_ring_is_told_of_by_message(victim: Victim) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end, trio.open_nursery() as nursery:
            with closing(await open_driver(front_end, memory, False, nursery)) as driver:
                assert isinstance(driver.tx, DriverRing)
                driver.tx.set_descriptor(0, Descriptor(0x1000, 64, 1, 999))
                driver.tx.set_avail(driver.tx.avail_idx, 0)
                driver.tx.avail_idx += 1
                driver.tx.kick(force=True)
                await trio.lowlevel.wait_readable(driver.tx.err_fd.fileno())
            nursery.cancel_scope.cancel()


@pytest.mark.proves("VU-INBAND-4", "VU-RING-31")
async def test_descriptors_are_preferred_where_there_are_some(victim: Victim) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            await front_end.negotiate(DRIVER_FEATURES, PROTOCOL)
            await front_end.set_mem_table(memory)  # and there is no channel for messages
            with closing(await NetDriver.open_pair(front_end)) as driver:
                await exchange(victim, driver)
                await front_end.request(R.SET_VRING_KICK, VringFd(1, no_fd=True))  # polled
                await front_end.request(R.VRING_KICK, VringState(1, 0))  # harmless
                await exchange(victim, driver)
                await accepted(front_end, ask(R.VRING_KICK, VringState(1, 7)))  # what is reserved is not looked at


async def test_a_kick_by_message_has_to_be_negotiated(victim: Victim, attacker: FrontEnd) -> None:
    await refused(attacker, ask(R.VRING_KICK, VringState(0, 0)))
    await attacker.request(R.SET_PROTOCOL_FEATURES, U64(PROTOCOL))
    await attacker.request(R.VRING_KICK, VringState(0, 0))


# ---- the same each time ----------------------------------------------------------------------------------------------


class Transcript:
    """All that passes any socket, in order."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._send, self._receive = Channel.send, Channel.receive

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        transcript = self

        async def send(channel: Channel, frame: Frame) -> None:
            transcript.lines.append(b"> " + frame.encode())
            await transcript._send(channel, frame)

        async def receive(channel: Channel) -> Frame:
            frame = await transcript._receive(channel)
            transcript.lines.append(b"< " + frame.encode())
            return frame

        patch.setattr(Channel, "send", send)
        patch.setattr(Channel, "receive", receive)


async def conversation(packed: bool, transcript: Transcript) -> None:
    """Negotiate, exchange packets, pause for an hour, exchange packets, stop; all in this thread."""
    port, threads = PairPort(), set(threading.enumerate())
    device = NetDevice(port)
    device.inband = True
    ours, theirs = socket.socketpair()
    front_end = FrontEnd.from_socket(theirs)
    connection = Connection(device, Channel(trio.socket.from_stdlib_socket(ours)), HANDLERS, group_type=LoopGroup)
    with GuestRam() as memory, port.host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            with closing(await open_driver(front_end, memory, packed, nursery)) as driver:
                for i in range(ROUNDS):
                    await driver.send(frame_of(i))
                    transcript.lines.append(b"host got " + await port.receive())
                    await port.send(frame_of(i + 100))
                    transcript.lines.append(b"guest got " + (await driver.receive()).frame)
                    if i == ROUNDS // 2:
                        await trio.sleep(3600)
                for ring in (driver.rx, driver.tx):
                    await front_end.stop_ring(ring)
                assert set(threading.enumerate()) <= threads
            transcript.lines.append(b"%r" % sorted(connection.rings.live_counters().items()))
            nursery.cancel_scope.cancel()
        transcript.lines.append(b"%f" % trio.current_time())
    await front_end.aclose()
    ours.close()
    device.close()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """Trio's scheduler shuffles what is ready; here by a generator that the test seeds."""
    generator = random.Random()
    monkeypatch.setattr("trio._core._run._r", generator)
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    return generator


@pytest.mark.proves("VU-INBAND-5")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_conversation_is_repeatable_to_the_byte(
    packed: bool, deterministic: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[bytes]] = []
    for _ in range(5):
        transcript = Transcript()
        deterministic.seed(7)
        with monkeypatch.context() as patch:
            transcript.watch(patch)
            clock = MockClock(autojump_threshold=0)
            trio.run(conversation, packed, transcript, clock=clock)
        runs.append(transcript.lines)
    assert sum(line.startswith(b"guest got ") for line in runs[0]) == ROUNDS
    assert all(run == runs[0] for run in runs)

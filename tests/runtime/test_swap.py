"""A device changes its port while its driver runs, and speaks for its guest."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import Running, accepted, ask, refused
from tests.hostile.victim import DEADLINE, Victim, frame_of, serving, split_rings
from tests.ports import PairPort
from vhostuser.devices.net.device import rarp_request
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports.sockets import Loop
from vhostuser.errors import PortError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.virtio.pump import Pump
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest as R

MAC = bytes.fromhex("525400123456")


def numbered(number: int) -> bytes:
    return struct.pack("I", number) + bytes(60)


def number_of(frame: bytes) -> int:
    return int(struct.unpack_from("I", frame)[0])


@pytest.fixture
async def victim(tmp_path: Path, interrupts: None, make_port: object) -> AsyncIterator[Victim]:
    """A server of the test's own, which is gone before the ports that the test made."""
    async with serving(tmp_path / "vhost.sock") as victim:
        yield victim


@pytest.fixture
async def make_port() -> AsyncIterator[Callable[[], PairPort]]:
    """Makes ports; the host's ends are closed at the end, and the device's ends by the device."""
    with ExitStack() as stack:

        def make() -> PairPort:
            port = PairPort()
            stack.callback(port.host.close)
            return port

        yield make


async def move(victim: Victim, port: PairPort) -> int:
    """Let the victim's device go on with another port."""
    return await victim.device.swap(port, victim.server.in_turns)


def present(victim: Victim) -> PairPort:
    assert isinstance(victim.device.port, PairPort)
    return victim.device.port


async def leftovers(port: PairPort) -> list[int]:
    """The numbers of what a port had been given, which stays readable when its other end is closed."""
    numbers = []
    while packet := await port.host.recv(4096):
        numbers.append(number_of(packet[port.header_size :]))
    return numbers


MakePort = Callable[[], PairPort]


@pytest.mark.proves("VIO-PORT-5")
async def test_what_is_sent_goes_on_in_order_from_port_to_port(
    victim: Victim, running: Running, make_port: MakePort
) -> None:
    count, changes = 6000, 10
    got: list[int] = []

    async def send() -> None:
        for number in range(count):
            await running.driver.send(numbered(number))

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(changes):
                old = present(victim)
                got += [number_of(await old.receive()) for _ in range(100)]
                assert await move(victim, make_port()) == 0
                got += await leftovers(old)
            while len(got) < count:
                got.append(number_of(await present(victim).receive()))
    assert got == list(range(count))
    assert victim.device.swaps == changes


@pytest.mark.proves("VIO-PORT-5")
async def test_what_is_received_arrives_in_order_or_is_counted_as_lost(
    victim: Victim, running: Running, make_port: MakePort
) -> None:
    count = 3000
    got: list[int] = []
    sent = 0

    async def receive() -> None:
        while True:
            got.append(number_of((await running.driver.receive()).frame))

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            while sent < count:
                for _ in range(150):
                    await present(victim).send(numbered(sent))
                    sent += 1
                await move(victim, make_port())
            while len(got) + victim.device.lost < sent:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert got == sorted(set(got))
    assert got
    assert victim.server.counters()["rx_lost_in_swaps"] == sent - len(got)


@pytest.mark.proves("VIO-PORT-5")
async def test_frames_that_the_old_port_still_holds_are_counted(victim: Victim, make_port: MakePort) -> None:
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            driver = await NetDriver.start(front_end, memory, size=4)
            for number in range(20):
                await present(victim).send(numbered(number))
            rx, _ = split_rings(driver)
            while rx.used_idx != 4:
                await trio.lowlevel.checkpoint()
            lost = await move(victim, make_port())
            got = [number_of((await driver.receive()).frame) for _ in range(20 - lost)]
            driver.close()
    assert got == list(range(20 - lost))
    assert lost >= 15  # four buffers, and one packet that may be kept for the fifth


@pytest.mark.proves("VIO-PORT-5")
async def test_a_packet_that_the_old_port_was_too_full_for_goes_to_the_new_one(
    victim: Victim, running: Running, make_port: MakePort
) -> None:
    old = present(victim)
    with trio.fail_after(DEADLINE):
        sent = 0
        while not victim.server.counters()["tx_blocked"]:
            await running.driver.send(numbered(sent))
            sent += 1
        await move(victim, make_port())
        got = await leftovers(old)
        assert 0 < len(got) < sent
        while len(got) < sent:
            got.append(number_of(await present(victim).receive()))
    assert got == list(range(sent))


@pytest.mark.proves("VIO-PORT-5")
async def test_the_new_port_is_set_up_for_the_driver(victim: Victim, running: Running, make_port: MakePort) -> None:
    victim.device.set_mtu(1400)
    old, new = present(victim), make_port()
    await move(victim, new)
    assert (new.features, new.header_size, new.mtu, new.carrier) == (old.features, 12, 1400, True)
    assert not old.carrier
    await new.send(frame_of(1))
    assert (await running.driver.receive()).frame == frame_of(1)


@pytest.mark.proves("VIO-PORT-5")
async def test_a_swap_without_a_driver(victim: Victim) -> None:
    await victim.device.swap(Loop(), victim.server.in_turns)
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            driver = await NetDriver.start(front_end, memory)
            await driver.send(frame_of(5))
            assert (await driver.receive()).frame == frame_of(5)
            driver.close()


class Refusing(PairPort):
    """A port that cannot be set up."""

    def configure(self, features: int, header_size: int) -> None:
        raise PortError("pair: not today")


@pytest.mark.proves("VIO-PORT-6")
@pytest.mark.parametrize("flaw", ["offload", "queues", "configure"])
async def test_a_port_that_does_not_fit_is_refused(victim: Victim, flaw: str) -> None:
    async with await victim.connect() as front_end:
        features = DRIVER_FEATURES | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
        with GuestRam() as memory, closing(await NetDriver.start(front_end, memory, features=features)) as driver:
            new = Refusing() if flaw == "configure" else PairPort()
            if flaw == "offload":
                new.unsupported = NetFeature.GUEST_TSO4 | NetFeature.GUEST_UFO
            elif flaw == "queues":
                new.queues = 0
            reason = {
                "offload": "pair cannot do what the driver accepted: GUEST_TSO4$",
                "queues": "pair has 0 queues, the device has 1 queue pairs",
                "configure": "not today",
            }[flaw]
            with pytest.raises(PortError, match=reason):
                await move(victim, new)
            new.close()
            new.host.close()
            await driver.send(frame_of(3))
            assert await victim.port.receive() == frame_of(3)
    assert victim.device.swaps == 0


@pytest.mark.proves("VIO-PORT-6")
async def test_a_change_during_a_change_is_refused(victim: Victim, running: Running, make_port: MakePort) -> None:
    first, second = make_port(), make_port()

    async def in_turns(function: Callable[[int, Pump], None]) -> None:
        with closing(second), pytest.raises(PortError, match="the change to pair is still under way"):
            await move(victim, second)
        await victim.server.in_turns(function)

    await victim.device.swap(first, in_turns)
    await running.driver.send(frame_of(7))
    assert await first.receive() == frame_of(7)
    await move(victim, make_port())
    assert victim.device.swaps == 2


# ---- SEND_RARP -------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NET-18")
async def test_the_back_end_speaks_for_the_guest(victim: Victim) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, ProtocolFeature.REPLY_ACK | ProtocolFeature.RARP)
        await accepted(front_end, ask(R.SEND_RARP, U64(int.from_bytes(MAC, "little"))))
        frame = await victim.port.receive()
    assert frame == rarp_request(MAC)
    assert len(frame) == 60
    assert frame[:14] == b"\xff" * 6 + MAC + b"\x80\x35"
    assert frame[14:42] == bytes.fromhex("0001 0800 06 04 0003") + MAC + bytes(4) + MAC + bytes(4)


@pytest.mark.proves("VIO-NET-18")
async def test_a_port_that_is_full_refuses_to_speak(victim: Victim) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, ProtocolFeature.REPLY_ACK | ProtocolFeature.RARP)
        word = U64(int.from_bytes(MAC, "little"))
        with suppress(PortError):
            while True:
                victim.device.announce(MAC)
        await refused(front_end, ask(R.SEND_RARP, word))
        assert victim.port.flush() > 1
        await accepted(front_end, ask(R.SEND_RARP, word))

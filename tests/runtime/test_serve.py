"""A device outlives its front-ends, which come one after another."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from tests.hostile.attack import REQUEST, ask, closed
from tests.hostile.victim import DEADLINE, Victim, exchange, good_session, serving
from tests.ports import PairPort
from vhostuser.devices.net.device import NetDevice
from vhostuser.errors import PortError
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.runtime import serve
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers import HANDLERS
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import from_fd
from vhostuser.wire.messages import Message
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest


@pytest.mark.proves("VU-COM-1")
async def test_one_front_end_after_another(victim: Victim) -> None:
    for _ in range(5):
        await good_session(victim)


async def test_counters_go_on_from_session_to_session(victim: Victim) -> None:
    before = victim.server.counters()["sessions"]
    for _ in range(3):
        await good_session(victim)
    await victim.alive()
    counters = victim.server.counters()
    assert counters["sessions"] == before + 4
    assert counters["tx_packets"] == counters["rx_packets"] == 60
    assert counters["tx_bytes"] == counters["rx_bytes"]


async def test_counters_of_a_session_that_still_runs(victim: Victim) -> None:
    with GuestRam() as memory:
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, memory)) as driver:
                await exchange(victim, driver, 7)
                assert victim.server.counters()["tx_packets"] == 7


async def test_a_front_end_that_vanishes_under_packets(victim: Victim) -> None:
    """It is gone while packets wait on both sides; the next one finds a device without any of them."""
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, memory, size=4)) as driver:
                for _ in range(20):
                    await victim.port.send(bytes(60))
                for _ in range(3):
                    await driver.send(bytes(60))
    await good_session(victim)


async def test_the_end_of_the_server_in_the_middle_of_a_session(tmp_path: Path, interrupts: None) -> None:
    path = tmp_path / "vhost.sock"
    with GuestRam() as memory, trio.fail_after(DEADLINE):
        async with serving(path) as victim:
            front_end = await victim.connect()
            driver = await NetDriver.start(front_end, memory)
            await exchange(victim, driver, 2)
            victim.nursery.cancel_scope.cancel()
        assert not path.exists()
        assert not victim.port.carrier
        driver.close()
        await front_end.aclose()


async def test_a_connected_socket_is_served_once(interrupts: None) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    port = PairPort()
    with closing(NetDevice(port)) as device, port.host, trio.fail_after(DEADLINE):
        async with from_fd(theirs.detach()) as endpoint, trio.open_nursery() as nursery:
            server = Server(device, endpoint)
            nursery.start_soon(server.run)
            async with FrontEnd.from_socket(ours) as front_end:
                await front_end.negotiate(0)
        assert server.counters()["sessions"] == 1


async def test_a_port_that_goes_away_ends_the_server(tmp_path: Path, interrupts: None) -> None:
    port = PairPort()
    with closing(NetDevice(port)) as device, GuestRam() as memory, trio.fail_after(DEADLINE):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        async with from_fd(theirs.detach()) as endpoint:
            server = Server(device, endpoint)
            with pytest.RaisesGroup(PortError, flatten_subgroups=True, allow_unwrapped=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.run)
                    async with FrontEnd.from_socket(ours) as front_end:
                        with closing(await NetDriver.start(front_end, memory)):
                            port.unplug()
                            await trio.sleep_forever()


async def test_the_second_client_is_next(victim: Victim) -> None:
    async with await victim.connect() as first:
        await first.negotiate(0)
        async with await victim.connect() as second:
            await second.send_frame(ask(R.GET_FEATURES, flags=REQUEST))
            await trio.testing.wait_all_tasks_blocked()
            await first.aclose()
            with trio.fail_after(DEADLINE):
                assert (await second.receive_frame()).request == R.GET_FEATURES


async def wrong(connection: Connection, message: Message) -> None:
    raise IndexError("a mistake in a handler")


async def test_a_mistake_of_ours_ends_the_connection_that_shows_it(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with await victim.connect() as front_end:
        monkeypatch.setitem(HANDLERS, R.SET_OWNER, wrong)
        await closed(front_end, ask(R.SET_OWNER))
        monkeypatch.undo()
    await good_session(victim)
    [told] = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "closed by a mistake of this program's" in told.message
    assert told.exc_info
    assert "IndexError: a mistake in a handler" in caplog.text
    caplog.clear()


async def test_in_development_a_mistake_of_ours_is_raised(
    tmp_path: Path, interrupts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HANDLERS, R.SET_OWNER, wrong)
    monkeypatch.setattr(serve, "sys", SimpleNamespace(flags=SimpleNamespace(dev_mode=True)))
    with pytest.RaisesGroup(IndexError, flatten_subgroups=True):
        async with serving(tmp_path / "vhost.sock") as victim, await victim.connect() as front_end:
            await closed(front_end, ask(R.SET_OWNER))
            await trio.sleep_forever()

"""Several guests in one program: what befalls one is not the others' affair."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio

from tests.devices.test_tap import ip
from tests.hostile.attack import ask
from tests.hostile.victim import DEADLINE, frame_of, split_rings
from vhostuser import edition
from vhostuser.cli.running import Guest, Program
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.sockets import Loop
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.dirty import DirtyBitmap
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver
from vhostuser.transport.endpoints import connect
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest as R


class Serving:
    """The program, with a folder where sockets ``1``, ``2``, ... and counters ``1.json``, ... are."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    async def connect(self, number: int) -> FrontEnd:
        return FrontEnd(await connect(self.folder / str(number)))

    async def end(self) -> str:
        """End it with SIGTERM; what it said."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(0)

    async def ended(self, status: int) -> str:
        """Wait until it ends by itself; what it said."""
        assert await self.process.wait() == status
        return (self.folder / "log").read_text()

    def counters(self, number: int) -> dict[str, int]:
        counters = json.loads((self.folder / f"{number}.json").read_text())
        assert isinstance(counters, dict)
        return counters


def table(folder: Path, number: int, port: str = "loop = true") -> str:
    return f'[[net]]\nsocket-path = "{folder}/{number}"\ncounters = "{folder}/{number}.json"\n{port}\n'


@asynccontextmanager
async def program(folder: Path, content: str, wait: bool = True) -> AsyncIterator[Serving]:
    """``vhostuser serve`` with such a file, until the block ends; it has then ended itself, or is killed."""
    (folder / "guests.toml").write_text(content)
    with (folder / "log").open("w") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "vhostuser", "serve", str(folder / "guests.toml"), "-v"], stderr=log
        )
    try:
        with trio.fail_after(DEADLINE):
            serving = Serving(process, folder)
            while wait and "serving" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                await trio.lowlevel.checkpoint()
            yield serving
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def loops(front_end: FrontEnd, count: int = 100) -> None:
    """Packets come back."""
    with GuestRam() as memory, closing(await NetDriver.start(front_end, memory)) as driver:
        for number in range(count):
            await driver.send(frame_of(number))
            assert (await driver.receive()).frame == frame_of(number)
        for ring in (driver.rx, driver.tx):
            await front_end.stop_ring(ring)


async def flood(front_end: FrontEnd) -> None:
    """Send without ever taking anything, until cancelled."""
    with GuestRam() as memory, closing(await NetDriver.start(front_end, memory)) as driver:
        while True:
            await driver.send(bytes(1500))


async def break_framing(front_end: FrontEnd) -> None:
    await front_end.send_frame(Frame(1, 0xFFFF_FFFF, b"x" * 100, size=0xFFFF_FFFF))


async def break_ring(front_end: FrontEnd) -> None:
    with GuestRam(seals=0) as memory, closing(await NetDriver.start(front_end, memory)) as driver:
        _, tx = split_rings(driver)
        tx.avail_idx += 1000
        tx.kick(force=True)
        await front_end.send_frame(ask(R.GET_FEATURES))
        await front_end.receive_frame()


@pytest.mark.proves("VIO-MANY-1")
@pytest.mark.parametrize("attack", [flood, break_framing, break_ring])
async def test_a_hostile_guest_harms_no_other(tmp_path: Path, attack: Callable[[FrontEnd], Awaitable[None]]) -> None:
    content = "".join(table(tmp_path, number) for number in (1, 2, 3))
    async with program(tmp_path, content) as serving:
        async with await serving.connect(1) as hostile, trio.open_nursery() as nursery:
            nursery.start_soon(attack, hostile)
            for _ in range(3):
                for number in (2, 3):
                    async with await serving.connect(number) as front_end:
                        await loops(front_end)
            nursery.cancel_scope.cancel()
        async with await serving.connect(1) as front_end:
            await loops(front_end)
        await serving.end()
        for number in (2, 3):
            assert serving.counters(number)["rx_packets"] == serving.counters(number)["tx_packets"] == 300
            assert serving.counters(number)["sessions"] == 3


@pytest.mark.proves("VIO-MANY-1")
async def test_a_guest_whose_port_goes_away_ends_alone(tmp_path: Path) -> None:
    name = f"vhu{os.getpid()}"
    ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
    try:
        for end in "ab":
            ip("link", "set", name + end, "up")
        content = table(tmp_path, 1, f'packet = "{name}a"') + table(tmp_path, 2)
        async with program(tmp_path, content) as serving:
            async with await serving.connect(1) as first, await serving.connect(2) as second:
                with GuestRam() as memory, closing(await NetDriver.start(first, memory)):
                    ip("link", "delete", f"{name}a")
                    while (tmp_path / "1").exists():
                        await trio.lowlevel.checkpoint()
                await loops(second)
            assert "[[net]] 1 is served no longer: the port" in await serving.end()
            assert serving.counters(2)["tx_packets"] == 100
    finally:
        with suppress(subprocess.CalledProcessError):  # the test has deleted it, or failed before
            ip("link", "delete", f"{name}a")


@pytest.mark.proves("VIO-MANY-2", "VU-PROG-6")
@pytest.mark.parametrize(
    ("port", "reason"),
    [('tap = "this-is-too-long"', "an interface name has 1 to 15 bytes"), ('packet = "nowhere0"', "no such interface")],
)
async def test_nobody_is_served_if_one_port_is_missing(tmp_path: Path, port: str, reason: str) -> None:
    async with program(tmp_path, table(tmp_path, 1) + table(tmp_path, 2, port), wait=False) as serving:
        assert reason in await serving.ended(1)
        assert not (tmp_path / "1").exists()
        assert not (tmp_path / "2").exists()


@pytest.mark.proves("VIO-MANY-2")
async def test_nobody_is_served_if_two_want_one_socket(tmp_path: Path) -> None:
    async with program(tmp_path, table(tmp_path, 1) * 2, wait=False) as serving:
        assert f"[[net]] 2: socket-path {tmp_path / '1'} is that of" in await serving.ended(2)
        assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("ignored", [False, True], ids=["by default", "under nohup"])
async def test_a_terminal_that_hangs_up_ends_all_in_order_unless_that_is_ignored(tmp_path: Path, ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        async with program(tmp_path, table(tmp_path, 1)) as serving:
            serving.process.send_signal(signal.SIGHUP)
            if ignored:
                async with await serving.connect(1) as front_end:
                    await loops(front_end, 10)
                await serving.end()
            else:
                await serving.ended(0)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not (tmp_path / "1").exists()
    assert serving.counters(1)["sessions"] == int(ignored)


@pytest.mark.proves("VU-PROG-2", "VU-PROG-3")
async def test_all_end_on_a_signal_and_count_on_another(tmp_path: Path) -> None:
    async with program(tmp_path, "".join(table(tmp_path, number) for number in range(8))) as serving:
        async with await serving.connect(5) as front_end:
            await loops(front_end, 10)
            serving.process.send_signal(signal.SIGUSR1)
            while not all((tmp_path / f"{number}.json").exists() for number in range(8)):
                await trio.lowlevel.checkpoint()
            assert [serving.counters(number)["sessions"] for number in range(8)] == [0, 0, 0, 0, 0, 1, 0, 0]
        await serving.end()
        assert not [number for number in range(8) if (tmp_path / str(number)).exists()]


@pytest.mark.proves("VU-POST-6")
async def test_post_copy_on_demand(tmp_path: Path) -> None:
    """For the one guest that asks for it. An interpreted data path does not start with it."""
    tables = table(tmp_path, 1, "loop = true\npostcopy = true") + table(tmp_path, 2)
    async with program(tmp_path, tables, wait=edition.compiled()) as serving:
        if not edition.compiled():
            assert "--postcopy: a page that is waited for would stop all" in await serving.ended(1)
            return
        for number in (1, 2):
            async with await serving.connect(number) as front_end:
                offered = await front_end.request(R.GET_PROTOCOL_FEATURES)
                assert isinstance(offered, U64)
                assert bool(offered.value & ProtocolFeature.PAGEFAULT) is (number == 1)
        await serving.end()


async def test_a_timeline_is_written_on_a_signal_and_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "timeline"

    def moments() -> list[tuple[str, int]]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(set(line) == {"group", "time", "what", "ring", "packets"} for line in lines)
        assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
        return [(line["what"], line["ring"]) for line in lines]

    async with program(tmp_path, table(tmp_path, 1, f'loop = true\ntimeline = "{file}"')) as serving:
        async with await serving.connect(1) as front_end:
            await loops(front_end, 10)
            serving.process.send_signal(signal.SIGUSR1)
            while not file.exists():
                await trio.lowlevel.checkpoint()
        assert {("received", 0), ("sent", 1), ("wake", 0), ("sleep", 0)} <= set(moments())
        before = moments()
        async with await serving.connect(1) as front_end:
            await loops(front_end, 10)
        await serving.end()
        assert moments()[: len(before)] == before
        assert moments().count(("sent", 1)) >= 2


async def test_dirty_logs_are_audited_if_asked_for(tmp_path: Path) -> None:
    async with program(tmp_path, table(tmp_path, 1, "loop = true\naudit-log = true")) as serving:
        async with await serving.connect(1) as front_end:
            with (
                GuestRam() as ram,
                DirtyBitmap(ram.top) as log,
                closing(await NetDriver.start(front_end, ram)) as driver,
            ):
                await front_end.set_log(log)
                await front_end.log_all(True)
                for i in range(20):
                    await driver.send(frame_of(i))
                    assert (await driver.receive()).frame == frame_of(i)
        await serving.end()
        counters = serving.counters(1)
        assert counters["log_audits"] > 0
        assert counters["log_audited_pages"] > 0
        assert counters["log_missed_pages"] == 0


async def test_collections_pass_over_what_stays_until_the_end(tmp_path: Path) -> None:
    """A full collection would stop the event loop for longer than a reply may take."""
    device = NetDevice(Loop())
    guest = Guest("one", lambda: device, socket_path=str(tmp_path / "socket"))
    gc.unfreeze()
    try:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Program([guest]).run)
                while not gc.get_freeze_count():
                    await trio.lowlevel.checkpoint()
                assert all(tracked is not device for tracked in gc.get_objects())
                nursery.cancel_scope.cancel()
    finally:
        gc.unfreeze()

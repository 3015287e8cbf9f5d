"""How fast a peer may be, how long it may be silent, and the names of the limits."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
import trio
import trio.testing

from vhostuser.errors import FramingError
from vhostuser.fds import FdBundle
from vhostuser.limits import Limits
from vhostuser.transport.endpoints import connect, listen
from vhostuser.transport.pace import PAUSE, Pace
from vhostuser.wire.frames import Frame


@pytest.mark.proves("VIO-LIMIT-1")
@pytest.mark.parametrize("rate", [1.0, 100.0, 10_000.0])
async def test_a_seconds_worth_at_once_then_no_more_than_the_rate(
    autojump_clock: trio.testing.MockClock, rate: float
) -> None:
    pace = Pace(rate)
    start = trio.current_time()
    for _ in range(int(rate)):
        await pace.turn()
    assert trio.current_time() == start
    for _ in range(int(5 * rate)):
        await pace.turn()
    passed = trio.current_time() - start
    assert 5 - 1 / rate - PAUSE <= passed <= 5 + 1 / rate + PAUSE


@pytest.mark.proves("VIO-LIMIT-1")
async def test_a_pause_earns_a_seconds_worth_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(10)
    for _ in range(30):
        await pace.turn()
    await trio.sleep(3600)
    start = trio.current_time()
    for _ in range(10):
        await pace.turn()
    assert trio.current_time() == start
    for _ in range(10):
        await pace.turn()
    assert trio.current_time() > start + 0.8


async def test_waiting_is_for_several_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Each sleep costs the event loop a turn, so ten thousand a second must not mean ten thousand sleeps."""
    pace = Pace(10_000)
    moments = set()
    for _ in range(20_000):
        await pace.turn()
        moments.add(trio.current_time())
    assert len(moments) <= 1 / PAUSE + 1


@pytest.mark.proves("VIO-LIMIT-1")
async def test_messages_beyond_the_rate_are_read_later(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.02  # the kernel carries bytes in real time
    async with (
        await listen(tmp_path / "s", Limits(messages_per_second=10)) as listener,
        await connect(tmp_path / "s") as client,
        await listener.accept() as channel,
    ):
        start = trio.current_time()
        for number in range(30):
            await client.send(Frame(number, 1))
        for number in range(30):
            assert (await channel.receive()).request == number
        assert 1.8 < trio.current_time() - start < 2.3


@pytest.mark.proves("VIO-LIMIT-2")
async def test_a_client_that_says_nothing_makes_room_for_the_next(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02
    async with await listen(tmp_path / "s") as listener, await connect(tmp_path / "s") as client:
        async with await listener.accept() as channel:
            with pytest.raises(FramingError, match="said nothing in 30 s after it connected"):
                await channel.receive()
        async with await connect(tmp_path / "s") as client, await listener.accept() as channel:
            await client.send(Frame(1, 1))
            assert (await channel.receive()).request == 1
            with trio.move_on_after(3600) as scope:  # it has begun, and may be silent as long as it likes
                await channel.receive()
            assert scope.cancelled_caught


@pytest.mark.proves("VU-HDR-9", "VIO-HOSTILE-1")
async def test_who_gives_away_its_end_in_an_unfinished_message_is_not_waited_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It may have left: what it gave away is held by us, so that we would not see that."""
    autojump_clock.autojump_threshold = 0.02
    for given, patience in (("its end", 0.1), ("something else", 30)):
        async with (
            await listen(tmp_path / "s") as listener,
            await connect(tmp_path / "s") as client,
            await listener.accept() as channel,
        ):
            with FdBundle([os.dup(client.fileno()) if given == "its end" else os.eventfd(0)]) as fds:
                await client.send_bytes(bytes(7), fds)
            start = trio.current_time()
            with pytest.raises(FramingError, match=f"stalled: 7 of 12 header bytes after {patience} s"):
                await channel.receive()
            assert patience <= trio.current_time() - start < patience + 0.5


@pytest.mark.proves("VIO-LIMIT-3")
async def test_clients_beyond_the_rate_are_accepted_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02
    async with await listen(tmp_path / "s", Limits(connections_per_second=5)) as listener:
        start = trio.current_time()
        for _ in range(15):
            async with await connect(tmp_path / "s"), await listener.accept():
                pass
        assert 1.7 < trio.current_time() - start < 3


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_every_limit_is_above_zero_and_can_be_changed(name: str) -> None:
    assert getattr(Limits().changed(name, 7.0), name) == 7
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"limit {name}: {wrong:g}.* is not above 0"):
            Limits().changed(name, wrong)


def test_a_limit_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="packets: no such limit; there are message_timeout"):
        Limits().changed("packets", 1)


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_the_readme_names_every_limit_and_its_value(name: str) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    value = getattr(Limits(), name)
    shown = f"{int(value) >> 40}T" if value >= 1 << 40 else f"{value:g}"
    assert f"| `{name.replace('_', '-')}` | {shown} |" in readme

"""``vhostuser replay`` as a program: what it reports, and its status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tests.hostile.conftest import interrupts, victim
from tests.hostile.victim import DEADLINE, Victim
from tests.transcript.conversations import answers, asks
from vhostuser.cli.commands import main
from vhostuser.transcript.counterpart import PART_OF
from vhostuser.transcript.entries import Closed, Transcript
from vhostuser.transcript.file import save
from vhostuser.transport.endpoints import connect, listen
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest

__all__ = ["interrupts", "victim"]

R = FrontendRequest
OWNER = asks(R.SET_OWNER)
STATUS = asks(R.GET_STATUS)
FEATURES, OFFER = asks(R.GET_FEATURES), answers(R.GET_FEATURES, U64(0x1))


async def run(*words: str) -> tuple[int, str]:
    """Status and output of a replay."""
    with trio.fail_after(DEADLINE):
        command = [sys.executable, "-m", "vhostuser", "replay", *words]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode()


def saved(path: Path, *entries: object) -> str:
    save(Transcript(tuple(entries)), path)  # type: ignore[arg-type]
    return str(path)


async def test_what_is_different_is_reported_with_its_place(victim: Victim, tmp_path: Path) -> None:
    file = saved(tmp_path / "recording.jsonl", OWNER, FEATURES, OFFER, Closed())
    status, output = await run(file, str(victim.path))
    first, recorded, now, last = output.splitlines()
    assert (status, first, last) == (1, "GET_FEATURES (entry 2)", "differences: 1")
    assert recorded == "  recorded  GET_FEATURES reply 0x1"
    assert now.startswith("  now       GET_FEATURES reply 0x1c")


async def test_what_is_excepted_is_no_difference(victim: Victim, tmp_path: Path) -> None:
    file = saved(tmp_path / "recording.jsonl", OWNER, FEATURES, OFFER, Closed())
    assert await run(file, str(victim.path), "--except", "GET_FEATURES") == (0, "no difference\n")


async def test_a_back_end_that_is_not_there(tmp_path: Path) -> None:
    file = saved(tmp_path / "recording.jsonl", FEATURES, OFFER)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "left"))
    (tmp_path / "file").touch()
    for name, reason in (
        ("nobody", "No such file or directory"),
        ("left", "Connection refused"),
        ("file", "cannot connect: not a socket"),
    ):
        status, output = await run(file, str(tmp_path / name), "--patience", "0.1")
        assert (status, output) == (2, f"Error: {tmp_path / name}: {reason}\n")


async def test_a_back_end_that_is_gone_at_the_end(tmp_path: Path) -> None:
    file = saved(tmp_path / "finding.jsonl", OWNER, Closed())
    words = [file, str(tmp_path / "s"), "--patience", "1"]

    async def serve_one(excepted: list[str]) -> tuple[int, str]:
        async with trio.open_nursery() as nursery, await listen(tmp_path / "s") as endpoint:

            async def one() -> None:
                async with await endpoint.accept() as channel:
                    await endpoint.aclose()
                    (await channel.receive()).fds.close()

            nursery.start_soon(one)
            return await run(*words, *excepted)

    gone = "the back-end (entry 2)\n  recorded  goes on\n  now       is gone: takes no connection any more\n"
    assert await serve_one([]) == (1, f"{gone}differences: 1\n")
    assert await serve_one(["--except", "the back-end"]) == (0, "no difference\n")


@pytest.mark.parametrize("ends", [True, False], ids=["by the recording", "by a signal"])
async def test_it_stands_in_for_the_back_end(tmp_path: Path, ends: bool) -> None:
    file = saved(tmp_path / "recording.jsonl", FEATURES, OFFER, OWNER, *([] if ends else [Closed()]))
    command = [sys.executable, "-m", "vhostuser", "replay", file, str(tmp_path / "s"), "--as", "back-end"]
    with trio.fail_after(DEADLINE), (tmp_path / "out").open("w") as out:
        process = await trio.lowlevel.open_process(command, stdout=out, stderr=subprocess.DEVNULL)
        try:
            async with await connect(tmp_path / "s") as channel:
                await channel.send(FEATURES.frame())
                assert (await channel.receive()).payload == OFFER.payload
                await channel.send(replace(OWNER, flags=9).frame())
                if not ends:
                    await channel.send(FEATURES.frame())
                    assert (await channel.receive()).payload == OFFER.payload
                    process.send_signal(signal.SIGINT)
                assert await process.wait() == 1
        finally:
            process.kill()
            await process.wait()
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[:3] == ["SET_OWNER (entry 3, entry 2)", "  recorded  SET_OWNER", "  now       SET_OWNER need_reply"]


async def test_a_front_end_that_falls_silent_is_waited_for_as_long_as_said(tmp_path: Path) -> None:
    file = saved(tmp_path / "recording.jsonl", FEATURES, OFFER, OWNER, Closed())
    with trio.fail_after(DEADLINE):
        async with (
            standing_in(file, tmp_path, "--patience", "1") as process,
            await connect(tmp_path / "s") as channel,
        ):
            await channel.send(FEATURES.frame())
            assert (await channel.receive()).payload == OFFER.payload
            assert await process.wait() == 1
    lines = (tmp_path / "out").read_text().splitlines()
    assert [line for line in lines if "entry" in line] == ["SET_OWNER (entry 3)", "the connection (entry 4)"]


@pytest.mark.parametrize("back_end", ["", PART_OF], ids=["a recording", "a part of a conversation"])
async def test_nobody_came(tmp_path: Path, back_end: str) -> None:
    save(Transcript((FEATURES, OFFER), back_end=back_end), tmp_path / "recording.jsonl")
    with trio.fail_after(DEADLINE):
        words = str(tmp_path / "recording.jsonl"), tmp_path, "--patience", "0.01"
        async with standing_in(*words) as process:
            while "listening" not in (tmp_path / "out").read_text():
                await trio.lowlevel.checkpoint()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 2
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[1:] == [f"Error: {tmp_path / 's'}: no front-end came"]


@asynccontextmanager
async def standing_in(file: str, folder: Path, *words: str) -> AsyncIterator[trio.Process]:
    """A replay as a back-end at ``s``; all that it says goes to ``out``."""
    command = [sys.executable, "-m", "vhostuser", "replay", file, str(folder / "s"), "--as", "back-end", *words]
    with (folder / "out").open("w") as out:
        process = await trio.lowlevel.open_process(command, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def test_a_part_of_a_conversation_is_played_to_a_front_end(tmp_path: Path) -> None:
    part = Transcript((FEATURES, FEATURES, OFFER), back_end=PART_OF, offer=(("virtio_features", 0x7), ("vrings", 2)))
    save(part, tmp_path / "finding.jsonl")
    words = ["replay", str(tmp_path / "finding.jsonl"), str(tmp_path / "s"), "--as", "back-end"]
    with trio.fail_after(DEADLINE), (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "vhostuser", *words]
        process = await trio.lowlevel.open_process(command, stdout=out, stderr=out)
        try:
            async with await connect(tmp_path / "s") as channel:
                for word in (0x7, 0x1, 0x1):
                    await channel.send(FEATURES.frame())
                    assert int.from_bytes((await channel.receive()).payload, "little") == word
            assert await process.wait() == 0
        finally:
            process.kill()
            await process.wait()
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[1:] == ["played 3 of 3 entries"]


def test_two_recordings_are_compared(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", FEATURES, OFFER, OWNER), saved(tmp_path / "other", FEATURES, OFFER, STATUS)
    result = CliRunner().invoke(main, ["replay", one, "--against", other])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        *(f"< {one}", f"> {other}"),
        *("SET_OWNER (entry 3)", "  <  SET_OWNER", "  >  -"),
        *("GET_STATUS (entry 3)", "  <  -", "  >  GET_STATUS"),
        "differences: 2",
    ]
    assert CliRunner().invoke(main, ["replay", one, "--against", one]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["{file}"], "exactly one of PATH and --against is needed"),
        (["{file}", "p", "--against", "{file}"], "exactly one of PATH and --against is needed"),
        (["{folder}/nothing", "p"], "does not exist"),
        (["{none}", "p"], "none.jsonl: empty, not even a head"),
        (["{file}", "p", "--as", "guest"], "'guest' is not one of"),
        (["{file}", "p", "--except", "FOO"], "'FOO' is no request; a name as GET_FEATURES is needed"),
        (["{file}", "p", "--except", "GET_FEATURES.reply"], "a request is needed; its answers are part of it"),
        (["{file}", "{folder}/p", "--as", "back-end"], "has not what the back-end said"),
    ],
)
def test_what_cannot_be_done_has_a_status_of_its_own(tmp_path: Path, words: list[str], complaint: str) -> None:
    (tmp_path / "none.jsonl").touch()
    file = saved(tmp_path / "recording.jsonl", FEATURES)
    words = [word.format(file=file, folder=tmp_path, none=tmp_path / "none.jsonl") for word in words]
    result = CliRunner().invoke(main, ["replay", *words])
    assert (result.exit_code, complaint in result.output) == (2, True), result.output


def test_its_help_has_an_example() -> None:
    result = CliRunner().invoke(main, ["replay", "--help"])
    assert result.exit_code == 0
    assert "Example: vhostuser replay" in result.output

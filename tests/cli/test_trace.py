"""``vhostuser trace`` as a program: what it prints, what it writes, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import trio
from click.testing import CliRunner

from tests.hostile.conftest import interrupts, victim
from tests.hostile.victim import DEADLINE, Victim, good_session
from vhostuser.cli.commands import main
from vhostuser.errors import ConnectionClosedError
from vhostuser.transcript.entries import Closed, Said
from vhostuser.transcript.file import load
from vhostuser.transport.endpoints import connect
from vhostuser.wire.codec import encode
from vhostuser.wire.frames import Frame
from vhostuser.wire.requests import Direction, FrontendRequest

__all__ = ["interrupts", "victim"]

R = FrontendRequest


@dataclass
class Traced:
    """A running trace in front of a victim, and where its output goes."""

    process: trio.Process
    through: Victim
    output: Path

    async def lines(self) -> list[str]:
        """What it printed, after it was ended in order."""
        self.process.send_signal(signal.SIGINT)
        assert await self.process.wait() == 0, (self.output.with_suffix(".err")).read_text()
        return self.output.read_text().splitlines()


@asynccontextmanager
async def started(
    words: Sequence[str], stdout: int | IO[str], stderr: int | IO[str], env: Mapping[str, str] | None = None
) -> AsyncIterator[trio.Process]:
    """A program that ends with the block, whatever happens."""
    with trio.fail_after(DEADLINE):
        process = await trio.lowlevel.open_process(words, stdout=stdout, stderr=stderr, env=env)
        try:
            yield process
        finally:
            process.kill()
            await process.wait()


@asynccontextmanager
async def traced(
    victim: Victim, folder: Path, options: Sequence[str] = (), output: Path | None = None
) -> AsyncIterator[Traced]:
    socket, written = folder / "trace.sock", output or folder / "out"
    words = [sys.executable, "-m", "vhostuser", "trace", str(socket), str(victim.path), *options]
    with written.open("w") as out, written.with_suffix(".err").open("w") as err:
        async with started(words, stdout=out, stderr=err) as process:
            through = Victim(socket, victim.port, victim.device, victim.server, victim.nursery)
            yield Traced(process, through, written)


async def test_a_session_is_printed_line_by_line_and_recorded(victim: Victim, tmp_path: Path) -> None:
    record = tmp_path / "session.jsonl"
    async with traced(victim, tmp_path, ["--record", str(record)]) as trace:
        await good_session(trace.through)
        lines = await trace.lines()
    messages = [line for line in lines if " → " in line]
    assert len(messages) == len(lines) - 2, "one line a message, one when it began, one when it ended"
    assert all(re.match(r" *\d+\.\d{6} (front|back)-end +→ [A-Z_]+", line) for line in messages)
    assert any(re.search(r"SET_VRING_KICK index=1 need_reply with kick 1 \(eventfd\)$", line) for line in lines)
    assert any(re.search(r"with memory 0 \(memory, 16 MiB, sealed [A-Z|]+\)", line) for line in lines)
    assert "\x1b" not in trace.output.read_text()
    assert lines[-1].endswith("front-end closed the connection")

    transcript = load(record)
    assert "pytest" in transcript.front_end
    assert sum(isinstance(entry, Said) for entry in transcript.entries) == len(messages)
    assert isinstance(transcript.entries[-1], Closed)


async def test_what_is_bent_and_what_is_broken_is_printed(victim: Victim, tmp_path: Path) -> None:
    options = ["--clear-protocol-features", "status,0x8", "--corrupt", "SET_OWNER:4=01", "--drop", "SET_LOG_FD"]
    async with traced(victim, tmp_path, options) as trace:
        async with await connect(trace.through.path) as channel:
            await channel.send(encode(Direction.FRONTEND, R.GET_PROTOCOL_FEATURES))
            reply = await channel.receive()
            assert not int.from_bytes(reply.payload, "little") & 0x10008
            await channel.send(Frame(R.SET_OWNER, 9))
            await channel.send(Frame(R.SET_LOG_FD, 1))
            await channel.send(Frame(R.GET_FEATURES, 1))
            await channel.receive()
        text = "\n".join(await trace.lines())
    assert "~ bent: 0x10008 cleared" in text
    assert re.search(r"SET_OWNER\n +~ bent: bytes from 4 on: 09 became 01", text)
    broken = r"SET_LOG_FD\n +~ bent: dropped\n +! SET_LOG_FD: 0 descriptors instead of 1\n +VU-\w+-\d+ \(must\): \w+"
    assert re.search(broken, text)


async def test_a_reader_that_has_enough_ends_it(victim: Victim, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vhostuser", "trace", str(tmp_path / "t"), str(victim.path)]
    with (tmp_path / "err").open("w") as err:
        async with started(words, stdout=subprocess.PIPE, stderr=err) as process:
            assert process.stdout is not None
            await process.stdout.aclose()
            async with await connect(tmp_path / "t") as channel:
                with suppress(ConnectionClosedError):  # The line that tells of the connection may have ended it.
                    await channel.send(encode(Direction.FRONTEND, R.GET_FEATURES))
                assert await process.wait() == 128 + signal.SIGPIPE
    assert "Traceback" not in (tmp_path / "err").read_text()


async def test_it_says_that_there_is_no_back_end(tmp_path: Path) -> None:
    nobody = tmp_path / "nobody"
    words = [sys.executable, "-m", "vhostuser", "trace", str(tmp_path / "t"), str(nobody)]
    async with started(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        async with await connect(tmp_path / "t"):
            while b"trying on\n" not in said:
                said += await process.stderr.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert said.decode().splitlines()[1:] == [
        f"connecting to {nobody}",
        f"{nobody}: No such file or directory; trying on",
    ]


async def test_it_prints_in_colours_to_a_terminal(victim: Victim, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "vhostuser", "trace", str(tmp_path / "t"), str(victim.path)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    async with started(words, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        async with await connect(tmp_path / "t") as channel:
            await channel.send(encode(Direction.FRONTEND, R.GET_PROTOCOL_FEATURES))
            await channel.receive()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    assert max(map(len, plain)) <= 100
    assert any(line.startswith(" " * 12) and "STATUS" in line for line in plain), "what does not fit goes on below"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["a"], "Missing argument 'CONNECT'"),
        (["a", "b", "--clear-features", "LUNCH"], "'LUNCH': a number, or one of"),
        (["a", "b", "--clear-features", "0xz"], "invalid literal"),
        (["a", "b", "--drop", "LUNCH"], "'LUNCH' is no request"),
        (["a", "b", "--record", "/nowhere/at/all"], "--record /nowhere/at/all: No such file or directory"),
        (["/nowhere/at/all", "b"], "/nowhere/at/all: cannot listen"),
    ],
)
def test_what_cannot_be_done_is_told(words: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, ["trace", *words])
    assert result.exit_code == 2
    assert complaint in result.output


def test_its_help_has_an_example() -> None:
    result = CliRunner().invoke(main, ["trace", "--help"])
    assert result.exit_code == 0
    assert "Example: vhostuser trace" in result.output

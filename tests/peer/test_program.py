"""Programs that are started, watched, and whose end is explained."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from vhostuser.peer.program import ProgramError, started
from vhostuser.transport.endpoints import connect, listen

LISTENING = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
"""


def command(program: str) -> str:
    """A command line for a Python program that gets the socket's path."""
    return f"{sys.executable} -c {shlex.quote(program)} {{socket}}"


async def test_a_program_listens_and_ends_with_the_block() -> None:
    async with started(command(LISTENING + "time.sleep(1000)")) as program:
        async with await connect(program.path):
            assert program.alive
        before = await program.footprint()
        assert before.fds["socket:[]"] == 1
        assert program.resident > 0
    assert not program.alive


async def test_a_program_that_dies_by_a_signal_leaves_the_place() -> None:
    dies = LISTENING + "s.accept(); import ctypes; ctypes.memset(1, 0, 1)"
    async with started(command(dies)) as program, await connect(program.path):
        death = await program.death()
    assert death.by_signal
    assert death.cause == "SIGSEGV"
    assert death.frames, "gdb found no frame in the core"
    assert death.signature == f"SIGSEGV: {death.frames[0]}"


@pytest.mark.parametrize(
    ("last_words", "told"),
    [
        ("prog: a.c:12: vu_thing: Assertion `size == 8' failed.", "assertion `size == 8' in vu_thing"),
        ("ERROR:../net/x.c:40:net_open: assertion failed: (n < 8)", "assertion failed: (n < 8) in net_open"),
        (
            "==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1\n    #0 0x55 in vu_read /a.c:1",
            "AddressSanitizer heap-buffer-overflow in vu_read",
        ),
    ],
)
async def test_what_a_program_says_of_its_end_is_its_signature(last_words: str, told: str) -> None:
    dies = LISTENING + f"print({last_words!r}, flush=True); import os; os.abort()"
    async with started(command(dies), listens=False) as program:
        death = await program.death()
    assert death.signature == f"SIGABRT: {told}"


async def test_a_traceback_is_a_signature_too() -> None:
    dies = LISTENING + "def deep(): raise KeyError(1)\ndeep()"
    async with started(command(dies), listens=False) as program:
        assert (await program.death()).signature == "exit status 1: KeyError in deep"


async def test_one_that_exits_was_at_no_place() -> None:
    async with started("sh -c 'exit 7' {socket}", listens=False) as program:
        assert (await program.death()).signature == "exit status 7"


async def test_one_that_is_stuck_is_aborted_to_see_where(tmp_path: Path) -> None:
    connects = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    async with (
        await listen(tmp_path / "s") as endpoint,
        started(command(connects), path=tmp_path / "s", listens=False) as program,
        await endpoint.accept(),
    ):
        death = await program.aborted(5.0)
    assert death is not None
    assert death.cause == "SIGABRT"
    assert death.frames, "gdb found no frame in the core"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("cat", r"\{socket\} has to stand"),
        ("no-such-program-here {socket}", "no such program"),
        ("cat '{socket}", "No closing quotation"),
        (f"{sys.executable} -c 'raise SystemExit(3)' {{socket}}", "it ended before it listened .* exit status 3"),
    ],
)
async def test_what_cannot_be_started_is_told(words: str, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        async with started(words):
            pass


async def test_who_never_listens_is_not_waited_for() -> None:
    with pytest.raises(ProgramError, match="nobody listens"):
        async with started(command("import time; time.sleep(1000)"), within=0.2):
            pass

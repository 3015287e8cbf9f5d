"""The example in README.md does what it says."""

from __future__ import annotations

import re
import textwrap
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.hostile.victim import DEADLINE, Victim, frame_of

README = Path(__file__).parents[2] / "README.md"


async def test_the_other_end(victim: Victim, capfd: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"^    import trio\n.*?^    trio\.run\(main\)\n", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    example = textwrap.dedent(found[0])
    assert "/run/vm1.sock" in example
    code = compile(example.replace("/run/vm1.sock", str(victim.path)), README, "exec")
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, partial(exec, code, {}))
            sent = await victim.port.receive()
            await victim.port.send(frame_of(1))
    assert sent == bytes.fromhex("ffffffffffff 525400766801 88b5") + bytes(46)
    assert capfd.readouterr().out == frame_of(1).hex() + "\n"

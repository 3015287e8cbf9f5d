"""The examples of docs/frontend.md do what stands under them, and are typed."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.hostile.victim import DEADLINE
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.sockets import Loop
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "frontend.md").read_text()
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODE = "\n\n".join(text for kind, text in BLOCKS if kind == "python")
EXAMPLES = [
    (re.findall(r"^async def (\w+)\(\) -> None:", code, re.MULTILINE)[-1], printed)
    for (_, code), (kind, printed) in pairwise(BLOCKS)
    if kind == "text"
]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The page's module, whose back-ends listen where nobody else does."""
    path = tmp_path / "page.py"
    path.write_text(CODE.replace("/run/", f"{tmp_path}/"))
    return path


@pytest.fixture
async def page(module: Path, interrupts: None) -> AsyncIterator[dict[str, Any]]:
    """The page's names, while both of its back-ends are served."""
    names = runpy.run_path(str(module))
    with closing(NetDevice(Loop(2))) as device:
        async with await listen(names["NET"]) as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(Server(device, endpoint).run)
            nursery.start_soon(names["serve_echo"])
            yield names
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("name", "printed"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
async def test_an_example(page: dict[str, Any], name: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(DEADLINE):
        await page[name]()
    assert capsys.readouterr().out == printed


def test_every_example_is_run() -> None:
    """But for the function that serves, and those that examples call."""
    assert re.findall(r"^async def (\w+)\(\) -> None:", CODE, re.MULTILINE) == ["serve_echo", *dict(EXAMPLES)]


def test_the_examples_are_typed(module: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", module.with_name("cache"), module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

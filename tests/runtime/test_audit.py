"""The audit of the dirty log: it is content with us, and finds every fault that is put into a copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.faults.copies import ROOT, faulty_copy
from tests.runtime import audited
from vhostuser.runtime import audit
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.layout import EITHER
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.rings import make_ring

#: What is not logged any more: where that happens, the module, and the line that is taken out or replaced.
FAULTS = {
    "payload": ("split", "ring", "            self.log_chain(i, self.written[i])", "            pass"),
    "num_buffers": (
        "split",
        "ring",
        "            self.log.buffer(self.iov[2 * k], part)",
        "            if k > self.first[i]: self.log.buffer(self.iov[2 * k], part)",
    ),
    "used element": ("split", "split", "            self.log_entries(count)", "            pass"),
    "used idx": ("split", "split", "            self.log.device_area(2, 2)", "            pass"),
    "avail_event": (
        "split",
        "split",
        "            self.log.device_area(4 + 8 * self.num if self.event_idx else 0, 2)",
        "            pass",
    ),
    "packed descriptor": ("packed", "dirty", "            self.area(self.desc + offset, length)", "            pass"),
    "device event": ("packed", "dirty", "            self.area(self.device + offset, length)", "            pass"),
    "rng buffer": ("rng", "ring", "            self.log_chain(i, self.written[i])", "            pass"),
}


@pytest.mark.proves("VU-LOG-16")
@pytest.mark.parametrize("kind", ["split", "packed", "rng"])
async def test_nothing_is_missed(kind: str) -> None:
    pages, lines = await audited.scenario(kind)
    assert lines == []
    assert len(set(pages.values())) == len(pages)


async def test_a_group_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "PATIENCE", 0.01)
    pumps: list[Pump] = [ChainPump(make_ring(0, index, EITHER)) for index in range(2)]
    turned: list[int] = []

    async def only_one_turns(function: Callable[[int, Pump], None]) -> None:
        await trio.to_thread.run_sync(function, 1, pumps[1])

    with closing(WriteWatch()) as watch:
        await audit.Audit(watch, only_one_turns, lambda: pumps).change(None, lambda number, _: turned.append(number))
    assert turned == [1]
    assert "a queue group hangs" in caplog.text
    for pump in pumps:
        pump.close()


@pytest.mark.proves("VU-LOG-16")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_page_that_is_not_logged_is_named(fault: str, tmp_path: Path) -> None:
    kind, module, line, instead = FAULTS[fault]
    faulty_copy(tmp_path, f"virtio/{module}.py", ((line + "\n", instead + "\n"),))
    ran = subprocess.run(
        [sys.executable, audited.__file__, kind],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "VHOSTUSER_EDITION": "interpreted"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    named = " ".join(told["lines"])
    assert f"{told['pages'][fault]:#x}" in named, ran.stdout
    spared = {"payload": {"num_buffers"}}.get(fault, set())
    for name, page in told["pages"].items():
        if name != fault and name not in spared:
            assert f"{page:#x}" not in named, f"{name}: {ran.stdout}"

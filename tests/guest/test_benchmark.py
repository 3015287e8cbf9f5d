"""The benchmark in its shortest form: that it runs, counts right at both ends, and cleans up; no figure is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.rig.image import GuestImage
from tests.rig.process import run

pytestmark = pytest.mark.guest

PEERS = ["vhostuser", "DPDK", "kernel limit"]


def test_frames_both_ways(image: GuestImage, tmp_path: Path) -> None:
    words = ["tx", "rx", "start", "--repeats=1", "--seconds=0.2", "--no-plots", f"--output={tmp_path}"]
    output = run([sys.executable, "-m", "scripts.benchmark", *words], timeout=100)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["schema"] == 1
    assert found["machine"]["cores"] >= 2
    measured = {measurement["name"]: measurement for measurement in found["measurements"]}
    assert set(measured) == {"tx", "rx", "start"}
    for name in ("tx", "rx"):
        assert measured[name]["errors"] == []
        assert measured[name]["title"] in output
        metrics = measured[name]["metrics"]
        assert all(metrics["packets"]["contenders"][peer]["median"] > 0 for peer in PEERS)
        # the driver's count and the tap's agree: nothing is lost between them
        assert metrics["lost"]["contenders"]["vhostuser"]["values"] == [0]
    assert measured["start"]["metrics"]["reconnect"]["contenders"]["vhostuser"]["median"] > 0

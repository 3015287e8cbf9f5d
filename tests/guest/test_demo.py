"""The demo that needs neither a machine nor root, as it is; its other guests are those of the other tests."""

from __future__ import annotations

import sys

import pytest

from tests.rig.process import run

pytestmark = pytest.mark.guest


def test_builtin_guest() -> None:
    output = run([sys.executable, "-m", "scripts.demo", "--guest", "builtin"])
    assert "200 of 200" in output
    assert "tx_packets" in output

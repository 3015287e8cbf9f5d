"""Where a benchmark ran: what a reader has to know before comparing figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.rig.image import GuestImage
from tests.rig.qemu import accelerator
from vhostuser import edition

_PACKAGES = ("dpdk-dev", "qemu-system-x86", "iperf3", "gcc")


def describe(image: GuestImage | None) -> dict[str, Any]:
    """The machine, the versions, and how busy it was."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "edition": edition.name(),
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": " hypervisor" in Path("/proc/cpuinfo").read_text(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "mitigations": _mitigations(),
        "load_before": os.getloadavg()[0],
        "guest_accelerator": accelerator(image)[1] if image else None,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _mitigations() -> dict[str, str]:
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    states = {path.name: path.read_text().strip() for path in sorted(folder.iterdir())} if folder.exists() else {}
    return {name: state for name, state in states.items() if state != "Not affected"}


def _version(package: str) -> str:
    return _output("dpkg-query", "--show", "--showformat=${Version}", package)


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()

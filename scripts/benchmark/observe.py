"""What the kernel knows about a link and a process. Nothing here asks the contender itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.rig.netns import Netns
from tests.rig.process import RigError
from vhostuser.fds import Closing


class Packets(NamedTuple):
    """Packets that passed a link. Of a tap: ``rx`` is what its back-end wrote, ``tx`` what it read."""

    rx: int
    tx: int


class Link(Closing):
    """The counters of a link, cheap enough to look at every tenth of a millisecond."""

    def __init__(self, netns: Netns, name: str) -> None:
        """Open them. The file stays that of the namespace in which it was opened."""
        self._name = name
        counters = Path("/proc/thread-self/net/dev")
        self._file = netns.inside(lambda: counters.open("rb", buffering=0))

    def packets(self) -> Packets:
        """The counters now. Raises RigError when there is no such link."""
        self._file.seek(0)
        text = self._file.read().decode()
        found = re.search(rf"^\s*{self._name}:(.*)$", text, re.MULTILINE)
        if found is None:
            raise RigError(f"no link {self._name}: has its back-end ended?")
        fields = found[1].split()
        return Packets(int(fields[1]), int(fields[9]))

    def wait_for(self, condition: Callable[[Packets], bool], what: str, timeout: float = 20.0) -> float:
        """Look every tenth of a millisecond until a condition holds: when that was. Raises RigError."""
        end = time.monotonic() + timeout
        while not condition(self.packets()):
            if time.monotonic() > end:
                raise RigError(f"waited {timeout:g} s for {what}: {self.packets()} at {self._name}")
            time.sleep(0.0001)
        return time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system, in the kernel's clock ticks of mostly 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # fields 14 and 15 of the whole line


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped every thread of a process."""
    states = (stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(state == "T" for state in states)


def context_switches(pid: int) -> int:
    """How often the threads of a process gave up a processor or lost it."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", text))


def private_memory(pid: int) -> float:
    """Anonymous memory of a process, shared pages by their share, in MiB: its own, not the guests'."""
    found = re.search(r"^Pss_Anon:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int) -> int:
    """How many open descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))

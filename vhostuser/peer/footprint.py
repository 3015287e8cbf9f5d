"""What a process holds: two looks that are equal mean that nothing leaked in between."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Footprint:
    """What a process holds.

    Attributes:
        fds: open descriptors by kind: sockets, eventfds, guest memory, ...
        mappings: what is mapped, by name, but for libraries, which are loaded as they are needed, and anonymous
            memory, which grows and shrinks with the allocator.
        tasks: threads, but for those that wait for a next job: Trio keeps them for ten seconds.
    """

    fds: Counter[str]
    mappings: Counter[str]
    tasks: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """The footprint of a process right now. Raises OSError if there is no such process, or it is not ours."""
        process = Path(f"/proc/{pid}")
        fds: Counter[str] = Counter()
        for entry in (process / "fd").iterdir():
            try:
                target = re.sub(r"\d+", "", os.readlink(entry))
            except FileNotFoundError:
                continue  # closed while we looked
            fds[target.rpartition("/")[2] or target] += 1
        names = (line.split(maxsplit=5)[5:] for line in (process / "maps").read_text().splitlines())
        mappings = Counter(
            name[0] for name in names if name and not name[0].startswith("[") and not Path(name[0]).is_file()
        )
        return cls(fds, mappings, sum(_is_busy(task) for task in (process / "task").iterdir()))

    def difference(self, other: Footprint) -> str:
        """What the other holds more (+) or less (-) than this one; empty when they are equal."""
        lines = [
            f"{count:+d} {kind}"
            for mine, theirs in ((self.fds, other.fds), (self.mappings, other.mappings))
            for kind in sorted(mine | theirs)
            if (count := theirs[kind] - mine[kind])
        ]
        return ", ".join(lines + ([f"{other.tasks - self.tasks:+d} threads"] if other.tasks != self.tasks else []))

    def growth(self, other: Footprint) -> str:
        """What the other holds more than this one; empty if nothing."""
        most = Footprint(self.fds | other.fds, self.mappings | other.mappings, max(self.tasks, other.tasks))
        return self.difference(most)


def resident(pid: int) -> int:
    """Bytes of memory of its own that a process has in use; what it shares, as a guest's memory, is not counted.

    Raises:
        OSError: as :meth:`Footprint.of`.
    """
    in_use, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (in_use - shared) * os.sysconf("SC_PAGE_SIZE")


def _is_busy(task: Path) -> bool:
    try:
        return not (task / "comm").read_text().startswith("Trio thread ")
    except (FileNotFoundError, ProcessLookupError):
        return False  # ended while we looked

"""What happens in a check, written down while it happens, so that it can be shown and played again.

Must not know: what is said, or what anybody makes of it.

How: each message, store into guest memory, kick and closing becomes an entry of a transcript. A descriptor has the name
under which it was entered, as long as it is open.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.transcript.descriptors import describe
from vhostuser.transcript.entries import (
    Closed,
    Descriptor,
    Entry,
    Kind,
    Paused,
    Resized,
    Said,
    Saw,
    Side,
    Signalled,
    Transcript,
    Wrote,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhostuser.wire.frames import Frame


class Record:
    """A conversation as it goes."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._names: dict[int, str] = {}
        self._begin = time.monotonic()

    def name(self, fd: int, name: str) -> None:
        """Call a descriptor that stays open by a name; a number in use already makes it another one."""
        taken = set(self._names.values())
        numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
        self._names[fd] = name if name not in taken else next(other for other in numbered if other not in taken)

    def frame(
        self, side: Side, frame: Frame, *, pieces: Sequence[int] = (), cut: int | None = None, own_channel: bool = False
    ) -> None:
        """A side sent a frame; as for :class:`Said <vhostuser.transcript.entries.Said>`."""
        fds = self._described(frame.fds.filenos())
        told = Said(side, frame.request, frame.flags, frame.payload, frame.size, fds, own_channel, time=self._now())
        self._add(replace(told, pieces=tuple(pieces), cut=cut))

    def wrote(self, memory: int, offset: int, data: bytes) -> None:
        """The front-end wrote into memory, named by its file's descriptor."""
        self._add(Wrote(self._name_of(memory), offset, (data,), time=self._now()))

    def saw(self, memory: int, offset: int, data: bytes) -> None:
        """The front-end found this in memory when it was done."""
        self._add(Saw(self._name_of(memory), offset, data, self._now()))

    def paused(self, seconds: float) -> None:
        """Nothing more happened, though something might have."""
        self._add(Paused(seconds, self._now()))

    def resized(self, memory: int, size: int) -> None:
        """The front-end changed the length of memory."""
        self._add(Resized(self._name_of(memory), size, self._now()))

    def signalled(self, fd: int) -> None:
        """The front-end signalled a descriptor, as it does to kick."""
        self._add(Signalled(self._name_of(fd), self._now()))

    def closed(self, side: Side) -> None:
        """A side closed the connection."""
        self._add(Closed(side, self._now()))

    @property
    def empty(self) -> bool:
        """Whether nothing was entered."""
        return not self._entries

    def transcript(self, front_end: str, back_end: str, scene: str) -> Transcript:
        """All of it.

        What was done to memory before the back-end got it stands behind the message that passes it: whoever plays
        this makes the memory then.
        """
        entries: list[Entry] = []
        early: dict[str, list[Entry]] = {}
        passed: set[str] = set()
        for entry in self._entries:
            if isinstance(entry, Wrote | Resized) and entry.memory not in passed:
                early.setdefault(entry.memory, []).append(entry)
                continue
            entries.append(entry)
            if isinstance(entry, Said):
                for fd in entry.fds:
                    passed.add(fd.name)
                    entries += early.pop(fd.name, [])
        return Transcript(tuple(entries), front_end, back_end, scene)

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)

    def _now(self) -> float:
        return time.monotonic() - self._begin

    def _name_of(self, fd: int) -> str:
        return self._names.get(fd) or f"fd {fd}"

    def _described(self, fds: Iterable[int]) -> tuple[Descriptor, ...]:
        return tuple(self._describe(fd) for fd in fds)

    def _describe(self, fd: int) -> Descriptor:
        name = self._name_of(fd)
        return Descriptor(name, Kind.CONNECTION) if name == Kind.CONNECTION.value else describe(fd, name)

"""Holding the dirty log against what was in fact written: a debug mode for whoever changes the data path.

Must not know messages. While the log is on, the pages that this process wrote to guest memory (``virtio.audit``) are
compared with those whose bits it set, and each page that was written and not logged is named. The front-end clears the
log whenever it likes, so the log keeps a second copy of the bits for the audit.

Both are taken while all queue groups rest between two turns. Otherwise a page might be written, and its bit set only
after we had looked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import trio

from vhostuser.device import InTurns
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.dirty import DirtyLog
from vhostuser.virtio.layout import LOG_PAGE_SHIFT
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.virtio.pump import Pump
from vhostuser.virtio.ring import Ring

log = logging.getLogger(__name__)

PERIOD = 0.05  #: seconds between two looks
PATIENCE = 1.0  # seconds for all groups to come to rest; one that hangs is not waited for
_NAMED = 8  # pages that one complaint names


class Audit:
    """The audit of one connection's log. Without a watch it does nothing, and what it is asked to do it just does.

    Args:
        watch: the witness, or None.
        in_turns: runs a function in the thread of each living group, with the group's number and pump.
        pumps: the pumps of the living groups.

    Attributes:
        resting: held while the groups come to rest; no group may begin or end meanwhile.
        looks: how often it compared.
        pages: how many pages had been written, summed over all looks.
        missed: the pages that were written and not logged, as guest-physical addresses.
    """

    def __init__(self, watch: WriteWatch | None, in_turns: InTurns, pumps: Callable[[], list[Pump]]) -> None:
        self.resting = trio.Lock()
        self.looks = self.pages = 0
        self.missed: set[int] = set()
        self._watch = watch
        self._in_turns = in_turns
        self._pumps = pumps
        self._log: DirtyLog | None = None
        self._looked = 0
        self._excused: list[tuple[int, int]] = []  # ranges of this process

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while self._watch is not None:
            await trio.sleep(PERIOD)
            await self.look()

    async def look(self) -> None:
        """Look once, between two turns of every group."""
        if self._watch is not None:
            async with self.resting:
                await self._rest(self._log, lambda number, pump: None)

    async def change(self, following: DirtyLog | None, then: Callable[[int, Pump], None]) -> None:
        """Run `then` in the thread of each group, after which its rings log to `following`. Look first."""
        async with self.resting:
            await self._rest(following, then)

    async def _rest(self, following: DirtyLog | None, then: Callable[[int, Pump], None]) -> None:
        looks = self._looked
        if self._watch is not None:
            look = partial(self._look, following)
            if pumps := self._pumps():
                then = _at_rest(len(pumps), look, then)
            else:
                look()
        await self._in_turns(then)
        if self._watch is not None and self._looked == looks:
            log.warning("dirty log: not audited until it is switched again: a queue group hangs")
            self._log = None

    def follow(self, *tables: GuestMemory) -> None:
        """Watch these memory tables from now on."""
        if self._watch is not None:
            try:
                self._watch.follow({id(m): m for memory in tables for m in memory.mappings}.values())
            except OSError as error:
                log.error("dirty log: not audited: %s", error.strerror)

    def excuse(self, ring: Ring) -> None:
        """Do not mind what a ring writes to its own areas, if the front-end does not want that logged."""
        if self._watch is not None and not ring.log.own:
            self._excused += ring.own_areas()

    def close(self) -> None:
        """Look a last time, and watch no more. No thread is left."""
        if self._watch is not None:
            self._look(None)
            self.follow()

    def counters(self) -> dict[str, int]:
        """How often it looked, what it saw, and what was missed."""
        if self._watch is None:
            return {}
        return {"log_audits": self.looks, "log_audited_pages": self.pages, "log_missed_pages": len(self.missed)}

    # ---- while all groups rest -------------------------------------------------------------------------------------

    def _look(self, following: DirtyLog | None) -> None:
        assert self._watch is not None
        self._looked += 1
        written = list(self._watch.written())
        if self._log is not None:
            self._compare(written, self._log.recorded())
        self._log = following
        if following is not None:
            following.record()
        self._excused = []
        for pump in self._pumps():
            for ring in pump.rings:
                if ring.started:
                    self.excuse(ring)

    def _compare(self, written: list[tuple[Mapping, int, int]], recorded: bytes) -> None:
        self.looks += 1
        missed: list[int] = []
        for mapping, first, last in written:
            for page in _pages(mapping, first, last):
                self.pages += 1
                if not any(_bit(recorded, number) for number in page) and not self._is_excused(mapping, page):
                    missed.append(page.start << LOG_PAGE_SHIFT)
        if missed:
            self.missed.update(missed)
            named = ", ".join(f"{address:#x}" for address in missed[:_NAMED])
            more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
            log.error("dirty log: written and not logged: %s%s", named, more)

    def _is_excused(self, mapping: Mapping, page: range) -> bool:
        start = mapping.host_address + (page.start << LOG_PAGE_SHIFT) - mapping.guest_phys_addr
        end = start + (len(page) << LOG_PAGE_SHIFT)
        return any(at < end and start < at + size for at, size in self._excused)


def _at_rest(groups: int, look: Callable[[], None], then: Callable[[int, Pump], None]) -> Callable[[int, Pump], None]:
    """A function for the threads of so many groups. When all have come, one of them looks; then each does `then`.

    If a group does not come in time there is no look.
    """
    meeting = threading.Barrier(groups, action=look)

    def meet(number: int, pump: Pump) -> None:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(PATIENCE)
        then(number, pump)

    return meet


def _pages(mapping: Mapping, first: int, last: int) -> Iterator[range]:
    """The pages that a written range is made of, each as the pages of the log that it covers.

    That is one, unless the mapping has huge pages: of those the kernel says only that something in them was written.
    """
    step = mapping.page_size
    for address in range(first, last + 1, step):
        yield range(address >> LOG_PAGE_SHIFT, ((min(address + step - 1, last)) >> LOG_PAGE_SHIFT) + 1)


def _bit(bits: bytes, number: int) -> bool:
    return number >> 3 < len(bits) and bool(bits[number >> 3] >> (number & 7) & 1)

"""A device whose writes to guest memory are logged, and watched by the kernel: what both tell has to be the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from vhostuser.frontend.dirty import DirtyBitmap
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio.audit import WriteWatch
from vhostuser.virtio.dirty import DirtyLog
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.pump import Pump
from vhostuser.virtio.ring import Ring

PAGE = 4096


class Witness:
    """The log of a pump's rings, and what they wrote in truth."""

    def __init__(self, bitmap: DirtyBitmap, watch: WriteWatch) -> None:
        self.bitmap = bitmap
        self._watch = watch

    def written(self) -> set[int]:
        """The pages that this process wrote through the device's mappings since the last look."""
        return {
            page for _, first, last in self._watch.written() for page in range(first & -PAGE, (last & -PAGE) + 1, PAGE)
        }

    def agree(self) -> set[int]:
        """The pages that were written since the last look, which are those that were logged."""
        written, logged = self.written(), self.bitmap.take()
        assert logged == written, (
            f"not logged: {sorted(map(hex, written - logged))}, not written: {sorted(map(hex, logged - written))}"
        )
        return written


@contextmanager
def map_log(bitmap: DirtyBitmap) -> Iterator[DirtyLog]:
    """A front-end's log as a back-end maps it."""
    with closing(DirtyLog(bitmap.fd.fileno(), bitmap.size, bitmap.mmap_offset)) as log:
        yield log


@contextmanager
def witnessed(ram: GuestRam, memory: GuestMemory, *rings: Ring) -> Iterator[Witness]:
    """Log all that rings write, and have the kernel watch."""
    with closing(DirtyBitmap(ram.top)) as bitmap, map_log(bitmap) as log, closing(WriteWatch()) as watch:
        for ring in rings:
            ring.set_log(log, True, None, -1)
        watch.follow(memory.mappings)
        yield Witness(bitmap, watch)
        watch.follow(())
        for ring in rings:
            ring.set_log(None, False, None, -1)


def turn(pump: Pump, witness: Witness) -> set[int]:
    """One turn: the pages that were written, which are those that were logged."""
    pump.turn()
    return witness.agree()

"""The last moments of a pump: when it slept, woke, took a kick, sent, received, called.

Must not know what a pump moves, nor who reads. A pump and its rings note here if they were given a timeline, and only
look for one if not: once a burst, never once a packet. A moment costs a clock reading without a system call and two
stores. The newest moments take the place of the oldest, so one can be left on until something strange has happened.

The thread that turns the pump writes, any other may read: a count that is stored after each moment tells the reader
which ones were whole and still there.
"""

from __future__ import annotations

import mmap
from array import array
from typing import NamedTuple

import cython

from vhostuser.virtio.memory import address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.primitives import clock, load_acquire_u32, load_u32, store_release_u32, store_u64

#: What a moment may be, in the order of ``layout``.
NAMES = ("sleep", "wake", "kick", "port", "sent", "received", "call", "called", "no-call")

_HEAD = cython.declare(cython.ulonglong, 16)  # bytes before the first moment: the count
_U32 = cython.declare(cython.uint, 0xFFFF_FFFF)


class Moment(NamedTuple):
    """What was at a moment.

    Attributes:
        time: nanoseconds of CLOCK_MONOTONIC, which every process of the machine shares.
        what: one of :data:`NAMES`.
        ring: the vring's index; that of the pump's first ring where the moment is no ring's.
        packets: chains done with by sending, packets received (long ones: the chains they filled); else 0.
    """

    time: int
    what: str
    ring: int
    packets: int


class Timeline:
    """The last moments of one pump."""

    def __init__(self, entries: int) -> None:
        """Room for `entries` moments, rounded up to a power of two, sixteen bytes each."""
        self.entries = 1 << max(entries - 1, 1).bit_length()
        self.memory = mmap.mmap(-1, _HEAD + 16 * self.entries, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = address_of(self.memory)

    def note(self, what: cython.int, ring: cython.int, count: cython.int) -> None:
        """Add the present moment. The pump's thread only."""
        noted: cython.uint = load_u32(self.address)
        at: cython.ulonglong = self.address + _HEAD + 16 * cython.cast(cython.ulonglong, noted & (self.entries - 1))
        store_u64(at, clock())
        store_u64(at + 8, what + 256 * ring + 65536 * cython.cast(cython.ulonglong, count))
        store_release_u32(self.address, (noted + 1) & _U32)

    def moments(self) -> list[Moment]:
        """The last moments, oldest first. Any thread may ask."""
        before = load_acquire_u32(self.address)
        words = array("Q", self.memory[_HEAD:])
        # what was written meanwhile, and the one that was being written, took the place of the oldest
        spoilt = ((load_acquire_u32(self.address) - before) & 0xFFFF_FFFF) + 1
        slots = (2 * ((before + i) & (self.entries - 1)) for i in range(spoilt, self.entries))
        return [_moment(words[slot], words[slot + 1]) for slot in slots if words[slot]]


def _moment(time: int, what: int) -> Moment:
    return Moment(time, NAMES[what & 0xFF], what >> 8 & 0xFF, what >> 16)

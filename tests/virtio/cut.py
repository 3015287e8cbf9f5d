"""A back-end that dies between any two of its stores, and one that goes on for it; run as a program, it prints JSON.

The stores of the interpreted edition can be counted and stopped at, so this runs in it, whichever edition the test
suite runs over: both are made of the same lines, and compiled stores to shared memory keep their order.

The driver and the memory live on; of the back-end nothing is left but what it stored. The driver is told of every
chain once, in the order in which it made them available, whatever the place of the cut; that is all it can see.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tests.virtio.recorded import Recorded, RecordedBurst, RecordedChain
from vhostuser import edition
from vhostuser.frontend.memory import GuestRam
from vhostuser.virtio import packed, packed_record, primitives, ring, split, split_record

STORES = ("store_release_u16", "store_u8", "store_u16", "store_u32", "store_u64")
NEVER = 1 << 30
Make = Callable[[], Recorded]

SHAPES = [((), (1, 1, 1)), ((1, 1), (2, 1, 3)), ((1, 2, 1), (1,) * 7)]
"""Chains of how many buffers before the turn that is cut, and in it; the last fill the ring."""

STEPS = st.lists(
    st.tuples(st.lists(st.integers(1, 3), max_size=6), st.sampled_from(["go on", "stop", "cut"]), st.integers(0, 80)),
    min_size=1,
    max_size=12,
)


class Killed(BaseException):
    """The back-end is no more."""


class Knife:
    """Ends the back-end before one of its stores.

    Attributes:
        stores: how many it has made since the last :meth:`set`.
    """

    def __init__(self) -> None:
        self.at, self.stores = NEVER, 0
        for module, name in product((split, packed, ring, split_record, packed_record), STORES):
            if hasattr(module, name):
                setattr(module, name, self._watched(getattr(module, name)))

    def set(self, at: int = NEVER) -> None:
        """End it before its store number `at` from now on."""
        self.at, self.stores = at, 0

    def kills(self, at: int, work: Callable[[], object]) -> bool:
        """Do some work and die before a store of it. False: it has no such store."""
        self.set(at)
        try:
            work()
        except Killed:
            return True
        finally:
            self.at = NEVER
        return False

    def _watched(self, store: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def watched(address: int, value: int) -> None:
            if self.stores == self.at:
                raise Killed
            self.stores += 1
            store(address, value)

        return watched


def turn_with(bench: Recorded, spans: Sequence[int]) -> None:
    """The driver makes chains of so many buffers available, and the back-end turns."""
    for span in spans:
        bench.add(span)
    bench.turn()


def stores_of_a_turn(knife: Knife, bench: Recorded, before: Sequence[int], spans: Sequence[int]) -> int:
    """How many stores the turn has that is to be cut."""
    bench.boot()
    turn_with(bench, before)
    bench.reap()
    knife.set()
    turn_with(bench, spans)
    return knife.stores


def cut(
    knife: Knife, bench: Recorded, before: Sequence[int], spans: Sequence[int], first: int, second: int = NEVER
) -> int:
    """Cut a turn before store `first`, and the start after it before store `second`: how many the start has."""
    bench.boot()
    turn_with(bench, before)
    bench.reap()
    assert knife.kills(first, lambda: turn_with(bench, spans))
    bench.die()
    if knife.kills(second, bench.boot):
        bench.die()
        bench.boot()
    stores = knife.stores
    bench.finish()
    return stores


def every_cut(knife: Knife, make: Make, step: int) -> int:
    """Every cut of a turn, and with `step` each so many-th cut of the start after it as well: how many."""
    done = 0
    for before, spans in SHAPES:
        with make() as bench:
            stores = stores_of_a_turn(knife, bench, before, spans)
        for first in range(stores):
            with make() as bench:
                stores_of_start = cut(knife, bench, before, spans, first)
            done += 1
            for second in range(first % step, stores_of_start, step) if step else ():
                with make() as bench:
                    cut(knife, bench, before, spans, first, second)
                done += 1
    return done


def lives(knife: Knife, make: Make, examples: int) -> int:
    """Lives of a ring with chains of any shape, clean stops and cuts anywhere: how many cuts."""
    cuts = 0

    @hypothesis.settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @hypothesis.given(STEPS)
    def life(steps: list[tuple[list[int], str, int]]) -> None:
        nonlocal cuts
        with make() as bench:
            bench.boot()
            for spans, what, at in steps:
                if knife.kills(at if what == "cut" else NEVER, lambda spans=spans: turn_with(bench, spans)):  # type: ignore[misc]
                    cuts += 1
                    bench.die()
                    bench.boot()
                elif what == "stop":
                    bench.stop()
                    bench.boot()
            bench.finish()

    life()
    return cuts


def forget_marks_first(self: Any, idx: int, old: int, new: int) -> None:
    """What a split ring must not do: take the marks away before the driver is told."""
    self.finish(old, new)
    primitives.store_release_u16(idx, new)


MISTAKES: dict[str, Callable[[], None]] = {
    "marks-go-first": lambda: setattr(split_record.SplitRecord, "publish", forget_marks_first),
    "no-marks": lambda: setattr(split_record.SplitRecord, "fetch", lambda self, avail, place, limit: avail),
    "nothing-restored": lambda: setattr(packed_record.PackedRecord, "put", lambda *_: None),
    "nothing-counted": lambda: setattr(packed_record.PackedRecord, "store_used", lambda *_: None),
}
"""What a record must not do: the cuts find out."""


def main() -> None:
    """Run what the command line names: a layout, a device, and a mistake or nothing."""
    assert edition.name() == "interpreted", edition.name()
    layout, device, *mistakes = sys.argv[1:]
    for mistake in mistakes:
        MISTAKES[mistake]()
    kind: type[Recorded] = RecordedChain if device == "chain" else RecordedBurst
    knife = Knife()
    with GuestRam([(0, 1 << 28)]) as ram:

        def make() -> Recorded:
            return kind(ram, layout == "packed")

        found = {"cuts": every_cut(knife, make, 9 if layout == "packed" else 4), "lives": lives(knife, make, 40)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

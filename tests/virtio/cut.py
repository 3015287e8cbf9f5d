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
from vhostuser.virtio import packed, packed_record, ring, split, split_record

STORES = ("store_release_u16", "store_u8", "store_u16", "store_u32", "store_u64")
NEVER = 1 << 30


class Killed(BaseException):
    """The back-end is no more."""


class Knife:
    """Ends the back-end before its store number `at` from now on."""

    def __init__(self) -> None:
        self.at = NEVER
        self.stores = 0
        for module, name in product((split, packed, ring, split_record, packed_record), STORES):
            if hasattr(module, name):
                setattr(module, name, self._watched(getattr(module, name)))

    def set(self, at: int) -> None:
        self.at, self.stores = at, 0

    def _watched(self, store: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def watched(address: int, value: int) -> None:
            if self.stores == self.at:
                self.at = NEVER
                raise Killed
            self.stores += 1
            store(address, value)

        return watched

    def cut(self, at: int, bench: Recorded, work: Callable[[], object]) -> bool:
        """Do some work and die before a store of it. False: it has fewer than that."""
        self.set(at)
        try:
            work()
        except Killed:
            return True
        finally:
            self.set(NEVER)
        return False


def turn_with(bench: Recorded, spans: Sequence[int]) -> None:
    """The driver makes chains of so many buffers available, and the back-end turns."""
    for span in spans:
        bench.add(span)
    bench.turn()


def scenario(knife: Knife, bench: Recorded, before: Sequence[int], spans: Sequence[int], first: int, second: int) -> bool:
    """Cut a turn before store `first`, and the start after it before store `second`. False: there is no such store."""
    bench.boot()
    turn_with(bench, before)
    bench.reap()
    if not knife.cut(first, bench, lambda: turn_with(bench, spans)):
        bench.finish()
        return False
    bench.die()
    cut_again = knife.cut(second, bench, bench.boot)
    if cut_again:
        bench.die()
        bench.boot()
    bench.finish()
    return cut_again or second == NEVER


def every_cut(knife: Knife, make: Callable[[], Recorded], twice: bool) -> int:
    """All cuts of a turn, and if `twice` all cuts of the start after each: how many."""
    shapes = [((), (1, 1, 1)), ((1, 1), (2, 1, 3)), ((1, 2, 1), (1, 1, 1, 1, 1, 1, 1))]
    done = 0
    for before, spans in shapes:
        first = 0
        while True:
            second = 0 if twice else NEVER
            with make() as bench:
                if not scenario(knife, bench, before, spans, first, NEVER):
                    break
            done += 1
            while twice:
                with make() as bench:
                    if not scenario(knife, bench, before, spans, first, second):
                        break
                done += 1
                second += 1
            first += 1
    return done


STEPS = st.lists(
    st.tuples(st.lists(st.integers(1, 3), max_size=6), st.sampled_from(["go on", "stop", "cut"]), st.integers(0, 80)),
    min_size=1,
    max_size=12,
)


def any_life(knife: Knife, make: Callable[[], Recorded], examples: int) -> int:
    """Lives of a ring with chains of any shape, clean stops and cuts anywhere: how many."""
    lives = 0

    @hypothesis.settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @hypothesis.given(STEPS)
    def life(steps: list[tuple[list[int], str, int]]) -> None:
        nonlocal lives
        lives += 1
        with make() as bench:
            bench.boot()
            for spans, what, at in steps:
                if what == "cut" and knife.cut(at, bench, lambda spans=spans: turn_with(bench, spans)):  # type: ignore[misc]
                    bench.die()
                    bench.boot()
                elif what != "cut":
                    turn_with(bench, spans)
                if what == "stop":
                    bench.stop()
                    bench.boot()
            bench.finish()

    life()
    return lives


def main() -> None:
    """Run the scenario that the command line names."""
    assert edition.name() == "interpreted", edition.name()
    what, layout, device = sys.argv[1:4]
    kind: type[Recorded] = RecordedChain if device == "chain" else RecordedBurst
    mistake = sys.argv[4] if len(sys.argv) > 4 else ""
    if mistake:
        make_mistake(mistake)
    knife = Knife()
    with GuestRam([(0, 1 << 28)]) as ram:

        def make() -> Recorded:
            return kind(ram, layout == "packed")

        match what:
            case "once":
                found: Any = every_cut(knife, make, twice=False)
            case "twice":
                found = every_cut(knife, make, twice=True)
            case "lives":
                found = any_life(knife, make, 60)
    json.dump(found, sys.stdout)


def make_mistake(name: str) -> None:
    """Something that a record must not do; the scenarios find it."""
    if name == "marks-go-first":

        def early(self: Any, idx: int, old: int, new: int) -> None:
            self.finish(old, new)
            split_record.store_release_u16(idx, new)

        split_record.SplitRecord.publish = early  # type: ignore[method-assign]
    if name == "nothing-restored":
        restore = packed_record.PackedRecord.put
        packed_record.PackedRecord.put = lambda *_: None  # type: ignore[method-assign,assignment]
        assert restore


if __name__ == "__main__":
    main()

"""A harness without Atheris: its seeds, then bytes of Hypothesis; run as a program, it prints JSON.

    python -m tests.fuzzing.replay HARNESS [MISTAKE]

It runs in the interpreted edition, which some harnesses need, whichever edition the test suite runs over. A mistake is
put into the code under test, and the harness has to notice: then this fails.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import corpus
from vhostuser import edition
from vhostuser.session.backend import BackendSession
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.packed_record import PackedRecord
from vhostuser.virtio.primitives import load_u64, store_u64
from vhostuser.virtio.split import SplitRing
from vhostuser.wire import dissect, layouts

EXAMPLES = 100


def after(owner: Any, name: str, mistake: Callable[..., Any]) -> None:
    """Have a function's result and arguments go through `mistake`, which says what is returned instead."""
    right = getattr(owner, name)

    def wrong(*arguments: Any) -> Any:
        return mistake(right(*arguments), *arguments)

    setattr(owner, name, wrong)


def misplaced(pieces: int, _memory: object, _address: int, _length: int, iov: int, _room: int) -> int:
    """A buffer's first piece lies elsewhere."""
    if pieces > 0:
        store_u64(iov, load_u64(iov) + (1 << 20))
    return pieces


def written_behind(_result: None, ring: Any, _count: int) -> None:
    """A used entry is written behind the ring."""
    store_u64(ring.device + 4 + 8 * ring.num + 8, 1)


def forget_links(_result: None, record: Any, *_: object) -> None:
    """The entries of chains that were taken over are linked to entry 0."""
    record.link = array("H", bytes(2 * record.entries))


MISTAKES: dict[str, Callable[[], None]] = {
    "bytes-reversed": lambda: after(layouts, "build", lambda data, _value: data[::-1]),
    "nothing-broken": lambda: after(dissect, "faults", lambda *_: []),
    "refusals-committed": lambda: after(
        BackendSession, "_refuse", lambda answer, session, message: (session._commit(message), answer)[1]
    ),
    "refusals-silent": lambda: after(BackendSession, "_refuse", lambda *_: None),
    "buffers-misplaced": lambda: after(GuestMemory, "translate", misplaced),
    "used-entries-behind": lambda: after(SplitRing, "give", written_behind),
    "links-forgotten": lambda: after(PackedRecord, "restore", forget_links),
}


def near(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Seeds with some bytes changed, cut short or not."""
    changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6)
    return st.builds(changed, st.sampled_from(seeds), changes, st.integers(0, 1 << 12))


def changed(seed: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """A seed with other bytes at some places, and at least its first 16."""
    data = bytearray(seed)
    for place, byte in changes:
        data[place % len(data)] = byte
    return bytes(data[: max(cut, 16)])


def replay(name: str) -> dict[str, int]:
    """Run a harness on its seeds, on what is near them, and on any bytes: how many of each."""
    harness = corpus.harness(name)
    seeds = list(harness.seeds())
    for seed in seeds:
        harness.one_input(seed)
    examples = 0

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    @given(near(seeds) | st.binary(max_size=200))
    def any_bytes(data: bytes) -> None:
        nonlocal examples
        examples += 1
        harness.one_input(data)

    any_bytes()
    return {"seeds": len(seeds), "examples": examples}


def main() -> None:
    """Run what the command line names."""
    assert edition.name() == "interpreted", edition.name()
    name, *mistakes = sys.argv[1:]
    for mistake in mistakes:
        MISTAKES[mistake]()
    print(json.dumps(replay(name)))


if __name__ == "__main__":
    main()

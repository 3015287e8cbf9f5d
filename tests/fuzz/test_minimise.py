"""What is left of a conversation is what it takes, and no more."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostuser.fuzz.minimise import minimise
from vhostuser.transcript.entries import Descriptor, Entry, Kind, Said, Side


def said(number: int) -> Said:
    fds = (Descriptor("fd", Kind.EVENTFD),)
    return Said(Side.FRONTEND, number, fds=fds, pieces=(1, 2))


@settings(deadline=None, max_examples=20)
@given(st.sets(st.integers(0, 29), min_size=1, max_size=4))
async def test_only_what_matters_is_left(needed: set[int]) -> None:
    async def shows(entries: tuple[Entry, ...]) -> bool:
        return needed <= {entry.request for entry in entries if isinstance(entry, Said)}

    smallest = await minimise([said(number) for number in range(30)], shows, trials=1000)
    assert [entry.request for entry in smallest if isinstance(entry, Said)] == sorted(needed)
    assert all(isinstance(entry, Said) and not entry.fds and not entry.pieces for entry in smallest)


async def test_the_trials_are_bounded() -> None:
    asked = []

    async def shows(entries: tuple[Entry, ...]) -> bool:
        asked.append(entries)
        return False

    whole = [said(number) for number in range(30)]
    assert await minimise(whole, shows, trials=7) == tuple(whole)
    assert len(asked) == 7

"""What a recording lacks is made up: sizes that were not recorded, and rings that are empty where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.transcript.conversations import asks
from vhostuser.session.witness import Side
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Said, Wrote
from vhostuser.transcript.staging import staged
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import (
    U64,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
LOW, HIGH = Descriptor("memory 0", Kind.MEMORY, size=1 << 20), Descriptor("memory 1", Kind.MEMORY, size=1 << 20)
REGIONS = (MemoryRegion(0, 0x1000, 0x70000, 0x500), MemoryRegion(0x1000, 0x1000, 0x90000, 0))
TABLE = asks(R.SET_MEM_TABLE, MemoryTable(REGIONS), 1, LOW, HIGH)
START = [
    asks(R.SET_VRING_BASE, VringState(0, 300)),
    asks(R.SET_VRING_ADDR, VringAddr(0, 0, 0x70000, 0x90010, 0x70800, 0)),
    asks(R.SET_VRING_KICK, VringFd(0)),
]
INDEX = ((300).to_bytes(2, "little"),)
EMPTY = [Wrote("memory 0", 0x500 + 0x800 + 2, INDEX), Wrote("memory 1", 0x10 + 2, INDEX)]


def written(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for _, entry in staged(entries) if isinstance(entry, Wrote)]


def test_the_indices_of_a_split_ring_are_written_before_it_starts() -> None:
    steps = list(staged([TABLE, *START]))
    assert [number for number, _ in steps] == [0, 1, 2, 3, 3, 3]
    assert [entry for _, entry in steps] == [TABLE, *START[:2], *EMPTY, START[2]]


def test_slots_are_memory_too() -> None:
    slots: list[Entry] = [
        asks(R.ADD_MEM_REG, SingleRegion(REGIONS[0]), 1, LOW),
        asks(R.ADD_MEM_REG, SingleRegion(REGIONS[1]), 1, HIGH),
    ]
    assert written([*slots, *START]) == EMPTY
    assert written([*slots, asks(R.REM_MEM_REG, SingleRegion(REGIONS[0])), *START]) == EMPTY[1:]


def test_addresses_may_be_the_guests() -> None:
    features = asks(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.GPA_ADDRESSES))
    ring = asks(R.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x1010, 0x800, 0))
    assert written([features, TABLE, START[0], ring, START[2]]) == EMPTY


@pytest.mark.parametrize("feature", [VhostFeature.RING_PACKED, VhostFeature.ACCESS_PLATFORM])
def test_rings_without_indices_or_without_places_are_left_alone(feature: VhostFeature) -> None:
    assert written([asks(R.SET_FEATURES, U64(feature)), TABLE, *START]) == []


def test_what_is_nowhere_is_left_alone() -> None:
    assert written(START) == []
    assert written([TABLE, Closed(), *START]) == []
    assert written([TABLE, START[2]]) == []


def test_memory_without_a_size_is_as_large_as_it_is_said_to_be() -> None:
    unknown = Descriptor("memory", Kind.MEMORY)
    sizes = [
        (asks(R.SET_MEM_TABLE, MemoryTable(REGIONS), 1, unknown, unknown), [0x1500, 0x1000]),
        (asks(R.ADD_MEM_REG, SingleRegion(REGIONS[0]), 1, unknown), [0x1500]),
        (asks(R.SET_LOG_BASE, Log(64, 8), 1, unknown), [72]),
        (asks(R.SET_INFLIGHT_FD, Inflight(100, 0, 1, 1), 1, unknown), [100]),
        (asks(R.SET_MEM_TABLE, MemoryTable(REGIONS), 1, LOW, HIGH), [1 << 20] * 2),
        (asks(R.SET_LOG_BASE, Log(64, 8), 1, Descriptor("e", Kind.EVENTFD)), [0]),
    ]
    for said, expected in sizes:
        ((_, entry),) = staged([said])
        assert isinstance(entry, Said)
        assert [fd.size for fd in entry.fds] == expected


def test_what_is_no_message_of_the_front_end_is_left_alone() -> None:
    entries: list[Entry] = [
        Said(Side.BACKEND, R.SET_VRING_KICK, 5, bytes(8)),
        Said(Side.FRONTEND, R.SET_VRING_KICK, 1, b"odd"),
        Said(Side.FRONTEND, R.SET_VRING_KICK, 1, bytes(8), own_channel=True),
    ]
    assert list(staged(entries)) == list(enumerate(entries))

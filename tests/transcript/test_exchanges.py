"""Answers find their questions, and what depends on addresses or traffic makes no difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.transcript.conversations import NEED_REPLY, answers, asks
from vhostuser.session.witness import Side
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Said
from vhostuser.transcript.exchanges import LEFT_OUT, differ, exchanges
from vhostuser.wire.messages import U64, Log, MemoryRegion, MemoryTable, SingleRegion, VringAddr, VringState
from vhostuser.wire.requests import BackendRequest, FrontendRequest

R, B = FrontendRequest, BackendRequest
MEMORY = Descriptor("memory 0", Kind.MEMORY, size=4096, seals=3)


def told(entries: list[Entry]) -> list[tuple[int, list[int]]]:
    return [(exchange.number, [answer.payload[0] for answer in exchange.answers]) for exchange in exchanges(entries)]


def test_answers_belong_to_the_first_that_waits_for_one() -> None:
    entries: list[Entry] = [
        asks(R.SET_OWNER),
        asks(R.SET_OWNER, None, NEED_REPLY),
        asks(R.SET_OWNER, None, NEED_REPLY),
        asks(R.GET_FEATURES),
        answers(R.SET_OWNER, U64(1)),
        answers(R.GET_FEATURES, U64(3)),
        answers(R.SET_OWNER, U64(2)),
    ]
    assert told(entries) == [(0, []), (1, [1]), (2, [2]), (3, [3])]


def test_what_nothing_waits_for_is_put_to_the_last() -> None:
    assert told([asks(R.SET_OWNER), asks(R.SET_FEATURES, U64(0)), answers(R.SET_OWNER, U64(9))]) == [(0, []), (1, [9])]
    assert told([answers(R.SET_OWNER, U64(9))]) == []


def test_no_answer_crosses_a_closing() -> None:
    entries: list[Entry] = [asks(R.GET_FEATURES), Closed(), asks(R.SET_OWNER), answers(R.GET_FEATURES, U64(7))]
    assert told(entries) == [(0, []), (2, [7])]


def test_the_two_channels_are_apart() -> None:
    change = Said(Side.BACKEND, B.CONFIG_CHANGE_MSG, NEED_REPLY, own_channel=True)
    entries: list[Entry] = [
        asks(R.GET_FEATURES),
        change,
        Said(Side.FRONTEND, B.CONFIG_CHANGE_MSG, 5, bytes(8), own_channel=True),
        answers(R.GET_FEATURES, U64(7)),
    ]
    assert told(entries) == [(0, [7])]
    ((own),) = exchanges(entries, own_channel=True)
    assert (own.number, own.asked, len(own.answers)) == (1, change, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            asks(R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 4096, 1, 0), MemoryRegion(4096, 4096, 2, 0)))),
            asks(R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 4096, 3, 0), MemoryRegion(4096, 4096, 4, 0)))),
        ),
        (
            asks(R.ADD_MEM_REG, SingleRegion(MemoryRegion(0, 4096, 1, 0))),
            asks(R.ADD_MEM_REG, SingleRegion(MemoryRegion(0, 4096, 2, 0))),
        ),
        (asks(R.SET_VRING_ADDR, VringAddr(0, 0, 1, 2, 3, 4)), asks(R.SET_VRING_ADDR, VringAddr(0, 0, 5, 6, 7, 8))),
        (answers(R.GET_VRING_BASE, VringState(0, 1)), answers(R.GET_VRING_BASE, VringState(0, 2))),
        (answers(R.CHECK_DEVICE_STATE, U64(0)), answers(R.CHECK_DEVICE_STATE, U64(1))),
    ],
    ids=lambda said: R(said.request).name,
)
def test_addresses_and_traffic_make_no_difference(one: Said, other: Said) -> None:
    assert not differ(one, other)
    assert (R(one.request), one.side) in LEFT_OUT


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            asks(R.ADD_MEM_REG, SingleRegion(MemoryRegion(0, 4096, 1, 0))),
            asks(R.ADD_MEM_REG, SingleRegion(MemoryRegion(0, 8192, 1, 0))),
        ),
        (asks(R.SET_VRING_ADDR, VringAddr(0, 0, 1, 2, 3, 4)), asks(R.SET_VRING_ADDR, VringAddr(0, 1, 1, 2, 3, 4))),
        (answers(R.GET_VRING_BASE, VringState(0, 1)), answers(R.GET_VRING_BASE, VringState(1, 1))),
        (asks(R.SET_VRING_BASE, VringState(0, 1)), asks(R.SET_VRING_BASE, VringState(0, 2))),
        (asks(R.SET_OWNER), asks(R.SET_OWNER, None, NEED_REPLY)),
        (asks(R.SET_OWNER), replace(asks(R.SET_OWNER), size=7)),
        (answers(R.SET_LOG_BASE, U64(0)), answers(R.SET_LOG_BASE, Log(0, 0))),
        (answers(R.GET_FEATURES, U64(0)), answers(R.GET_FEATURES)),
        (Said(Side.FRONTEND, 99, 1, b"a"), Said(Side.FRONTEND, 99, 1, b"b")),
        (asks(R.SET_LOG_BASE, None, 1, MEMORY), asks(R.SET_LOG_BASE)),
        (asks(R.SET_LOG_BASE, None, 1, MEMORY), asks(R.SET_LOG_BASE, None, 1, replace(MEMORY, kind=Kind.EVENTFD))),
        (asks(R.SET_LOG_BASE, None, 1, MEMORY), asks(R.SET_LOG_BASE, None, 1, replace(MEMORY, seals=0))),
    ],
    ids=lambda said: str(said.request),
)
def test_everything_else_does(one: Said, other: Said) -> None:
    assert differ(one, other)
    assert not differ(one, one)


def test_seals_that_were_not_recorded_make_no_difference() -> None:
    unknown = Descriptor("", Kind.MEMORY)
    assert not differ(asks(R.SET_LOG_BASE, None, 1, MEMORY), asks(R.SET_LOG_BASE, None, 1, unknown))


def test_the_first_position_of_a_ring_counts_and_later_ones_do_not() -> None:
    base = asks(R.SET_VRING_BASE, VringState(0, 7))
    other_ring = asks(R.SET_VRING_BASE, VringState(1, 7))
    assert [exchange.resumes for exchange in exchanges([base, other_ring, base, Closed(), base])] == [
        *(False, False, True, True)
    ]
    assert not differ(base, asks(R.SET_VRING_BASE, VringState(0, 8)), resumes=True)

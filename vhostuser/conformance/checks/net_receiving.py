"""Packets that a driver receives: the buffers that they take, and what becomes of those that fit into none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.chains import NEXT, NOWHERE, WRITE, Entry
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.packets import Pair, frame_of
from vhostuser.conformance.violation import Violation, about
from vhostuser.frontend.features import DriverFeature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.conformance.probe import Probe

D = DriverFeature
_PLAIN = D.VERSION_1
_MERGED = D.VERSION_1 | D.MRG_RXBUF
_HEADER = 12


@checks("VIO-NET-10", devices=("net",), echo=True, needs=(D.MRG_RXBUF,))
@each_layout
async def a_packet_takes_as_many_buffers_as_it_needs(probe: Probe, layout: int) -> None:
    for sizes in ((2048,), (100,) * 16, (64, 700, 33, 500, 900), (1514, 12), (13, 1600)):
        pair = await Pair.start(probe, layout | _MERGED)
        size = min(sum(sizes) - _HEADER, 1514)
        for length in sizes:
            pair.post(length)
        with about(f"buffers of {', '.join(map(str, sizes))} bytes, a frame of {size}"):
            pair.send(frame_of(size, len(sizes)))
            [packet] = await pair.back(frame_of(size, len(sizes)))
            expected = _filled(sizes, size + _HEADER)
            if packet.pieces != expected:
                raise Violation(f"written were {packet.pieces} bytes, not {expected}")


def _filled(sizes: Sequence[int], total: int) -> list[int]:
    """How many bytes each buffer gets, one after the other full."""
    filled = []
    for size in sizes:
        if total:
            filled.append(min(size, total))
            total -= filled[-1]
    return filled


@checks("VIO-NET-11", devices=("net",), echo=True)
@each_layout
async def num_buffers_is_one_without_mergeable_buffers(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | _PLAIN)
    for sizes in ((2048,), (10, 2048), (11, 1, 2048)):
        pair.post(*sizes)
        pair.send(frame_of(300))
        [packet] = await pair.back(frame_of(300))
        if packet.header.num_buffers != 1:
            raise Violation(f"MRG_RXBUF is not negotiated, and num_buffers is {packet.header.num_buffers}")


@checks("VIO-NET-11", devices=("net",), echo=True, needs=(D.MRG_RXBUF,))
@each_layout
async def num_buffers_wherever_it_lies(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | _MERGED)
    for first in ((100,), (10, 90), (11, 89), (5, 5, 90), (*(1,) * _HEADER, 88)):
        pair.post(*first)
        pair.post(100)
        pair.post(312)  # the frame and its header are 312 bytes
        with about(f"a first chain of buffers of {', '.join(map(str, first))} bytes"):
            pair.send(frame_of(500))
            [packet] = await pair.back(frame_of(500))
            if packet.pieces != [100, 100, 312]:
                raise Violation(f"written were {packet.pieces} bytes, not [100, 100, 312]")


@checks("VIO-NET-12", devices=("net",), echo=True, needs=(D.MRG_RXBUF,))
@each_layout
async def a_packet_waits_for_buffers_and_stays_first(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | _MERGED)
    pair.post(100, count=2)
    pair.send(frame_of(400, 1))
    pair.send(frame_of(60, 2))
    await pair.nothing("a packet for which there are too few buffers, or the one behind it")
    pair.post(100, count=4)
    await pair.back(frame_of(400, 1), frame_of(60, 2))


@checks("VIO-NET-13", devices=("net",), echo=True, needs=(D.MRG_RXBUF,))
@each_layout
async def a_packet_that_no_number_of_buffers_holds(probe: Probe, layout: int) -> None:
    for size in (4, 128):
        pair = await Pair.start(probe, layout | _MERGED, size=size)
        pair.post(60, count=size)
        pair.send(frame_of(60 * min(size, 64), 1))
        pair.send(frame_of(48, 2))
        with about(f"a frame for {min(size, 64) + 1} buffers, the ring holds {size}"):
            await pair.back(frame_of(48, 2))


@checks("VIO-NET-14", devices=("net",), echo=True)
@each_layout
async def a_packet_longer_than_its_buffer(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | _PLAIN)
    pair.post(512, count=4)
    for number, size in enumerate((500, 501, 60, 1514)):
        pair.send(frame_of(size, number))
    await pair.back(frame_of(500, 0), frame_of(60, 2))
    await pair.tx.used(4)
    pair.send(frame_of(100, 4))
    pair.send(frame_of(200, 5))
    await pair.back(frame_of(100, 4), frame_of(200, 5))


@checks("VIO-NET-15", devices=("net",), echo=True)
@each_layout
async def chains_that_cannot_hold_a_packet_come_back(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | _PLAIN)
    place = pair.driver.memory.alloc(2048)
    good = Entry(place, 2048, WRITE)
    useless = {
        "11 bytes": [Entry(place, 11, WRITE)],
        "a readable buffer": [Entry(place, 2048)],
        "a readable buffer behind a writable one": [good._replace(flags=WRITE | NEXT), Entry(place, 64)],
        "an unmapped buffer": [good._replace(addr=NOWHERE)],
        "an unmapped buffer behind another": [good._replace(flags=WRITE | NEXT), Entry(NOWHERE, 64, WRITE)],
        "an empty buffer": [Entry(place, 0, WRITE)],
    }
    for number, (what, entries) in enumerate(useless.items(), 1):
        pair.offer(*entries)
        pair.post(2048)
        with about(f"a chain with {what}"):
            pair.send(frame_of(300, number))
            await pair.back(frame_of(300, number))
            if pair.refused != number:
                raise Violation("it was not given back with length 0")

"""What a chain is: its buffers and tables, where they may lie, and which chains are of no use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.conformance.chains import (
    AVAIL,
    INDIRECT,
    NEXT,
    NOWHERE,
    USED,
    WRITE,
    Entry,
    by_hand,
    cut,
    linked,
    scattered,
    write_across,
)
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.violation import about
from vhostuser.frontend.features import DriverFeature
from vhostuser.wire.features import VhostFeature

if TYPE_CHECKING:
    from vhostuser.conformance.chains import Chains
    from vhostuser.conformance.devices import Job
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import Buffer

D, V = DriverFeature, VhostFeature
_MIB = 1 << 20
_TOUCHING = ((0, _MIB), (_MIB, _MIB), (1 << 32, _MIB))
_SPLITS = ((1,) * 20, (12, 1), (5, 7, 1, 200), (11, 2, 40), (16, 30))
_LONG = 14  # the number of a network job of more than a thousand bytes
_HUGE = 16 * _MIB


# ---- buffers ---------------------------------------------------------------------------------------------------------


@checks("VIO-RING-1")
@each_layout
async def buffers_may_be_split_in_any_way(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout)
    for sizes in _SPLITS:
        job = chains.job()
        readable = scattered(chains.memory, cut(job.readable, sizes))
        with about(f"pieces of {', '.join(map(str, sizes))} bytes"):
            chains.offer(*linked(readable, cut(job.writable, sizes)))
            chains.kick()
            await chains.done(job)


@checks("VIO-MEM-1")
@each_layout
async def a_buffer_in_two_regions(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout, layout=_TOUCHING)
    for before in (1, 13, 40):
        job = _straddling(chains, _MIB - before)
        chains.offer(*linked(job.readable, job.writable))
        chains.kick()
        with about(f"a buffer {before} bytes of which are in the region before"):
            await chains.done(job)


def _straddling(chains: Chains, address: int) -> Job:
    """A job whose longest buffer begins at an address, and ends in the next region."""
    job, memory = chains.job(), chains.memory
    old, length = longest = max([*job.readable, *job.writable], key=lambda buffer: buffer[1])
    write_across(memory, address, memory.read(old, length))
    readable, writable = (
        [(address, length) if buffer == longest else buffer for buffer in buffers]
        for buffers in (job.readable, job.writable)
    )

    def done(written: int) -> None:
        if longest in job.writable:
            here = _MIB - address
            memory.write(old, memory.read(address, here) + memory.read(_MIB, length - here))
        job.done(written)

    return replace(job, readable=readable, writable=writable, done=done)


@checks("VIO-MEM-1")
@each_layout
async def a_buffer_beyond_memory(probe: Probe, layout: int) -> None:
    ends = {
        "a buffer whose last byte is behind a region": -1,
        "a buffer whose first byte is before a region": (1 << 32) - 1,
        "a buffer in no region": NOWHERE,
        "a buffer that wraps at 2^64": (1 << 64) - 8,
    }
    for what, address in ends.items():
        chains = await by_hand(probe, layout, layout=((0, _MIB), (1 << 32, _MIB)))
        job = chains.job()
        longest = max([*job.readable, *job.writable], key=lambda buffer: buffer[1])
        moved = _MIB + 1 - longest[1] if address < 0 else address
        entries = [
            entry._replace(addr=moved) if (entry.addr, entry.length) == longest else entry
            for entry in linked(job.readable, job.writable)
        ]
        await chains.ineffective(what, job, *entries)


# ---- tables ----------------------------------------------------------------------------------------------------------


@checks("VIO-RING-2", needs=(D.INDIRECT_DESC,))
async def normal_descriptors_then_a_table(probe: Probe) -> None:
    chains = await by_hand(probe, D.INDIRECT_DESC)
    for direct in (0, 1, 3):
        for flags in (INDIRECT, INDIRECT | WRITE):
            job = chains.job()
            sizes = (12, 1, 3)
            entries = linked(cut(job.readable, sizes), cut(job.writable, sizes))
            chains.offer(*entries[:direct], Entry(*chains.table(*entries[direct:]), flags))
            chains.kick()
            with about(f"{direct} descriptors, then a table with flags {flags:#x}"):
                await chains.done(job)


@checks("VIO-RING-3", needs=(D.INDIRECT_DESC,))
@each_layout
async def a_table_in_two_regions(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.INDIRECT_DESC, layout=_TOUCHING)
    for before in (16, 8, 30, 1):
        job = chains.job()
        entries = linked(cut(job.readable, (20, 20)), cut(job.writable, (20, 20)))
        chains.offer(Entry(*chains.table(*entries, at=_MIB - before), INDIRECT))
        chains.kick()
        with about(f"a table {before} bytes of which are in the region before"):
            await chains.done(job)


@checks("VIO-RING-16", needs=(D.INDIRECT_DESC,))
@each_layout
async def a_table_longer_than_its_ring(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.INDIRECT_DESC, size=4)
    for pieces, size in ((5, 0), (200, 0), (3, 0 if layout else 32768)):
        job = chains.job(_LONG)
        sizes = (4,) * (pieces - 1)
        entries = linked(cut(job.readable, sizes), cut(job.writable, sizes))
        chains.offer(Entry(*chains.table(*entries, size=size), INDIRECT))
        chains.kick()
        with about(f"a table of {max(size, len(entries))} entries in a ring of 4"):
            await chains.done(job)


# ---- chains that are of no use ---------------------------------------------------------------------------------------


@checks("VIO-RING-5")
@each_layout
async def chains_of_no_use_come_back(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout)
    for what, bad in {
        "an empty buffer": (0x8000, 0),
        "an unmapped buffer": (NOWHERE, 64),
        "a buffer that wraps": ((1 << 64) - 32, 64),
    }.items():
        await chains.given_back(f"{what} behind others", *_behind(chains, bad))
        await chains.given_back(what, Entry(*bad, WRITE if probe.device.writes else 0))
    for what, entries in _wrong_ways(chains).items():
        await chains.given_back(what, *entries)


def _behind(chains: Chains, bad: Buffer) -> list[Entry]:
    """A job with one more buffer."""
    job = chains.job()
    return linked(job.readable, [*job.writable, bad]) if job.writable else linked([*job.readable, bad])


def _wrong_ways(chains: Chains) -> dict[str, list[Entry]]:
    job, device = chains.job(), chains.driver.device
    buffer = (chains.memory.alloc(256), 256)
    order = [Entry(*buffer, WRITE | NEXT), *linked(job.readable or [buffer])]
    cases = {"a readable buffer behind a writable one": order}
    if not device.writes:
        cases["a writable buffer where the device only reads"] = linked([], job.readable)
    if not device.reads:
        cases["a readable buffer where the device only writes"] = linked(job.writable)
    return cases


@checks("VIO-RING-6")
@each_layout
async def a_chain_of_four_gibibytes(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout, size=512)
    begin = chains.memory.regions[1].guest_phys_addr
    buffers = [(begin, _HUGE)] * ((1 << 32) // _HUGE)
    await chains.given_back(
        "2^32 bytes in one chain", *(linked([], buffers) if probe.device.writes else linked(buffers))
    )


@checks("VIO-RING-7")
@each_layout
async def a_chain_of_a_thousand_pieces(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout, size=2048)
    for pieces in (1000, 1001):
        job = chains.job(_LONG)
        each = (1,) * (pieces - 1)
        if job.readable and job.writable:  # not one sector less
            each = (1,) * (pieces - 1 - len(job.writable[1:]))
        readable = cut(job.readable, each)
        entries = linked(readable, cut(job.writable, each[len(readable) :]))
        if pieces > 1000:
            await chains.given_back(f"{len(entries)} pieces in one chain", *entries)
            continue
        chains.offer(*entries)
        chains.kick()
        with about(f"{len(entries)} pieces in one chain"):
            await chains.done(job)


# ---- packed chains ---------------------------------------------------------------------------------------------------


@checks("VIO-PACKED-1", needs=(V.RING_PACKED,))
async def a_packed_chain_goes_around_the_end(probe: Probe) -> None:
    chains = await by_hand(probe, V.RING_PACKED, size=7)
    for _ in range(14):
        job = chains.job()
        sizes = (20,) if job.readable and job.writable else (20, 20)
        chains.offer(*linked(cut(job.readable, sizes), cut(job.writable, (20,))))
        chains.kick()
        await chains.done(job)


@checks("VIO-PACKED-1", needs=(V.RING_PACKED, D.INDIRECT_DESC))
async def flags_mean_nothing_in_a_packed_table(probe: Probe) -> None:
    chains = await by_hand(probe, V.RING_PACKED | D.INDIRECT_DESC)
    for flags in (0, AVAIL, USED, AVAIL | USED, 0x7F78):
        job = chains.job()
        entries = linked(cut(job.readable, (13, 5)), cut(job.writable, (13, 5)))
        table = chains.table(*(entry._replace(flags=entry.flags & WRITE | flags) for entry in entries))
        chains.offer(Entry(*table, INDIRECT))
        chains.kick()
        with about(f"{flags:#x} among the flags in a table"):
            await chains.done(job)


@checks("VIO-PACKED-1", needs=(V.RING_PACKED, D.INDIRECT_DESC))
async def next_means_nothing_in_a_packed_table(probe: Probe) -> None:
    chains = await by_hand(probe, V.RING_PACKED | D.INDIRECT_DESC)
    for flags in (0, int(NEXT)):
        job = chains.job()
        entries = linked(cut(job.readable, (13, 5)), cut(job.writable, (13, 5)))
        address, length = chains.table(*entries)
        for i, entry in enumerate(entries):
            chains.memory.store_u16(address + 16 * i + 14, entry.flags & WRITE | flags)
        chains.offer(Entry(address, length, INDIRECT))
        chains.kick()
        await chains.done(job)


# ---- rings and buffers over each other -------------------------------------------------------------------------------

_PARTS = ("desc_addr", "avail_addr", "used_addr")


@checks("VIO-RING-17")
@each_layout
async def a_buffer_in_a_ring(probe: Probe, layout: int) -> None:
    for part in _PARTS:
        for index in range(probe.device.rings):
            chains = await by_hand(probe, layout, size=16)
            job = chains.job()
            buffer = (getattr(chains.driver.rings[index], part), 64)
            entries = linked(cut(job.readable, (12,))[:1], [*job.writable[:-1], buffer] if job.writable else [])
            if not job.writable:
                entries = linked([*cut(job.readable, (12,))[:1], buffer])
            chains.offer(*entries)
            chains.kick()
            with about(f"a buffer in {part} of vring {index}"):
                await chains.driver.stop_all()
                await (await by_hand(probe, layout)).served()


@checks("VIO-RING-17", devices=("net",))
@each_layout
async def rings_over_each_other(probe: Probe, layout: int) -> None:
    for parts in (*((part,) for part in _PARTS), _PARTS):
        driver = await probe.driver(layout, start=False)
        driver.make_rings(16)
        rx, tx = driver.rings.values()
        for part in parts:
            setattr(tx, part, getattr(rx, part))
        for ring in driver.rings.values():
            await driver.start(ring)
        for _ in range(4):
            driver.give()
            driver.kick(tx)
        with about(f"two rings that share {', '.join(parts)}"):
            await driver.stop_all()
            await (await by_hand(probe, layout)).served()

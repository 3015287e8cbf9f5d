"""What breaks a ring, what becomes of it then, and of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.chains import (
    INDIRECT,
    NEXT,
    NOWHERE,
    WRITE,
    Chains,
    Entry,
    by_hand,
    chains_of,
    linked,
    packed_by_hand,
    split_by_hand,
)
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.violation import Violation, about
from vhostuser.frontend.features import DriverFeature
from vhostuser.wire.features import VhostFeature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhostuser.conformance.probe import Probe

D, V = DriverFeature, VhostFeature
_MIB = 1 << 20


async def _breaks(chains: Chains, what: str, *entries: Entry) -> None:
    """A chain has to break its ring, which is whole again afterwards."""
    with about(what):
        chains.offer(*entries)
        chains.kick()
        await chains.broken()
        await chains.heal()
        await chains.served()


def _good(chains: Chains) -> Entry:
    """A buffer that the device may use."""
    return Entry(chains.memory.alloc(64), 64, WRITE if chains.driver.device.writes else 0)


def _bad_tables(chains: Chains) -> Iterator[tuple[str, Sequence[Entry]]]:
    """Chains with an indirect table that break a ring of either layout."""
    good = _good(chains)
    address, length = chains.table(good, good)
    for wrong in (0, 15, length - 1, length + 1):
        yield f"a table of {wrong} bytes", [Entry(address, wrong, INDIRECT)]
    yield "a table of 32769 entries", [Entry(1 << 32, 16 * 32769, INDIRECT)]
    yield "a table in no region", [Entry(NOWHERE, 32, INDIRECT)]
    yield "a table that wraps", [Entry((1 << 64) - 16, 32, INDIRECT)]
    nested = chains.table(Entry(address, length, INDIRECT))
    yield "a table in a table", [Entry(*nested, INDIRECT)]
    yield "a descriptor behind a table", [Entry(address, length, INDIRECT | NEXT), good]


@checks("VIO-RING-8")
async def descriptors_that_break_a_split_ring(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    for index in (64, 65, 0x8000, 0xFFFF):
        await _breaks(
            chains, f"next is {index} in a ring of 64", _good(chains)._replace(flags=_next(chains), next=index)
        )
    good = _good(chains)._replace(flags=_next(chains))
    await _breaks(chains, "a descriptor whose next is itself", good._replace(next=chains.head))
    await _breaks(chains, "a loop of three", good, good, good._replace(next=chains.head))


def _next(chains: Chains) -> int:
    return _good(chains).flags | NEXT


@checks("VIO-RING-8")
async def a_table_that_was_not_negotiated(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    await _breaks(chains, "INDIRECT_DESC is not negotiated", Entry(*chains.table(_good(chains)), INDIRECT))


@checks("VIO-RING-8", needs=(D.INDIRECT_DESC,))
async def tables_that_break_a_split_ring(probe: Probe) -> None:
    chains = await split_by_hand(probe, D.INDIRECT_DESC)
    for what, entries in _bad_tables(chains):
        await _breaks(chains, what, *entries)
    good = _good(chains)._replace(flags=_next(chains))
    await _breaks(chains, "next is beyond its table", Entry(*chains.table(good, good._replace(next=2)), INDIRECT))
    await _breaks(chains, "a loop in a table", Entry(*chains.table(good, good._replace(next=0)), INDIRECT))


@checks("VIO-PACKED-5", needs=(V.RING_PACKED,))
async def descriptors_that_break_a_packed_ring(probe: Probe) -> None:
    chains = await packed_by_hand(probe, size=8)
    good = _good(chains)
    everywhere = [good._replace(flags=good.flags | NEXT)] * 8
    await _breaks(chains, "NEXT all around the ring", *everywhere)
    await _breaks(chains, "INDIRECT_DESC is not negotiated", Entry(*chains.table(good), INDIRECT))


@checks("VIO-PACKED-5", needs=(V.RING_PACKED, D.INDIRECT_DESC))
async def tables_that_break_a_packed_ring(probe: Probe) -> None:
    chains = await packed_by_hand(probe, D.INDIRECT_DESC)
    for what, entries in _bad_tables(chains):
        await _breaks(chains, what, *entries)
    good = _good(chains)
    table = Entry(*chains.table(good), INDIRECT)
    await _breaks(chains, "a descriptor before a table", good._replace(flags=good.flags | NEXT), table)


@checks("VIO-RING-9")
async def heads_that_break_a_ring(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    for head in (64, 65, 0x7FFF, 0xFFFF):
        chains.announce(head)
        chains.kick()
        with about(f"head {head} in a ring of 64"):
            await chains.broken()
            await chains.heal()
            await chains.served()


@checks("VIO-RING-10")
async def indices_that_break_a_ring(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    for base in (0, 0xFFF0):
        for ahead in (65, 0x8000, -1):
            await chains.heal(base)
            await chains.served(2)
            chains.ring.avail_idx += ahead
            chains.kick()
            with about(f"avail.idx is {ahead} ahead of a ring of 64"):
                await chains.broken()
    await chains.heal()
    await chains.served()


def _refused(chains: Chains) -> Entry:
    """What breaks a ring of either layout whose driver has not negotiated INDIRECT_DESC."""
    return Entry(*chains.table(_good(chains)), INDIRECT)


@checks("VIO-RING-11")
@each_layout
async def chains_before_a_bad_one_are_served(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout, start=False)
    jobs = [chains.job() for _ in range(3)]
    for job in jobs:
        chains.offer(*linked(job.readable, job.writable))
    chains.offer(_refused(chains))
    await chains.start()
    for job, used in zip(jobs, await chains.used(3), strict=True):
        job.done(used.written)
    await chains.broken()


@checks("VIO-RING-15")
@each_layout
async def a_broken_ring_stands_still(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout)
    await chains.served()
    chains.offer(_refused(chains))
    chains.kick()
    told = await chains.broken()
    job = chains.job()
    chains.offer(*linked(job.readable, job.writable))
    for _ in range(3):
        await chains.left_alone()
    if (told := told + chains.errors()) != 1:
        raise Violation(f"one fault, and err was signalled {told} times")
    await chains.heal()
    await chains.served()


@checks("VIO-RING-15", devices=("net",))
@each_layout
async def other_rings_go_on(probe: Probe, layout: int) -> None:
    driver = await probe.driver(layout, start=False)
    for index in range(2):
        await driver.start(driver.make_ring(index))
    receive = chains_of(probe, driver, 0)
    receive.offer(_refused(receive))
    receive.kick()
    await driver.served(3)

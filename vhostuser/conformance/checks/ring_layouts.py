"""How rings of both layouts go round, and what the device writes into them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vhostuser.conformance.chains import (
    AVAIL,
    NEXT,
    NOWHERE,
    USED,
    WRITE,
    Entry,
    PackedChains,
    SplitChains,
    by_hand,
    chains_of,
    cut,
    linked,
    packed_by_hand,
    split_by_hand,
)
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.packets import Pair, frame_of
from vhostuser.conformance.violation import Violation, about
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.packed import Position
from vhostuser.frontend.split import DriverRing, Used
from vhostuser.wire.features import VhostFeature

if TYPE_CHECKING:
    from vhostuser.conformance.chains import Chains
    from vhostuser.conformance.devices import Job
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.packed import PackedRing
    from vhostuser.frontend.split import SplitRing

D, V = DriverFeature, VhostFeature
_JUNK = 0xA5A5
_BURST = 12
_PIECES = 15
_LOOKS = 200_000
_FRESH = 0x8000_8000
_RESERVED = 0x7F78  # flags of a packed ring that mean nothing


# ---- split rings -----------------------------------------------------------------------------------------------------


@checks("VIO-RING-4")
async def split_rings_of_any_size_wrap(probe: Probe) -> None:
    for size in (4, 256, 32768):
        with about(f"a ring of {size} from 0xfffa on"):
            await (await by_hand(probe, size=size, base=0xFFFA)).served(12)


@checks("VIO-RING-12")
async def what_a_driver_writes_into_the_used_ring(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    ring = chains.ring
    for number in range(4):
        for slot in range(ring.size):
            ring.set_used(slot, Used(_JUNK, _JUNK))
        ring.used_flags = ring.used_idx = ring.avail_event = _JUNK
        job = chains.job()
        head = chains.offer(*linked(job.readable, job.writable))
        chains.kick()
        if not await chains.driver.until(partial(_used_idx_is, ring, number + 1)):
            raise Violation(f"used.idx was {_JUNK:#x} by the driver, is {ring.used_idx:#x}, not {number + 1}")
        if (used := ring.used(number)).head != head:
            raise Violation(f"chain {head} was used, entry {number} of the used ring names {used.head}")
        job.done(used.written)
        if probe.offer.echo:
            chains.driver.received()


def _used_idx_is(ring: SplitRing, value: int) -> bool:
    return ring.used_idx == value


@checks("VIO-RING-13")
async def without_event_idx_there_are_no_event_fields(probe: Probe) -> None:
    driver = await probe.driver(start=False)
    driver.make_rings()
    ring = driver.work
    assert isinstance(ring, DriverRing)
    ends = [region.guest_phys_addr + region.memory_size for region in driver.memory.regions]
    ring.avail_addr = ends[0] - (4 + 2 * ring.size)
    ring.used_addr = ends[1] - (4 + 8 * ring.size)
    for each in driver.rings.values():
        await driver.start(each)
    await chains_of(probe, driver).served(3)


@checks("VIO-RING-18", devices=("net",), echo=True, needs=(D.MRG_RXBUF,))
@each_layout
async def what_is_published_together_appears_at_once(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | D.VERSION_1 | D.MRG_RXBUF)
    for number in range(16):
        pair.post(100, count=_PIECES)
        pair.send(frame := frame_of(100 * _PIECES - pair.header_size, number))
        count = _seen_at_first(pair.rx)
        if 0 < count < _PIECES:
            raise Violation(f"a packet takes {_PIECES} buffers, {count} of which were used when the first one was")
        await pair.back(frame)


def _seen_at_first(chains: Chains) -> int:
    """How many chains are used when one is: whoever looks again and again sees it soon; 0: none for a long while."""
    for _ in range(_LOOKS):
        if isinstance(chains, SplitChains):
            if count := (chains.ring.used_idx - chains.last_used) & 0xFFFF:
                return count
        elif isinstance(chains, PackedChains) and chains.ring.has_used:
            places = [chains.ring.next_used.after(i, chains.ring.size) for i in range(_PIECES)]
            return sum(chains.is_used(place) for place in places)
    return 0


# ---- packed rings ----------------------------------------------------------------------------------------------------


@checks("VIO-PACKED-2", needs=(V.RING_PACKED,))
async def a_packed_chain_is_used_by_one_descriptor(probe: Probe) -> None:
    chains = await packed_by_hand(probe, size=16)
    ring = chains.ring
    for _ in range(8):
        job = chains.job()
        entries = _of_three(job)
        place = ring.next_avail
        name = chains.offer(*entries)
        before = [ring.descriptor(place.after(i, ring.size).offset) for i in range(3)]
        chains.kick()
        await chains.done(job)
        after = [ring.descriptor(place.after(i, ring.size).offset) for i in range(3)]
        if after[0].id != name or not chains.is_used(place):
            raise Violation(f"chain {name} was used, and in its first slot stands {after[0]}")
        if after[1:] != before[1:]:
            raise Violation(f"chain {name} of 3 slots was used; of the others were {before[1:]}, and are {after[1:]}")


def _of_three(job: Job) -> list[Entry]:
    """A job in three descriptors."""
    readable = cut(job.readable, (20, 20) if not job.writable else ())
    return linked(readable, cut(job.writable, (20, 20) if not job.readable else ()))


@checks("VIO-PACKED-2", needs=(V.RING_PACKED,))
async def a_packed_chain_of_no_use_is_skipped(probe: Probe) -> None:
    chains = await packed_by_hand(probe, size=16)
    good = Entry(chains.memory.alloc(64), 64, WRITE * probe.device.writes)
    for count in (1, 2, 3):
        entries = [good._replace(flags=good.flags | NEXT)] * count
        await chains.given_back(f"an unmapped buffer behind {count} others", *entries, good._replace(addr=NOWHERE))


@checks("VIO-PACKED-3", needs=(V.RING_PACKED,))
async def packed_rings_of_any_size_wrap(probe: Probe) -> None:
    for size in (3, 5, 100, 32767):
        with about(f"a ring of {size}"):
            chains = await packed_by_hand(probe, size=size, base=(size - 1) * 0x10001 | _FRESH)
            await chains.served(8)


@checks("VIO-PACKED-3", needs=(V.RING_PACKED,))
async def two_flags_make_a_slot_available(probe: Probe) -> None:
    chains = await packed_by_hand(probe, size=3)
    for available in (AVAIL, USED):  # the first lap, and the second
        job = chains.job()
        _, slot, flags = chains.lay(*_of_three(job))
        for others in (0, AVAIL | USED, available ^ AVAIL ^ USED):
            wrong = flags & ~(AVAIL | USED) | others
            chains.ring.set_flags(slot, wrong)
            chains.kick()
            if await chains.driver.until(partial(_flags_are_not, chains.ring, slot, wrong), probe.patience.silence):
                raise Violation(f"a slot with flags {wrong:#x}, where {flags:#x} are available, was used")
        chains.ring.set_flags(slot, flags | _RESERVED)
        chains.kick()
        with about(f"a slot with flags {flags | _RESERVED:#x}"):
            await chains.done(job)


def _flags_are_not(ring: PackedRing, slot: int, flags: int) -> bool:
    return ring.flags(slot) != flags


@checks("VIO-PACKED-4", needs=(V.RING_PACKED,))
async def buffer_ids_come_back_as_they_are(probe: Probe) -> None:
    chains = await packed_by_hand(probe, size=16)
    for name in (0, 15, 16, 0x7FFF, 0xFFFF):
        job = chains.job()
        chains.offer(*_of_three(job), name=name)
        chains.kick()
        await chains.done(job)
    jobs = [chains.job() for _ in range(2)]
    for job in jobs:
        chains.offer(*_of_three(job), name=7)
    chains.kick()
    for job, used in zip(jobs, await chains.used(2), strict=True):
        job.done(used.written)


@checks("VIO-PACKED-7", needs=(V.RING_PACKED,))
async def positions_of_which_half_is_told(probe: Probe) -> None:
    positions = {0x8000: _FRESH, 0x8005: 0x8005_8005, 0x0005: 0x0005_0005}
    for told, position in (*positions.items(), (0, _FRESH), (0, 0)):
        with about(f"SET_VRING_BASE {told:#x} for a ring at {position:#x}"):
            await (await packed_by_hand(probe, size=16, base=position, told=told)).served(3)


# ---- the order of use ------------------------------------------------------------------------------------------------


@checks("VIO-ORDER-1", devices=("net",), needs=(V.RING_PACKED, D.IN_ORDER))
async def a_batch_that_is_read_has_one_used_descriptor(probe: Probe) -> None:
    chains = await packed_by_hand(probe, D.IN_ORDER, size=16, start=False)
    jobs = [chains.job() for _ in range(8)]
    names = [chains.offer(*linked(job.readable)) for job in jobs]
    before = [chains.ring.descriptor(slot) for slot in range(16)]
    await chains.start()
    await chains.used(8)
    after = [chains.ring.descriptor(slot) for slot in range(16)]
    if after[0].id != names[-1] or after[1:] != before[1:]:
        changed = ", ".join(str(slot) for slot in range(16) if after[slot] != before[slot])
        raise Violation(
            f"8 chains were available at once; slot 0 names {after[0].id}, the last chain is {names[-1]}; "
            f"written to: slots {changed}"
        )


@checks("VIO-ORDER-2", devices=("blk", "rng"))
@each_layout
async def each_chain_that_is_written_to_has_a_used_entry(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.IN_ORDER)
    jobs = [chains.job() for _ in range(_BURST)]
    places = [_offered(chains, linked(job.readable, job.writable)) for job in jobs]
    chains.kick()
    await chains.used(_BURST)
    _all_named(chains, places)


@checks("VIO-ORDER-2", devices=("net",), echo=True)
@each_layout
async def each_receive_buffer_has_a_used_entry(probe: Probe, layout: int) -> None:
    driver = await probe.driver(layout | D.IN_ORDER, start=False)
    for index in range(2):
        await driver.start(driver.make_ring(index))
    receive = chains_of(probe, driver, 0)
    places = [_offered(receive, [Entry(receive.memory.alloc(2048), 2048, WRITE)]) for _ in range(_BURST)]
    receive.kick()
    for _ in range(_BURST):
        driver.give()
    driver.kick(driver.work)
    await receive.used(_BURST)
    _all_named(receive, places)


def _offered(chains: Chains, entries: list[Entry]) -> tuple[int, Position]:
    """Offer a chain; its name, and in a packed ring its place."""
    place = chains.ring.next_avail if isinstance(chains, PackedChains) else Position(0, 0)
    return chains.offer(*entries), place


def _all_named(chains: Chains, offered: list[tuple[int, Position]]) -> None:
    """Each chain has a used entry of its own."""
    for number, (name, place) in enumerate(offered):
        if isinstance(chains, SplitChains):
            found = chains.ring.used(number).head
        elif isinstance(chains, PackedChains):
            found = chains.ring.descriptor(place.offset).id if chains.is_used(place) else -1
        if found != name:
            raise Violation(f"{len(offered)} chains were written to, and number {number}, {name}, has no used entry")


@checks("VIO-ORDER-3", needs=(D.IN_ORDER,))
@each_layout
async def with_in_order_chains_are_used_in_order(probe: Probe, layout: int) -> None:
    await _used_in_order(await by_hand(probe, layout | D.IN_ORDER))


@checks("VIO-ORDER-4")
@each_layout
async def without_in_order_too(probe: Probe, layout: int) -> None:
    await _used_in_order(await by_hand(probe, layout))


async def _used_in_order(chains: Chains) -> None:
    for _ in range(4):
        jobs = [chains.job() for _ in range(_BURST)]
        names = [chains.offer(*linked(job.readable, job.writable)) for job in jobs]
        chains.kick()
        if (done := [used.head for used in await chains.used(_BURST)]) != names:
            raise Violation(f"chains {names} were offered in this order, used were {done}")
        if chains.probe.offer.echo:
            chains.driver.received()

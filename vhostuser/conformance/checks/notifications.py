"""Kicks and calls: when they are asked for, when they come, and that none is lost."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.chains import PackedChains, SplitChains, by_hand, linked, packed_by_hand, split_by_hand
from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.packets import Pair, frame_of
from vhostuser.conformance.violation import Violation, about
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.packed import Event, EventFlags
from vhostuser.frontend.rings import full_fence
from vhostuser.frontend.split import NO_NOTIFICATION
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import VringFd
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.chains import Chains
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe

D, R, V = DriverFeature, FrontendRequest, VhostFeature
_FAR = 0x4000  # chains ahead
_NO_SLOT = 0x7FFF
_ROUNDS = 150
_RACES = 320
_LOOKS = 1000
_MODES = (0, D.EVENT_IDX)


# ---- calls -----------------------------------------------------------------------------------------------------------


async def _called(chains: Chains, expected: bool, why: str) -> None:
    """The driver is called, or it is not."""
    patience = chains.probe.patience
    within = patience.answer if expected else patience.silence
    if await chains.driver.until(lambda: chains.calls() > 0, within) != expected:
        raise Violation(f"{why}: {'no call came' if expected else 'a call came'}")


@checks("VIO-NOTIFY-1", needs=(D.EVENT_IDX,))
async def a_call_when_used_event_is_passed(probe: Probe) -> None:
    chains = await split_by_hand(probe, D.EVENT_IDX, base=0xFFF8)
    ring = chains.ring
    await chains.served()
    await _called(chains, True, "the first chain after a start was used, and used_event is its number")
    for ahead, count in ((0, 1), (1, 1), (3, 4), (4, 4), (-1, 2), (_FAR, 2), (0, 1)):
        ring.used_event = ring.used_idx + ahead
        told = f"used_event {ring.used_event:#x}, used.idx from {ring.used_idx:#x} to {ring.used_idx + count:#x}"
        await chains.served(count)
        await _called(chains, 0 <= ahead < count, told)


@checks("VIO-NOTIFY-2")
async def a_call_unless_a_flag_says_no(probe: Probe) -> None:
    chains = await split_by_hand(probe)
    ring = chains.ring
    for flags in (0, NO_NOTIFICATION, 0):
        ring.avail_flags = flags
        for _ in range(2):
            ring.used_event = ring.used_idx + _FAR
            chains.calls()
            await chains.served()
            await _called(chains, not flags, f"a chain was used, avail.flags is {flags}")


@checks("VIO-PACKED-8", needs=(V.RING_PACKED,))
async def the_event_word_asks_for_all_calls_or_for_none(probe: Probe) -> None:
    for mode in _MODES:
        chains = await packed_by_hand(probe, mode)
        chains.calls()
        for flags in (EventFlags.ENABLE, EventFlags.DISABLE, EventFlags.ENABLE):
            chains.ring.driver_event = Event(0, flags)
            for _ in range(2):
                await chains.served()
                await _called(
                    chains, flags == EventFlags.ENABLE, f"a chain was used, the driver's word is {flags.name}"
                )


@checks("VIO-PACKED-8", needs=(V.RING_PACKED, D.EVENT_IDX))
async def the_event_word_asks_for_a_call_at_a_slot(probe: Probe) -> None:
    chains = await packed_by_hand(probe, D.EVENT_IDX, size=31)
    ring = chains.ring
    job = chains.job()
    each = len(job.readable) + len(job.writable)
    await chains.served()
    await _called(chains, True, "the first chain after a start was used")
    for ahead, count in ((0, 1), (1, 1), (3, 4), (4, 4), (5, 2), (0, 1)):
        slot = ring.next_used.after(ahead * each, ring.size)
        ring.driver_event = Event(slot.word, EventFlags.DESC)
        await chains.served(count)
        await _called(chains, ahead < count, f"{count} chains were used, and number {ahead} begins at {slot}")
    ring.driver_event = Event(_NO_SLOT, EventFlags.DESC)
    await chains.served(ring.size // each + 1)
    await _called(chains, False, f"a call is asked for at slot {_NO_SLOT} of {ring.size}")


@checks("VIO-NOTIFY-4", needs=(D.EVENT_IDX,))
@each_layout
async def calls_when_nobody_knows_what_was_told(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.EVENT_IDX)
    await _called(chains, True, "the ring was started")
    _want_no_call(chains)
    await chains.served()
    await _called(chains, True, "the first chain after a start was used")
    _want_no_call(chains)
    await chains.served()
    await _called(chains, False, "the second chain after a start was used, and none of the next is to be told")
    fd = probe.eventfd(name="new call")
    await chains.driver.connection.accepted(R.SET_VRING_CALL, VringFd(probe.device.ring), [fd])
    await chains.driver.signalled(fd, "a new call descriptor")


def _want_no_call(chains: Chains) -> None:
    """Ask for a call far ahead."""
    if isinstance(chains, SplitChains):
        chains.ring.used_event = chains.ring.used_idx + _FAR
    elif isinstance(chains, PackedChains):
        chains.ring.driver_event = Event(_NO_SLOT, EventFlags.DESC)


# ---- kicks -----------------------------------------------------------------------------------------------------------


def _asks(chains: Chains, place: int | None = None) -> bool:
    """Whether the device asks for a kick for the next chain, or for that at a place."""
    place = chains.place if place is None else place
    if isinstance(chains, SplitChains):
        ring = chains.ring
        return ring.avail_event == place if ring.event_idx else not ring.used_flags & NO_NOTIFICATION
    assert isinstance(chains, PackedChains)
    event = chains.ring.device_event
    if event.flags == EventFlags.DESC:
        return chains.ring.event_idx and event.position == place
    return event.flags == EventFlags.ENABLE


async def _asks_or_looks(chains: Chains) -> None:
    """A device that does not ask for a kick has to look for chains by itself."""
    if await chains.driver.until(lambda: _asks(chains), chains.probe.patience.silence):
        return
    job = chains.job()
    chains.offer(*linked(job.readable, job.writable))
    with about("the device has not asked for a kick, and gets none"):
        await chains.done(job)


@checks("VIO-NOTIFY-3")
async def a_kick_is_asked_for(probe: Probe) -> None:
    for mode in _MODES:
        chains = await split_by_hand(probe, mode, base=0xFFFD)
        for _ in range(6):
            await _asks_or_looks(chains)
            await chains.served()
            if chains.ring.event_idx and (flags := chains.ring.used_flags):
                raise Violation(f"EVENT_IDX is negotiated, and used.flags is {flags:#x}")


@checks("VIO-PACKED-9", needs=(V.RING_PACKED,))
async def a_kick_for_the_next_slot_is_asked_for(probe: Probe) -> None:
    for mode in _MODES:
        chains = await packed_by_hand(probe, mode, size=7)
        for _ in range(10):
            await _asks_or_looks(chains)
            await chains.served()


@checks("VIO-NOTIFY-5")
@each_layout
async def no_notification_is_lost(probe: Probe, layout: int) -> None:
    for mode in _MODES:
        driver = await probe.driver(layout | mode)
        for number in range(_ROUNDS):
            count = 1 + number % 3
            for _ in range(count):
                driver.give()
            driver.kick_if_wanted(driver.work)
            with about(f"round {number}, {'with' if mode else 'without'} EVENT_IDX"):
                await _wait(driver, count, probe.patience.answer)


@checks("VIO-NOTIFY-5")
@each_layout
async def a_kick_while_the_device_falls_asleep(probe: Probe, layout: int) -> None:
    """A driver that looks without a pause adds its next chain sooner or later after it saw the last one used."""
    for mode in _MODES:
        chains = await by_hand(probe, layout | mode)
        job = chains.job()
        for number in range(_RACES):
            place = chains.place
            offer = chains.prepare(*linked(job.readable, job.writable))
            _linger(number)
            offer()
            full_fence()
            if kicked := _asks(chains, place):
                chains.kick()
            if not _used_soon(chains) and not await chains.driver.until(partial(_used, chains)):
                told = "asked for a kick and got one" if kicked else "did not ask for a kick, and sleeps"
                raise Violation(f"round {number}, {'with' if mode else 'without'} EVENT_IDX: the device {told}")
            if number % 8 == 7 and probe.device.echo is not None:
                chains.driver.received()


def _linger(number: int) -> None:
    """Let some time pass, up to two milliseconds, of which a look at the clock takes the least."""
    until = time.perf_counter() + 2e-3 * (number % 32 / 32) ** 2
    while time.perf_counter() < until:
        pass


def _used_soon(chains: Chains) -> bool:
    """Whether a chain is used while we look without a pause."""
    return any(_used(chains) for _ in range(_LOOKS))


def _used(chains: Chains) -> bool:
    return bool(chains.reap())


async def _wait(driver: Driver, count: int, seconds: float) -> None:
    """Wait for so many chains, asleep until a call comes."""
    while count > 0:
        with trio.move_on_after(seconds) as scope:
            await driver.work.wait_used()
        if scope.cancelled_caught:
            raise Violation(f"nothing was used, or no call came, in {seconds:g} s")
        count -= len(driver.collect())
    if driver.device.echo is not None:
        driver.received()


@checks("VIO-NOTIFY-6", devices=("net",), echo=True)
@each_layout
async def a_burst_costs_a_kick_and_few_calls(probe: Probe, layout: int) -> None:
    pair = await Pair.start(probe, layout | D.VERSION_1, size=512)
    pair.post(2048, count=400)
    for count in (1, 128, 128):
        await pair.driver.until(lambda: _asks(pair.tx), probe.patience.silence)  # it is asleep, if it ever is
        for number in range(count):
            pair.lay(frame_of(60, number))
        pair.tx.calls()
        pair.tx.kick()
        await pair.tx.used(count)
        await pair.packets(count)
        if (calls := pair.tx.calls()) > 2:
            raise Violation(f"{count} chains were available at once, and {calls} calls came")


# ---- what wakes a device ---------------------------------------------------------------------------------------------


@checks("VIO-PUMP-2")
async def a_ring_without_a_kick_descriptor_is_looked_at(probe: Probe) -> None:
    driver = await probe.driver(start=False)
    driver.make_rings()
    for ring in driver.rings.values():
        await driver.set_up(ring)
        await driver.enable(ring)
        await driver.connection.accepted(R.SET_VRING_KICK, VringFd(ring.index, no_fd=True))
    for _ in range(3):
        driver.give()
        await driver.used(1)
        await trio.sleep(probe.patience.silence)  # the device looks less often


@checks("VIO-PUMP-2")
async def a_ring_whose_kick_pipe_is_at_its_end_is_looked_at(probe: Probe) -> None:
    driver = await probe.driver()
    reading, writing = probe.pipe()
    await driver.connection.accepted(R.SET_VRING_KICK, VringFd(driver.work.index), [reading])
    driver.give()
    probe.poke(reading, writing)
    await driver.used(1)
    probe.drop(writing)
    for _ in range(3):
        driver.give()
        await driver.used(1)


@checks("VIO-PUMP-3")
@each_layout
async def requests_swallow_no_kick(probe: Probe, layout: int) -> None:
    driver = await probe.driver(layout)
    ring, connection = driver.work, driver.connection
    for number in range(40):
        driver.give()
        driver.kick_if_wanted(ring)
        match number % 3:
            case 0:
                await connection.accepted(R.SET_VRING_CALL, VringFd(ring.index), [ring.call_fd.fileno()])
            case 1:
                await driver.enable(ring)
            case 2:
                await driver.tell_memory()
        driver.give()
        driver.kick_if_wanted(ring)
        await driver.used(2)
        if driver.device.echo is not None:
            driver.received()

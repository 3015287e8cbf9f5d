"""Runs checks against a back-end, and keeps what came of each.

Must not know: what a check proves, or how results are shown.

How: what the back-end offers is asked once. Then each check gets a back-end and a probe, and has a time to end in.
Whatever a check does, afterwards the back-end has to live, to serve the next front-end, and to hold no more descriptors
and mappings than before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.check import Check, NotApplicable, Offer, Violation
from vhostuser.conformance.connection import Patience
from vhostuser.conformance.probe import Probe
from vhostuser.conformance.target import BackEnd, Target
from vhostuser.errors import VhostUserError
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.devices import Device
    from vhostuser.peer.footprint import Footprint
    from vhostuser.transcript.entries import Transcript

log = logging.getLogger(__name__)

TIME = 90.0
"""Seconds that a check may take, all its waits together."""
_LOOK = 0.01


class Outcome(Enum):
    """What came of a check, or of a statement."""

    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        check: The check.
        outcome: What came of it.
        text: Why, unless it passed: what was expected, what was sent and what came.
        harm: Whether the back-end died, hung or leaked: nothing that it may choose.
        transcript: What happened, of a check that failed.
        seconds: How long it took.
    """

    check: Check
    outcome: Outcome
    text: str = ""
    harm: bool = False
    transcript: Transcript | None = None
    seconds: float = 0.0


async def offer_of(target: Target, device: Device, patience: Patience) -> Offer:
    """What a back-end offers. Raises Violation if it does not say."""
    async with target.back_end() as back_end:
        probe = Probe(back_end, Offer(0, 0), device, patience)
        try:
            connection = await probe.connect()
            virtio = await connection.value(FrontendRequest.GET_FEATURES)
            protocol = 0
            if virtio & VhostFeature.PROTOCOL_FEATURES:
                protocol = await connection.value(FrontendRequest.GET_PROTOCOL_FEATURES)
            probe.offer = Offer(virtio, protocol)
            return Offer(virtio, protocol, await _echoes(probe))
        finally:
            probe.close()


async def _echoes(probe: Probe) -> bool:
    """Whether what a driver sends comes back to it."""
    if probe.device.echo is None:
        return False
    try:
        await (await probe.driver()).effective()
    except VhostUserError:
        return False
    return True


async def run_checks(
    target: Target,
    checks: Sequence[Check],
    device: Device,
    offer: Offer,
    told: Callable[[Result], None],
    *,
    patience: Patience,
    jobs: int = 1,
) -> None:
    """Run checks, and tell of each when it is done.

    Args:
        target: Where back-ends come from.
        checks: What to run.
        device: What kind of device it is.
        offer: What it offers.
        told: Called with each result.
        patience: How long is waited for what.
        jobs: How many run at a time; one where they share a back-end.
    """
    limit = trio.CapacityLimiter(1 if target.shared else jobs)

    async def run(check: Check) -> None:
        async with limit:
            told(await run_check(target, check, device, offer, patience))

    async with trio.open_nursery() as nursery:
        for check in sorted(checks, key=lambda check: not check.slow):
            nursery.start_soon(run, check)


async def run_check(target: Target, check: Check, device: Device, offer: Offer, patience: Patience) -> Result:
    """Run one check."""
    if check.devices and device.name not in check.devices:
        return Result(check, Outcome.NOT_APPLICABLE, f"for {' and '.join(check.devices)} devices")
    if missing := offer.missing(*check.needs):
        return Result(check, Outcome.NOT_APPLICABLE, f"{', '.join(missing)} not offered")
    if check.echo and not offer.echo:
        return Result(check, Outcome.NOT_APPLICABLE, "what is sent does not come back")
    begin = trio.current_time()
    async with target.back_end() as back_end:
        result = await _run_at(back_end, check, device, offer, patience)
        if result.outcome is Outcome.FAIL:
            await target.failed()
    return _timed(result, trio.current_time() - begin)


async def _run_at(back_end: BackEnd, check: Check, device: Device, offer: Offer, patience: Patience) -> Result:
    probe = Probe(back_end, offer, device, patience)
    fault, harm = "", ""
    try:
        before = await _at_rest(back_end, offer, device, patience)
        fault = await _carried_out(check, probe)
        probe.close()
        harm = await _harm(back_end, before, offer, device, patience)
    except NotApplicable as reason:
        return Result(check, Outcome.NOT_APPLICABLE, str(reason))
    finally:
        probe.close()
    if not fault and not harm:
        return Result(check, Outcome.PASS)
    scene = f"{check.name}, {', '.join(check.statements)}: {fault or harm}"
    transcript = probe.record.transcript("vhostuser conform", str(back_end.path), scene)
    return Result(check, Outcome.FAIL, "; ".join(filter(None, (fault, harm))), bool(harm), transcript)


async def _carried_out(check: Check, probe: Probe) -> str:
    """What a check finds; empty if nothing. Raises NotApplicable."""
    with trio.move_on_after(TIME):
        try:
            await check.run(probe)
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, NotApplicable):
                raise cause from None
            if isinstance(cause, VhostUserError):
                return str(cause)
            log.exception("%s", check.name)  # a check's own fault must not end the run
            return f"the check itself is broken: {cause!r}"
        return ""
    return f"not done after {TIME:g} s"


def _cause(error: Exception) -> Exception:
    """What happened first, in whatever task it was."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _at_rest(back_end: BackEnd, offer: Offer, device: Device, patience: Patience) -> Footprint | None:
    """What the back-end holds when nobody is connected; it has served somebody before, so that all of it is there."""
    if fault := await _greets(back_end, offer, device, patience):
        raise Violation(f"before the check: {fault}")
    held = back_end.footprint()
    with trio.move_on_after(patience.answer):
        while (later := await _later(back_end)) != held:
            held = later
    return held


async def _later(back_end: BackEnd) -> Footprint | None:
    await trio.sleep(_LOOK)
    return back_end.footprint()


async def _harm(back_end: BackEnd, before: Footprint | None, offer: Offer, device: Device, patience: Patience) -> str:
    """What the back-end has come to, in words; empty if it is as it was."""
    if (death := await back_end.death(_LOOK)) is not None:
        return f"the back-end died: {death}"
    if fault := await _greets(back_end, offer, device, patience):
        death = await back_end.death(patience.silence)
        return f"the back-end died: {death}" if death else f"afterwards: {fault}"
    kept = ""
    with trio.move_on_after(patience.answer):
        while kept := _growth(before, back_end.footprint()):  # noqa: ASYNC110 - nothing tells
            await trio.sleep(_LOOK)
    return f"left behind: {kept}" if kept else ""


def _growth(before: Footprint | None, after: Footprint | None) -> str:
    return "" if before is None or after is None else before.growth(after)


async def _greets(back_end: BackEnd, offer: Offer, device: Device, patience: Patience) -> str:
    """Whether it answers the next front-end; empty, or why not."""
    probe = Probe(back_end, offer, device, patience)
    try:
        await (await probe.connect()).talks()
    except VhostUserError as fault:
        return str(fault)
    finally:
        probe.close()
    return ""


def _timed(result: Result, seconds: float) -> Result:
    return Result(result.check, result.outcome, result.text, result.harm, result.transcript, seconds)

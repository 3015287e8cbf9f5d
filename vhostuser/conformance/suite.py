"""Runs checks against a back-end, and keeps what came of each.

Must not know: what a check proves, or how results are shown.

How: what the back-end offers is asked once. Then each check gets a back-end and a probe, and has a time to end in.
Whatever a check does, afterwards the back-end has to live, to serve the next front-end, and to hold no more descriptors
and mappings than before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.again import goes_otherwise
from vhostuser.conformance.check import Check
from vhostuser.conformance.connection import Connection, Patience
from vhostuser.conformance.harm import SILENT, at_rest, harm_of
from vhostuser.conformance.offer import Offer
from vhostuser.conformance.probe import Probe
from vhostuser.conformance.target import BackEnd, Target
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.errors import VhostUserError
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.devices import Device
    from vhostuser.transcript.entries import Transcript

log = logging.getLogger(__name__)

TIME = 90.0
"""Seconds that a check may take, all its waits together."""


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
        harm: The kind of harm that came of it (:class:`Harm <vhostuser.conformance.harm.Harm>`), if any did: nothing
            that a back-end may choose.
        transcript: What happened, of a check that failed.
        otherwise: What was different when that was played again; empty if nothing was, None if it was not played.
        seconds: How long it took.
    """

    check: Check
    outcome: Outcome
    text: str = ""
    harm: str = ""
    transcript: Transcript | None = None
    otherwise: str | None = None
    seconds: float = 0.0


async def offer_of(target: Target, device: Device, patience: Patience) -> Offer:
    """What a back-end offers; nothing if it does not say so as it has to, about which the checks will tell more.

    Raises:
        Violation: It cannot be reached.
    """
    async with target.back_end() as back_end:
        probe = Probe(back_end, Offer(0, 0), device, patience)
        try:
            connection = await probe.connect()
            try:
                probe.offer = await _told(connection)
            except Violation:
                return Offer(0, 0, echo=False)
            offer = replace(probe.offer, echo=await _echoes(probe))
            back_end.spoiled = False
            return offer
        finally:
            probe.close()


async def _told(connection: Connection) -> Offer:
    virtio = await connection.value(FrontendRequest.GET_FEATURES)
    protocol = 0
    if virtio & VhostFeature.PROTOCOL_FEATURES:
        protocol = await connection.value(FrontendRequest.GET_PROTOCOL_FEATURES)
    return Offer(virtio, protocol)


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
    again: bool = False,
    enough: Callable[[], bool] = lambda: False,
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
        again: Whether what fails is played once more.
        enough: Asked after each result: whether to leave the rest.
    """
    left = iter(sorted(checks, key=lambda check: not check.slow))

    async def work() -> None:
        for check in left:
            told(await run_check(target, check, device, offer, patience, again=again))
            if enough():
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(1 if target.shared else jobs):
            nursery.start_soon(work)


async def run_check(
    target: Target, check: Check, device: Device, offer: Offer, patience: Patience, *, again: bool = False
) -> Result:
    """Run one check; `again`: if it fails, play its conversation to see if it goes the same way."""
    if check.devices and device.name not in check.devices:
        return Result(check, Outcome.NOT_APPLICABLE, f"for {' and '.join(check.devices)} devices")
    if missing := offer.missing(*check.needs):
        return Result(check, Outcome.NOT_APPLICABLE, f"{', '.join(missing)} not offered")
    if check.echo and not offer.echo:
        return Result(check, Outcome.NOT_APPLICABLE, "what is sent does not come back")
    begin = trio.current_time()
    async with target.back_end() as back_end:
        result = await _run_at(back_end, check, device, offer, patience)
        back_end.spoiled = result.outcome is Outcome.FAIL
    result = replace(result, seconds=trio.current_time() - begin)
    if again and result.transcript is not None:
        otherwise = await goes_otherwise(target, result.transcript.entries, result.harm, patience)
        result = replace(result, otherwise=otherwise)
    return result


async def _run_at(back_end: BackEnd, check: Check, device: Device, offer: Offer, patience: Patience) -> Result:
    probe = Probe(back_end, offer, device, patience)
    try:
        before = await at_rest(back_end, patience)
        fault = await _carried_out(check, probe)
        if fault:
            await probe.look()
        probe.close()
        harm = await harm_of(back_end, before, patience)
    except NotApplicable as reason:
        return Result(check, Outcome.NOT_APPLICABLE, str(reason))
    except Violation as violation:
        return Result(check, Outcome.FAIL, str(violation), SILENT)
    finally:
        probe.close()
    if not fault and not harm:
        return Result(check, Outcome.PASS)
    text = "; ".join(filter(None, (fault, harm.text if harm else "")))
    scene = f"{check.name}, {', '.join(check.statements)}: {text}"
    transcript = probe.record.transcript("vhostuser conform", str(back_end.path), scene)
    return Result(check, Outcome.FAIL, text, harm.kind if harm else "", transcript)


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

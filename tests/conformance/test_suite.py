"""What becomes of a check, and of the back-end that it was made with."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vhostuser.conformance.check import Check
from vhostuser.conformance.connection import Patience
from vhostuser.conformance.devices import DEVICES
from vhostuser.conformance.offer import Offer
from vhostuser.conformance.probe import Probe
from vhostuser.conformance.suite import Outcome, Result, offer_of, run_check, run_checks
from vhostuser.conformance.target import BackEnd, Kept, Spawned, TargetError
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.limits import Limits
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.requests import FrontendRequest as R

SCRIPTED = Path(__file__).with_name("scripted.py")
PATIENCE = Patience(answer=1.0, silence=0.05)
OFFER = Offer(1 << 32, 0, echo=False)
RNG = DEVICES["rng"]
Run = Callable[[Probe], Awaitable[None]]


def command(wrong: str) -> str:
    return f"{sys.executable} {SCRIPTED} {wrong} {{socket}}"


async def own(probe: Probe) -> None:
    """Does nothing wrong, and has the back-end do it."""
    connection = await probe.connect()
    await connection.send(connection.frame(R.SET_OWNER))


async def well(probe: Probe) -> None:
    await (await probe.connect()).talks()


async def fails(probe: Probe) -> None:
    await (await probe.connect()).talks()
    raise Violation("it is too slow")


async def not_here(probe: Probe) -> None:
    raise NotApplicable("no such thing")


async def broken(probe: Probe) -> None:
    raise KeyError("oops")


def check(run: Run, **more: Any) -> Check:
    return Check("made_up", ("VU-NEG-10",), run, **more)


async def result_of(run: Run, wrong: str = "nothing", *, again: bool = False) -> Result:
    return await run_check(Spawned(command(wrong)), check(run), RNG, OFFER, PATIENCE, again=again)


async def test_a_check_that_passes() -> None:
    result = await result_of(well)
    assert (result.outcome, result.text, result.transcript) == (Outcome.PASS, "", None)


async def test_a_check_that_fails_has_its_conversation() -> None:
    result = await result_of(fails, again=True)
    assert (result.outcome, result.text, result.harm) == (Outcome.FAIL, "it is too slow", "")
    assert result.transcript is not None
    assert result.transcript.scene == "made_up, VU-NEG-10: it is too slow"
    assert result.otherwise == ""


async def test_a_check_that_does_not_apply() -> None:
    result = await result_of(not_here)
    assert (result.outcome, result.text) == (Outcome.NOT_APPLICABLE, "no such thing")


async def test_a_check_that_is_broken_is_a_failure_and_ends_nothing() -> None:
    result = await result_of(broken)
    assert result.outcome is Outcome.FAIL
    assert result.text == "the check itself is broken: KeyError('oops')"


@pytest.mark.parametrize(
    ("wrong", "harm", "text"),
    [
        ("dies", "died", "the back-end died: SIGABRT"),
        ("hangs", "silent", "afterwards: expected the answer to GET_FEATURES .* nothing came in 1 s"),
        ("keeps", "kept", r"left behind: \+1 null"),
    ],
)
async def test_harm_is_a_failure_and_is_done_again(wrong: str, harm: str, text: str) -> None:
    result = await result_of(own, wrong, again=True)
    assert (result.outcome, result.harm) == (Outcome.FAIL, harm)
    assert re.match(text, result.text), result.text
    assert result.otherwise == ""


async def test_what_is_not_done_again_is_told(tmp_path: Path) -> None:
    result = await result_of(own, f"once={tmp_path / 'done'}", again=True)
    assert (result.outcome, result.harm) == (Outcome.FAIL, "died")
    assert result.otherwise == "it did no harm (there: died)"


@pytest.mark.parametrize(
    ("needed", "reason"),
    [
        ({"needs": (ProtocolFeature.MQ,)}, "MQ not offered"),
        ({"devices": ("net", "blk")}, "for net and blk devices"),
        ({"echo": True}, "what is sent does not come back"),
    ],
)
async def test_what_is_not_offered_needs_no_back_end(needed: dict[str, object], reason: str) -> None:
    result = await run_check(Spawned("no-such-program {socket}"), check(well, **needed), RNG, OFFER, PATIENCE)
    assert (result.outcome, result.text) == (Outcome.NOT_APPLICABLE, reason)


async def test_what_is_offered_is_asked() -> None:
    assert await offer_of(Spawned(command("nothing")), RNG, PATIENCE) == OFFER
    assert await offer_of(Spawned(command("cuts")), RNG, PATIENCE) == Offer(0, 0, echo=False)


async def test_kept_back_ends_are_few_and_new_ones_follow_failures() -> None:
    target = Kept(command("nothing"))
    seen: list[Path] = []
    order: list[str] = []

    async def look(probe: Probe) -> None:
        seen.append(probe.back_end.path)
        if len(seen) == 2:
            raise Violation("the second one fails")

    checks = [check(look) for _ in range(4)]
    await run_checks(target, checks, RNG, OFFER, lambda r: order.append(r.outcome.value), patience=PATIENCE, jobs=1)
    await target.aclose()
    assert order == ["pass", "fail", "pass", "pass"]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert not seen[3].exists()


async def test_slow_checks_begin_first() -> None:
    begun: list[str] = []

    def noted(name: str, *, slow: bool) -> Check:
        async def run(probe: Probe) -> None:
            begun.append(name)
            await (await probe.connect()).talks()

        return Check(name, ("VU-NEG-10",), run, slow=slow)

    target = Kept(command("nothing"))
    checks = [noted("a", slow=False), noted("b", slow=True)]
    await run_checks(target, checks, RNG, OFFER, lambda result: None, patience=PATIENCE)
    await target.aclose()
    assert begun == ["b", "a"]


async def test_who_does_not_listen_cannot_be_tested(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No such file"):
        await BackEnd(tmp_path / "nobody.sock").connect(Limits())

"""The checks find faults, and none in a back-end without them."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.conformance import protocol_faults, virtio_faults
from tests.conformance.virtio_faults import Fault
from tests.faults.copies import change, faulty_copy
from vhostuser.conformance import checks as _checks  # noqa: F401 - fills the register
from vhostuser.conformance.check import all_checks
from vhostuser.conformance.connection import Patience
from vhostuser.conformance.devices import DEVICES
from vhostuser.conformance.suite import Outcome, Result, offer_of, run_check
from vhostuser.conformance.target import BackEnd, Target
from vhostuser.peer.program import Program, started

GROUPS = virtio_faults.GROUPS | protocol_faults.GROUPS
PATIENCE = Patience(answer=1.5, silence=0.05)
CHECKS = {check.name: check for check in all_checks()}
IN_A_ROW = 9  # checks that share a program
INTERPRETED = {"VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0"}
KEEPER = Path(__file__).with_name("keeper.py")
FAULTS = [fault for _, faults in GROUPS.values() for fault in faults]
CASES = [pytest.param(fault, name, id=name) for fault in FAULTS for name in fault.finders]


class Running(Target):
    """A program that serves one check after the other, whatever it did in the one before."""

    name = "running"
    shared = True

    def __init__(self, program: Program) -> None:
        self._back_end = BackEnd(program.path, program)

    @asynccontextmanager
    async def back_end(self) -> AsyncIterator[BackEnd]:
        yield self._back_end


async def run_some(tree: Path | None, words: str, names: Sequence[str], results: dict[str, Result]) -> None:
    """Run checks against a copy of the package in a tree, or against the package itself."""
    env = {} if tree is None else {**INTERPRETED, "PYTHONPATH": str(tree)}
    kind = words.partition(" ")[0]
    command, device = f"-m vhostuser {words} --socket-path={{socket}}", DEVICES["rng" if kind == "keeper" else kind]
    if kind == "keeper":
        command = f"{KEEPER} {{socket}}"
    async with started(f"{sys.executable} {command}", env=env) as program:
        target = Running(program)
        offer = await offer_of(target, device, PATIENCE)
        for name in names:
            results[name] = await run_check(target, CHECKS[name], device, offer, PATIENCE)


def run_all(trees: Mapping[str, Path | None]) -> dict[str, Result]:
    """Run the checks of all groups, each against a tree, some of them at a time: they wait most of their time."""
    results: dict[str, Result] = {}

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for group, tree in trees.items():
                words, faults = GROUPS[group]
                names = [name for fault in faults for name in fault.finders]
                for first in range(0, len(names), IN_A_ROW):
                    nursery.start_soon(run_some, tree, words, names[first : first + IN_A_ROW], results)

    trio.run(run)
    return results


def make_copy(tree: Path, group: str) -> Path:
    """Put a copy there that has all faults of a group."""
    first, *others = GROUPS[group][1]
    faulty_copy(tree, first.module, ((first.old, first.new),))
    for fault in others:
        change(tree / "vhostuser" / fault.module, ((fault.old, fault.new),))
    return tree


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What came of each fault's check."""
    folder = tmp_path_factory.mktemp("faults")
    return run_all({group: make_copy(folder / str(number), group) for number, group in enumerate(GROUPS)})


@pytest.fixture(scope="module")
def controls() -> dict[str, Result]:
    """What came of the same checks against the package as it is."""
    return run_all(dict.fromkeys(GROUPS))


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_a_fault_is_found(fault: Fault, name: str, verdicts: dict[str, Result]) -> None:
    result = verdicts[name]
    assert result.outcome is Outcome.FAIL
    shows = fault.finders[name]
    assert re.search(shows, result.text), f"found for another reason than {shows!r}: {result.text}"


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_no_fault_is_found_where_none_is(fault: Fault, name: str, controls: dict[str, Result]) -> None:
    assert controls[name].outcome is Outcome.PASS, f"{fault.module}: {controls[name].text}"

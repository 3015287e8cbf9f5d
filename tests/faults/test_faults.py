"""Each fault of the table is noticed by the test that names the statement, in a copy of the package that has it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from runpy import run_path

import pytest

from tests.faults.copies import ROOT, change, changed, faulty_copy
from tests.faults.table import FAULTS, Fault

COPIED = ("tests", "scripts", "protocol-spec")
UNUSED = shutil.ignore_patterns("guest", "src")  # what Python compiled stays of use
AT_A_TIME = 3
TIMEOUT = 60

#: What only a hang takes is awaited for less long: a hang is what these tests look for.
SHORTER = ("DEADLINE = 20.0", "DEADLINE = 4.0")


def copy(tree: Path, fault: Fault) -> None:
    """Put the package with this fault there, and its tests."""
    faulty_copy(tree, fault.module, fault.changes)
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=UNUSED)
    shutil.copy(ROOT / "pyproject.toml", tree)
    change(tree / "tests" / "hostile" / "victim.py", (SHORTER,))


def verdict(tree: Path, fault: Fault) -> subprocess.CompletedProcess[str]:
    """Run the fault's test over a copy that has the fault."""
    copy(tree, fault)
    words = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"tests/{fault.test}"]
    interpreted = {"VHOSTUSER_EDITION": "interpreted", "VHOSTUSER_REQUIRE_COMPILED": "0", "PYTHONPATH": str(tree)}
    return subprocess.run(
        words, cwd=tree, env={**os.environ, **interpreted}, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """What came of each fault; some are tried at a time."""
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {fault.name: pool.submit(verdict, folder / str(i), fault) for i, fault in enumerate(FAULTS)}


def test_the_faults_tests_name_their_statements() -> None:
    proofs = run_path(str(ROOT / "scripts" / "spec-coverage"))["proofs"]()
    strangers = [
        fault.name for fault in FAULTS if f"tests/{fault.test}".partition("[")[0] not in proofs[fault.statement]
    ]
    assert not strangers


def test_a_text_that_moved_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"a\.py: the text of a fault is there 0 times, not once: 'x = 1'"):
        changed("y = 1", (("x = 1", "x = 2"),), "a.py")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault: Fault, verdicts: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    ran = verdicts[fault.name].result()
    assert ran.returncode == 1, f"not noticed:\n{ran.stdout}{ran.stderr}"
    assert re.search(fault.shows, ran.stdout), f"noticed for another reason than {fault.shows!r}:\n{ran.stdout}"

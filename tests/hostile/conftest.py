"""The victim of every test here: attacked in the test, and afterwards shown to be unharmed."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.hostile.attack import Running
from tests.hostile.victim import Victim, serving, unharmed
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.runtime.groups import INTERRUPT, allow_interrupts

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
HUGEPAGES = 16


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """As the program does at its start: system calls that block can be interrupted."""
    before = signal.getsignal(INTERRUPT)
    allow_interrupts()
    yield
    signal.signal(INTERRUPT, before)


@pytest.fixture
async def victim(tmp_path: Path, interrupts: None) -> AsyncIterator[Victim]:
    async with serving(tmp_path / "vhost.sock") as victim, unharmed(victim):
        yield victim


@pytest.fixture
async def attacker(victim: Victim) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated, REPLY_ACK included, and done nothing else."""
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES)
        yield front_end


@pytest.fixture
async def running(victim: Victim) -> AsyncIterator[Running]:
    """A front-end with both rings running, and their memory unsealed."""
    with GuestRam(seals=0) as memory:
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, memory)) as driver:
                yield Running(front_end, memory, driver)


@pytest.fixture
def hugepages() -> Iterator[int]:
    """Enough free huge pages for a guest; their number. Having none is a failure, never a skip."""
    before = NR_HUGEPAGES.read_text()
    if _free_hugepages() < HUGEPAGES:
        NR_HUGEPAGES.write_text(str(int(before) + HUGEPAGES))
    free = _free_hugepages()
    assert free >= HUGEPAGES, f"{free} huge pages are free, {HUGEPAGES} are needed: set {NR_HUGEPAGES}"
    yield free
    NR_HUGEPAGES.write_text(before)


def _free_hugepages() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name == "HugePages_Free:":
            return int(value)
    return 0

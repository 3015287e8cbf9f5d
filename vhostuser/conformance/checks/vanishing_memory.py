"""Memory whose file is cut short while it is used.

Nothing here may look at what was cut off: this process would be killed as the back-end must not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.chains import INDIRECT, Entry, by_hand, linked
from vhostuser.conformance.check import checks, each_layout
from vhostuser.frontend.features import DriverFeature

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe

D = DriverFeature
_CUT = 1  # the memory region


async def _cut(probe: Probe, driver: Driver) -> None:
    """Cut the memory off when whatever was under way is done."""
    await probe.pause(probe.patience.silence)
    probe.resize(driver.memory.regions[_CUT].fd.fileno(), 0)


async def _breaks(driver: Driver, index: int, what: str) -> None:
    """Kick: the ring has to be told broken."""
    ring = driver.rings[index]
    driver.kick(ring)
    await driver.signalled(ring.err_fd.fileno(), f"{what} was cut off: err of vring {index}")
    await driver.connection.talks()


async def _with_ring(probe: Probe, virtio: int, elsewhere: int) -> Driver:
    """A driver one of whose rings is in the memory that will be cut off."""
    driver = await probe.driver(virtio, start=False, seals=0)
    for index in range(probe.device.rings):
        ring = driver.make_ring(index, region=_CUT if index == elsewhere else 0)
        if index not in (elsewhere, probe.device.ring):
            driver.post(ring)
        await driver.start(ring)
    await driver.served()
    return driver


@checks("VIO-MEM-4")
@each_layout
async def a_ring_that_vanishes(probe: Probe, layout: int) -> None:
    index = probe.device.ring
    driver = await _with_ring(probe, layout, index)
    await _cut(probe, driver)
    await _breaks(driver, index, "the ring")


@checks("VIO-MEM-4", devices=("net",))
@each_layout
async def a_ring_that_vanishes_leaves_the_other_one(probe: Probe, layout: int) -> None:
    driver = await _with_ring(probe, layout, 0)
    await _cut(probe, driver)
    await _breaks(driver, 0, "the ring")
    await driver.served(3)


@checks("VIO-MEM-4")
@each_layout
async def a_buffer_that_vanishes(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout, seals=0)
    await chains.served()
    job = probe.device.job(chains.memory, region=_CUT)
    await _cut(probe, chains.driver)
    chains.offer(*linked(job.readable, job.writable))
    await _breaks(chains.driver, probe.device.ring, "a buffer")


@checks("VIO-MEM-4", needs=(D.INDIRECT_DESC,))
@each_layout
async def a_table_that_vanishes(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.INDIRECT_DESC, seals=0)
    await chains.served()
    job = chains.job()
    entries = linked(job.readable, job.writable)
    place = chains.memory.alloc(16 * len(entries), region=_CUT)
    table = Entry(*chains.table(*entries, at=place), INDIRECT)
    await _cut(probe, chains.driver)
    chains.offer(table)
    await _breaks(chains.driver, probe.device.ring, "an indirect table")

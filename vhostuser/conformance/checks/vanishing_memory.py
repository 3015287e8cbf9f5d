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


async def _driver(probe: Probe, virtio: int, *, elsewhere: int | None = None) -> Driver:
    """A driver whose memory can be cut; the ring with that index is in the region which will be."""
    driver = await probe.driver(virtio, start=False, seals=0)
    for index in range(probe.device.rings):
        ring = driver.make_ring(index, region=_CUT if index == elsewhere else 0)
        if index not in (elsewhere, probe.device.ring):
            driver.post(ring)
        await driver.start(ring)
    await driver.served()
    return driver


async def _breaks(probe: Probe, driver: Driver, index: int, what: str) -> None:
    """Cut the memory, and kick: the ring has to be told broken."""
    probe.resize(driver.memory.regions[_CUT].fd.fileno(), 0)
    ring = driver.rings[index]
    driver.kick(ring)
    await driver.signalled(ring.err_fd.fileno(), f"{what} was cut off: err of vring {index}")
    await driver.connection.talks()


@checks("VIO-MEM-4")
@each_layout
async def a_ring_that_vanishes(probe: Probe, layout: int) -> None:
    index = probe.device.ring
    driver = await _driver(probe, layout, elsewhere=index)
    await _breaks(probe, driver, index, "the ring")


@checks("VIO-MEM-4", devices=("net",))
@each_layout
async def a_ring_that_vanishes_leaves_the_other_one(probe: Probe, layout: int) -> None:
    driver = await _driver(probe, layout, elsewhere=0)
    await _breaks(probe, driver, 0, "the ring")
    await driver.served(3)


@checks("VIO-MEM-4")
@each_layout
async def a_buffer_that_vanishes(probe: Probe, layout: int) -> None:
    driver = await _driver(probe, layout)
    driver.give(region=_CUT)
    await _breaks(probe, driver, probe.device.ring, "a buffer")


@checks("VIO-MEM-4", needs=(D.INDIRECT_DESC,))
@each_layout
async def a_table_that_vanishes(probe: Probe, layout: int) -> None:
    chains = await by_hand(probe, layout | D.INDIRECT_DESC, seals=0)
    await chains.served()
    job = chains.job()
    entries = linked(job.readable, job.writable)
    table = chains.memory.alloc(16 * len(entries), region=_CUT)
    chains.offer(Entry(*chains.table(*entries, at=table), INDIRECT))
    await _breaks(probe, chains.driver, probe.device.ring, "an indirect table")

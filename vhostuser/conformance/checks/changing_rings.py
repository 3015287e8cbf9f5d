"""Rings that change while the device looks at them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from vhostuser.conformance.chains import AVAIL, INDIRECT, NEXT, NOWHERE, USED, WRITE, Chains, Entry, by_hand, linked
from vhostuser.conformance.check import checks, each_layout
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.packed import PackedRing

if TYPE_CHECKING:
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import DriverQueue

D = DriverFeature
_SIZE = 16
_ROUNDS = 20
_CHANGES = 100


@checks("VIO-HOSTILE-2")
@each_layout
async def rings_that_change_meanwhile_harm_nobody(probe: Probe, layout: int) -> None:
    chance = random.Random(3)
    for _ in range(_ROUNDS):
        chains = await by_hand(probe, layout | D.INDIRECT_DESC, size=_SIZE)
        driver = chains.driver
        _fill(chains)
        for number in range(_CHANGES):
            for ring in driver.rings.values():
                _change(ring, chance)
                if number % 8 == 0:
                    driver.kick(ring)
        await driver.stop_all()
    await (await by_hand(probe, layout)).served()


def _fill(chains: Chains) -> None:
    """Chains that are right for now, one of them with a table."""
    for number in range(3):
        job = chains.job()
        entries = linked(job.readable, job.writable)
        chains.offer(*([Entry(*chains.table(*entries), INDIRECT)] if number == 1 else entries))


def _change(ring: DriverQueue, chance: random.Random) -> None:
    """Change half a field of some descriptor, or what says that it is there."""
    memory, packed = ring.memory, isinstance(ring, PackedRing)
    flags = int(chance.choice((0, NEXT, WRITE, INDIRECT, NEXT | WRITE)))
    wild = chance.choice((0, 1, 12, 16, _SIZE, 0x7FFF, 0xFFFF, NOWHERE >> 32, flags, flags))
    if packed and chance.random() < 0.5:
        slot = chance.randrange(_SIZE)
        memory.store_u16(ring.desc_addr + 16 * slot + 14, flags | int(chance.choice((AVAIL, USED))))
    elif not packed and chance.random() < 0.3:
        at = chance.choice((2, *range(4, 4 + 2 * _SIZE, 2)))
        memory.store_u16(ring.avail_addr + at, chance.randrange(_SIZE + 1))
    else:
        memory.store_u16(ring.desc_addr + 2 * chance.randrange(8 * _SIZE), wild)

"""A front-end with an IOMMU: memory whose addresses are I/O virtual ones, and what is told of them.

Must not know: which statement is at stake.

How: the table tells other addresses than rings and buffers have. There are two regions: rings in the first one, whose
translation is there from the start unless it is withheld, and jobs in the second one, page by page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.violation import Violation
from vhostuser.frontend.dirty import PAGE
from vhostuser.frontend.iommu import IOVA_BASE
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import Iotlb, IotlbType
from vhostuser.wire.requests import BackendRequest, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.own_channel import OwnChannel
    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.messages import Message

PROTOCOL = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ
READ, WRITE, BOTH = 1, 2, 3

_MIB = 1 << 20
ROOM = 12 * _MIB
LAYOUT = ((IOVA_BASE, 4 * _MIB), (IOVA_BASE + (1 << 32), ROOM))


async def behind_an_iommu(
    probe: Probe, protocol: ProtocolFeature = PROTOCOL, *, virtio: int = 0, known: bool = True, start: bool = True
) -> tuple[Driver, OwnChannel]:
    """A driver behind an IOMMU; `known`: all addresses of rings, and of what the driver posts, are translated."""
    connection = await probe.negotiated(probe.device.features | VhostFeature.ACCESS_PLATFORM | virtio, protocol)
    driver = probe.drive(connection, probe.memory(*LAYOUT))
    own = await probe.own_channel(connection)
    await driver.tell_memory()
    if known:
        await update(driver, *LAYOUT[0])
    if start:
        await driver.start_all()
    return driver, own


async def update(driver: Driver, iova: int, size: int, perm: int = BOTH, to: int | None = None) -> None:
    """Tell the translation of a range, to where it is or elsewhere."""
    uaddr = driver.memory.userspace_addr(iova if to is None else to)
    await driver.connection.accepted(FrontendRequest.IOTLB_MSG, Iotlb(iova, size, uaddr, perm, IotlbType.UPDATE))


async def invalidate(driver: Driver, iova: int, size: int) -> None:
    """Withdraw what touches a range."""
    await driver.connection.accepted(FrontendRequest.IOTLB_MSG, Iotlb(iova, size, 0, 0, IotlbType.INVALIDATE))


async def missed(own: OwnChannel, value: int = 0) -> Iotlb:
    """The next miss, which is acknowledged."""
    message = await own.asked(BackendRequest.IOTLB_MSG, "for an address that is not translated")
    iotlb = miss(message)
    await own.answer(message, value)
    return iotlb


def miss(message: Message) -> Iotlb:
    """What a message asks for. Raises Violation if it is no miss."""
    iotlb = message.payload
    if not isinstance(iotlb, Iotlb) or iotlb.type != IotlbType.MISS:
        raise Violation(f"expected IOTLB_MSG of type MISS, came {message}")
    return iotlb


def withheld_job(driver: Driver) -> int:
    """Give a job on a page of its own in the second region, whose translation is withheld, and kick."""
    page = driver.memory.alloc(PAGE, PAGE, 1)
    driver.give(region=1)
    driver.kick(driver.work)
    return page + PAGE

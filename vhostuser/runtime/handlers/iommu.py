"""What the front-end tells of its IOMMU."""

from __future__ import annotations

from vhostuser.errors import NotNegotiatedError, PayloadError
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.virtio.iotlb import IotlbTable
from vhostuser.virtio.layout import IOMMU_READ, IOMMU_WRITE
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import U64, Iotlb, IotlbType, Message, Payload
from vhostuser.wire.requests import FrontendRequest as R

_PERMISSIONS = range(IOMMU_READ, (IOMMU_READ | IOMMU_WRITE) + 1)


@handles(R.IOTLB_MSG)
async def _iotlb_msg(connection: Connection, message: Message) -> Payload:
    """Take a translation over, or withdraw some; no ring uses the old table when this is answered."""
    assert isinstance(message.payload, Iotlb)
    if not connection.session.features & VhostFeature.ACCESS_PLATFORM:
        raise NotNegotiatedError("IOTLB_MSG: ACCESS_PLATFORM is not acknowledged", rule="VU-IOTLB-4")
    await connection.rings.adopt_iotlb(_changed(connection.iommu.table, message.payload))
    return U64(0)


def _changed(table: IotlbTable, told: Iotlb) -> IotlbTable:
    match told.type:
        case IotlbType.UPDATE if told.perm not in _PERMISSIONS:
            words = f"IOTLB_MSG: perm {told.perm} is not in 1..3 (iova {told.iova:#x})"
            raise PayloadError(words, rule="VU-IOTLB-4")
        case IotlbType.UPDATE:
            return table.updated(told.iova, told.size, told.uaddr, told.perm)
        case IotlbType.INVALIDATE if (told.iova, told.size) == (0, 0):
            # all there is: the size of that, 2^64, does not fit the field
            return IotlbTable(table.memory)
        case IotlbType.INVALIDATE:
            return table.invalidated(told.iova, told.size)
    words = f"IOTLB_MSG: type {told.type} is neither UPDATE (2) nor INVALIDATE (3)"
    raise PayloadError(words, rule="VU-IOTLB-4")

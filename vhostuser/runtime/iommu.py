"""What a connection knows of the front-end's IOMMU, and what it asks.

Must not know which rings there are, nor how they come to use a new table: ``rings`` sees to that.

A ring that needs a translation waits for it in its thread and costs nothing meanwhile. The front-end is asked once for
each page, and for a bounded number of them at a time. It answers by an update on the main channel, which every ring
adopts. If it refuses, or never answers, the ring goes on waiting; its driver's next kick has the question asked again.
"""

from __future__ import annotations

import trio

from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.session.backend import BackendSession
from vhostuser.virtio.iotlb import Iotlb
from vhostuser.virtio.layout import ASK_DENIED, ASK_TRANSLATION
from vhostuser.virtio.memory import GuestMemory
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import Iotlb as IotlbMessage
from vhostuser.wire.messages import IotlbType
from vhostuser.wire.requests import BackendRequest

MAX_QUESTIONS = 256  # on their way to the front-end
_PAGE_SHIFT = 12
_TYPES = {ASK_TRANSLATION: IotlbType.MISS, ASK_DENIED: IotlbType.ACCESS_FAIL}


class Iommu:
    """The present IOTLB, and the questions that are out.

    Attributes:
        table: the present snapshot; all rings use this one, or are about to.
    """

    def __init__(self, session: BackendSession, channel: BackendChannel) -> None:
        self.table = Iotlb(GuestMemory())
        self._session = session
        self._channel = channel
        self._questions: set[tuple[int, int, int]] = set()

    @property
    def active(self) -> Iotlb | None:
        """The table, if the driver's addresses are those of an IOMMU."""
        return self.table if self._session.features & VhostFeature.ACCESS_PLATFORM else None

    def ask(self, nursery: trio.Nursery, what: int, iova: int, perm: int) -> None:
        """Ask what a ring asks, unless that is being asked already."""
        question = what, iova >> _PAGE_SHIFT, perm
        if question in self._questions or len(self._questions) == MAX_QUESTIONS:
            return
        self._questions.add(question)
        nursery.start_soon(self._ask, question, IotlbMessage(iova, 0, 0, perm, _TYPES[what]))

    async def _ask(self, question: tuple[int, int, int], message: IotlbMessage) -> None:
        try:
            await self._channel.tell(BackendRequest.IOTLB_MSG, message)
        finally:
            self._questions.discard(question)

"""What a connection knows of the front-end's IOMMU, and what it asks.

Must not know which rings there are, nor how they come to use a new table: ``rings`` sees to that.

A ring that needs a translation waits for it in its thread and costs nothing meanwhile. The front-end is asked once for
each page, and for a bounded number of them at a time. It answers by an update on the main channel, which every ring
adopts. If it refuses, the ring goes on waiting; its driver's next kick has the question asked again. Who never answers
loses the channel (``backend_channel``), and the ring waits until it is stopped.
"""

from __future__ import annotations

import trio

from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.session.backend import BackendSession
from vhostuser.virtio.iotlb import IotlbTable
from vhostuser.virtio.layout import ASK_DENIED, ASK_TRANSLATION
from vhostuser.virtio.memory import GuestMemory
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import Iotlb, IotlbType
from vhostuser.wire.requests import BackendRequest

MAX_QUESTIONS = 256  # on their way to the front-end
_PAGE_SHIFT = 12
_Question = tuple[int, int, int]  # what is asked, the page, the permission
_TYPES = {ASK_TRANSLATION: IotlbType.MISS, ASK_DENIED: IotlbType.ACCESS_FAIL}


class Iommu:
    """The present IOTLB, and the questions that are out.

    Attributes:
        table: the present snapshot; all rings use this one, or are about to.
    """

    def __init__(self, session: BackendSession, channel: BackendChannel) -> None:
        self.table = IotlbTable(GuestMemory())
        self._session = session
        self._channel = channel
        self._questions: dict[_Question, Iotlb] = {}
        self._telling = 0

    @property
    def active(self) -> IotlbTable | None:
        """The table, if the driver's addresses are those of an IOMMU."""
        return self.table if self._session.features & VhostFeature.ACCESS_PLATFORM else None

    def use(self, table: IotlbTable) -> None:
        """Have another table. What it translates is no question any more: withdrawn again, it will be a new one.

        So it is with a table that is empty, which is had when no ring runs.
        """
        self.table = table
        self._questions = {
            question: message
            for question, message in self._questions.items()
            if table.entries and not table.translates(message.iova, message.perm)
        }

    def ask(self, nursery: trio.Nursery, what: int, iova: int, perm: int) -> None:
        """Ask what a ring asks, unless that is being asked already, or the table that it is about to use has it."""
        question = what, iova >> _PAGE_SHIFT, perm
        answered = what == ASK_TRANSLATION and self.table.translates(iova, perm)
        if answered or question in self._questions or self._telling == MAX_QUESTIONS:
            return
        message = self._questions[question] = Iotlb(iova, 0, 0, perm, _TYPES[what])
        self._telling += 1
        nursery.start_soon(self._tell, question, message)

    async def _tell(self, question: _Question, message: Iotlb) -> None:
        try:
            await self._channel.tell(BackendRequest.IOTLB_MSG, message)
        finally:
            self._telling -= 1
            if self._questions.get(question) is message:
                del self._questions[question]

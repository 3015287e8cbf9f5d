"""A queue group that lives, as the event loop sees it: its thread, and the tasks that go with it.

Must not know messages, or which rings run. The thread says by callbacks that a chain is there or that a ring broke;
what follows from that may fail or take long, so tasks do it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from vhostuser.device import Device, Queue
from vhostuser.errors import GuestError
from vhostuser.runtime.complaints import Complaints
from vhostuser.runtime.groups import Group, GroupEndedError
from vhostuser.virtio.pump import ChainPump, Pump

log = logging.getLogger(__name__)


class LiveGroup:
    """A queue group with at least one live ring.

    Args:
        group_type: what turns the pump.
        device: serves the chains, if the pump hands them out one by one.
        pump: what to turn.
        complaints: where broken rings are told of.
        on_fault: called when a ring broke; what it raises ends the connection.
        on_question: called with what a ring has to ask of an IOMMU.
        on_end: called when the group has ended.

    Attributes:
        group: the pump and its thread.
    """

    def __init__(
        self,
        group_type: type[Group],
        device: Device,
        pump: Pump,
        complaints: Complaints,
        on_fault: Callable[[], None],
        on_question: Callable[[int, int, int], None],
        on_end: Callable[[], None],
    ) -> None:
        self.group = group_type(pump, self._offer_chain, complaints, self._note_fault, on_question)
        self._device = device
        self._queue = Queue(pump, self.group.call) if isinstance(pump, ChainPump) else None
        self._on_fault = on_fault
        self._on_end = on_end
        self._fault = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def pump(self) -> Pump:
        """The pump."""
        return self.group.pump

    async def run(self) -> None:
        """Run until it is told to end, or cancelled.

        Raises:
            PortError: the port failed.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if self._queue is not None:
                        nursery.start_soon(self._serve, self._queue)
                    nursery.start_soon(self._watch_faults)
                    await self.group.run()
        finally:
            self._on_end()
            self._ended.set()

    async def end(self) -> None:
        """End it, and wait for that."""
        self._scope.cancel()
        await self._ended.wait()

    async def in_turn(self, function: Callable[[], None]) -> None:
        """Run `function` in the thread between two turns, or not at all if the group ends first."""
        with suppress(GroupEndedError):
            await self.group.call(function)

    async def drain(self, seconds: float) -> bool:
        """Wait until the device has completed what it has in flight; False: it takes longer than that.

        A device with a pump of its own completes within a turn what it has taken.
        """
        with trio.move_on_after(seconds) as scope:
            if self._queue is not None:
                await self._queue.drain()
        return not scope.cancelled_caught

    def _offer_chain(self) -> None:
        assert self._queue is not None
        self._queue.offer()

    def _note_fault(self) -> None:
        self._fault.set()

    async def _watch_faults(self) -> None:
        """Tell of rings that broke, here, where a port that fails over it ends the connection."""
        while True:
            await self._fault.wait()
            self._fault = trio.Event()
            self._on_fault()

    async def _serve(self, queue: Queue) -> None:
        """A Python device's chains; a chain that its driver took away or spoiled is the driver's loss alone."""
        while True:
            try:
                await self._device.serve(queue)
            except* GuestError as errors:  # a group, where the device has tasks of its own
                for error in _each(errors):
                    log.info("device %s: %s", self._device.name, error)


def _each(error: BaseException) -> Iterator[BaseException]:
    """An error, or those of a group and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _each(inner)
    else:
        yield error

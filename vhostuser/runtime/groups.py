"""Queue groups and their threads.

Must not know messages. A group lives from its first started ring to its last stopped one, and so does its thread:
turns and waits in compiled code without the GIL, and between two turns whatever the control side asked for.

Everything that touches rings or guest memory runs in that thread (:meth:`Group.call`), so a call is also how the
control side waits until no turn sees the old state any more. A page of guest memory may block, a peer's descriptor
may block too; only this thread waits then, and a signal that nobody minds ends the wait of a system call.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import trio

from vhostuser.errors import PortError, VhostUserError
from vhostuser.runtime.complaints import Complaints
from vhostuser.virtio.pump import Pump
from vhostuser.virtio.ring import FAULTS, Ring

T = TypeVar("T")

INTERRUPT = signal.SIGURG  # ignored by default, and nobody sends it to a process without out-of-band sockets
INTERRUPT_AFTER = 0.1  # seconds until a thread that does not answer is taken to hang in a system call

# Trio's own limit of 40 threads would stop the 41st group of a process for ever.
_unlimited = trio.CapacityLimiter(100_000)


def allow_interrupts() -> None:
    """Give the interrupting signal a handler that does nothing, without SA_RESTART; main thread only."""
    signal.signal(INTERRUPT, lambda number, frame: None)


class GroupEndedError(VhostUserError):
    """A queue group's thread is no more, so nothing can run in it."""


class _Call(Generic[T]):
    """A function on its way into the thread, and what became of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.done = trio.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error


class Group:
    """A queue group that lives: a pump, and the thread that turns it.

    Args:
        pump: what to turn; closed when the thread has ended.
        on_chain: called in the event loop when a Python device's pump holds a new chain.
        on_fault: called in the event loop when a ring broke.
        complaints: where broken rings are told of; the session's.
        on_question: called in the event loop with what a ring has to ask of an IOMMU (:meth:`Ring.question`).
    """

    def __init__(
        self,
        pump: Pump,
        on_chain: Callable[[], None] | None = None,
        complaints: Complaints | None = None,
        on_fault: Callable[[], None] | None = None,
        on_question: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.pump = pump
        self._on_chain = on_chain
        self._on_fault = on_fault
        self._on_question = on_question
        self._complaints = complaints or Complaints()
        self._calls: deque[_Call[Any]] = deque()
        self._ending = trio.Event()
        self._closed = self._began = False
        self._thread: int | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._offered = 0

    async def run(self) -> None:
        """Run the thread until cancelled. Cancelling waits for the turn to end, and for nothing else.

        Raises:
            PortError: the port failed, or there is no thread to be had.
        """
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._supervise)
                try:
                    await trio.sleep_forever()
                finally:
                    self._ending.set()
                    self.pump.wake()
        finally:
            self._closed = True
            self._fail_calls()
            self.pump.close()

    async def _supervise(self) -> None:
        """The thread, and from the moment of cancelling on a nudge for a system call that does not end."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._nudge_at_end)
                try:
                    await trio.to_thread.run_sync(self._main, limiter=_unlimited)
                except RuntimeError as error:
                    if self._began:
                        raise
                    # there are as many as the system lets a process have
                    raise PortError(f"a queue group's thread: {error}") from error
                nursery.cancel_scope.cancel()

    async def _nudge_at_end(self) -> None:
        await self._ending.wait()
        while True:
            await trio.sleep(INTERRUPT_AFTER)
            self._interrupt()

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the thread between two turns, and return or raise what it does.

        Raises:
            GroupEndedError: the group ended first.
        """
        if self._closed:
            raise GroupEndedError("the queue group has ended")
        call = _Call(function)
        self._calls.append(call)
        self.pump.wake()
        while not call.done.is_set():
            with trio.move_on_after(INTERRUPT_AFTER):
                await call.done.wait()
            if not call.done.is_set():
                self._interrupt()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def _interrupt(self) -> None:
        if self._thread is not None:
            with suppress(ProcessLookupError):
                signal.pthread_kill(self._thread, INTERRUPT)

    # ---- in the thread ---------------------------------------------------------------------------------------------

    def _main(self) -> None:
        self._began = True
        self._thread = threading.get_ident()
        try:
            while not self._ending.is_set():
                if self.pump.run():
                    self._handle_event()
                while self._calls:
                    call = self._calls.popleft()
                    call.run()
                    self._in_loop(call.done.set)
        finally:
            self._thread = None

    def _handle_event(self) -> None:
        if self.pump.port_failed:
            raise PortError(f"the port (descriptor {self.pump.port}) is gone: {os.strerror(errno.EBADFD)}")
        for ring in self.pump.rings:
            if ring.fault and not ring.reported:
                self._report(ring)
            if (question := ring.question()) and self._on_question is not None:
                self._in_loop(partial(self._on_question, *question))
        ticket = getattr(self.pump, "ticket", 0)
        if ticket != self._offered and self._on_chain is not None:
            self._offered = ticket
            self._in_loop(self._on_chain)

    def _report(self, ring: Ring) -> None:
        ring.report()
        self._complaints.add("vring %d is broken and stopped: %s", ring.index, FAULTS[ring.fault])
        if self._on_fault is not None:
            self._in_loop(self._on_fault)

    def _in_loop(self, function: Callable[[], None]) -> None:
        assert self._token is not None
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def _fail_calls(self) -> None:
        while self._calls:
            call = self._calls.popleft()
            call.error = GroupEndedError("the queue group ended before its thread could answer")
            call.done.set()

"""Turning the rings of one queue group: the loop that a group's thread runs, and the pump of a Python device.

Must not know what a device does with packets, nor who supervises the thread.

A pump owns up to two rings and at most one port. ``step`` is one bounded turn: it never blocks and says what is left to
do or to wait for. ``loop`` is turns and waits until the control side wakes it or something happened that only the
control side can handle. A turn is also the read side of every snapshot: whatever the control side changes, it changes
between two turns, in this thread, so the packet path needs no lock.

The wait set follows from the turn. A ring is waited for only if it was armed, the port only in the direction that
is blocked on it; so a host that floods a guest without buffers, or a guest that floods a full port, costs nothing.

A pump may *linger*: for a time after its last chain it goes on turning, with kicks suppressed, before it arms its rings
and sleeps. That saves a kick and a wake-up where the next packet is near, and costs a processor for that time.
"""

from __future__ import annotations

import ctypes
import os
import select
from array import array
from contextlib import suppress

import cython

from vhostuser.errors import MemoryAccessError
from vhostuser.virtio.memory import gather

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import (
        AT_PORT,
        AT_SLEEP,
        AT_WAKE,
        BUDGET,
        CHAINS,
        EVENT,
        POLL_MS,
        POLL_MS_MAX,
        POLL_PATIENCE,
        PORT_IN,
        PORT_OUT,
        VANISHED,
        WORK,
    )
    from vhostuser.virtio.memory import pages_vanished
    from vhostuser.virtio.primitives import clock, drain, load_acquire_u32, poll, store_release_u32
    from vhostuser.virtio.ring import Ring
    from vhostuser.virtio.timeline import Timeline

_IN = cython.declare(cython.int, select.POLLIN)
_OUT = cython.declare(cython.int, select.POLLOUT)
_SLOTS = cython.declare(cython.int, 4)  # of the poll set: wake, first ring, second ring, port


class Pump:
    """Turns one or two rings.

    Attributes:
        first, second: the rings; `second` may be None.
        wake_fd: the eventfd that ends a wait.
        port: the descriptor that packets go to and come from, or -1. Its owner closes it.
        port_failed: whether the port is gone; nothing moves any more then.
        poll_ns: how long it lingers, in nanoseconds.
        looks: how often rings without a kick descriptor were looked at in vain since the last chain.
    """

    def __init__(self, first: Ring, second: Ring | None = None, poll_us: int = 0) -> None:
        self.first = first
        self.second = second
        self.port = -1
        self.port_failed = False
        self.vanished = 0
        self.poll_ns = 1000 * poll_us
        self.given_at_turn = self.rest_at = self.given_at_look = 0
        self.looks = 0
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        woken = array("I", [0])
        self.woken = woken
        self.woken_address = woken.buffer_info()[0]
        poll_set = array("i", [-1, 0] * 4)
        self.poll_set = poll_set
        self.poll_address = poll_set.buffer_info()[0]

    @property
    def rings(self) -> list[Ring]:
        """The rings, one or two."""
        return [self.first] if self.second is None else [self.first, self.second]

    def close(self) -> None:
        """Close the wake descriptor, and what rings have mapped that were not stopped. The thread has ended."""
        for ring in self.rings:
            ring.close()
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
            self.wake_fd = -1

    def record(self, timeline: Timeline | None) -> None:
        """Note moments there from the next turn on, or nowhere. Between two turns only."""
        for ring in self.rings:
            ring.timeline = timeline

    def wake(self) -> None:
        """Make :meth:`run` return after the present turn. Any thread may call it.

        The flag comes first, so a thread that wakes up finds it. A write that comes late, when `run` has returned and
        taken the flag back, costs one turn: :meth:`wait` empties the descriptor.
        """
        store_release_u32(self.woken_address, 1)
        os.eventfd_write(self.wake_fd, 1)

    def run(self) -> int:
        """Turn and wait until woken (0) or until there is an event (``EVENT``). Releases the GIL."""
        todo: cython.int
        self.vanished = pages_vanished()
        with cython.nogil:
            todo = self.loop()
        if todo == 0:
            store_release_u32(self.woken_address, 0)
            with suppress(BlockingIOError):
                os.eventfd_read(self.wake_fd)
        return todo

    def turn(self, budget: int = BUDGET) -> int:
        """One turn, for who drives a pump without a thread: what is left, a mask of ``layout``'s names."""
        limit: cython.int = budget
        todo: cython.int
        self.vanished = pages_vanished()
        with cython.nogil:
            todo = self.step(limit)
        return todo

    def counters(self) -> dict[str, int]:
        """Counters by name since the pump was made: each ring's, and their sums."""
        counters: dict[str, int] = {}
        for ring in self.rings:
            for name, count in ring.counters().items():
                counters[f"vring{ring.index}_{name}"] = count
                counters[name] = counters.get(name, 0) + count
        return counters

    def loop(self) -> cython.int:
        """See :meth:`run`."""
        todo: cython.int
        while load_acquire_u32(self.woken_address) == 0:
            todo = self.step(BUDGET)
            if todo & EVENT:
                return EVENT
            if not todo & WORK:
                self.wait(todo)
        return 0

    def step(self, budget: cython.int) -> cython.int:
        """One turn of at most `budget` chains a direction; a device's pump overrides it."""
        return 0

    def wait(self, todo: cython.int) -> None:
        """Sleep until there is a reason for another turn."""
        looked_at: cython.bint
        ready: cython.int
        events: cython.int = (_IN if todo & PORT_IN else 0) | (_OUT if todo & PORT_OUT else 0)
        self.poll_set[0] = self.wake_fd
        self.poll_set[1] = _IN
        looked_at = self.watch(1, self.first)
        if self.second is not None and self.watch(2, self.second):
            looked_at = True
        self.poll_set[6] = self.port if events else -1
        self.poll_set[7] = events
        self.first.note(AT_SLEEP, 0)
        ready = poll(self.poll_address, _SLOTS, self.pause() if looked_at else -1)
        self.first.note(AT_WAKE, 0)
        if ready <= 0:
            return
        if self.poll_set[1] >> 16:
            drain(self.wake_fd)
        if self.poll_set[3] >> 16:
            self.first.kicked()
        if self.second is not None and self.poll_set[5] >> 16:
            self.second.kicked()
        if self.poll_set[7] >> 16:
            self.first.note(AT_PORT, 0)

    def watch(self, slot: cython.int, ring: Ring) -> cython.bint:
        """Wait for a ring's kick if it was armed, or lies where no translation leads yet: a kick has it ask again.

        True: it has no kick descriptor and must be looked at.
        """
        self.poll_set[2 * slot] = ring.kick if ring.armed or ring.unplaced() else -1
        self.poll_set[2 * slot + 1] = _IN
        return ring.armed and ring.kick < 0

    def pause(self) -> cython.int:
        """Milliseconds until rings without a kick descriptor are looked at again: the longer nothing came, the more."""
        given: cython.ulonglong = self.given()
        if given != self.given_at_look:
            self.given_at_look = given
            self.looks = 0
        elif self.looks < POLL_PATIENCE * POLL_MS_MAX:
            self.looks += 1
        return min(POLL_MS + self.looks // POLL_PATIENCE, POLL_MS_MAX)

    def lingers(self) -> cython.bint:
        """Whether to turn again rather than sleep, for a chain was given back less than ``poll_ns`` ago."""
        given: cython.ulonglong
        now: cython.ulonglong
        if self.poll_ns == 0:
            return False
        given = self.given()
        now = clock()
        if given != self.given_at_turn:
            self.given_at_turn = given
            self.rest_at = now + self.poll_ns
        return now < self.rest_at

    def given(self) -> cython.ulonglong:
        """How many chains were given back."""
        return self.first.counts[CHAINS] + (0 if self.second is None else self.second.counts[CHAINS])

    def lost(self, ring: Ring) -> cython.bint:
        """Whether guest memory vanished since the last look; then it was under `ring`, which is broken now."""
        now: cython.ulonglong = pages_vanished()
        if now == self.vanished:
            return False
        self.vanished = now
        ring.fail(VANISHED)
        return True

    def arm(self, ring: Ring) -> cython.bint:
        """Ask the ring's driver for a kick. True: there is a reason for another turn instead."""
        more: cython.bint = ring.arm()
        return self.lost(ring) or more

    def broken(self) -> cython.bint:
        """Whether a ring broke or has a question, or the port failed, and nobody was told yet."""
        if self.first.fault and not self.first.reported:
            return True
        if self.first.asks and not self.first.ask_sent:
            return True
        if self.second is not None and self.second.fault and not self.second.reported:
            return True
        if self.second is not None and self.second.asks and not self.second.ask_sent:
            return True
        return self.port_failed


class ChainPump(Pump):
    """The pump of a device written in Python: one ring, one chain at a time, handed over as an event.

    Attributes:
        ticket: counts the chains handed out; the present one's number.
    """

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self.ticket = 0
        self.winding_down = False

    def step(self, budget: cython.int) -> cython.int:
        """Take one chain if none is out."""
        taken: cython.int
        if self.first.taken or not self.first.runs() or not self.first.enabled:
            return EVENT if self.broken() else 0
        if self.winding_down and not self.first.owes():
            return 0
        self.first.disarm()
        taken = self.first.take(1)
        if self.lost(self.first) or taken < 0:
            return EVENT
        if taken == 0:
            if self.broken():
                return EVENT
            return WORK if self.arm(self.first) else 0
        if self.first.segments[0] == 0:
            self.first.give(1)
            self.first.publish()
            return EVENT if self.lost(self.first) else WORK
        self.ticket += 1
        return EVENT

    @property
    def holding(self) -> bool:
        """Whether a chain is out; nothing moves until it is completed or its ring stops."""
        return self.first.taken > 0

    def wind_down(self) -> None:
        """Hand out nothing that is new. Between two turns only, and for good: the ring is about to stop."""
        self.winding_down = True

    def unfinished(self) -> bool:
        """Whether there is something in flight that can be completed. Between two turns only."""
        owes: cython.bint = self.first.runs() and self.first.enabled and self.first.owes()
        return self.first.taken > 0 or owes

    def buffers(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The (host address, size) pairs of the chain that is out: what the device may read, and what it may write."""
        start: cython.int = self.first.first[0]
        pieces = [
            (self.first.iov[2 * k], self.first.iov[2 * k + 1]) for k in range(start, start + self.first.segments[0])
        ]
        return pieces[: self.first.readable[0]], pieces[self.first.readable[0] :]

    def read(self, ticket: int, limit: int = 1 << 20) -> bytes:
        """The first `limit` bytes of the chain's readable buffers.

        Raises:
            MemoryAccessError: the chain, or its memory, is gone.
        """
        self._check(ticket)
        data = gather(self.buffers()[0], limit)
        self._check_memory()
        return data

    def write(self, ticket: int, data: bytes) -> int:
        """Copy `data` into the chain's writable buffers, as much as fits: bytes copied. Raises as :meth:`read` does."""
        self._check(ticket)
        done = 0
        for at, size in self.buffers()[1]:
            part = data[done : done + size]
            ctypes.memmove(at, part, len(part))
            done += len(part)
        self._check_memory()
        return done

    def _check(self, ticket: int) -> None:
        if ticket != self.ticket or not self.first.taken or not self.first.runs():
            raise MemoryAccessError(f"chain {ticket} of vring {self.first.index} is no longer the device's")
        self.vanished = pages_vanished()

    def _check_memory(self) -> None:
        if self.lost(self.first):
            raise MemoryAccessError(f"guest memory vanished under vring {self.first.index}")

    def complete(self, ticket: int, written: int) -> bool:
        """Give the chain with this ticket back with so many bytes written, and publish it.

        False: its ring stopped meanwhile, and the chain went back to the driver's side untouched; or it just broke.
        """
        count: cython.uint = written
        try:
            self._check(ticket)
        except MemoryAccessError:
            return False
        with cython.nogil:
            self.first.written[0] = count
            self.first.give(1)
            self.first.publish()
        return not self.lost(self.first)

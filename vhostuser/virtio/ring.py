"""What every virtqueue layout shares: configuration, the burst in hand, signals to and from the driver.

Must not know messages, sockets or Trio, nor what a device does with a chain.

**The burst contract.** A device takes up to ``BURST`` chains with one call, works through them in order, and gives the
first so many back with one call; what it does not give goes back into the ring untouched::

    n = ring.take(limit)        # 0: nothing there; below 0: the driver broke the ring
    for i in range(n): ...      # iovecs first[i] .. first[i] + segments[i]; sets written[i]
    ring.give(done)             # used entries in order; the rest is put back
    ring.publish()              # all of them visible at once, then a call if the driver asked for one
    ring.arm()                  # before sleeping: ask for a kick. True: something came meanwhile, look again

What was given is published before the next burst is taken: a record of what is in flight counts on it.

A chain that a driver built wrongly but that harms no one (an unmapped or empty buffer, a wrong direction) comes with
``segments[i] == 0``: the device gives it back unused. Whatever makes the ring's own indices or descriptors meaningless
sets :attr:`Ring.fault`, and the ring yields nothing more until it is started again.

**The dirty log.** What `written` tells of a chain is logged when the burst is given, the layout's own writes when they
are made. A device that wrote what `written` may never tell of says so at once: `log_written`.

**Iovecs.** The chains of a burst lie one after another in one array, with one spare slot before, between and after
them, so that a device can put a private header before a chain, or more room behind it, without moving anything. A
spare slot is empty (the kernel skips zero-length iovecs), so the whole burst is also one long vector.

**IOMMU.** With an :class:`~vhostuser.virtio.iotlb.IotlbTable` the ring's own addresses and its buffers' are IOVAs.
What is not translated yet waits: a chain in the ring (``PARK``), or the ring as a whole. The ring then has a
:meth:`Ring.question` for the front-end, and each table that it adopts is a reason to try again. An area whose pages do
not lie side by side is mapped once more, as a :class:`~vhostuser.virtio.view.View`, as long as they are the same pages.

Every field that the driver can change is read once. The control side changes a ring only between two turns, in the
thread that turns it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from array import array

import cython

from vhostuser.errors import MemoryAccessError, PayloadError
from vhostuser.virtio.inflight import Part
from vhostuser.virtio.iotlb import IotlbMissError, IotlbTable
from vhostuser.virtio.view import Pieces, View

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.dirty import DirtyLog, RingLog
    from vhostuser.virtio.layout import (
        ASK_DENIED,
        ASK_NOTHING,
        ASK_TRANSLATION,
        AT_CALL,
        AT_CALLED,
        AT_KICK,
        BURST,
        CALLS,
        DROP,
        GOOD,
        IOMMU_READ,
        IOMMU_WRITE,
        KICKS,
        MISS,
        PARK,
        POOL,
        READABLE,
        RING_COUNTERS,
        SEGMENTS,
        UNPLACED,
        UNPOSITIONED,
        VANISHED,
        WRITABLE,
    )
    from vhostuser.virtio.memory import GuestMemory, pages_vanished
    from vhostuser.virtio.primitives import copy, drain, fence, load_u64, signal
    from vhostuser.virtio.timeline import Timeline

#: What each value of :attr:`Ring.fault` means.
FAULTS = {
    -1: "avail.idx is further ahead than the ring is long",
    -2: "the avail ring names a head that is not below the ring's size",
    -3: "a descriptor's next is not below the size of its table",
    -4: "a descriptor chain is longer than its table, so it is a loop",
    -5: "an indirect descriptor was not negotiated, is nested, has NEXT set, or has a bad length or address",
    -6: "guest memory vanished under the ring: its file was truncated",
    -7: "the ring's addresses are not in the memory table, or its pages, behind an IOMMU, cannot be put side by side",
    -8: "the ring cannot go on where it was told to, or where the record of what is in flight says",
}

#: Names of the counters in :meth:`Ring.counters`, in the order of ``layout``.
COUNTERS = ("kicks", "calls", "calls_suppressed", "chains", "chains_dropped")


_EAGAIN = cython.declare(cython.long, -errno.EAGAIN)
_EINTR = cython.declare(cython.long, -errno.EINTR)
_AREAS = ("descriptor", "driver", "device")


def _may_block(fd: int) -> bool:
    return fd >= 0 and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


class Ring:
    """One virtqueue as a device sees it.

    A layout (``split``, ``packed``) adds `take`, `give`, `publish`, `arm` and `disarm`.

    Attributes:
        index: the vring's index in the device.
        expects: ``READABLE``, ``WRITABLE`` or ``EITHER``: chains with other buffers are dropped.
        started, enabled: the two states of a ring (vhost-user, "Ring states").
        fault: 0, or a key of :data:`FAULTS`.
        memory: the memory table; what is written there is found in its regions.
        reads_from, writes_to: the tables that translate a driver's addresses; the memory table without an IOMMU.
        timeline: where moments are noted, or None.
        log: where it logs the guest memory that it writes.
    """

    def __init__(self, index: cython.int, expects: cython.int) -> None:
        self.index = index
        self.expects = expects
        self.memory = self.reads_from = self.writes_to = GuestMemory()
        self.num = 0
        self.event_idx = self.indirect = self.started = self.enabled = False
        self.addresses = (0, 0, 0)
        self.kick = self.call = self.err = -1
        self.call_may_block = self.err_may_block = False
        self.desc = self.driver = self.device = 0
        self.views: dict[Pieces, View] = {}
        self.fault = 0
        self.reported = False
        self.base = 0
        self.part: Part | None = None
        self.positioned = False
        self.asks = ASK_NOTHING
        self.ask_iova = self.ask_perm = 0
        self.ask_sent = False
        self.timeline: Timeline | None = None
        self.log = RingLog()
        self.armed = False
        self.taken = 0
        self.iov_end = 0
        pool = array("Q", bytes(16 * POOL))
        self.iov = pool
        self.iov_address = pool.buffer_info()[0]
        self.head = array("I", bytes(4 * BURST))
        self.written = array("I", bytes(4 * BURST))
        self.first = array("i", bytes(4 * BURST))
        self.segments = array("i", bytes(4 * BURST))
        self.readable = array("i", bytes(4 * BURST))
        self.size = array("Q", bytes(8 * BURST))
        self.counts = array("Q", bytes(8 * RING_COUNTERS))
        # room for one descriptor whose bytes lie in several regions, and the iovecs that find them
        scratch = array("Q", bytes(16 + 16 * 16))
        self.scratch = scratch
        self.scratch_address = scratch.buffer_info()[0]

    # ---- the control side ------------------------------------------------------------------------------------------

    def configure(self, num: int, addresses: tuple[int, int, int], event_idx: bool, indirect: bool) -> None:
        """Set size, front-end addresses (descriptor area, driver area, device area) and negotiated ring features."""
        self.num = num
        self.addresses = addresses
        self.event_idx = event_idx
        self.indirect = indirect

    def set_kick(self, fd: int) -> None:
        """Use this eventfd or pipe as kick; -1: the ring is polled. The descriptor stays the caller's."""
        self.kick = fd

    def set_call(self, fd: int) -> None:
        """Use this eventfd or pipe as call; -1: none. A running ring signals it once.

        A call may have been on its way to the old descriptor; the driver looks at its ring again and finds out.
        """
        self.call = fd
        self.call_may_block = _may_block(fd)
        if self.started:
            with cython.nogil:
                self.notify()

    def set_err(self, fd: int) -> None:
        """Use this eventfd or pipe to report that the ring broke; -1: none."""
        self.err = fd
        self.err_may_block = _may_block(fd)

    def adopt(self, memory: GuestMemory, iotlb: IotlbTable | None = None) -> None:
        """Use this memory table from now on, and this IOTLB over it. A ring whose addresses are not in it is broken.

        One whose addresses are not translated yet waits, and asks for them.

        A chain that a device still works on goes back: where its buffers were, they are no more.

        Raises:
            MemoryAccessError: the same, for the caller to report.
            PayloadError: a ring that waited cannot go on where it was told to.
        """
        if self.taken:
            self.give(0)
        self.memory = self.reads_from = self.writes_to = memory
        if iotlb is not None:
            self.reads_from, self.writes_to = iotlb.readable, iotlb.writable
        self.desc = self.driver = self.device = 0
        self.asks = ASK_NOTHING
        before, self.views = self.views, {}
        try:
            addresses = self.area_addresses(memory, iotlb, before)
        except IotlbMissError as miss:
            self.armed = False
            self.ask(ASK_TRANSLATION, miss.iova, miss.perm)
            return
        except MemoryAccessError:
            if self.started:
                self.fail(UNPLACED)
            raise
        finally:
            for view in before.values():  # some of it was withdrawn
                view.close()
        self.desc, self.driver, self.device = addresses
        if self.views:
            self.memory = memory.viewed(self.views.values())
        self.place_log()
        if self.started and not self.positioned:
            try:
                self.take_position()
            except PayloadError:
                self.fail(UNPOSITIONED)
                raise

    def set_log(self, log: DirtyLog | None, own: bool, device: int | None, fd: int) -> None:
        """Log what is written from now on, as :meth:`RingLog.use` has it."""
        self.log.use(log, own, device, fd)
        self.place_log()

    def place_log(self) -> None:
        """Tell the log where the ring lies."""
        self.log.place(self.memory, self.desc, self.device)

    def area_addresses(self, memory: GuestMemory, iotlb: IotlbTable | None, before: dict[Pieces, View]) -> list[int]:
        """Where descriptor, driver and device area lie. Raises as :meth:`adopt` says, and IotlbMissError.

        Views that still show what they have to are taken out of those from `before`.
        """
        areas = zip(self.addresses, self.area_sizes(), self.area_permissions(), _AREAS, strict=True)
        named = [(at, size, perm, f"the {name} area of vring {self.index}") for at, size, perm, name in areas]
        if iotlb is None:
            return [memory.ring_address(at, size, name) for at, size, _, name in named]
        return [self.place_of(iotlb.ring_pieces(*area), before) for area in named]

    def place_of(self, pieces: Pieces, before: dict[Pieces, View]) -> int:
        """Where an area begins that lies in these pieces; in a view, if they are several."""
        if len(pieces) == 1:
            return pieces[0][0]
        view = self.views.get(pieces) or before.pop(pieces, None) or View(pieces)
        self.views[pieces] = view
        return int(view.address)

    def start(self, base: int, part: Part | None = None) -> None:
        """Start at position `base`, as in SET_VRING_BASE. Set up and adopted rings only.

        The driver is signalled once: a back-end that died may have published buffers without a call.

        Args:
            base: where to go on.
            part: where to record what is in flight; what it holds from before is done again, before anything new.

        Raises:
            PayloadError: the record, or a packed ring, contradicts its position.
        """
        self.fault = 0
        self.reported = False
        self.armed = False
        self.taken = 0
        self.base = base
        self.part = part
        self.positioned = False
        if self.desc:
            self.take_position()
        self.started = True

    def take_position(self) -> None:
        """Go on at the base: the ring has just started, or its memory is known at last. Raises as `start` does."""
        before = pages_vanished()
        self.set_position(self.base, self.part)
        self.positioned = True
        with cython.nogil:
            self.notify()
        if pages_vanished() != before:
            self.fail(VANISHED)

    def stop(self, keep: bool = False) -> int:
        """Stop and return the position, as GET_VRING_BASE answers it. Nothing is touched afterwards.

        A chain that a device still works on goes back to the driver's side: it was never used. With `keep`, and a
        record of what is in flight, it stays there instead, and the position is behind it.
        """
        if self.taken and not (keep and self.recording()):
            self.give(0)
        self.end_record()
        self.taken = 0
        self.started = False
        self.armed = False
        self.kick = self.call = self.err = -1
        self.asks = ASK_NOTHING
        self.close()
        return self.position() if self.positioned else self.base

    def close(self) -> None:
        """Unmap the views of its areas; nothing else of it is its own. It is not in use, or has been stopped."""
        if self.views:
            self.desc = self.driver = self.device = 0
        for view in self.views.values():
            view.close()
        self.views = {}

    def question(self) -> tuple[int, int, int] | None:
        """What the front-end has to be asked now, once: ``ASK_TRANSLATION`` or ``ASK_DENIED``, IOVA, permission."""
        if self.asks == ASK_NOTHING or self.ask_sent:
            return None
        self.ask_sent = True
        return self.asks, self.ask_iova, self.ask_perm

    @property
    def heeds(self) -> bool:
        """Whether a kick is waited for: the ring was armed, or has no place and asks for it anew then."""
        return self.armed or self.unplaced()

    def heed(self) -> None:
        """The kick descriptor is ready: for who waits for it elsewhere than in a pump's thread."""
        with cython.nogil:
            self.kicked()

    def report(self) -> None:
        """Signal the err descriptor once for the present fault."""
        self.reported = True
        if self.err >= 0:
            with cython.nogil:  # it may block whatever was checked: the peer shares the open file
                signal(self.err, self.err_may_block)

    def counters(self) -> dict[str, int]:
        """Counters by name since the ring was made."""
        logged = {"pages_logged": self.log.logged, "pages_beyond_log": self.log.beyond}
        return {**dict(zip(COUNTERS, self.counts, strict=True)), **logged}

    def own_areas(self) -> list[tuple[int, int]]:
        """The (host address, size) pairs of the areas in which the layout writes."""
        desc, _, device = self.area_sizes()
        return [(self.desc, desc), (self.device, device)]

    def area_sizes(self) -> tuple[int, int, int]:
        """Bytes of the descriptor, driver and device areas at the present size."""
        raise NotImplementedError

    def area_permissions(self) -> tuple[int, int, int]:
        """What an IOMMU has to allow of the descriptor, driver and device areas."""
        raise NotImplementedError

    def set_position(self, base: int, part: Part | None) -> None:
        """Take `base` as the next position, and whatever else the layout keeps in guest memory and in `part`."""
        raise NotImplementedError

    def recording(self) -> bool:
        """Whether it is recorded what is in flight."""
        raise NotImplementedError

    def end_record(self) -> None:
        """Leave only what is in hand in the record, and end it."""
        raise NotImplementedError

    def position(self) -> int:
        """The position as GET_VRING_BASE answers it."""
        raise NotImplementedError

    # ---- for the layouts -------------------------------------------------------------------------------------------

    def runs(self) -> cython.bint:
        """Whether the ring may be read: started, placed in memory, not broken."""
        return self.started and self.fault == 0 and self.desc != 0

    def fail(self, fault: cython.int) -> cython.int:
        """Break the ring; the first reason stays. What was taken goes back: it was not used."""
        if self.fault == 0:
            self.fault = fault
        if self.taken:
            self.give(0)
        self.armed = False
        return self.fault

    def begin(self) -> None:
        """Open an empty burst."""
        self.taken = 0
        self.iov_end = 0
        self.iov[0] = self.iov[1] = 0

    def open_chain(self, head: cython.uint) -> None:
        """Begin the next chain of the burst."""
        self.head[self.taken] = head
        self.first[self.taken] = self.iov_end + 1
        self.segments[self.taken] = self.readable[self.taken] = 0
        self.size[self.taken] = 0
        self.written[self.taken] = 0

    def close_chain(self, answer: cython.int) -> None:
        """End the chain: ``GOOD``, or ``DROP`` to hand it out empty."""
        if answer == GOOD:
            self.iov_end = self.first[self.taken] + self.segments[self.taken]
            self.iov[2 * self.iov_end] = self.iov[2 * self.iov_end + 1] = 0
        else:
            self.segments[self.taken] = self.readable[self.taken] = 0
            self.size[self.taken] = 0
        self.taken += 1

    def gather(self, address: cython.ulonglong, length: cython.uint, writable: cython.bint) -> cython.int:
        """Add one buffer to the chain that is open: ``GOOD``, ``DROP`` or ``PARK``.

        > The driver MUST NOT put device-readable descriptors after device-writable ones (virtio 1.2, 2.6.4.2).
        """
        i: cython.int = self.taken
        n: cython.int
        room: cython.int = SEGMENTS - self.segments[i]
        iov: cython.ulonglong = self.iov_address + 16 * (self.first[i] + self.segments[i])
        if length == 0:
            return DROP
        if writable:
            if self.expects == READABLE:
                return DROP
            n = self.writes_to.translate(address, length, iov, room)
        else:
            if self.expects == WRITABLE or self.segments[i] > self.readable[i]:
                return DROP
            n = self.reads_from.translate(address, length, iov, room)
        if n == MISS:
            return self.missed(address, length, writable)
        if n < 0:
            return DROP
        self.segments[i] += n
        if not writable:
            self.readable[i] += n
        self.size[i] += length
        if self.size[i] >> 32:
            return DROP
        return GOOD

    def indirect_entry(self, table: cython.ulonglong, index: cython.uint) -> cython.ulonglong:
        """Where entry `index` of the indirect table at guest address `table` can be read.

        An entry may straddle two regions; then it is put together in the scratch. 0: not guest memory; 1: not yet.
        """
        pieces: cython.int
        i: cython.int
        done: cython.ulonglong = 0
        iov: cython.ulonglong = self.scratch_address + 16
        entry: cython.ulonglong = self.reads_from.contiguous(table + 16 * index, 16)
        if entry:
            return entry
        pieces = self.reads_from.translate(table + 16 * index, 16, iov, 16)
        if pieces == MISS and self.missed(table + 16 * index, 16, False) == PARK:
            return 1
        if pieces < 0:
            return 0
        for i in range(pieces):
            copy(self.scratch_address + done, load_u64(iov + 16 * i), load_u64(iov + 16 * i + 8))
            done += load_u64(iov + 16 * i + 8)
        return self.scratch_address

    def log_burst(self) -> None:
        """Log what was written to the chains of the burst, also to those that go back."""
        i: cython.int
        fence()
        for i in range(self.taken):
            self.log_chain(i, self.written[i])

    def log_written(self, i: cython.int, end: cython.int, size: cython.ulonglong) -> None:
        """Log at once `size` bytes that were written to chains `i` up to `end`; `written` may not tell of them."""
        part: cython.ulonglong
        if not self.log.on:
            return
        fence()
        while size and i < end:
            part = min(size, self.size[i])
            self.log_chain(i, part)
            size -= part
            i += 1

    def log_chain(self, i: cython.int, size: cython.ulonglong) -> None:
        """Log the first `size` bytes of what the device may write of chain `i`."""
        k: cython.int = self.first[i] + self.readable[i]
        end: cython.int = self.first[i] + self.segments[i]
        part: cython.ulonglong
        while size and k < end:
            part = min(size, self.iov[2 * k + 1])
            self.log.buffer(self.iov[2 * k], part)
            size -= part
            k += 1

    def missed(self, address: cython.ulonglong, length: cython.ulonglong, writable: cython.bint) -> cython.int:
        """A buffer is not all translated for this use: ``PARK``, or ``DROP`` where only the other use is allowed."""
        iova: cython.ulonglong
        if writable:
            iova = self.writes_to.hole(address, length)
            if self.reads_from.find(iova, 0) >= 0:
                self.ask(ASK_DENIED, iova, IOMMU_WRITE)
                return DROP
            self.ask(ASK_TRANSLATION, iova, IOMMU_WRITE)
            return PARK
        iova = self.reads_from.hole(address, length)
        if self.writes_to.find(iova, 0) >= 0:
            self.ask(ASK_DENIED, iova, IOMMU_READ)
            return DROP
        self.ask(ASK_TRANSLATION, iova, IOMMU_READ)
        return PARK

    def ask(self, what: cython.int, iova: cython.ulonglong, perm: cython.int) -> None:
        """Have a question for the front-end. One that the ring waits for comes before one that tells of a mistake."""
        if self.asks == ASK_TRANSLATION and what == ASK_DENIED:
            return
        if self.asks == what and self.ask_iova == iova:
            return
        self.asks = what
        self.ask_iova = iova
        self.ask_perm = perm
        self.ask_sent = False

    def note(self, what: cython.int, count: cython.int) -> None:
        """Note the present moment if somebody wants to know."""
        if self.timeline is not None:
            self.timeline.note(what, self.index, count)

    def notify(self) -> None:
        """Signal the driver."""
        if self.call >= 0:
            self.note(AT_CALL, 0)
            # it was asked when it was set, but the peer can have it block later; who was interrupted asks each time
            if signal(self.call, self.call_may_block) == _EINTR:
                self.call_may_block = True
            self.counts[CALLS] += 1
            self.note(AT_CALLED, 0)

    def kicked(self) -> None:
        """The kick descriptor is ready: empty it. One that cannot be read, or is at its end, is given up.

        The ring is polled then, as one without a kick descriptor.

        A kick is also a reason to ask once more for a translation that did not come.
        """
        if self.asks == ASK_TRANSLATION:
            self.ask_sent = False
        got: cython.long = drain(self.kick)
        if got > 0:
            self.counts[KICKS] += 1
            self.note(AT_KICK, 0)
        elif got not in (_EAGAIN, _EINTR):
            self.kick = -1

    def unplaced(self) -> cython.bint:
        """Whether its own areas wait for translations."""
        return self.started and self.desc == 0 and self.asks == ASK_TRANSLATION

    # ---- what a layout provides ------------------------------------------------------------------------------------

    def take(self, limit: cython.int) -> cython.int:
        """Take up to `limit` chains into the burst: their number, 0 for none, below 0 for a broken ring."""
        return 0

    def give(self, count: cython.int) -> None:
        """Give the first `count` chains of the burst back as used, put the others back as available."""

    def publish(self) -> None:
        """Make everything given visible to the driver at once, then signal it if it asked for that."""

    def owes(self) -> cython.bint:
        """Whether chains that a back-end before us left in flight are not used yet."""
        return False

    def arm(self) -> cython.bint:
        """Ask for a kick when more comes than was seen. True: it has come already."""
        return False

    def disarm(self) -> None:
        """Tell the driver that no kick is needed."""

"""Receive: from the port to the driver's ring.

A packet's size is known only when it was read. Packets are read in one of two ways, whichever suits those that came
last:

* Short ones are read into private slots and copied into the driver's buffers from there. A read into one buffer is
  cheaper than one into a vector, by more than the copy costs. Chains are taken one, two, four, ... at a time while the
  port has a packet for each, so that looking at an empty port costs one read; from a few on, one call makes all reads.
* After a long one, more are likely: for a while each read goes straight into a window of chains that holds the longest
  packet, with a private overflow behind it where the driver has no such window.

What is in private memory is *kept*: laid over as many chains as it takes (mergeable receive buffers), in order, before
anything else is read. If the driver has too few buffers it stays there, the port is left alone, and the next kick tries
again. Nothing is read that no buffer is waiting for.
"""

from __future__ import annotations

import errno
import mmap
from array import array

import cython

from vhostuser.devices.net.features import NetFeature, header_size
from vhostuser.devices.net.header import accepted_offloads
from vhostuser.virtio.memory import address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.batch import Batch
    from vhostuser.devices.net.header import accepts
    from vhostuser.virtio.layout import AT_RECEIVED, BURST, EVENT, KICK, POOL, PORT_IN, SEGMENTS, VANISHED, WORK
    from vhostuser.virtio.primitives import copy, load_u8, load_u16, read_fd, readv, store_u8, store_u16
    from vhostuser.virtio.ring import Ring

    (RX_PACKETS, RX_BYTES, RX_DROPPED, RX_STARVED, RX_DIRECT, RX_BATCHES, RX_REFUSED) = range(7)

#: Names of the counters, in the order of the ``.pxd``.
COUNTERS = ("rx_packets", "rx_bytes", "rx_dropped", "rx_starved", "rx_direct", "rx_batches", "rx_refused")

_MAX_FRAME = cython.declare(cython.ulonglong, 65535 + 18)  # 65535 bytes of IP, Ethernet header, VLAN tag
_SLOT = cython.declare(cython.ulonglong, 65536 + 128)  # the longest packet, rounded up
_SHORT = cython.declare(cython.ulonglong, 4096)  # bytes of a packet that are cheaper to copy
_LARGE = cython.declare(cython.int, 16)  # packets that get a window after a large one
_PUBLISH = cython.declare(cython.int, 32)  # packets read one by one and published together
_BATCH_FROM = cython.declare(cython.int, 4)  # packets from which one call is cheaper than a call for each

_EFAULT = cython.declare(cython.long, -errno.EFAULT)
_EBADFD = cython.declare(cython.long, -errno.EBADFD)
_ECONNRESET = cython.declare(cython.long, -errno.ECONNRESET)
_ENETDOWN = cython.declare(cython.long, -errno.ENETDOWN)

# what a read's answer means when it is no packet
_NOTHING = cython.declare(cython.long, 0)
_USELESS = cython.declare(cython.long, -1)


def move_header(to: cython.ulonglong) -> None:
    """Move a header without num_buffers down by those two bytes."""
    at: cython.int
    for at in range(0, 10, 2):
        store_u16(to + at, load_u16(to + at + 2))


class Receiver:
    """The receive half of a queue pair.

    Attributes:
        ring: where it puts packets.
        header_size: bytes of virtio_net_hdr before each packet in the ring.
        shift: by how many bytes it is shorter at the port, which then has no num_buffers; the frame is read to where
            it belongs.
        port: the descriptor; its owner closes it.
        port_failed: whether the port is gone.
        batch: what makes batches; None: one system call a packet.
    """

    def __init__(self, ring: Ring, features: int) -> None:
        self.ring = ring
        self.header_size = header_size(features)
        self.mergeable = bool(features & NetFeature.MRG_RXBUF)
        self.accepted = accepted_offloads(features)
        self.flagless = not features & NetFeature.GUEST_CSUM
        self.counts = array("Q", bytes(8 * len(COUNTERS)))
        # A slot a packet, and two more: the overflow of a window, and before it room for what did not overflow.
        # Pages that are never touched, as most of these, cost nothing.
        self.slots = mmap.mmap(-1, _SLOT * (BURST + 2), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.slots_address = address_of(self.slots)
        self.overflow = self.slots_address + _SLOT * (BURST + 1)
        self.kept_at = array("Q", bytes(8 * BURST))
        self.kept_size = array("Q", bytes(8 * BURST))
        self.kept_first = self.kept_end = 0
        self.ramp = 1
        self.drained = False
        self.use(-1, self.header_size, None)

    def use(self, port: int, port_header: int, batch: Batch | None) -> None:
        """Receive from another port from now on. What was read from the old one still comes first."""
        self.port = port
        self.port_failed = False
        self.batch = batch
        self.shift = self.header_size - port_header
        self.large = 0

    def close(self) -> None:
        """Release the private memory."""
        self.slots.close()

    def counters(self) -> dict[str, int]:
        """Counters by name."""
        return dict(zip(COUNTERS, self.counts, strict=True))

    def turn(self, budget: cython.int) -> cython.int:
        """Fill what is available: ``WORK`` (more is left), ``PORT_IN`` (the port is empty), ``KICK`` or ``EVENT``."""
        waiting: cython.bint
        taken: cython.int
        done: cython.int
        self.drained = False
        while budget > 0:
            waiting = self.kept_first < self.kept_end
            if self.drained and not waiting:
                return PORT_IN
            taken = self.ring.take(BURST if waiting or self.large else min(budget, self.ramp))
            if taken <= 0:
                self.counts[RX_STARVED] += 1
                return KICK
            if waiting:
                done = self.deliver(taken, True)
            elif self.large:
                done = self.direct(taken)
                self.ring.note(AT_RECEIVED, done)
            else:
                self.read(taken)
                self.ring.note(AT_RECEIVED, self.kept_end)
                done = self.deliver(taken, False)
            if self.ring.fault:
                return EVENT
            self.ring.give(done)
            self.ring.publish()
            if waiting and done == 0 and self.kept_first < self.kept_end:
                self.counts[RX_STARVED] += 1
                return KICK
            budget -= max(done, 1)
        return WORK

    def check(self, got: cython.long) -> cython.long:
        """A read's answer: the packet's size in the ring, or ``_NOTHING``, or ``_USELESS`` for what is no packet."""
        if got == _EFAULT:
            self.ring.fail(VANISHED)
        elif got in (0, _EBADFD, _ECONNRESET, _ENETDOWN):
            self.port_failed = True
        elif got > 0:
            got += self.shift
            if self.header_size < got <= cython.cast(cython.long, self.header_size + _MAX_FRAME):
                return got
            self.counts[RX_DROPPED] += 1
            return _USELESS
        self.drained = True
        return _NOTHING

    def wanted(self, flags: cython.ulonglong, gso: cython.ulonglong) -> cython.bint:
        """Whether the driver takes a packet with the flags and gso_type there. Not every port knows what it takes.

        > If VIRTIO_NET_F_GUEST_CSUM is not negotiated, the device MUST set flags to zero (5.1.6.4.1).
        """
        if accepts(load_u8(flags), load_u8(gso), self.accepted):
            if self.flagless:  # a port that has verified a checksum says so
                store_u8(flags, 0)
            return True
        self.counts[RX_REFUSED] += 1
        return False

    # ---- short packets: into private slots -------------------------------------------------------------------------

    def read(self, count: cython.int) -> None:
        """Read up to `count` packets into slots."""
        i: cython.int
        most: cython.int = _PUBLISH
        self.kept_first = self.kept_end = 0
        if self.batch is not None and self.batch.works:
            most = BURST
        if self.batch is not None and most == BURST and count >= _BATCH_FROM:
            self.read_batch(self.batch, count)
        else:
            for i in range(count):
                self.keep(i, read_fd(self.port, self.slot(i) + self.shift, _SLOT - self.shift))
                if self.drained:
                    break
        self.ramp = max(self.kept_end, 1) if self.drained else min(2 * count, most)

    def read_batch(self, batch: Batch, count: cython.int) -> None:
        """Read up to `count` packets with one system call.

        More may arrive while io_uring runs, so an earlier read may find nothing and a later one something.
        """
        i: cython.int
        for i in range(count):
            batch.add_read(self.slot(i) + self.shift, _SLOT - self.shift)
        if batch.submit() == 0:
            self.counts[RX_BATCHES] += 1
            for i in range(count):
                self.keep(i, batch.result[i])

    def slot(self, i: cython.int) -> cython.ulonglong:
        """Where a slot lies."""
        return self.slots_address + _SLOT * cython.cast(cython.ulonglong, i)

    def keep(self, i: cython.int, got: cython.long) -> None:
        """Note what was read into slot `i`, if it is a packet."""
        at: cython.ulonglong = self.slot(i)
        got = self.check(got)
        if got <= 0:
            return
        if self.shift:
            move_header(at)
        if self.wanted(at, at + 1):
            self.kept_at[self.kept_end] = at
            self.kept_size[self.kept_end] = got
            self.kept_end += 1

    def deliver(self, taken: cython.int, all_there_are: cython.bint) -> cython.int:
        """Lay kept packets over the chains of the burst; how many chains are used up.

        `all_there_are`: the driver has no more chains than these, or a burst does not hold more. A packet that is
        longer than the driver's buffers will ever be is dropped.
        """
        i: cython.int = 0
        end: cython.int
        while self.kept_first < self.kept_end and i < taken:
            end = self.cover(i, taken, self.kept_size[self.kept_first])
            if end > 0:
                self.lay_out(i, end)
                i = end
            elif end < 0:  # a useless chain is in the way; a merged packet's chains must stand side by side
                self.give_up(i, -end)
                i = -end
            elif not self.mergeable or (all_there_are and i == 0 and not self.may_grow(taken)):
                self.counts[RX_DROPPED] += 1
                self.kept_first += 1
            else:
                break
        return i

    def cover(self, i: cython.int, taken: cython.int, size: cython.ulonglong) -> cython.int:
        """Where the chains end that a packet takes from `i` on. 0: they are too few. -n: chain n - 1 is useless."""
        room: cython.ulonglong = 0
        end: cython.int = i
        while room < size:
            if end == taken or (end > i and not self.mergeable):
                return 0
            if self.ring.size[end] < (self.header_size if end == i else 1):
                return -end - 1
            room += self.ring.size[end]
            end += 1
        return end

    def may_grow(self, taken: cython.int) -> cython.bint:
        """Whether a burst of all that is available could ever be larger than this one of `taken` chains."""
        pieces: cython.int = 0
        i: cython.int
        for i in range(taken):
            pieces += self.ring.segments[i]
        return (
            taken < min(BURST, cython.cast(cython.int, self.ring.num))
            and (self.ring.indirect or pieces < cython.cast(cython.int, self.ring.num))
            and self.ring.iov_end + SEGMENTS + 2 <= POOL
        )

    def give_up(self, i: cython.int, end: cython.int) -> None:
        """Give chains back unused."""
        self.counts[RX_DROPPED] += 1
        while i < end:
            self.ring.written[i] = 0
            i += 1

    def lay_out(self, i: cython.int, end: cython.int) -> None:
        """Copy the first kept packet into the chains from `i` up to `end`."""
        source: cython.ulonglong = self.kept_at[self.kept_first]
        size: cython.ulonglong = self.kept_size[self.kept_first]
        k: cython.int = i
        if (end - i > 1 or size > _SHORT) and not self.shift:
            self.large = _LARGE
        self.kept_first += 1
        self.account(size)
        while k < end:
            self.ring.written[k] = min(self.ring.size[k], size)
            self.scatter(k, source, self.ring.written[k])
            source += self.ring.written[k]
            size -= self.ring.written[k]
            k += 1
        self.set_num_buffers(i, end - i)

    def scatter(self, i: cython.int, source: cython.ulonglong, size: cython.ulonglong) -> None:
        """Copy `size` bytes into the buffers of chain `i`."""
        k: cython.int = 2 * self.ring.first[i]
        part: cython.ulonglong
        while size:
            part = min(size, self.ring.iov[k + 1])
            copy(self.ring.iov[k], source, part)
            source += part
            size -= part
            k += 2

    # ---- long packets: straight into the driver's buffers ----------------------------------------------------------

    def direct(self, taken: cython.int) -> cython.int:
        """Read packets into windows of chains; how many chains are used up."""
        i: cython.int = 0
        end: cython.int
        used: cython.int
        read: cython.long
        got: cython.long
        while i < taken and self.large:
            if self.ring.size[i] < self.header_size:
                self.give_up(i, i + 1)
                i += 1
                continue
            end = self.window(i, taken)
            if end < 0:
                break
            read = self.read_window(i, end)
            got = self.check(read)
            if got == _NOTHING:
                break
            self.large -= 1
            if got < 0 or not self.wanted_in(i):
                self.ring.log_written(i, end, read)
                continue
            used = self.spread(i, end, got)
            if used == 0:
                self.keep_overflow(i, end, got)
                break
            if used > 1 or got > cython.cast(cython.long, _SHORT):
                self.large = _LARGE
            i += used
        return i

    def window(self, i: cython.int, taken: cython.int) -> cython.int:
        """The end of the chains to read into: enough for the longest packet, if there are so many.

        Below 0: the rest of this burst is not enough, and a new one may be.
        """
        room: cython.ulonglong = self.ring.size[i]
        end: cython.int = i + 1
        if self.mergeable:
            while (
                end < taken
                and room < self.header_size + _MAX_FRAME
                and self.ring.segments[end]
                and self.ring.first[end] + self.ring.segments[end] - self.ring.first[i] < SEGMENTS
            ):
                room += self.ring.size[end]
                end += 1
            if i > 0 and end == taken and room < self.header_size + _MAX_FRAME:
                return -1
        return end

    def read_window(self, i: cython.int, end: cython.int) -> cython.long:
        """Read a packet into chains `i` up to `end`, and what they do not hold into the overflow."""
        got: cython.long
        spare: cython.int = self.ring.first[end - 1] + self.ring.segments[end - 1]
        self.ring.iov[2 * spare] = self.overflow
        self.ring.iov[2 * spare + 1] = _SLOT
        got = readv(self.port, self.ring.iov_address + 16 * self.ring.first[i], spare - self.ring.first[i] + 1)
        self.ring.iov[2 * spare] = self.ring.iov[2 * spare + 1] = 0
        return got

    def wanted_in(self, i: cython.int) -> cython.bint:
        """The same as :meth:`wanted`, for a packet that begins in chain `i`, whatever its split."""
        k: cython.int = 2 * self.ring.first[i]
        return self.wanted(self.ring.iov[k], self.ring.iov[k] + 1 if self.ring.iov[k + 1] > 1 else self.ring.iov[k + 2])

    def spread(self, i: cython.int, end: cython.int, got: cython.ulonglong) -> cython.int:
        """Account a packet to the chains it was read into; how many it takes. 0: it overflowed them."""
        left: cython.ulonglong = got
        k: cython.int = i
        while left and k < end:
            self.ring.written[k] = min(left, self.ring.size[k])
            left -= self.ring.written[k]
            k += 1
        if left:
            return 0
        self.counts[RX_DIRECT] += 1
        self.account(got)
        self.set_num_buffers(i, k - i)
        return k - i

    def keep_overflow(self, i: cython.int, end: cython.int, size: cython.ulonglong) -> None:
        """Keep a packet that overflowed chains `i` up to `end`: what they hold goes before the overflow."""
        k: cython.int
        first: cython.int = 2 * self.ring.first[i]
        last: cython.int = 2 * (self.ring.first[end - 1] + self.ring.segments[end - 1])
        at: cython.ulonglong = self.overflow
        for k in range(i, end):
            at -= self.ring.size[k]
        self.kept_first = 0
        self.kept_end = 1
        self.kept_at[0] = at
        self.kept_size[0] = size
        while first < last:
            copy(at, self.ring.iov[first], self.ring.iov[first + 1])
            at += self.ring.iov[first + 1]
            first += 2

    # ---- both ------------------------------------------------------------------------------------------------------

    def account(self, size: cython.ulonglong) -> None:
        """Count a packet of so many bytes, header included."""
        self.counts[RX_PACKETS] += 1
        self.counts[RX_BYTES] += size - self.header_size

    def set_num_buffers(self, i: cython.int, count: cython.int) -> None:
        """Write num_buffers into the header that chain `i` begins with, whatever its split.

        > The device MUST set num_buffers to 1 if VIRTIO_NET_F_MRG_RXBUF is not negotiated (5.1.6.4.1).
        """
        k: cython.int = 2 * self.ring.first[i]
        offset: cython.ulonglong = 10
        byte: cython.int
        if self.header_size < 12:
            return
        if self.ring.iov[k + 1] >= 12:
            store_u16(self.ring.iov[k] + 10, count)
            return
        for byte in range(2):
            while offset >= self.ring.iov[k + 1]:
                offset -= self.ring.iov[k + 1]
                k += 2
            store_u8(self.ring.iov[k] + offset, (count >> (8 * byte)) & 0xFF)
            offset += 1

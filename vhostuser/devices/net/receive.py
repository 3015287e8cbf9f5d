"""Receive: from the port to the driver's ring.

A packet's size is known only when it was read, so a read has the next chain's buffers and, behind them, a private
overflow large enough for any packet. Chains are taken one, two, four, ... at a time while the port has packets for all
of them, so that looking at an empty port costs one; from a few on, one io_uring call reads a packet into each.

After a packet that overflowed, more are likely: for a while one read gets a window of chains that holds the largest
packet, and nothing has to be copied. What did overflow is *kept*: put together in private memory and laid over as many
chains as it takes (mergeable receive buffers), in order, before anything else is read. If the driver has too few
buffers it stays there, the port is left alone, and the next kick tries again.

Several packets may arrive while a batch is being read, so an earlier read may find nothing and a later one something.
Such a packet is moved into the earlier chain: what is used up stays a prefix of what was taken.
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
    from vhostuser.devices.net.header import accepts
    from vhostuser.devices.net.uring import Uring
    from vhostuser.virtio.layout import BURST, EVENT, KICK, POOL, PORT_IN, SEGMENTS, VANISHED, WORK
    from vhostuser.virtio.primitives import copy, load_u8, load_u16, readv, store_u8, store_u16
    from vhostuser.virtio.ring import Ring

    (RX_PACKETS, RX_BYTES, RX_DROPPED, RX_STARVED, RX_KEPT, RX_MOVED, RX_BATCHES, RX_REFUSED) = range(8)

#: Names of the counters, in the order of the ``.pxd``.
COUNTERS = (
    "rx_packets",
    "rx_bytes",
    "rx_dropped",
    "rx_starved",
    "rx_kept",
    "rx_moved",
    "rx_batches",
    "rx_refused",
)

_MAX_FRAME = cython.declare(cython.ulonglong, 65535 + 18)  # 65535 bytes of IP, Ethernet header, VLAN tag
_OVERFLOW = cython.declare(cython.ulonglong, 65536 + 128)  # the longest packet, rounded up
_PUBLISH = cython.declare(cython.int, 32)  # packets read one by one and published together
_LARGE = cython.declare(cython.int, 16)  # packets that get a window after a large one
_BATCH_FROM = cython.declare(cython.int, 4)  # packets from which one io_uring call is cheaper than a call for each
_OP_READV = cython.declare(cython.int, 1)

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
        shift: by how much less it is at the port, which then has no num_buffers.
        port: the descriptor; its owner closes it.
        port_failed: whether the port is gone.
        uring: what makes batches; None: one system call a packet.
    """

    def __init__(self, ring: Ring, features: int) -> None:
        self.ring = ring
        self.header_size = header_size(features)
        self.mergeable = bool(features & NetFeature.MRG_RXBUF)
        self.accepted = accepted_offloads(features)
        self.use(-1, self.header_size, None)
        self.counts = array("Q", bytes(8 * len(COUNTERS)))
        # Twice the overflow for each slot: what overflowed, and before it room for what did not. Pages that are never
        # touched, as most of these, cost nothing.
        self.slots = mmap.mmap(-1, 2 * _OVERFLOW * BURST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.slots_address = address_of(self.slots)
        self.kept_at = array("Q", bytes(8 * BURST))
        self.kept_size = array("Q", bytes(8 * BURST))
        self.kept_first = self.kept_end = 0
        self.large = 0
        self.ramp = 1
        self.drained = False

    def use(self, port: int, port_header: int, uring: Uring | None) -> None:
        """Receive from another port from now on. What the old one's packets were kept for still comes first."""
        self.port = port
        self.shift = self.header_size - port_header
        self.uring = uring
        self.port_failed = False

    def close(self) -> None:
        """Release the memory for what overflows."""
        self.slots.close()

    def counters(self) -> dict[str, int]:
        """Counters by name."""
        return dict(zip(COUNTERS, self.counts, strict=True))

    def turn(self, budget: cython.int) -> cython.int:
        """Fill what is available: ``WORK`` (more is left), ``PORT_IN`` (the port is empty), ``KICK`` or ``EVENT``."""
        taken: cython.int
        done: cython.int
        self.drained = False
        while budget > 0:
            if self.kept_first < self.kept_end:
                done = self.deliver()
                if done == 0:
                    return EVENT if self.ring.fault else KICK
                budget -= done
                continue
            if self.drained:
                return PORT_IN
            taken = self.ring.take(BURST if self.large else min(budget, self.ramp))
            if taken <= 0:
                self.counts[RX_STARVED] += 1
                return KICK
            budget -= taken
            if taken >= _BATCH_FROM and self.uring is not None and self.uring.works and not self.large:
                done = self.batch(self.uring, taken)
            else:
                done = self.burst(taken)
            if self.ring.fault:
                return EVENT
            self.ring.give(done)
            self.ring.publish()
            if self.drained:
                self.ramp = max(done, 1)
            elif done == taken:
                self.ramp = min(2 * taken, BURST if self.uring is not None and self.uring.works else _PUBLISH)
        return WORK

    # ---- reading ---------------------------------------------------------------------------------------------------

    def burst(self, taken: cython.int) -> cython.int:
        """Read packets one by one; how many chains of the burst are used up."""
        i: cython.int = 0
        end: cython.int
        used: cython.int
        spare: cython.int
        got: cython.long
        while i < taken:
            if not self.usable(i):
                i += 1
                continue
            if self.shift and self.ring.iov[2 * self.ring.first[i] + 1] < self.header_size:
                return self.read_aside(i)
            end = self.window(i, taken)
            if end < 0:
                return i
            spare = self.ring.first[end - 1] + self.ring.segments[end - 1]
            self.ring.iov[2 * spare] = self.overflow(0)
            self.ring.iov[2 * spare + 1] = _OVERFLOW
            self.skip(i)
            got = readv(self.port, self.ring.iov_address + 16 * self.ring.first[i], spare - self.ring.first[i] + 1)
            got = self.check(i, got)
            self.ring.iov[2 * spare] = self.ring.iov[2 * spare + 1] = 0
            if got == _NOTHING:
                self.drained = True
            if got <= 0:
                return i
            used = self.spread(i, end, got)
            if used == 0:
                self.keep(i, end, 0, got)
                return i
            self.large = _LARGE if used > 1 else max(self.large - 1, 0)
            i += used
        return i

    def batch(self, uring: Uring, taken: cython.int) -> cython.int:
        """Read a packet into each chain with one system call; how many chains of the burst are used up."""
        i: cython.int
        n: cython.int = 0
        done: cython.int = 0
        got: cython.long
        spare: cython.int
        while n < taken and self.plain(n):
            spare = self.ring.first[n] + self.ring.segments[n]
            self.ring.iov[2 * spare] = self.overflow(n)
            self.ring.iov[2 * spare + 1] = _OVERFLOW
            self.skip(n)
            uring.prepare(
                _OP_READV, self.port, self.ring.iov_address + 16 * self.ring.first[n], self.ring.segments[n] + 1
            )
            n += 1
        if n < _BATCH_FROM:  # a useless chain is in the way
            uring.waiting = 0
            for i in range(n):
                self.unskip(i)
            return self.burst(taken)
        if uring.submit() < 0:
            return 0
        self.counts[RX_BATCHES] += 1
        for i in range(n):
            got = self.check(i, uring.result[i])
            if got == _NOTHING:
                self.drained = True
            elif got > 0:
                if self.kept_first < self.kept_end or not self.move(i, done, got):
                    self.keep(i, i + 1, i, got)
                else:
                    done += 1
        return done

    def check(self, i: cython.int, got: cython.long) -> cython.long:
        """The answer of a read into chain `i`: the packet's size in the ring, or ``_NOTHING``, or ``_USELESS``."""
        k: cython.int = 2 * self.ring.first[i]
        self.unskip(i)
        if got + self.shift <= self.header_size:
            return self.excuse(got)
        if self.shift:
            move_header(self.ring.iov[k])
        if self.ring.iov[k + 1] > 1:
            return self.judge(self.ring.iov[k], self.ring.iov[k] + 1, got + self.shift)
        return self.judge(self.ring.iov[k], self.ring.iov[k + 2], got + self.shift)

    def judge(self, flags: cython.ulonglong, gso: cython.ulonglong, size: cython.long) -> cython.long:
        """`size` if the driver takes a packet whose flags and gso_type lie there, else ``_USELESS``."""
        if accepts(load_u8(flags), load_u8(gso), self.accepted):
            return size
        self.counts[RX_REFUSED] += 1
        return _USELESS

    def excuse(self, got: cython.long) -> cython.long:
        """What a read's answer means that is no packet: ``_NOTHING`` or ``_USELESS``."""
        if got == _EFAULT:
            self.ring.fail(VANISHED)
        elif got in (0, _EBADFD, _ECONNRESET, _ENETDOWN):
            self.port_failed = True
        elif got > 0:
            self.counts[RX_DROPPED] += 1
            return _USELESS
        return _NOTHING

    def usable(self, i: cython.int) -> cython.bint:
        """Whether chain `i` can hold a header; if not it goes back unused."""
        if self.ring.size[i] >= self.header_size:
            return True
        self.counts[RX_DROPPED] += 1
        self.ring.written[i] = 0
        return False

    def plain(self, i: cython.int) -> cython.bint:
        """Whether a packet can be read into chain `i` as it is."""
        if self.ring.size[i] < self.header_size or not self.ring.segments[i]:
            return False
        return not self.shift or self.ring.iov[2 * self.ring.first[i] + 1] >= self.header_size

    def skip(self, i: cython.int) -> None:
        """Leave a gap at the beginning of chain `i` by which the port's header is shorter: the frame is in place."""
        k: cython.int = 2 * self.ring.first[i]
        self.ring.iov[k] += self.shift
        self.ring.iov[k + 1] -= self.shift

    def unskip(self, i: cython.int) -> None:
        """Undo :meth:`skip`."""
        k: cython.int = 2 * self.ring.first[i]
        self.ring.iov[k] -= self.shift
        self.ring.iov[k + 1] += self.shift

    def read_aside(self, i: cython.int) -> cython.int:
        """Read a packet to be kept: the header in chain `i` is in pieces, and the port's has another size."""
        spare: cython.int = self.ring.first[i] + self.ring.segments[i]
        got: cython.long
        self.ring.iov[2 * spare] = self.overflow(0) + self.shift
        self.ring.iov[2 * spare + 1] = _OVERFLOW - self.shift
        got = readv(self.port, self.ring.iov_address + 16 * spare, 1)
        if got + self.shift <= self.header_size:
            got = self.excuse(got)
        else:
            move_header(self.overflow(0))
            got = self.judge(self.overflow(0), self.overflow(0) + 1, got + self.shift)
        if got == _NOTHING:
            self.drained = True
        elif got > 0:
            self.keep(i, i, 0, got)
        return i

    def window(self, i: cython.int, taken: cython.int) -> cython.int:
        """The end of the chains to read into: one, or after a large packet enough for the largest.

        Below 0: the rest of this burst is not enough, and a new one may be.
        """
        room: cython.ulonglong = self.ring.size[i]
        end: cython.int = i + 1
        if self.mergeable and self.large:
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

    # ---- giving to the driver --------------------------------------------------------------------------------------

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
        self.set_num_buffers(i, k - i)
        self.counts[RX_PACKETS] += 1
        self.counts[RX_BYTES] += got - self.header_size
        return k - i

    def move(self, i: cython.int, into: cython.int, size: cython.ulonglong) -> cython.bint:
        """Account a packet to chain `into`, moving it there if it was read into another. False: it does not fit."""
        k: cython.int = 2 * self.ring.first[i]
        first: cython.ulonglong
        if size > self.ring.size[i] or size > self.ring.size[into]:
            return False
        if i != into:
            first = min(size, self.ring.iov[k + 1])
            if first < size:
                return False
            self.scatter(into, self.ring.iov[k], size)
            self.counts[RX_MOVED] += 1
        return self.spread(into, into + 1, size) == 1

    def overflow(self, slot: cython.int) -> cython.ulonglong:
        """Where a slot's overflow begins; as much room lies before it."""
        return self.slots_address + _OVERFLOW * (2 * cython.cast(cython.ulonglong, slot) + 1)

    def keep(self, i: cython.int, end: cython.int, slot: cython.int, size: cython.ulonglong) -> None:
        """Keep a packet that was read into chains `i` up to `end` and a slot's overflow, for :meth:`deliver`.

        One that no frame is long enough for, or that nothing can be merged for, is dropped.
        """
        k: cython.int
        part: cython.ulonglong
        room: cython.ulonglong = 0
        at: cython.ulonglong
        for k in range(i, end):
            room += self.ring.size[k]
        if size > self.header_size + _MAX_FRAME or (size > self.ring.size[i] and not self.mergeable):
            self.counts[RX_DROPPED] += 1
            return
        room = min(room, size)
        at = self.overflow(slot) - room
        if self.kept_first == self.kept_end:
            self.kept_first = self.kept_end = 0
        self.kept_at[self.kept_end] = at
        self.kept_size[self.kept_end] = size
        self.kept_end += 1
        k = 2 * self.ring.first[i]
        while room:
            part = min(room, self.ring.iov[k + 1])
            copy(at, self.ring.iov[k], part)
            at += part
            room -= part
            k += 2
        self.counts[RX_KEPT] += 1
        if size > self.ring.size[i] and self.mergeable:
            self.large = _LARGE

    def deliver(self) -> cython.int:
        """Lay the first kept packet over the chains it takes: how many chains that was; 0: there are too few."""
        taken: cython.int = self.ring.take(BURST)
        most: cython.int = taken if self.mergeable else min(taken, 1)
        k: cython.int = 0
        i: cython.int
        pieces: cython.uint = 0
        room: cython.ulonglong = 0
        if taken <= 0:
            self.counts[RX_STARVED] += 1
            return 0
        while k < most and room < self.kept_size[self.kept_first] and self.ring.segments[k]:
            room += self.ring.size[k]
            pieces += self.ring.segments[k]
            k += 1
        if room >= self.kept_size[self.kept_first]:
            self.lay_out(k)
            return k
        if k < most:  # a useless chain is in the way; a merged packet's chains must stand side by side
            for i in range(k + 1):
                self.ring.written[i] = 0
            self.ring.give(k + 1)
            self.ring.publish()
            return k + 1
        self.ring.give(0)
        if (
            self.mergeable
            and k < min(BURST, self.ring.num)
            and (self.ring.indirect or pieces < self.ring.num)
            and self.ring.iov_end + SEGMENTS + 2 <= POOL
        ):
            self.counts[RX_STARVED] += 1
            return 0
        self.kept_first += 1  # more buffers than that there will never be at once
        self.counts[RX_DROPPED] += 1
        return 1

    def lay_out(self, count: cython.int) -> None:
        """Put the first kept packet into the first `count` chains of the burst, and give them."""
        size: cython.ulonglong = self.kept_size[self.kept_first]
        done: cython.ulonglong = 0
        i: cython.int
        for i in range(count):
            self.ring.written[i] = min(self.ring.size[i], size - done)
            self.scatter(i, self.kept_at[self.kept_first] + done, self.ring.written[i])
            done += self.ring.written[i]
        self.set_num_buffers(0, count)
        self.ring.give(count)
        self.ring.publish()
        self.kept_first += 1
        self.counts[RX_PACKETS] += 1
        self.counts[RX_BYTES] += size - self.header_size

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

"""Transmit: from the driver's ring to the port.

A chain's header is copied once into private memory, judged, and sent from there. A short frame is copied behind it, so
that the kernel gets one buffer instead of a vector, which costs it more than the copy; a long one goes from guest
memory straight into the system call. It is one call a packet for a few, one call a burst for more. A full
port ends the turn: the chain goes back into the ring, and the port is waited for.
"""

from __future__ import annotations

import errno
import mmap
from array import array

import cython

from vhostuser.devices.net.features import header_size
from vhostuser.devices.net.header import offloads_of
from vhostuser.virtio.memory import address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.batch import Batch
    from vhostuser.devices.net.header import admit
    from vhostuser.virtio.layout import AT_SENT, BURST, EVENT, KICK, PORT_OUT, VANISHED, WORK
    from vhostuser.virtio.primitives import copy, prefetch, store_u64, write_fd, writev
    from vhostuser.virtio.ring import Ring

    (TX_PACKETS, TX_BYTES, TX_DROPPED, TX_REJECTED, TX_DISCARDED, TX_BLOCKED, TX_BATCHES) = range(7)

#: Names of the counters, in the order of the ``.pxd``.
COUNTERS = (
    "tx_packets",
    "tx_bytes",
    "tx_dropped",
    "tx_rejected",
    "tx_discarded",
    "tx_blocked",
    "tx_batches",
)

# the longest frame: 65535 bytes of IP behind an Ethernet header with a VLAN tag
_MAX_FRAME = cython.declare(cython.ulonglong, 65535 + 18)
_MIN_FRAME = cython.declare(cython.ulonglong, 14)
_BATCH_FROM = cython.declare(cython.int, 4)  # packets from which one call is cheaper than a call for each
_SLOT = cython.declare(cython.ulonglong, 2048)  # private memory of a chain: a header, and a frame that fits behind it

_EAGAIN = cython.declare(cython.long, -errno.EAGAIN)
_EINTR = cython.declare(cython.long, -errno.EINTR)
_EFAULT = cython.declare(cython.long, -errno.EFAULT)
_EBADFD = cython.declare(cython.long, -errno.EBADFD)
_EPIPE = cython.declare(cython.long, -errno.EPIPE)
_ECONNRESET = cython.declare(cython.long, -errno.ECONNRESET)
_ENETDOWN = cython.declare(cython.long, -errno.ENETDOWN)
_ENXIO = cython.declare(cython.long, -errno.ENXIO)

# how a packet came out
_SENT = cython.declare(cython.int, 0)
_BLOCKED = cython.declare(cython.int, -1)
_BROKEN = cython.declare(cython.int, -2)


class Transmitter:
    """The transmit half of a queue pair.

    Attributes:
        ring: what it takes packets from.
        header_size: bytes of virtio_net_hdr before each packet in the ring.
        port_header: bytes of it at the port; what is more in the ring is num_buffers, which means nothing there.
        port: the descriptor; its owner closes it.
        port_failed: whether the port is gone.
        batch: what makes batches; None: one system call a packet.
    """

    def __init__(self, ring: Ring, features: int) -> None:
        self.ring = ring
        self.header_size = header_size(features)
        self.offloads = offloads_of(features)
        self.use(-1, self.header_size, None)
        self.counts = array("Q", bytes(8 * len(COUNTERS)))
        self.slots = mmap.mmap(-1, _SLOT * BURST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.slots_address = address_of(self.slots)
        self.chosen = array("i", bytes(4 * BURST))

    def close(self) -> None:
        """Release the private memory."""
        self.slots.close()

    def use(self, port: int, port_header: int, batch: Batch | None) -> None:
        """Send to another port from now on. A chain that the old one was too full for is still in the ring."""
        self.port = port
        self.port_header = port_header
        self.batch = batch
        self.port_failed = False

    def counters(self) -> dict[str, int]:
        """Counters by name."""
        return dict(zip(COUNTERS, self.counts, strict=True))

    def turn(self, budget: cython.int) -> cython.int:
        """Send what is available: ``WORK`` (more is left), ``PORT_OUT`` (the port is full), ``KICK`` or ``EVENT``."""
        taken: cython.int
        done: cython.int
        while budget > 0:
            taken = self.ring.take(min(budget, BURST))
            if taken <= 0:
                return KICK
            budget -= taken
            self.fetch(taken)
            if taken >= _BATCH_FROM and self.batch is not None and self.batch.works and self.ring.enabled:
                done = self.send_batch(self.batch, taken)
            else:
                done = self.burst(taken)
            self.ring.note(AT_SENT, done)
            if self.ring.fault:
                return EVENT
            self.ring.give(done)
            self.ring.publish()
            if done < taken:
                return PORT_OUT
        return WORK

    def fetch(self, taken: cython.int) -> None:
        """Begin to fetch the headers of a burst: the driver's processor has just written them."""
        i: cython.int
        for i in range(taken):
            prefetch(self.ring.iov[2 * self.ring.first[i]])

    def burst(self, taken: cython.int) -> cython.int:
        """Send the chains of a burst one by one; how many are done with."""
        i: cython.int
        pieces: cython.int
        sent: cython.long
        for i in range(taken):
            pieces = self.ready(i)
            if pieces == 0:
                continue
            if pieces == 1:
                sent = write_fd(self.port, self.slot(i), self.port_size(i))
            else:
                sent = writev(self.port, self.iov(i), pieces)
            if self.settle(i, sent) != _SENT:
                return i
        return taken

    def send_batch(self, batch: Batch, taken: cython.int) -> cython.int:
        """Send the chains of a burst with one system call; how many are done with.

        Where a batch is not kept in order the port is a tap: that has room for whatever the kernel has memory for, so
        what it does not take now counts as lost.
        """
        i: cython.int
        n: cython.int = 0
        pieces: cython.int
        for i in range(taken):
            pieces = self.ready(i)
            if pieces == 0:
                continue
            if pieces == 1:
                batch.add_write(self.slot(i), self.port_size(i))
            else:
                batch.add_writev(self.iov(i), pieces)
            self.chosen[n] = i
            n += 1
        if n and batch.submit() < 0:
            return 0
        self.counts[TX_BATCHES] += n > 0
        for i in range(n):
            if self.settle(self.chosen[i], batch.result[i]) != _BLOCKED:
                continue
            if batch.in_order:
                # it and all behind it go back; those among them that were dropped will be judged again
                self.counts[TX_DROPPED] -= taken - self.chosen[i] - (n - i)
                return self.chosen[i]
            self.counts[TX_REJECTED] += 1
        return taken

    def ready(self, i: cython.int) -> cython.int:
        """Judge chain `i` of the burst and get it ready. 0: it is dropped; 1: all of it is in its slot.

        Else its header is in its slot, and so many iovecs at :meth:`iov` are all of it.
        """
        size: cython.ulonglong = self.ring.size[i]
        if not self.ring.enabled:
            self.counts[TX_DISCARDED] += 1
            return 0
        if size < self.header_size + _MIN_FRAME or size > self.header_size + _MAX_FRAME or not self.ring.segments[i]:
            self.counts[TX_DROPPED] += 1
            return 0
        self.take(i, self.slot(i), self.header_size)
        if not admit(self.slot(i), size - self.header_size, self.offloads):
            self.counts[TX_DROPPED] += 1
            return 0
        if size <= _SLOT:
            self.take(i, self.slot(i) + self.port_header, size - self.header_size)
            return 1
        store_u64(self.iov(i), self.slot(i))
        store_u64(self.iov(i) + 8, self.port_header)
        return self.ring.segments[i] + 1

    def port_size(self, i: cython.int) -> cython.ulonglong:
        """Bytes of chain `i` at the port, header included."""
        return self.ring.size[i] - self.header_size + self.port_header

    def slot(self, i: cython.int) -> cython.ulonglong:
        """The private memory of chain `i`."""
        return self.slots_address + _SLOT * cython.cast(cython.ulonglong, i)

    def iov(self, i: cython.int) -> cython.ulonglong:
        """Where the iovecs of chain `i` lie when it is ready: the spare one before the chain's own comes first."""
        return self.ring.iov_address + 16 * cython.cast(cython.ulonglong, self.ring.first[i] - 1)

    def settle(self, i: cython.int, sent: cython.long) -> cython.int:
        """What became of chain `i`, from its system call's answer."""
        if sent >= 0:
            self.counts[TX_PACKETS] += 1
            self.counts[TX_BYTES] += self.ring.size[i] - self.header_size
            return _SENT
        if sent in (_EAGAIN, _EINTR):
            self.counts[TX_BLOCKED] += 1
            return _BLOCKED
        if sent == _EFAULT:
            self.ring.fail(VANISHED)
            return _BROKEN
        if sent in (_EBADFD, _EPIPE, _ECONNRESET, _ENETDOWN, _ENXIO):
            self.port_failed = True
            return _BLOCKED
        self.counts[TX_REJECTED] += 1
        return _SENT

    def take(self, i: cython.int, to: cython.ulonglong, size: cython.ulonglong) -> None:
        """Copy the next `size` bytes out of chain `i`, whatever its split, and leave the others in its iovecs."""
        part: cython.ulonglong
        k: cython.int = 2 * self.ring.first[i]
        while size:
            part = min(size, self.ring.iov[k + 1])
            copy(to, self.ring.iov[k], part)
            self.ring.iov[k] += part
            self.ring.iov[k + 1] -= part
            to += part
            size -= part
            k += 2

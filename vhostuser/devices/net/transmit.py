"""Transmit: from the driver's ring to the port.

A chain's header is copied once into private memory, judged, and sent from there; the frame goes from guest memory
straight into the port's system call, one call a packet for a few, one call a burst through io_uring for more. A full
port ends the turn: the chain goes back into the ring, and the port is waited for.
"""

from __future__ import annotations

import errno
from array import array

import cython

from vhostuser.devices.net.features import header_size
from vhostuser.devices.net.header import offloads_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.header import admit
    from vhostuser.devices.net.uring import Uring
    from vhostuser.virtio.layout import BURST, EVENT, KICK, PORT_OUT, VANISHED, WORK
    from vhostuser.virtio.primitives import copy, writev
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
_BATCH_FROM = cython.declare(cython.int, 4)  # packets from which one io_uring call is cheaper than a call for each
_OP_WRITEV = cython.declare(cython.int, 2)

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
        uring: what makes batches; None: one system call a packet.
    """

    def __init__(self, ring: Ring, features: int) -> None:
        self.ring = ring
        self.header_size = header_size(features)
        self.offloads = offloads_of(features)
        self.use(-1, self.header_size, None)
        self.counts = array("Q", bytes(8 * len(COUNTERS)))
        headers = array("Q", bytes(16 * BURST))
        self.headers = headers
        self.headers_address = headers.buffer_info()[0]
        self.chosen = array("i", bytes(4 * BURST))

    def use(self, port: int, port_header: int, uring: Uring | None) -> None:
        """Send to another port from now on. A chain that the old one was too full for is still in the ring."""
        self.port = port
        self.port_header = port_header
        self.uring = uring
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
            if taken >= _BATCH_FROM and self.uring is not None and self.uring.works and self.ring.enabled:
                done = self.batch(self.uring, taken)
            else:
                done = self.burst(taken)
            if self.ring.fault:
                return EVENT
            self.ring.give(done)
            self.ring.publish()
            if done < taken:
                return PORT_OUT
        return WORK

    def burst(self, taken: cython.int) -> cython.int:
        """Send the chains of a burst one by one; how many are done with."""
        i: cython.int
        at: cython.int
        answer: cython.int
        for i in range(taken):
            if not self.ready(i):
                continue
            at = self.ring.first[i]
            answer = self.settle(i, writev(self.port, self.ring.iov_address + 16 * (at - 1), self.ring.segments[i] + 1))
            if answer != _SENT:
                return i
        return taken

    def batch(self, uring: Uring, taken: cython.int) -> cython.int:
        """Send the chains of a burst with one system call; how many are done with.

        A tap has room for whatever the kernel has memory for, so what it does not take now counts as lost.
        """
        i: cython.int
        n: cython.int = 0
        at: cython.int
        for i in range(taken):
            if self.ready(i):
                at = self.ring.first[i]
                uring.prepare(_OP_WRITEV, self.port, self.ring.iov_address + 16 * (at - 1), self.ring.segments[i] + 1)
                self.chosen[n] = i
                n += 1
        if n and uring.submit() < 0:
            return 0
        self.counts[TX_BATCHES] += n > 0
        for i in range(n):
            if self.settle(self.chosen[i], uring.result[i]) == _BLOCKED:
                self.counts[TX_REJECTED] += 1
        return taken

    def ready(self, i: cython.int) -> cython.bint:
        """Judge chain `i` of the burst and put its header before its frame. False: it is dropped, and counted."""
        header: cython.ulonglong = self.headers_address + 16 * i
        size: cython.ulonglong = self.ring.size[i]
        at: cython.int = self.ring.first[i]
        if not self.ring.enabled:
            self.counts[TX_DISCARDED] += 1
            return False
        if size < self.header_size + _MIN_FRAME or size > self.header_size + _MAX_FRAME or not self.ring.segments[i]:
            self.counts[TX_DROPPED] += 1
            return False
        self.take_header(i, header)
        if not admit(header, size - self.header_size, self.offloads):
            self.counts[TX_DROPPED] += 1
            return False
        self.ring.iov[2 * at - 2] = header
        self.ring.iov[2 * at - 1] = self.port_header
        return True

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

    def take_header(self, i: cython.int, header: cython.ulonglong) -> None:
        """Copy the header out of chain `i`, whatever its split, and leave the frame in the chain's iovecs."""
        left: cython.ulonglong = self.header_size
        part: cython.ulonglong
        k: cython.int = 2 * self.ring.first[i]
        while left:
            part = min(left, self.ring.iov[k + 1])
            copy(header, self.ring.iov[k], part)
            self.ring.iov[k] += part
            self.ring.iov[k + 1] -= part
            header += part
            left -= part
            k += 2

"""Packets between two rings and a port, without the GIL, an allocation or the event loop.

Must not know vhost-user, Trio, or what the port is: one descriptor that keeps packet boundaries, each packet with a
virtio_net_hdr of the negotiated size before it (a tap with IFF_VNET_HDR, one end of a SOCK_SEQPACKET pair).

**Transmit.** A chain's header is copied once into private memory, judged, and sent from there; the frame goes from
guest memory straight into the port's system call. A full port ends the turn: the chain goes back into the ring, and
the port is waited for. A ring that is started but disabled is emptied and its packets thrown away, since (vhost-user,
"Ring states") the back-end of a networking device

    > in the disabled state [...] must not supply any new RX packets, but must process and discard any TX packets.

**Receive.** Chains are taken one, two, four, ... at a time while the port has packets for all of them, so that looking
at an empty port costs one. A packet's size is known only when it was read, so the read has the next chain's buffers
and, behind them, a private overflow large enough for any packet. After a packet that did overflow, more are likely:
for a while the read gets a window of chains that holds the largest packet, and nothing has to be copied. What did
overflow is put together in the stash and laid over as many chains as it takes (mergeable receive buffers); if the
driver has too few, it stays there, the port is left alone, and the next kick tries again.

Turns alternate between the directions with equal budgets, which is the fairness between them.
"""

from __future__ import annotations

import errno
from array import array

import cython

from vhostuser.devices.net.features import NetFeature, header_size
from vhostuser.devices.net.header import offloads_of
from vhostuser.virtio.split import SplitRing

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.header import admit
    from vhostuser.virtio.layout import BURST, EVENT, PORT_IN, PORT_OUT, READABLE, SEGMENTS, VANISHED, WORK, WRITABLE
    from vhostuser.virtio.primitives import copy, readv, store_u8, store_u16, writev
    from vhostuser.virtio.pump import Pump

    (TX_PACKETS, TX_BYTES, TX_DROPPED, TX_REJECTED, TX_DISCARDED, TX_BLOCKED) = range(6)
    (RX_PACKETS, RX_BYTES, RX_DROPPED, RX_STARVED, RX_MERGED, TURNS, SLEEPS) = range(6, 13)

#: Names of the counters, in the order of the ``.pxd``.
COUNTERS = (
    "tx_packets",
    "tx_bytes",
    "tx_dropped",
    "tx_rejected",
    "tx_discarded",
    "tx_blocked",
    "rx_packets",
    "rx_bytes",
    "rx_dropped",
    "rx_starved",
    "rx_merged",
    "turns",
    "sleeps",
)

# the longest frame: 65535 bytes of IP behind an Ethernet header with a VLAN tag
_MAX_FRAME = cython.declare(cython.ulonglong, 65535 + 18)
_MIN_FRAME = cython.declare(cython.ulonglong, 14)
_OVERFLOW = cython.declare(cython.ulonglong, 65536 + 128)  # the longest packet, rounded up
_RX_BURST = cython.declare(cython.int, 32)  # published together; more starves a 256-entry ring between two bursts
_LARGE = cython.declare(cython.int, 16)  # packets that get a window after a large one

_EAGAIN = cython.declare(cython.long, -errno.EAGAIN)
_EINTR = cython.declare(cython.long, -errno.EINTR)
_EFAULT = cython.declare(cython.long, -errno.EFAULT)
_EBADFD = cython.declare(cython.long, -errno.EBADFD)
_EPIPE = cython.declare(cython.long, -errno.EPIPE)
_ECONNRESET = cython.declare(cython.long, -errno.ECONNRESET)

# how one direction's turn ended, besides WORK, PORT_IN, PORT_OUT and EVENT: it wants a kick
_KICK = cython.declare(cython.int, 64)
# how one packet came out
_SENT = cython.declare(cython.int, 0)
_BLOCKED = cython.declare(cython.int, -1)
_BROKEN = cython.declare(cython.int, -2)
_AGAIN = cython.declare(cython.int, -3)  # put the rest of the burst back and look again


class NetPump(Pump):
    """The pump of one queue pair.

    Attributes:
        rx, tx: the receive ring and the transmit ring.
        header_size: bytes of virtio_net_hdr before each packet, on both sides.
    """

    def __init__(self, index: int, features: int) -> None:
        """A pump for rings `index` (receive) and `index` + 1 (transmit) under acknowledged `features`."""
        self.rx = SplitRing(index, WRITABLE)
        self.tx = SplitRing(index + 1, READABLE)
        super().__init__(self.rx, self.tx)
        self.header_size = header_size(features)
        self.mergeable = bool(features & NetFeature.MRG_RXBUF)
        self.offloads = offloads_of(features)
        self.counts = array("Q", bytes(8 * len(COUNTERS)))
        headers = array("Q", bytes(16 * BURST))
        self.headers = headers
        self.headers_address = headers.buffer_info()[0]
        buffers = array("Q", bytes(2 * _OVERFLOW))
        self.buffers = buffers
        self.overflow = buffers.buffer_info()[0]
        self.stash = self.overflow + _OVERFLOW
        self.stashed = 0
        self.large = 0
        self.ramp = 1

    def counters(self) -> dict[str, int]:
        """Counters by name since the pump was made: the rings', and the packets'."""
        return {**super().counters(), **dict(zip(COUNTERS, self.counts, strict=True))}

    def step(self, budget: cython.int) -> cython.int:
        """One turn: transmit, then receive, each at most `budget` chains."""
        tx: cython.int = 0
        rx: cython.int = 0
        self.counts[TURNS] += 1
        if self.tx.runs():
            self.tx.disarm()
            tx = self.transmit(budget)
            if self.lost(self.tx):
                return EVENT
        if self.rx.runs() and self.rx.enabled:
            self.rx.disarm()
            rx = self.receive(budget)
            if self.lost(self.rx):
                return EVENT
        if self.broken():
            return EVENT
        if tx == WORK or rx == WORK:
            return WORK
        if tx == _KICK and self.arm(self.tx):
            return WORK
        if rx == _KICK and self.arm(self.rx):
            return WORK
        return (tx | rx) & (PORT_IN | PORT_OUT)

    def wait(self, todo: cython.int) -> None:
        """Sleep, and count it."""
        self.counts[SLEEPS] += 1
        Pump.wait(self, todo)

    # ---- transmit: driver to port ----------------------------------------------------------------------------------

    def transmit(self, budget: cython.int) -> cython.int:
        """Send what is available: ``WORK`` (more is left), ``PORT_OUT`` (the port is full), or wanting a kick."""
        taken: cython.int
        done: cython.int
        answer: cython.int
        while budget > 0:
            taken = self.tx.take(min(budget, BURST))
            if taken <= 0:
                return _KICK
            budget -= taken
            done = 0
            answer = _SENT
            while done < taken:
                answer = self.send(done)
                if answer != _SENT:
                    break
                done += 1
            if answer == _BROKEN:
                return EVENT
            self.tx.give(done)
            self.tx.publish()
            if answer == _BLOCKED:
                return PORT_OUT
        return WORK

    def send(self, i: cython.int) -> cython.int:
        """Judge and send chain `i` of the burst; what cannot be sent is dropped and counted."""
        header: cython.ulonglong = self.headers_address + 16 * i
        size: cython.ulonglong = self.tx.size[i]
        at: cython.int = self.tx.first[i]
        sent: cython.long
        if not self.tx.enabled:
            self.counts[TX_DISCARDED] += 1
            return _SENT
        if size < self.header_size + _MIN_FRAME or size > self.header_size + _MAX_FRAME or not self.tx.segments[i]:
            self.counts[TX_DROPPED] += 1
            return _SENT
        self.take_header(i, header)
        if not admit(header, size - self.header_size, self.offloads):
            self.counts[TX_DROPPED] += 1
            return _SENT
        self.tx.iov[2 * at - 2] = header
        self.tx.iov[2 * at - 1] = self.header_size
        sent = writev(self.port, self.tx.iov_address + 16 * (at - 1), self.tx.segments[i] + 1)
        if sent >= 0:
            self.counts[TX_PACKETS] += 1
            self.counts[TX_BYTES] += size - self.header_size
            return _SENT
        if sent in (_EAGAIN, _EINTR):
            self.counts[TX_BLOCKED] += 1
            return _BLOCKED
        if sent == _EFAULT:
            self.tx.fail(VANISHED)
            return _BROKEN
        if sent in (_EBADFD, _EPIPE, _ECONNRESET):
            self.port_failed = True
            return _BLOCKED
        self.counts[TX_REJECTED] += 1
        return _SENT

    def take_header(self, i: cython.int, header: cython.ulonglong) -> None:
        """Copy the header out of chain `i`, whatever its split, and leave the frame in the chain's iovecs."""
        left: cython.ulonglong = self.header_size
        part: cython.ulonglong
        k: cython.int = 2 * self.tx.first[i]
        while left:
            part = min(left, self.tx.iov[k + 1])
            copy(header, self.tx.iov[k], part)
            self.tx.iov[k] += part
            self.tx.iov[k + 1] -= part
            header += part
            left -= part
            k += 2

    # ---- receive: port to driver -----------------------------------------------------------------------------------

    def receive(self, budget: cython.int) -> cython.int:
        """Fill what is available: ``WORK`` (more is left), ``PORT_IN`` (the port is empty), or wanting a kick."""
        taken: cython.int
        done: cython.int
        answer: cython.int
        while budget > 0:
            if self.stashed:
                answer = self.deliver()
                if answer != WORK:
                    return answer
            taken = self.rx.take(BURST if self.large else min(budget, self.ramp))
            if taken <= 0:
                self.counts[RX_STARVED] += 1
                return _KICK
            budget -= taken
            self.ramp = min(2 * taken, _RX_BURST)
            done = 0
            answer = 0
            while done < taken:
                answer = self.fill(done, taken)
                if answer <= 0:
                    break
                done += answer
            if answer == _BROKEN:
                return EVENT
            self.rx.give(done)
            self.rx.publish()
            if answer == 0:
                self.ramp = 1
                return PORT_IN
        return WORK

    def fill(self, i: cython.int, taken: cython.int) -> cython.int:
        """Read one packet into chain `i` and, if they are needed, those behind it.

        How many chains are used now; 0: the port is empty; below 0: ``_AGAIN`` or ``_BROKEN``.
        """
        end: cython.int
        spare: cython.int
        k: cython.int
        got: cython.long
        left: cython.ulonglong
        if self.rx.size[i] < self.header_size:
            self.counts[RX_DROPPED] += 1
            self.rx.written[i] = 0
            return 1
        end = self.window(i, taken)
        if end < 0:
            return _AGAIN
        spare = self.rx.first[end - 1] + self.rx.segments[end - 1]
        self.rx.iov[2 * spare] = self.overflow
        self.rx.iov[2 * spare + 1] = _OVERFLOW
        got = readv(self.port, self.rx.iov_address + 16 * self.rx.first[i], spare - self.rx.first[i] + 1)
        self.rx.iov[2 * spare] = self.rx.iov[2 * spare + 1] = 0
        if got < self.header_size:
            if got == _EFAULT:
                self.rx.fail(VANISHED)
                return _BROKEN
            if got in (0, _EBADFD, _ECONNRESET):
                self.port_failed = True
            elif got > 0:
                self.counts[RX_DROPPED] += 1
                return _AGAIN
            return 0
        left = got
        k = i
        while left and k < end:
            self.rx.written[k] = min(left, self.rx.size[k])
            left -= self.rx.written[k]
            k += 1
        if left:
            if self.mergeable and got <= self.header_size + _MAX_FRAME:
                self.keep(i, end, left)
            else:
                self.counts[RX_DROPPED] += 1
            return _AGAIN
        self.large = _LARGE if k - i > 1 else max(self.large - 1, 0)
        self.set_num_buffers(i, k - i)
        self.counts[RX_PACKETS] += 1
        self.counts[RX_BYTES] += got - self.header_size
        return k - i

    def window(self, i: cython.int, taken: cython.int) -> cython.int:
        """The end of the chains to read into: one, or after a large packet enough for the largest.

        Below 0: the rest of this burst is not enough, and a new one may be.
        """
        room: cython.ulonglong = self.rx.size[i]
        end: cython.int = i + 1
        if self.mergeable and self.large:
            while (
                end < taken
                and room < self.header_size + _MAX_FRAME
                and self.rx.segments[end]
                and self.rx.first[end] + self.rx.segments[end] - self.rx.first[i] < SEGMENTS
            ):
                room += self.rx.size[end]
                end += 1
            if i > 0 and end == taken and room < self.header_size + _MAX_FRAME:
                return -1
        return end

    def keep(self, i: cython.int, end: cython.int, overflowed: cython.ulonglong) -> None:
        """Put a packet that did not fit into the stash: what chains `i` up to `end` got, and the overflow."""
        k: cython.int = self.rx.first[i]
        last: cython.int = self.rx.first[end - 1] + self.rx.segments[end - 1]
        self.stashed = 0
        while k < last:
            copy(self.stash + self.stashed, self.rx.iov[2 * k], self.rx.iov[2 * k + 1])
            self.stashed += self.rx.iov[2 * k + 1]
            k += 1
        copy(self.stash + self.stashed, self.overflow, overflowed)
        self.stashed += overflowed
        self.large = _LARGE

    def deliver(self) -> cython.int:
        """Lay the stashed packet over the chains it takes: ``WORK``, or wanting a kick when there are too few."""
        taken: cython.int
        k: cython.int
        used: cython.int
        room: cython.ulonglong
        done: cython.ulonglong
        while True:
            taken = self.rx.take(BURST)
            if taken <= 0:
                return _KICK
            k = 0
            room = 0
            while k < taken and room < self.stashed and self.rx.segments[k]:
                room += self.rx.size[k]
                k += 1
            if room >= self.stashed:
                break
            if k < taken:  # a useless chain is in the way; a merged packet's chains must stand side by side
                for used in range(k + 1):
                    self.rx.written[used] = 0
                self.rx.give(k + 1)
                self.rx.publish()
                continue
            self.rx.give(0)
            if k < BURST and k < cython.cast(cython.int, self.rx.num):
                self.counts[RX_STARVED] += 1
                return _KICK
            self.stashed = 0  # more buffers than that there will never be at once
            self.counts[RX_DROPPED] += 1
            return WORK
        done = 0
        for used in range(k):
            room = min(self.rx.size[used], self.stashed - done)
            self.scatter(used, self.stash + done, room)
            self.rx.written[used] = room
            done += room
        self.set_num_buffers(0, k)
        self.rx.give(k)
        self.rx.publish()
        self.counts[RX_PACKETS] += 1
        self.counts[RX_MERGED] += 1
        self.counts[RX_BYTES] += self.stashed - self.header_size
        self.stashed = 0
        return WORK

    def scatter(self, i: cython.int, source: cython.ulonglong, size: cython.ulonglong) -> None:
        """Copy `size` bytes into the buffers of chain `i`."""
        k: cython.int = 2 * self.rx.first[i]
        part: cython.ulonglong
        while size:
            part = min(size, self.rx.iov[k + 1])
            copy(self.rx.iov[k], source, part)
            source += part
            size -= part
            k += 2

    def set_num_buffers(self, i: cython.int, count: cython.int) -> None:
        """Write num_buffers into the header that chain `i` begins with, whatever its split.

        > The device MUST set num_buffers to 1 if VIRTIO_NET_F_MRG_RXBUF is not negotiated (5.1.6.4.1).
        """
        k: cython.int = 2 * self.rx.first[i]
        offset: cython.ulonglong = 10
        byte: cython.int
        if self.header_size < 12:
            return
        if self.rx.iov[k + 1] >= 12:
            store_u16(self.rx.iov[k] + 10, count)
            return
        for byte in range(2):
            while offset >= self.rx.iov[k + 1]:
                offset -= self.rx.iov[k + 1]
                k += 2
            store_u8(self.rx.iov[k] + offset, (count >> (8 * byte)) & 0xFF)
            offset += 1

"""Packets between two rings and a port, without the GIL, an allocation or the event loop.

Must not know vhost-user, Trio, or what the port is: one descriptor that keeps packet boundaries, each packet with a
virtio_net_hdr of the negotiated size before it (a tap with IFF_VNET_HDR, one end of a SOCK_SEQPACKET pair).

Turns alternate between the directions with equal budgets, which is the fairness between them. A ring that is started
but disabled is still turned for what the specification asks of it (vhost-user, "Ring states"): the back-end of a
networking device

    > in the disabled state [...] must not supply any new RX packets, but must process and discard any TX packets.
"""

from __future__ import annotations

from array import array

import cython

from vhostuser.devices.net.batch import Batch, Batching
from vhostuser.devices.net.datagrams import Datagrams
from vhostuser.devices.net.receive import Receiver
from vhostuser.devices.net.transmit import Transmitter
from vhostuser.devices.net.uring import open_uring
from vhostuser.virtio.rings import make_ring

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import EVENT, KICK, PORT_IN, PORT_OUT, READABLE, WORK, WRITABLE
    from vhostuser.virtio.pump import Pump

    (TURNS, SLEEPS, POLLS) = range(3)

COUNTERS = ("turns", "sleeps", "polls")


class NetPump(Pump):
    """The pump of one queue pair.

    Attributes:
        rx, tx: the rings.
        receiver, transmitter: what turns them.
    """

    def __init__(self, index: int, features: int, poll_us: int = 0) -> None:
        """A pump for rings `index` (receive) and `index` + 1 (transmit) under acknowledged `features`.

        `poll_us`: how many microseconds it lingers after its last chain. It has no port yet: see :meth:`use`.
        """
        self.rx = make_ring(features, index, WRITABLE)
        self.tx = make_ring(features, index + 1, READABLE)
        super().__init__(self.rx, self.tx, poll_us)
        self.batch: Batch | None = None
        self.receiver = Receiver(self.rx, features)
        self.transmitter = Transmitter(self.tx, features)
        self.counts = array("Q", bytes(8 * len(COUNTERS)))

    def use(self, port: int, header_size: int, batching: Batching = Batching.NONE) -> None:
        """Use this port from the next turn on: its descriptor, which stays its owner's, and the size of its headers.

        `batching`: how it may be read and written in batches, where the kernel allows it. Between two turns only.
        """
        if self.batch is not None:
            self.batch.close()
        self.batch = open_batch(port, batching)
        self.port = port
        self.receiver.use(port, header_size, self.batch)
        self.transmitter.use(port, header_size, self.batch)

    def close(self) -> None:
        """Close what the pump made. The thread has ended."""
        super().close()
        self.receiver.close()
        self.transmitter.close()
        if self.batch is not None:
            self.batch.close()

    def counters(self) -> dict[str, int]:
        """Counters by name since the pump was made: the rings', the packets', the turns'."""
        turns = dict(zip(COUNTERS, self.counts, strict=True))
        return {**super().counters(), **self.receiver.counters(), **self.transmitter.counters(), **turns}

    def step(self, budget: cython.int) -> cython.int:
        """One turn: transmit, then receive, each at most `budget` chains."""
        tx: cython.int = 0
        rx: cython.int = 0
        self.counts[TURNS] += 1
        if self.tx.runs():
            self.tx.disarm()
            tx = self.transmitter.turn(budget)
            if self.lost(self.tx):
                return EVENT
        if self.rx.runs() and self.rx.enabled:
            self.rx.disarm()
            rx = self.receiver.turn(budget)
            if self.lost(self.rx):
                return EVENT
        self.port_failed = self.transmitter.port_failed or self.receiver.port_failed
        if self.broken():
            return EVENT
        if tx == WORK or rx == WORK:
            return WORK
        if self.lingers():
            self.counts[POLLS] += 1
            return WORK
        if tx == KICK and self.arm(self.tx):
            return WORK
        if rx == KICK and self.arm(self.rx):
            return WORK
        return (tx | rx) & (PORT_IN | PORT_OUT)

    def wait(self, todo: cython.int) -> None:
        """Sleep, and count it."""
        self.counts[SLEEPS] += 1
        Pump.wait(self, todo)


def open_batch(file: int, batching: Batching) -> Batch | None:
    """What makes batches on an open file; None: nothing does."""
    if batching is Batching.DATAGRAMS:
        return Datagrams(file)
    return open_uring(file) if batching is Batching.URING else None

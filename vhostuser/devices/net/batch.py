"""Many packets with one system call: what the ways to do that have in common.

Must not know packets or rings of a guest. A batch is all reads or all writes: they are added one by one, then submitted
together, and all of them are done with before :meth:`Batch.submit` returns. So nothing in flight ever points into
memory that a front-end may take away. Nothing waits either: what cannot be done at once answers -EAGAIN.
"""

from __future__ import annotations

from array import array
from enum import Enum

import cython

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.layout import BURST


class Batching(Enum):
    """How a port's packets can be moved in batches."""

    NONE = "none"
    """Not at all: it can be full, and io_uring would have packets overtake each other then."""
    URING = "uring"
    """Through io_uring: the port is never full."""
    DATAGRAMS = "datagrams"
    """By sendmmsg and recvmmsg: the port is a socket."""


class Batch:
    """Up to ``BURST`` reads or writes on one file.

    Attributes:
        works: whether there are batches at all; what was not done is to be done with a call for each then.
        in_order: whether the first write that cannot be done at once ends the batch, so that none overtakes it.
        result: what became of each, in the order of adding: bytes moved, or -errno.
    """

    def __init__(self) -> None:
        self.works = True
        self.in_order = False
        self.waiting = 0
        self.result = array("l", bytes(8 * BURST))

    def close(self) -> None:
        """Release what it has. The file stays its owner's."""

    def add_read(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a read of up to `size` bytes to an address."""

    def add_write(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a write of `size` bytes at an address."""

    def add_writev(self, iov: cython.ulonglong, count: cython.uint) -> None:
        """Add a write of `count` iovecs at address `iov`."""

    def submit(self) -> cython.int:
        """Have the batch done. 0, or -errno if none of it was done; then :attr:`works` is False for good."""
        return 0

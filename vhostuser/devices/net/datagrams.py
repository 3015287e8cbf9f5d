"""sendmmsg(2) and recvmmsg(2): batches on a socket that keeps packet boundaries.

A socket can be full. sendmmsg stops at the first packet that finds no room, so nothing is overtaken and nothing lost:
the rest goes on when the socket can be written again. io_uring sends all it has, whatever became of those before;
linked requests would stop as well, and cost as much as a system call for each.

An error that concerns one packet alone (a header that the kernel refuses) ends that packet, and the next one is tried.
recvmmsg stops at the first read that finds nothing.
"""

from __future__ import annotations

import errno
import mmap

import cython

from vhostuser.virtio.memory import address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.batch import Batch
    from vhostuser.virtio.layout import BURST
    from vhostuser.virtio.primitives import load_u32, recvmmsg, sendmmsg, store_u64

# struct mmsghdr: msg_name, msg_namelen, msg_iov, msg_iovlen, msg_control, msg_controllen, msg_flags, then msg_len
_MESSAGE = cython.declare(cython.ulonglong, 64)
_MSG_IOV = cython.declare(cython.ulonglong, 16)
_MSG_IOVLEN = cython.declare(cython.ulonglong, 24)
_MSG_LEN = cython.declare(cython.ulonglong, 56)
_IOVEC = cython.declare(cython.ulonglong, 16)

_EAGAIN = cython.declare(cython.int, -errno.EAGAIN)
_EINTR = cython.declare(cython.int, -errno.EINTR)


class Datagrams(Batch):
    """Batches on the socket `file`, by its number: another socket may take its place between two batches."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self.in_order = True
        self.file = file
        self.reading = False
        self.memory = mmap.mmap(-1, 80 * BURST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.messages = address_of(self.memory)
        self.iovecs = self.messages + 64 * BURST

    def close(self) -> None:
        """Release the private memory."""
        self.memory.close()

    def add_read(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a read of up to `size` bytes to an address."""
        self.reading = True
        self.add_buffer(address, size)

    def add_write(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a write of `size` bytes at an address."""
        self.reading = False
        self.add_buffer(address, size)

    def add_writev(self, iov: cython.ulonglong, count: cython.uint) -> None:
        """Add a write of `count` iovecs at address `iov`."""
        self.reading = False
        self.add_message(iov, count)

    def add_buffer(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a message of one buffer."""
        iov: cython.ulonglong = self.iovecs + _IOVEC * self.waiting
        store_u64(iov, address)
        store_u64(iov + 8, size)
        self.add_message(iov, 1)

    def add_message(self, iov: cython.ulonglong, count: cython.uint) -> None:
        """Add a message of `count` iovecs. What else belongs to it is zero, and stays so."""
        message: cython.ulonglong = self.message(self.waiting)
        store_u64(message + _MSG_IOV, iov)
        store_u64(message + _MSG_IOVLEN, count)
        self.waiting += 1

    def message(self, i: cython.uint) -> cython.ulonglong:
        """Where the struct mmsghdr of a message lies."""
        return self.messages + _MESSAGE * i

    def submit(self) -> cython.int:
        """Have the batch done: 0."""
        count: cython.uint = self.waiting
        first: cython.uint = 0
        done: cython.int
        self.waiting = 0
        while first < count:
            if self.reading:
                done = recvmmsg(self.file, self.message(first), count - first)
            else:
                done = sendmmsg(self.file, self.message(first), count - first)
            if done in (_EAGAIN, _EINTR):
                break
            if done < 0:
                self.result[first] = done
                first += 1
            while done > 0:
                self.result[first] = load_u32(self.message(first) + _MSG_LEN)
                first += 1
                done -= 1
            if self.reading:
                break
        while first < count:
            self.result[first] = _EAGAIN
            first += 1
        return 0

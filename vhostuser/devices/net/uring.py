"""io_uring as a way to make many small reads or writes with one system call (``io_uring(7)``).

Every request carries RWF_NOWAIT: what cannot be done at once answers -EAGAIN rather than wait. Requests after it are
done all the same: where that can happen to a write, packets would overtake each other.

Whether a file knows RWF_NOWAIT is its driver's affair: a tap does since Linux 6.4. One that does not refuses all of the
first batch, nothing was done, and :attr:`Uring.works` says so from then on.

The file is registered with the ring, which saves looking it up for each request (an eighth of a small packet's time).

Four raw system calls and two mappings are all it takes. The kernel may not have it, and a container or
``kernel.io_uring_disabled`` may forbid it: :func:`open_uring` says None then, and one call a packet does the work.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os

import cython

from vhostuser.virtio.memory import address_of

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.devices.net.batch import Batch
    from vhostuser.virtio.layout import BURST
    from vhostuser.virtio.primitives import (
        io_uring_enter,
        load_acquire_u32,
        load_i32,
        load_u32,
        load_u64,
        store_release_u32,
        store_u8,
        store_u32,
        store_u64,
    )

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_SETUP, _REGISTER = 425, 427  # the system call numbers are the same on every architecture
_REGISTER_FILES, _UNREGISTER_FILES = 2, 3
_OFF_SQES = 0x10000000
_FEAT_SINGLE_MMAP = 1
_OP_WRITEV = cython.declare(cython.int, 2)
_OP_READ = cython.declare(cython.int, 22)
_OP_WRITE = cython.declare(cython.int, 23)
_RWF_NOWAIT = cython.declare(cython.uint, 8)
_FIXED_FILE = cython.declare(cython.int, 1)
_U32 = cython.declare(cython.uint, 0xFFFF_FFFF)
_EINTR = cython.declare(cython.int, -errno.EINTR)
_EOPNOTSUPP = cython.declare(cython.int, -errno.EOPNOTSUPP)
_EAGAIN = cython.declare(cython.int, -errno.EAGAIN)
_EBUSY = cython.declare(cython.int, -errno.EBUSY)


class Uring(Batch):
    """A submission and a completion ring for batches on one file.

    Attributes:
        fd: the ring's descriptor.
    """

    def __init__(self, file: int) -> None:
        """Set it up for the open file `file`. Raises OSError where io_uring is missing, forbidden, or too old."""
        super().__init__()
        # struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd,
        # three reserved words, then ten words of sq_off and ten of cq_off
        params = (ctypes.c_uint32 * 30)()
        self.fd = _call(_SETUP, BURST, params)
        try:
            if not params[5] & _FEAT_SINGLE_MMAP:
                raise OSError(errno.ENOSYS, "the kernel's io_uring is older than Linux 5.4")
            os.set_inheritable(self.fd, False)
            _call(_REGISTER, self.fd, _REGISTER_FILES, (ctypes.c_int * 1)(file), 1)
            self._map(list(params))
        except BaseException:
            os.close(self.fd)
            raise

    def _map(self, params: list[int]) -> None:
        _, sq_tail, sq_mask, _, _, _, sq_array = params[10:17]
        cq_head, cq_tail, cq_mask, _, _, cqes = params[20:26]
        size = max(sq_array + 4 * params[0], cqes + 16 * params[1])
        self.sq_memory = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self.sqe_memory = mmap.mmap(self.fd, 64 * params[0], flags=mmap.MAP_SHARED, offset=_OFF_SQES)
        base = address_of(self.sq_memory)
        self.sqes = address_of(self.sqe_memory)
        self.sq_tail = base + sq_tail
        self.cq_head = base + cq_head
        self.cq_tail = base + cq_tail
        self.cqes = base + cqes
        self.sq_mask = load_u32(base + sq_mask)
        self.cq_mask = load_u32(base + cq_mask)
        for entry in range(params[0]):
            store_u32(base + sq_array + 4 * entry, entry)
            # opcode u8, flags u8, ioprio u16, fd i32 | off u64 | addr u64 | len u32, rw_flags u32 | user_data u64 | ...
            # All that is the same each time: the flags, and the first registered file.
            store_u8(self.sqes + 64 * entry + 1, _FIXED_FILE)
            store_u32(self.sqes + 64 * entry + 28, _RWF_NOWAIT)

    def close(self) -> None:
        """Let go of the file, at once, and close the ring, of which each mapping holds a duplicate."""
        if self.fd >= 0:
            _call(_REGISTER, self.fd, _UNREGISTER_FILES, None, 0)
            self.sq_memory.close()
            self.sqe_memory.close()
            os.close(self.fd)
            self.fd = -1

    def add_read(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a read of up to `size` bytes to an address."""
        self.prepare(_OP_READ, address, size)

    def add_write(self, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a write of `size` bytes at an address."""
        self.prepare(_OP_WRITE, address, size)

    def add_writev(self, iov: cython.ulonglong, count: cython.uint) -> None:
        """Add a write of `count` iovecs at address `iov`."""
        self.prepare(_OP_WRITEV, iov, count)

    def prepare(self, opcode: cython.int, address: cython.ulonglong, size: cython.uint) -> None:
        """Add a request; `size` counts bytes, or iovecs for a vector. Its result stands at its place in the batch."""
        tail: cython.uint = load_u32(self.sq_tail) + self.waiting
        entry: cython.ulonglong = self.sqes + 64 * (tail & self.sq_mask)
        store_u8(entry, opcode)
        store_u64(entry + 16, address)
        store_u32(entry + 24, size)
        store_u64(entry + 32, self.waiting)
        self.waiting += 1

    def submit(self) -> cython.int:
        """Have the batch done. 0, or -errno if none of it was done; then :attr:`works` is False for good."""
        head: cython.uint
        answer: cython.int
        left: cython.uint = self.waiting
        count: cython.uint = self.waiting
        entry: cython.ulonglong
        self.waiting = 0
        store_release_u32(self.sq_tail, (load_u32(self.sq_tail) + count) & _U32)
        head = load_u32(self.cq_head)
        while left or ((load_acquire_u32(self.cq_tail) - head) & _U32) < count:
            answer = io_uring_enter(self.fd, left, count)
            if answer >= 0:
                left -= answer
            elif answer not in (_EINTR, _EAGAIN, _EBUSY):
                self.works = False
                return answer
        while count:
            entry = self.cqes + 16 * (head & self.cq_mask)
            self.result[load_u64(entry)] = load_i32(entry + 8)
            if load_i32(entry + 8) == _EOPNOTSUPP:
                self.works = False
            head += 1
            count -= 1
        store_release_u32(self.cq_head, head & _U32)
        return 0 if self.works else _EOPNOTSUPP


def _call(number: int, *arguments: object) -> int:
    answer = int(_libc.syscall(number, *arguments))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def check_uring(file: int) -> None:
    """Find out whether batches can be had on an open file; what it has to read may be lost.

    Raises:
        OSError: why not.
    """
    Uring(file).close()
    try:
        os.preadv(file, [bytearray(1)], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise OSError(error.errno, "the port does not know RWF_NOWAIT; a tap does since Linux 6.4") from None


def open_uring(file: int) -> Uring | None:
    """A ring for batches on an open file, or None where there is none to be had."""
    try:
        return Uring(file)
    except OSError as error:
        log.info("io_uring is not available (%s): one system call a packet", error.strerror)
        return None

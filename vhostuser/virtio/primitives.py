"""Loads, stores, fences and system calls on raw addresses: the interpreted edition, in ctypes.

``primitives.h`` is the compiled edition with the same names. Addresses are those of this process; a wrong one crashes
it, so callers translate and check first. System calls answer ``-errno``. Values are unsigned, in the host's order.

Ordering here is what x86 gives plus :func:`fence`: loads are not reordered with loads nor stores with stores, and a
lock taken and released orders stores before later loads. On other processors only the compiled edition orders.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import threading
import time

_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.read, _libc.write, _libc.readv, _libc.writev, _libc.preadv2):
    _call.restype = ctypes.c_ssize_t
_RWF_NOWAIT = 8
_MSG_DONTWAIT = 0x40
_IO_URING_ENTER, _IORING_ENTER_GETEVENTS = 426, 1  # the number is the same on every architecture
_FUTEX = {"x86_64": 202}.get(os.uname().machine, 98)
_FUTEX_WAKE_OP, _FUTEX_OP_OR, _FUTEX_OP_OPARG_SHIFT = 5 | 128, 2, 8
_lock = threading.Lock()
_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


def load_u8(address: int) -> int:
    """One byte."""
    return _U8.from_address(address).value


def load_u16(address: int) -> int:
    """Two aligned bytes in one access."""
    return _U16.from_address(address).value


def load_u32(address: int) -> int:
    """Four aligned bytes in one access."""
    return _U32.from_address(address).value


def load_i32(address: int) -> int:
    """Four aligned bytes in one access, signed."""
    return ctypes.c_int32.from_address(address).value


def load_u64(address: int) -> int:
    """Eight aligned bytes in one access."""
    return _U64.from_address(address).value


def store_u8(address: int, value: int) -> None:
    """One byte."""
    _U8.from_address(address).value = value


def store_u16(address: int, value: int) -> None:
    """Two aligned bytes in one access."""
    _U16.from_address(address).value = value


def store_u32(address: int, value: int) -> None:
    """Four aligned bytes in one access."""
    _U32.from_address(address).value = value


def store_u64(address: int, value: int) -> None:
    """Eight aligned bytes in one access."""
    _U64.from_address(address).value = value


load_acquire_u16 = load_u16
store_release_u16 = store_u16
load_acquire_u32 = load_u32
store_release_u32 = store_u32


def set_bit(address: int, bit: int) -> None:
    """Set bit 0 to 7 of a byte, whoever else changes others at the same time.

    Python has no atomic OR, but the kernel does one before it wakes nobody: FUTEX_WAKE_OP, on whole words.
    """
    word, bit = address & ~3, bit + 8 * (address & 3 if sys.byteorder == "little" else 3 - (address & 3))
    ors_a_bit = (_FUTEX_OP_OR | _FUTEX_OP_OPARG_SHIFT) << 28 | bit << 12
    _libc.syscall(
        _FUTEX, ctypes.c_void_p(word), _FUTEX_WAKE_OP, 0, ctypes.c_void_p(0), ctypes.c_void_p(word), ors_a_bit
    )


def fence() -> None:
    """Order every earlier store before every later load."""
    with _lock:
        pass


def copy(to: int, source: int, size: int) -> None:
    """Copy `size` bytes between ranges that do not overlap."""
    ctypes.memmove(to, source, size)


def prefetch(address: int) -> None:
    """Have the processor fetch the cache line of an address, which may be any, while it does something else."""


def _result(value: int) -> int:
    return value if value >= 0 else -ctypes.get_errno()


def read_fd(fd: int, address: int, size: int) -> int:
    """``read(2)`` of `size` bytes to an address: bytes read, or -errno."""
    return _result(_libc.read(fd, ctypes.c_void_p(address), ctypes.c_size_t(size)))


def write_fd(fd: int, address: int, size: int) -> int:
    """``write(2)`` of `size` bytes at an address: bytes written, or -errno."""
    return _result(_libc.write(fd, ctypes.c_void_p(address), ctypes.c_size_t(size)))


def readv(fd: int, iov: int, count: int) -> int:
    """``readv(2)`` into `count` iovecs at address `iov`: bytes read, or -errno."""
    return _result(_libc.readv(fd, ctypes.c_void_p(iov), count))


def writev(fd: int, iov: int, count: int) -> int:
    """``writev(2)`` from `count` iovecs at address `iov`: bytes written, or -errno."""
    return _result(_libc.writev(fd, ctypes.c_void_p(iov), count))


def poll(pollfds: int, count: int, milliseconds: int) -> int:
    """``poll(2)`` on `count` pollfds at address `pollfds`; -1 ms waits for ever. Ready descriptors, or -errno."""
    return _result(_libc.poll(ctypes.c_void_p(pollfds), count, milliseconds))


def clock() -> int:
    """Nanoseconds that have passed since some moment (CLOCK_MONOTONIC)."""
    return time.monotonic_ns()


def io_uring_enter(fd: int, submit: int, complete: int) -> int:
    """``io_uring_enter(2)``: submit so many requests, wait for so many completions. Requests taken, or -errno."""
    return _result(_libc.syscall(_IO_URING_ENTER, fd, submit, complete, _IORING_ENTER_GETEVENTS, None, 0))


def sendmmsg(fd: int, messages: int, count: int) -> int:
    """``sendmmsg(2)`` of `count` struct mmsghdr at an address, without waiting: messages sent, or -errno."""
    return _result(_libc.sendmmsg(fd, ctypes.c_void_p(messages), count, _MSG_DONTWAIT))


def recvmmsg(fd: int, messages: int, count: int) -> int:
    """``recvmmsg(2)`` of `count` struct mmsghdr at an address, without waiting: messages received, or -errno."""
    return _result(_libc.recvmmsg(fd, ctypes.c_void_p(messages), count, _MSG_DONTWAIT, None))


def drain(fd: int) -> int:
    """Empty an eventfd or a pipe without blocking, whoever else holds it: bytes read, or -errno."""
    words = (ctypes.c_uint64 * 64)()
    iov = (ctypes.c_uint64 * 2)(ctypes.addressof(words), ctypes.sizeof(words))
    got = _result(_libc.preadv2(fd, iov, 1, ctypes.c_long(-1), _RWF_NOWAIT))
    # a pipe refuses the flag on older kernels; poll has said that there is something to read
    return _result(_libc.readv(fd, iov, 1)) if got == -errno.EOPNOTSUPP else got


def signal(fd: int, may_block: bool) -> int:
    """Write one to an eventfd or pipe; one that `may_block` is asked first. Bytes written, or -errno."""
    if may_block:
        asked = select.poll()
        asked.register(fd, select.POLLOUT)
        if not any(ready & select.POLLOUT for _, ready in asked.poll(0)):
            return -errno.EAGAIN
    # ctypes, since os.write would start again after the signal that is meant to end it
    return _result(_libc.write(fd, ctypes.byref(_U64(1)), 8))

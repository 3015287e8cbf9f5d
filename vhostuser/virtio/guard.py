"""Guest memory that vanishes: the interpreted edition, a SIGBUS handler in ctypes.

``guard.h`` is the compiled edition and tells the whole story. A Python function may serve as the handler here because a
SIGBUS from guest memory is synchronous and happens at one of a few places: a ctypes field access that holds the GIL,
or ``memmove``, which does not; in both the interpreter is in order and ctypes can take the GIL and call.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAP_FIXED, _MAP_NORESERVE, _SA_SIGINFO, _SA_ONSTACK, _SI_ADDR = 0x10, 0x4000, 4, 0x08000000, 16
_MAP_FAILED = ctypes.c_void_p(-1).value

_guarded: dict[int, tuple[int, int]] = {}  # start: (end, page size)
_counts: dict[int, int] = {}  # thread: pages that vanished under it


class _SigAction(ctypes.Structure):
    """``struct sigaction`` of glibc on Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_previous = _SigAction()


def _on_sigbus(number: int, info: int, context: int) -> None:
    at: int = ctypes.c_uint64.from_address(info + _SI_ADDR).value
    for start, (end, page) in tuple(_guarded.items()):
        if start <= at < end:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
            if _libc.mmap(at & ~(page - 1), page, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != _MAP_FAILED:
                thread = threading.get_ident()
                _counts[thread] = _counts.get(thread, 0) + 1
                return
            break
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_previous), None)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_sigbus)
_installed = False


def guard(start: int, size: int, page: int) -> int:
    """Guard a mapping: `start` and `size` in bytes, `page` the size that backs it. 0, or -1 when that cannot be."""
    global _installed
    if not _installed:
        action = _SigAction(handler=ctypes.cast(_handler, ctypes.c_void_p).value, flags=_SA_SIGINFO | _SA_ONSTACK)
        if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_previous)):
            return -1
        _installed = True
    _guarded[start] = (start + size, page)
    return 0


def unguard(start: int) -> None:
    """Forget the guarded mapping at `start`."""
    _guarded.pop(start, None)


def vanished() -> int:
    """How many pages have vanished under this thread so far."""
    return _counts.get(threading.get_ident(), 0)

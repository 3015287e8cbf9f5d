"""Tests in a network namespace of their own: a thread that leaves ours, and takes everything with it when it ends."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_CAPABILITY_VERSION_3 = 0x20080522


def in_namespace(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a thread with a new network namespace, whose interfaces ``/sys/class/net`` shows, without IPv6.

    Both namespaces belong to the thread alone, and so does what it does to its capabilities.
    """

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        errors: list[BaseException] = []

        def body() -> None:
            try:
                _enter()
                test(**fixtures)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=body, name="namespace")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    return run


def _enter() -> None:
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    _check(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount /sys")
    for kind in ("default", "all"):  # or the kernel talks through every interface that comes up
        Path(f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6").write_text("1")


def drop_capabilities() -> None:
    """Leave this thread no privilege at all but root's user number."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

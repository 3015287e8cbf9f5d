"""Giving up what a process needs only to open its devices.

Must not know what the capabilities are kept for. :func:`drop` is a call of whoever owns the process; nothing here
happens by itself to a program that uses the library.

How it works. The capabilities that are kept stay permitted and effective, all others leave every set, the bounding set
included, and no program that is executed later gets any back (no_new_privs). A capability belongs to a thread: drop
before there are others, those that are started later have what their maker has. So all threads are looked at
afterwards. The calls are the kernel's own, by ctypes: bindings of libcap are not kept up on PyPI, and there are three
to bind.

There is no filter of system calls and no Landlock here. What an intruder could reach is the descriptors that are open,
which both leave alone; io_uring passes a system-call filter by; and of the bindings on PyPI none has seen two years of
care.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Self

from vhostuser.errors import PrivilegeError

_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SETPCAP = 1 << 8
_LOW = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntFlag):
    """Capabilities (capabilities(7)) that something here may need later, as masks."""

    DAC_OVERRIDE = 1 << 1
    """To connect to a socket that is another user's."""
    NET_ADMIN = 1 << 12
    """To set an interface's MTU."""
    NET_RAW = 1 << 13
    """To put a packet socket in another's place, so that flows reach it again."""

    def __str__(self) -> str:
        return ", ".join(f"CAP_{bit.name}" for bit in Capability if bit & self) or "no capability"


NOTHING = Capability(0)


@dataclass(frozen=True, slots=True)
class User:
    """A user that a process can become, with the groups it is in."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, word: str) -> Self:
        """The user of that name or number.

        Raises:
            ValueError: there is none in the system's list.
        """
        try:
            entry = pwd.getpwuid(int(word)) if word.isdecimal() else pwd.getpwnam(word)
        except (KeyError, OverflowError):
            raise ValueError(f"{word}: no such user") from None
        return cls(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def drop(keep: Capability = NOTHING, user: User | None = None) -> Capability:
    """Give up all capabilities but `keep`, for good, and become `user`.

    Returns:
        What is left: that of `keep` which the process had.

    Raises:
        PrivilegeError: the process may not become that user, or has threads that keep more.
    """
    kept = int(keep) & _of(Path("/proc/self/status"))["CapPrm"]
    _empty_bounding_set(kept)
    if user is not None and (os.getuid(), os.getgid()) != (user.uid, user.gid):
        _become(user)
    _set_capabilities(kept)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _check_threads(kept)
    return Capability(kept)


def _become(user: User) -> None:
    _prctl(_PR_SET_KEEPCAPS, 1)  # permitted ones outlive the change; the effective ones are set again after it
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise PrivilegeError(f"cannot become user {user.uid}, group {user.gid}: {error.strerror}") from error


def _empty_bounding_set(kept: int) -> None:
    """As far as we may: without CAP_SETPCAP nothing could be gained from it either."""
    if not _of(Path("/proc/self/status"))["CapEff"] & _SETPCAP:
        return
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if not kept >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number)


def _set_capabilities(kept: int) -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low, high = kept & _LOW, kept >> 32
    data = struct.pack("6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    if _libc.capset(header, data):
        raise _failure("capset")


def _check_threads(kept: int) -> None:
    for thread in Path("/proc/self/task").iterdir():
        sets = _of(thread / "status")
        if more := (sets["CapPrm"] | sets["CapEff"] | sets["CapInh"] | sets["CapAmb"]) & ~kept:
            raise PrivilegeError(f"thread {thread.name} was there before the drop and keeps capabilities {more:#x}")


def _of(status: Path) -> dict[str, int]:
    """The capability sets of a thread, as masks by their names in proc(5)."""

    def lines() -> Iterator[tuple[str, int]]:
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.startswith("Cap"):
                yield name, int(value, 16)

    return dict(lines())


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise _failure(f"prctl {option}")


def _failure(what: str) -> PrivilegeError:
    return PrivilegeError(f"{what}: {os.strerror(ctypes.get_errno())}")

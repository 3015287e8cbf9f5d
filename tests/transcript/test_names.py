"""Descriptors have names: what they are for, and the same one for the same object."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vhostuser.fds import OwnedFd
from vhostuser.transcript import names as module
from vhostuser.transcript.entries import Kind
from vhostuser.transcript.names import Names
from vhostuser.wire.codec import encode
from vhostuser.wire.frames import Frame, LentFds
from vhostuser.wire.messages import VringFd
from vhostuser.wire.requests import BackendRequest, Direction, FrontendRequest

R, B = FrontendRequest, BackendRequest


@pytest.fixture
def names() -> Iterator[Names]:
    """Names of which no descriptor is left at the end."""
    before = sorted(os.listdir("/proc/self/fd"))
    with Names() as names:
        yield names
    assert sorted(os.listdir("/proc/self/fd")) == before


@contextmanager
def memory() -> Iterator[int]:
    with OwnedFd(os.memfd_create("guest")) as fd:
        yield fd.fileno()


@contextmanager
def event() -> Iterator[int]:
    with OwnedFd(os.eventfd(0)) as fd:
        yield fd.fileno()


def told(names: Names, request: int, *fds: int, direction: Direction = Direction.FRONTEND) -> list[str]:
    """The names of what a request brings."""
    return [fd.name for fd in names.describe(direction, Frame(request, 1, bytes(8), LentFds(fds)))]


def kick(names: Names, ring: int, fd: int) -> str:
    frame = encode(Direction.FRONTEND, R.SET_VRING_KICK, VringFd(ring), [fd])
    ((told),) = names.describe(Direction.FRONTEND, frame)
    return told.name


def test_they_are_named_after_what_they_are_for(names: Names) -> None:
    with memory() as fd:
        assert told(names, R.SET_LOG_BASE, fd) == ["log"]
    with memory() as fd, event() as signal:
        assert told(names, R.SET_MEM_TABLE, fd, signal) == ["memory 0", "memory 1"]
        assert told(names, R.SET_VRING_ERR) == []
    with event() as fd:
        assert told(names, R.SET_VRING_ERR, fd) == ["err 0"]
    with event() as fd:
        assert told(names, 99, fd) == ["descriptor"]
    with memory() as fd:
        assert told(names, B.SHMEM_MAP, fd, direction=Direction.BACKEND) == ["shmem"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert told(names, R.SET_BACKEND_REQ_FD, theirs.fileno()) == ["channel"]


def test_the_same_object_has_the_same_name(names: Names) -> None:
    with memory() as fd, memory() as other:
        assert told(names, R.ADD_MEM_REG, fd) == ["memory 0"]
        with OwnedFd(os.dup(fd)) as copy:
            assert told(names, R.ADD_MEM_REG, other, copy.fileno()) == ["memory 1", "memory 0"]
            assert told(names, R.SET_LOG_BASE, copy.fileno()) == ["memory 0"]


def test_eventfds_are_known_as_long_as_they_serve_something(names: Names) -> None:
    with event() as one, event() as other:
        assert [kick(names, ring, one) for ring in (0, 0, 1)] == ["kick 0"] * 3
        assert [kick(names, ring, other) for ring in (0, 1)] == ["kick 0.2"] * 2


def test_the_number_of_an_eventfd_that_is_gone_is_no_identity(names: Names) -> None:
    """The kernel gives the number of a closed eventfd to the next one."""
    given = []
    for ring in range(2):
        for _ in range(3):
            with event() as fd:
                given.append(kick(names, ring, fd))
    assert given == [f"kick {ring}{again}" for ring in range(2) for again in ("", ".2", ".3")]


def test_anonymous_files_are_never_the_same(names: Names) -> None:
    with OwnedFd(os.pidfd_open(os.getpid())) as fd:
        ((one),) = names.describe(Direction.FRONTEND, Frame(R.SET_LOG_FD, 1, b"", LentFds([fd.fileno()])))
        assert one.kind is Kind.OTHER
        assert told(names, R.SET_LOG_FD, fd.fileno()) == ["log signal.2"]


def test_what_is_kept_is_bounded(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 3)
    monkeypatch.setattr(module, "MAX_KNOWN", 5)
    before = len(os.listdir("/proc/self/fd"))
    for ring in range(20):
        with event() as fd:
            assert kick(names, ring, fd) == f"kick {ring}"
    assert len(os.listdir("/proc/self/fd")) == before + 3
    with memory() as first:
        assert told(names, R.ADD_MEM_REG, first) == ["memory 0"]
        for number in range(1, 10):
            with memory() as fd:
                assert told(names, R.ADD_MEM_REG, fd) == [f"memory {number}"]
        assert told(names, R.ADD_MEM_REG, first) == ["memory 10"], "forgotten"

"""What a descriptor is taken for."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from vhostuser.errors import FdError
from vhostuser.fds import OwnedFd
from vhostuser.transport.eventfds import FdKind, check_notifier, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def first_of(pair: tuple[int, int]) -> int:
    os.close(pair[1])
    return pair[0]


MAKERS: dict[FdKind, Callable[[], int]] = {
    FdKind.EVENTFD: lambda: os.eventfd(0),
    FdKind.FIFO: lambda: first_of(os.pipe()),
    FdKind.SOCKET: lambda: socket.socket(socket.AF_UNIX).detach(),
    FdKind.MEMFD: lambda: os.memfd_create("guest"),
    FdKind.DIRECTORY: lambda: os.open("/", os.O_RDONLY),
    FdKind.CHARACTER_DEVICE: lambda: os.open("/dev/null", os.O_RDWR),
    FdKind.OTHER: lambda: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_kinds(kind: FdKind) -> None:
    with OwnedFd(MAKERS[kind]()) as fd:
        assert kind_of(fd.fileno()) is kind


def test_other_anonymous_files_are_no_eventfds() -> None:
    with select.epoll() as epoll:
        assert kind_of(epoll.fileno()) is FdKind.OTHER


@pytest.mark.parametrize("name", ["anon_inode:[eventfd]", "memfd:guest"])
def test_a_file_cannot_pass_itself_off(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        assert kind_of(file.fileno()) is FdKind.FILE


@pytest.mark.parametrize("kind", [FdKind.EVENTFD, FdKind.FIFO])
def test_eventfds_and_pipes_may_notify(kind: FdKind) -> None:
    with OwnedFd(MAKERS[kind]()) as fd:
        check_notifier(fd.fileno())


@pytest.mark.parametrize("kind", sorted(MAKERS.keys() - {FdKind.EVENTFD, FdKind.FIFO, FdKind.SOCKET}))
def test_nothing_else_may_notify(kind: FdKind) -> None:
    with OwnedFd(MAKERS[kind]()) as fd, pytest.raises(FdError, match=f"kind {kind}:"):
        check_notifier(fd.fileno())


def test_a_closed_descriptor_is_an_os_error() -> None:
    with OwnedFd(os.eventfd(0)) as fd:
        number = fd.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        kind_of(number)

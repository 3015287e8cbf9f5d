"""Descriptors are told by what they are of, and fresh ones like them can be told from them by nothing."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import replace

import pytest

from vhostuser.transcript.descriptors import Props, describe
from vhostuser.transcript.entries import Descriptor, Kind

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

TOLD = [
    Descriptor("memory 0", Kind.MEMORY, size=12345),
    Descriptor("memory 0", Kind.MEMORY, size=4096, seals=SEALS),
    Descriptor("kick 0", Kind.EVENTFD),
    Descriptor("kick 0", Kind.EVENTFD, blocking=True),
    Descriptor("kick 0", Kind.EVENTFD, full=True),
    Descriptor("channel", Kind.SOCKET),
    Descriptor("pipe", Kind.PIPE_READ),
    Descriptor("pipe", Kind.PIPE_WRITE),
    Descriptor("null", Kind.FILE, path="/dev/null"),
    Descriptor("zero", Kind.FILE, path="/dev/zero", writable=True),
    Descriptor("root", Kind.FILE, path="/"),
]


@pytest.mark.parametrize("told", TOLD, ids=lambda told: f"{told.kind.value} {told.path}{told.seals}{told.blocking}")
def test_a_fresh_descriptor_is_told_as_the_old_one(told: Descriptor) -> None:
    with Props() as props:
        fd = props.of(told)
        assert describe(fd, told.name) == told
        assert props.of(told) == fd
        assert props.named(told.name) == fd


def test_all_are_closed_at_the_end() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with Props() as props:
        for number, told in enumerate(TOLD):
            props.of(replace(told, name=str(number)))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_other_end_is_given_away_once() -> None:
    with Props() as props:
        fd = props.of(Descriptor("channel", Kind.SOCKET))
        ours = props.other_end("channel")
        assert ours is not None
        with ours:
            os.write(fd, b"hello")
            assert os.read(ours.fileno(), 9) == b"hello"
        assert props.other_end("channel") is None


def test_a_file_that_a_stranger_names_is_not_opened() -> None:
    with Props() as props:
        fd = props.of(Descriptor("secret", Kind.FILE, path="/etc/shadow"))
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"


@pytest.mark.parametrize("path", ["/", "/proc/self/status"])
def test_what_a_stranger_calls_writable_is_opened_for_reading(path: str) -> None:
    with Props() as props:
        fd = props.of(Descriptor("file", Kind.FILE, path=path, writable=True))
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def test_memory_that_a_stranger_names_takes_no_space() -> None:
    with Props() as props:
        status = os.fstat(props.of(Descriptor("memory", Kind.MEMORY, size=1 << 62)))
        assert status.st_size == 1 << 40
        assert status.st_blocks == 0


def test_sockets_that_are_not_ours_are_sockets() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert describe(sock.fileno(), "s") == Descriptor("s", Kind.SOCKET)

"""Who may reach a socket: its mode and owner from its first moment on, and the user at the other end."""

# ruff: noqa: ASYNC240 - a temporary directory blocks nobody

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from vhostuser.errors import ConnectionClosedError, EndpointError
from vhostuser.transport.access import Access
from vhostuser.transport.endpoints import REFUSALS_LOGGED, Listener, connect, from_fd, listen
from vhostuser.wire.frames import Frame

STRANGER = 12345
"""A user without a name: connects as root's child that has become it."""


@pytest.fixture
def path() -> Iterator[Path]:
    """A path in a folder that everybody may pass."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "vhost.sock"


async def connecting(path: Path, uid: int) -> bool:
    """Whether a process of that user gets a connection at `path` that is not closed at once."""
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(len(s.recv(1)))"
    done = await trio.run_process(
        ["/usr/bin/python3", "-S", "-c", script, path],  # ours may be in a folder that is closed to others
        user=uid, group=uid, extra_groups=[], cwd="/", capture_stdout=True, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.returncode == 0 and done.stdout == b"1\n"


@pytest.mark.proves("VIO-ACCESS-1")
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0])
@pytest.mark.parametrize("umask", [0, 0o077])
async def test_the_mode_is_there_when_the_path_is(path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            Access(mode).bind(sock, str(path))
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert os.umask(umask) == umask, "the process's own is as it was"
    finally:
        os.umask(before)


@pytest.mark.proves("VIO-ACCESS-1")
async def test_nobody_connects_before_the_owner_is_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def chown_later(*words: object, **options: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(str(path))
        refused.append(words)

    monkeypatch.setattr(os, "chown", chown_later)
    async with await listen(path, access=Access(0o600, STRANGER, 54321)):
        assert refused == [(str(path), STRANGER, 54321)]


@pytest.mark.proves("VIO-ACCESS-1")
async def test_the_owner(path: Path) -> None:
    async with await listen(path, access=Access(0o600, STRANGER, 54321)):
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (STRANGER, 54321, 0o600)


async def test_a_path_that_cannot_be_given_away_is_not_left_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(EndpointError, match="cannot listen: Operation not permitted"):
        await listen(path, access=Access(uid=STRANGER))
    assert not path.exists()


async def serve_one(listener: Listener) -> None:
    async with await listener.accept() as channel:
        await channel.send(Frame(1, 5))


@pytest.mark.proves("VIO-ACCESS-2")
@pytest.mark.parametrize(("required", "served"), [(STRANGER, STRANGER), (0, 0), (None, STRANGER)])
async def test_the_peer_who_may_be_is_served(path: Path, required: int | None, served: int) -> None:
    async with await listen(path, access=Access(0o666, peer_uid=required)) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve_one, listener)
        assert await connecting(path, served)


@pytest.mark.proves("VIO-ACCESS-2")
async def test_a_stranger_is_refused_and_logged_and_the_next_one_served(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await listen(path, access=Access(0o666, peer_uid=0)) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve_one, listener)
        assert not await connecting(path, STRANGER)
        assert await connecting(path, 0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"is of user {STRANGER}, only user 0 may be" in record.getMessage()


@pytest.mark.proves("VIO-ACCESS-2")
async def test_refusals_do_not_fill_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with await listen(path, access=Access(peer_uid=STRANGER)) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        for _ in range(3 * REFUSALS_LOGGED):
            async with await connect(path) as channel:
                with pytest.raises(ConnectionClosedError):
                    await channel.receive()
        nursery.cancel_scope.cancel()
    assert len(caplog.records) == REFUSALS_LOGGED + 1


@pytest.mark.proves("VIO-ACCESS-2")
async def test_a_listener_of_the_wrong_user_is_not_talked_to(path: Path) -> None:
    async with await listen(path):
        with pytest.raises(EndpointError, match=r"is of user 0, only user 12345 may be"):
            await connect(path, access=Access(peer_uid=STRANGER))
        async with await connect(path, access=Access(peer_uid=0)):
            pass


@pytest.mark.proves("VIO-ACCESS-2")
async def test_an_inherited_connection_of_the_wrong_user() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, pytest.raises(EndpointError, match="only user 12345"):
        from_fd(ours.fileno(), access=Access(peer_uid=STRANGER))

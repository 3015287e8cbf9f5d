"""A hostile front-end's socket without anything in between: bytes, descriptors, and what comes back."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from tests.hostile.attack import REPLY, REQUEST, ask
from tests.hostile.victim import DEADLINE, Victim
from vhostuser.runtime.offer import offer_of
from vhostuser.wire import layouts
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import HEADER_SIZE, Frame
from vhostuser.wire.messages import U64, VringFd
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
Socket = trio.socket.SocketType


@asynccontextmanager
async def raw(victim: Victim) -> AsyncIterator[Socket]:
    """A connected socket, for what is no message."""
    with trio.fail_after(DEADLINE), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        while (full := sock.connect_ex(str(victim.path))) == errno.EAGAIN:
            await trio.lowlevel.checkpoint()  # the backlog is full, and the server shares our event loop
        assert not full, os.strerror(full)
        yield trio.socket.from_stdlib_socket(sock)


def rights(*fds: int) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)


async def receive_answer(sock: Socket, payload: int = 8) -> bytes:
    data = b""
    while len(data) < HEADER_SIZE + payload:
        piece = await sock.recv(HEADER_SIZE + payload - len(data))
        assert piece, f"closed after {data!r}"
        data += piece
    return data


async def receive_end(sock: Socket) -> None:
    """The verdict C on a raw socket."""
    with suppress(ConnectionResetError):  # there was something that the server did not read
        assert await sock.recv(1) == b""


def features_answer(victim: Victim) -> bytes:
    word = offer_of(victim.device).virtio_features
    return Frame(R.GET_FEATURES, REPLY, layouts.build(U64(word))).encode()


GET_FEATURES = ask(R.GET_FEATURES, flags=REQUEST).encode()
SET_FEATURES = ask(R.SET_FEATURES, U64(VhostFeature.PROTOCOL_FEATURES), flags=REQUEST).encode()
SET_CALL = ask(R.SET_VRING_CALL, VringFd(0), flags=REQUEST).encode()

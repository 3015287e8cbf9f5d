"""Who may reach a socket, and who is taken for a peer.

Must not know what is said on a connection. A path's mode and owner keep strangers from connecting; the peer's user is
what the kernel remembers of whoever connected (or listened, if we connect), and cannot be forged.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from vhostuser.errors import EndpointError

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect.

    Attributes:
        mode: permission bits of the path; None: as the umask leaves them.
        uid, gid: the path's owner; -1: as it is made.
        peer_uid: the only user whose connections are served; None: anybody's.
    """

    mode: int | None = None
    uid: int = -1
    gid: int = -1
    peer_uid: int | None = None

    def bind(self, sock: socket.socket, path: str) -> None:
        """Bind to a path that has the right mode from its first moment, and the right owner before anybody listens.

        For that moment the process's umask is another one.

        Raises:
            OSError: the path cannot be bound, or must not be given away; it is not there then.
        """
        with self._umask():
            sock.bind(path)
        if (self.uid, self.gid) == (-1, -1):
            return
        try:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        except OSError:
            os.unlink(path)
            raise

    @contextmanager
    def _umask(self) -> Iterator[None]:
        if self.mode is None:
            yield
            return
        before = os.umask(0o777 & ~self.mode)
        try:
            yield
        finally:
            os.umask(before)

    def check_peer(self, sock: socket.socket | trio.socket.SocketType) -> None:
        """Judge who is at the other end.

        Raises:
            EndpointError: it is another user than the one who may be.
        """
        if self.peer_uid is None:
            return
        pid, uid = peer_of(sock)
        if uid != self.peer_uid:
            raise EndpointError(f"the peer (process {pid}) is of user {uid}, only user {self.peer_uid} may be")


def peer_of(sock: socket.socket | trio.socket.SocketType) -> tuple[int, int]:
    """Process id and user id of whoever connected to, or listened at, the other end."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


ANYBODY = Access()

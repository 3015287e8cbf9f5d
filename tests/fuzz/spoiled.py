"""A back-end of fifty lines with the faults that it is told: what a campaign finds in it is known before.

Runs as a script, ``spoiled.py SOCKET TABLE FAULT...``, without the package, so that it starts in no time. TABLE is
what it has to know of requests: in JSON, the numbers of those with a reply of their own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

HEADER = struct.Struct("=III")
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE = 1, 2, 3, 8, 10, 11
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 16, 17
REPLY_ACK = 1 << 3
WORDS = {GET_FEATURES: 1 << 30 | 1 << 32, GET_PROTOCOL_FEATURES: REPLY_ACK}
KEPT: list[object] = []  # what leaks


def answer(request: int, own_replies: list[int]) -> bytes | None:
    """The body of a request's own reply; None for one that has none."""
    if request in WORDS:
        return struct.pack("=Q", WORDS[request])
    return b"" if request in own_replies else None


def takes(request: int, payload: bytes) -> bool:
    """Whether it does what is asked: it takes features that it offers, and nothing else, and so breaks no rule."""
    offered = {SET_FEATURES: WORDS[GET_FEATURES], SET_PROTOCOL_FEATURES: WORDS[GET_PROTOCOL_FEATURES]}.get(request)
    return offered is not None and len(payload) == 8 and not struct.unpack("=Q", payload)[0] & ~offered


def serve(client: socket.socket, own_replies: list[int], faults: set[str]) -> None:
    """One conversation."""
    acks = False
    while True:
        header, fds, _, _ = socket.recv_fds(client, HEADER.size, 253)  # noqa: TID251 - ours to be careless with
        if "leaks" in faults and len(fds) >= 2:
            KEPT.append(fds.pop())
        for fd in fds:
            os.close(fd)
        if len(header) < HEADER.size:
            return
        request, flags, size = HEADER.unpack(header)
        if size > 4096 or flags & 7 != 1:
            return
        payload = client.recv(size, socket.MSG_WAITALL) if size else b""
        if len(payload) < size:
            return
        if (
            "dies" in faults
            and request == SET_VRING_NUM
            and size == 8
            and payload[:4] not in (b"\0\0\0\0", b"\1\0\0\0")
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if "hangs" in faults and request == SET_VRING_BASE:
            time.sleep(1000)
        taken = takes(request, payload)
        if taken and request == SET_PROTOCOL_FEATURES:
            acks = bool(payload[0] & REPLY_ACK)
        body = answer(request, own_replies)
        asked = acks or (request == SET_PROTOCOL_FEATURES and size == 8 and payload[0] & REPLY_ACK)
        if body is None and asked and flags & 8:
            body = struct.pack("=Q", not taken)
        if body is not None:
            lies = "lies" in faults and request == GET_VRING_BASE
            client.sendall(HEADER.pack(request, 0xD if lies else 5, len(body)) + body)


def main() -> None:
    """Serve for ever, one after the other."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    listener.listen(8)
    while True:
        client, _ = listener.accept()
        with client, suppress(ConnectionResetError, BrokenPipeError):
            serve(client, json.loads(sys.argv[2]), set(sys.argv[3:]))


if __name__ == "__main__":
    main()

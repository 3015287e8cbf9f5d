"""A front-end of a hundred lines with the faults that it is told: what a campaign finds in it is known before.

Runs as a script, ``gullible.py SOCKET FAULT...``, without the package, so that it starts in no time. It connects again
whenever its back-end leaves, and when it does not like an answer; before its ring has run it then gives up.

Faults: ``dies`` of protocol features that nobody knows, ``hangs`` over a memory table that is refused,
``leaks`` a descriptor that comes with an answer, ``exits`` when a ring cannot be set up, ``believes`` what stands in a
used ring, ``agrees`` to all that the back-end asks, ``oversteps`` what was negotiated, ``leaves`` at the end.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import sys
import time

HEADER = struct.Struct("=III")
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 1, 2, 3, 5, 15, 16
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
SET_VRING_ENABLE, SET_BACKEND_REQ_FD, SET_STATUS = 18, 21, 39
REPLY_ACK, BACKEND_REQ = 1 << 3, 1 << 5
NUM, SIZE, USED = 8, 1 << 16, 0x2000
KEPT: list[object] = []  # what leaks
FAULTS = set(sys.argv[2:])


class BadAnswerError(Exception):
    """The back-end said something wrong, or left."""


class FrontEnd:
    """One conversation."""

    def __init__(self, back_end: socket.socket) -> None:
        self.back_end = back_end
        self.own: socket.socket | None = None
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, SIZE)

    def say(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> None:
        try:
            socket.send_fds(self.back_end, [HEADER.pack(request, flags, len(payload)) + payload], fds)  # noqa: TID251
        except OSError as error:
            raise BadAnswerError from error

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> bytes:
        self.say(request, payload, fds, flags)
        try:
            header, passed, _, _ = socket.recv_fds(self.back_end, HEADER.size, 253)  # noqa: TID251 - carelessly
        except OSError as error:
            raise BadAnswerError from error
        if "leaks" in FAULTS and passed:
            KEPT.append(passed.pop())
        for fd in passed:
            os.close(fd)
        if len(header) < HEADER.size:
            raise BadAnswerError
        number, flags, size = HEADER.unpack(header)
        if (number, flags) != (request, 5) or size > 4096:
            raise BadAnswerError
        answer = self.back_end.recv(size, socket.MSG_WAITALL) if size else b""
        if len(answer) != 8:
            raise BadAnswerError
        return answer

    def word(self, request: int) -> int:
        word = int(struct.unpack("=Q", self.ask(request))[0])
        if "dies" in FAULTS and request == GET_PROTOCOL_FEATURES and word >> 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return word

    def acknowledged(self, request: int, payload: bytes, fds: tuple[int, ...] = ()) -> bool:
        return not any(self.ask(request, payload, fds, 9))

    def start(self) -> None:
        """All up to where the ring runs."""
        self.say(SET_OWNER)
        features = self.word(GET_FEATURES)
        if not features & 1 << 30:
            raise BadAnswerError
        protocol = self.word(GET_PROTOCOL_FEATURES) & (REPLY_ACK | BACKEND_REQ)
        if protocol != REPLY_ACK | BACKEND_REQ:
            raise BadAnswerError
        self.say(SET_PROTOCOL_FEATURES, struct.pack("=Q", protocol))
        ours, theirs = socket.socketpair()
        with theirs:
            self.own = ours
            if not self.acknowledged(SET_BACKEND_REQ_FD, b"", (theirs.fileno(),)):
                raise BadAnswerError
        self.say(SET_FEATURES, struct.pack("=Q", features & (1 << 30 | 1 << 32)))
        if "oversteps" in FAULTS:
            self.say(SET_STATUS, struct.pack("=Q", 1))
        table = struct.pack("=IIQQQQ", 1, 0, 0, SIZE, 0, 0)
        if not self.acknowledged(SET_MEM_TABLE, table, (self.memory,)):
            time.sleep(1000 if "hangs" in FAULTS else 0)
            raise BadAnswerError
        self.say(SET_VRING_NUM, struct.pack("=II", 0, NUM))
        self.say(SET_VRING_BASE, struct.pack("=II", 0, 0))
        self.say(SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, 0, USED, 0x1000, 0))
        for request in (SET_VRING_CALL, SET_VRING_KICK):
            event = os.eventfd(0)
            self.say(request, bytes(8), (event,))
            os.close(event)
        if not self.acknowledged(SET_VRING_ENABLE, struct.pack("=II", 0, 1)):
            if "exits" in FAULTS:
                sys.exit("ring 0 cannot be enabled")
            raise BadAnswerError

    def run(self) -> None:
        """Look at the used ring, and answer the back-end's own requests, until it leaves."""
        assert self.own is not None
        with mmap.mmap(self.memory, SIZE) as memory:
            while not select.select([self.back_end], [], [], 0.005)[0]:
                index, used = struct.unpack_from("<HI", memory, USED + 2)
                if "believes" in FAULTS and index and used >= NUM:
                    os.kill(os.getpid(), signal.SIGKILL)
                if select.select([self.own], [], [], 0)[0] and not self.answer_own(self.own):
                    return

    def answer_own(self, own: socket.socket) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(own, 4096, 253)  # noqa: TID251
            for fd in fds:
                os.close(fd)
            if len(data) >= HEADER.size and (header := HEADER.unpack(data[: HEADER.size]))[1] & 8:
                own.sendall(HEADER.pack(header[0], 5, 8) + struct.pack("=Q", "agrees" not in FAULTS))
        except OSError:
            return False
        return bool(data)

    def close(self) -> None:
        os.close(self.memory)
        if self.own is not None:
            self.own.close()


def main() -> None:
    """Connect again and again."""
    ran = False
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as back_end:
            back_end.connect(sys.argv[1])
            front_end = FrontEnd(back_end)
            try:
                front_end.start()
                ran = True
                front_end.run()
            except BadAnswerError:
                if not ran:
                    sys.exit("no back-end to work with")
            finally:
                front_end.close()
        if "leaves" in FAULTS:
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()

"""Random and mutated frames against a back-end in a process of its own, in whole conversations.

:func:`wild_frames` is the run. A conversation is what a front-end says to start, use and stop a network device, out of
which frames are left out, said twice, changed in a word, a bit, a number, a size or a flag, given other descriptors, or
cut; requests of the whole table with words that mean something somewhere come in between. The memory that it tells is
real and holds random bytes, so rings may well run. Everything follows from the seed.

What counts as read is what the back-end must have read: frames come in batches, and after each batch comes a question
whose answer is waited for. After each thousand frames a front-end that behaves moves packets, and in the end the
process holds what it held in the beginning: descriptors, mappings, threads, memory.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import trio

from tests.rig.process import Program, RigError, wait_until
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.peer.footprint import Footprint
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import HEADER_SIZE, MAX_PAYLOAD, VERSION, Frame, HeaderFlags
from vhostuser.wire.messages import U64, MemoryRegion, MemoryTable, Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS
from vhostuser.wire.requests import FrontendRequest as R

SIZE = 1 << 18  # bytes of each of the two regions
REGIONS = (0, 1 << 32)
USERSPACE = 0x7F00_0000_0000
RING = 64
PATIENCE = 30.0  # seconds for an answer
GOOD_EACH = 1000  # frames between two conversations that are as they should be
GROWTH = 16 << 20  # bytes of memory that the back-end may take in a run
LIMITS = ("messages-per-second=1e9", "connections-per-second=1e9", "message-timeout=0.2")
QUESTION = Frame(R.GET_FEATURES, int(VERSION), b"")
WORDS = (0, 1, 2, 3, 7, 8, 9, 16, 63, 64, 255, 256, 257, 4095, 4096, 32767, 32768, 65535, 65536, 2**31, 2**32 - 1)
LONGS = (
    *(2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 4096, SIZE, SIZE - 1, SIZE + 1, 1 << 8, 1 << 9),
    *(base + offset for base in (*REGIONS, USERSPACE, USERSPACE + REGIONS[1]) for offset in (0, 1, 4096, SIZE - 16)),
)

Shot = tuple[Frame, tuple[int, ...]]
"""A frame, and the descriptors that go with it."""

# ---- conversations ---------------------------------------------------------------------------------------------------


class Arsenal:
    """Descriptors of every kind, which stay ours, and memory with random bytes."""

    def __init__(self, stack: ExitStack) -> None:
        self.memory = [os.memfd_create(f"wild-{base:#x}") for base in REGIONS]
        for fd in self.memory:
            os.ftruncate(fd, SIZE)
        short, sparse = os.memfd_create("short"), os.memfd_create("sparse")
        os.ftruncate(short, 100)
        os.ftruncate(sparse, 1 << 45)
        pair = [sock.detach() for sock in socket.socketpair()]
        files = [os.open(path, os.O_RDONLY) for path in ("/dev/null", "/dev/zero", "/", "/proc/self/status")]
        pipe = os.pipe()
        for end in (*pipe, *pair):
            os.set_blocking(end, False)
        self.eventfds = [os.eventfd(0, flags) for flags in (os.EFD_NONBLOCK, 0, os.EFD_SEMAPHORE)]
        self.all = [*self.memory, short, sparse, *pair, *files, *pipe, *self.eventfds]
        for fd in self.all:
            stack.callback(os.close, fd)


class Conversations:
    """Everything that is said, from one seed."""

    def __init__(self, random: Random, arsenal: Arsenal, features: int) -> None:
        self.random = random
        self.arsenal = arsenal
        self.features = features

    def next(self) -> Iterator[list[Shot]]:
        """One conversation, in batches of frames."""
        for fd in self.arsenal.memory:
            os.pwrite(fd, self.random.randbytes(4096), self.random.randrange(0, SIZE - 4096, 64))
        batch: list[Shot] = []
        for shot in self._course():
            batch += self._changed(shot)
            if self.random.random() < 0.3:
                batch.append(self._anything())
            if batch and self.random.random() < 0.4:
                yield batch
                batch = []
        yield batch

    def _course(self) -> Iterator[Shot]:
        """What a front-end says that starts and stops a device, well-formed."""
        choose, fds = self.random.choice, self.arsenal.eventfds
        protocol = self.random.getrandbits(24) | ProtocolFeature.REPLY_ACK
        yield self._ask(R.GET_FEATURES)
        yield self._ask(R.SET_OWNER)
        yield self._ask(R.GET_PROTOCOL_FEATURES)
        yield self._ask(R.SET_PROTOCOL_FEATURES, U64(choose((protocol, int(ProtocolFeature.REPLY_ACK), 1 << 20 | 8))))
        yield self._ask(R.SET_FEATURES, U64(self.features & (self.random.getrandbits(64) | choose((0, 2**64 - 1)))))
        regions = tuple(MemoryRegion(base, SIZE, USERSPACE + base, 0) for base in REGIONS)
        for _ in range(self.random.randrange(1, 3)):
            yield self._ask(R.SET_MEM_TABLE, MemoryTable(regions), self.arsenal.memory)
            for index in self.random.sample((0, 1), self.random.randrange(3)):
                at = USERSPACE + choose(REGIONS) + 4096 * self.random.randrange(32)
                yield self._ask(R.SET_VRING_NUM, VringState(index, RING))
                yield self._ask(R.SET_VRING_BASE, VringState(index, self.random.randrange(RING)))
                yield self._ask(R.SET_VRING_ADDR, VringAddr(index, 0, at, at + 8192, at + 4096, 0))
                for request in (R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_VRING_KICK):
                    yield self._ask(request, VringFd(index), [choose(fds)])
                yield self._ask(R.SET_VRING_ENABLE, VringState(index, 1))
            for _ in range(self.random.randrange(4)):
                yield self._anything()
            for index in self.random.sample((0, 1), self.random.randrange(3)):
                yield self._ask(R.GET_VRING_BASE, VringState(index, 0))

    def _ask(self, request: int, payload: Payload | bytes = b"", fds: list[int] | tuple[int, ...] = ()) -> Shot:
        data = payload if isinstance(payload, bytes) else layouts.build(payload)
        flags = int(VERSION) | (self.random.random() < 0.5) * HeaderFlags.NEED_REPLY
        return Frame(request, int(flags), data), tuple(fds)

    def _anything(self) -> Shot:
        """Any request of the table, of a size that it may have, with words that mean something somewhere."""
        spec = self.random.choice(list(FRONTEND_REQUESTS.values()))
        size = self.random.choice(sorted(layouts.legal_sizes(spec.payload))[:12])
        count = self.random.randint(spec.fds.min, min(spec.fds.max, 9))
        return self._ask(spec.number, self._words(size), self.random.choices(self.arsenal.all, k=count))

    def _words(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._long() if self.random.random() < 0.5 else self._word() + self._word()
        return data[:size]

    def _word(self) -> bytes:
        return struct.pack("<I", self.random.choice(WORDS))

    def _long(self) -> bytes:
        return struct.pack("<Q", self.random.choice(LONGS))

    # ---- what is changed ---------------------------------------------------------------------------------------------

    def _changed(self, shot: Shot) -> list[Shot]:
        if self.random.random() < 0.8:
            return [shot]
        frame, fds = shot
        match self.random.randrange(10):
            case 0:
                return []
            case 1:
                return [shot, shot]
            case 2 | 3 | 4:
                return [(Frame(frame.request, frame.flags, self._spoiled(frame.payload)), fds)]
            case 5 | 6:
                others = self.random.choices(self.arsenal.all, k=self.random.choice((0, 1, 1, 2, 8, 9, 253)))
                return [(frame, tuple(others))]
            case 7:
                request = self.random.choice((0, 46, 99, 2**32 - 1, self.random.getrandbits(32)))
                return [(Frame(request, frame.flags, frame.payload), fds)]
            case 8:
                flags = frame.flags ^ self.random.choice((1 << 3, 1 << 4, 1 << 31))
                return [(Frame(frame.request, flags, frame.payload), fds)]
            case _:
                return [(self._broken(frame), fds)] if self.random.random() < 0.5 else [shot]

    def _spoiled(self, payload: bytes) -> bytes:
        if not payload:
            return payload
        data = bytearray(payload)
        if self.random.random() < 0.5:
            at = self.random.randrange(0, len(data), 8 if len(data) % 8 == 0 else 4)
            word = self._long() if len(data) % 8 == 0 else self._word()
            data[at : at + len(word)] = word[: len(data) - at]
        else:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def _broken(self, frame: Frame) -> Frame:
        """What ends the connection: a flag, a version, a size."""
        match self.random.randrange(3):
            case 0:
                return Frame(frame.request, frame.flags ^ self.random.choice((1, 2, 4)), frame.payload)
            case 1:
                size = self.random.choice((MAX_PAYLOAD + 1, 2**31, 2**32 - 1, len(frame.payload) + 1))
                return Frame(frame.request, frame.flags, frame.payload, size=size)
            case _:
                return Frame(frame.request, frame.flags, frame.payload + b"\0" * self.random.choice((1, 4, 8)))


# ---- a peer ----------------------------------------------------------------------------------------------------------


class Peer:
    """A blocking socket: sends batches, and waits for the answer to the question behind each."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        self._received = b""

    def say(self, batch: list[Shot], ours: bool) -> int:
        """Send a batch; how many of its frames were surely read. `ours`: the last descriptor is this socket itself."""
        asked = 1
        try:
            for number, (frame, fds) in enumerate(batch):
                asked += frame.request == R.GET_FEATURES
                last = ours and number == len(batch) - 1
                self._send(frame, (*fds[:-1], self._socket.fileno()) if last and fds else fds)
            self._send(QUESTION, ())
        except (BrokenPipeError, ConnectionResetError):
            return 1
        while asked and (answer := self._answer()) is not None:
            asked -= answer == R.GET_FEATURES
        return 1 if asked else len(batch)

    def cut(self, frame: Frame, at: int) -> None:
        """Send the beginning of a frame."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(frame.encode()[:at])

    def _send(self, frame: Frame, fds: tuple[int, ...]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        data = frame.encode()
        self._socket.sendall(data[self._socket.sendmsg([data], rights) :])

    def _answer(self) -> int | None:
        """The number of the next reply; None when the connection was closed."""
        header = self._exactly(HEADER_SIZE)
        if header is None:
            return None
        request, _, size = struct.unpack("=III", header)
        self._exactly(size)
        return int(request)

    def _exactly(self, count: int) -> bytes | None:
        while len(self._received) < count:
            try:
                piece, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)  # noqa: TID251 - ours to be careless with
            except ConnectionResetError:
                return None
            for fd in fds:
                os.close(fd)
            if not piece:
                return None
            self._received += piece
        data, self._received = self._received[:count], self._received[count:]
        return data

    def close(self) -> None:
        self._socket.close()


# ---- the run ---------------------------------------------------------------------------------------------------------


def wild_frames(frames: int, seed: int, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Say so many frames to a back-end.

    Raises:
        RigError: it crashed, hung, does not serve a front-end that behaves, or holds more than before.
    """
    random = Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="vhu-wild-") as name, ExitStack() as stack:
        path = Path(name) / "vhost-user.sock"
        argv = [sys.executable, "-X", "faulthandler", "-m", "vhostuser", "net", f"--socket-path={path}", "--loop"]
        program = Program([*argv, *(f"--limit={limit}" for limit in LIMITS)], Path(name) / "log", env=env)
        stack.enter_context(program)
        program.wait_for(lambda: _listens(path), 60, "the back-end to listen")
        arsenal = Arsenal(stack)
        conversations = Conversations(random, arsenal, DRIVER_FEATURES | VhostFeature.PROTOCOL_FEATURES | 1 << 34)
        try:
            for _ in range(20):  # until everything is loaded that ever will be
                _converse(path, conversations, random, Counter())
            _good(path, 0)
            before, resident = _settled(program.pid), _resident(program.pid)
            while counts["frames"] < frames:
                if counts["frames"] // GOOD_EACH >= counts["good conversations"]:
                    _good(path, counts["good conversations"])
                    counts["good conversations"] += 1
                _converse(path, conversations, random, counts)
            _good(path, 0)
        except (OSError, trio.TooSlowError, RigError) as error:
            with suppress(RigError):  # it says why it ends at its end
                program.wait(2)
            raise program.failure(f"seed {seed}, after {dict(counts)}: {type(error).__name__}: {error}") from error
        try:
            wait_until(lambda: Footprint.of(program.pid) == before, 10, "the back-end to let go")
        except RigError:
            difference = before.difference(Footprint.of(program.pid))
            raise program.failure(f"seed {seed}: after {dict(counts)} it holds {difference}") from None
        if (grown := _resident(program.pid) - resident) > GROWTH:
            raise program.failure(f"seed {seed}: {grown} bytes more memory than before, {GROWTH} are allowed")
        if program.stop():
            raise program.failure(f"seed {seed}: it did not end in order")
    return {**counts, "memory grown": grown}


def _converse(path: Path, conversations: Conversations, random: Random, counts: Counter[str]) -> None:
    counts["conversations"] += 1
    with closing(Peer(path)) as peer:
        for batch in conversations.next():
            read = peer.say(batch, ours=random.random() < 0.02)
            counts["frames"] += read
            if read < len(batch):
                counts["closed by the back-end"] += 1
                return
        if random.random() < 0.2:
            counts["cut"] += 1
            peer.cut(QUESTION, random.randrange(1, HEADER_SIZE))


def _good(path: Path, number: int) -> None:
    """A conversation as it should be, with packets that come back; every other one on packed rings."""

    async def converse() -> None:
        with trio.fail_after(PATIENCE), GuestRam() as memory:
            async with connect(path, negotiate=False) as front_end:
                with closing(await NetDriver.start(front_end, memory, packed=bool(number & 1))) as driver:
                    for packet in range(10):
                        frame = bytes([packet]) * (60 + 100 * packet)
                        await driver.send(frame)
                        if (await driver.receive()).frame != frame:
                            raise RigError(f"packet {packet} of good conversation {number} is another one")

    trio.run(converse)


def _listens(path: Path) -> bool:
    try:
        Peer(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _settled(pid: int) -> Footprint:
    """What a process holds once that no longer changes: it lets go of a connection after we have closed it."""
    seen = [Footprint.of(pid)]
    while len(seen) < 20 or any(footprint != seen[-1] for footprint in seen[-20:]):
        time.sleep(0.01)
        seen.append(Footprint.of(pid))
    return seen[-1]


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

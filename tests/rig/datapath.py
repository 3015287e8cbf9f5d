"""A guest and the host send each other checked frames while the memory table is replaced and the port swapped.

:func:`datapath` is the run. The back-end, the guest and the host are processes of their own, this module run as a
program: the back-end serves one network device and goes on with another tap every so often, the guest is the library's
front-end, the host has a packet socket at the tap.

Frames are numbered, so nothing can be duplicated or overtaken unnoticed, and end with their length and a checksum. Of
those that the guest sent, all must arrive. Of those that the host sent, the back-end says how many were lost in swaps,
and just so many may be missing. The host knows what it sent: its socket bypasses the queueing discipline, so a frame
that the tap does not take is an error at once, and the same frame goes to the next tap. Each side has at most
:data:`WINDOW` frames under way, so that no queue overflows but those that are under test.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Any

import trio

from tests.rig.netns import ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET, Netns
from tests.rig.process import Program, RigError
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.tap import open_tap
from vhostuser.frontend.client import FrontEnd, connect
from vhostuser.frontend.memory import USERSPACE_BASE, GuestRam, RamRegion
from vhostuser.frontend.net import NetDriver
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.wire.messages import MemoryRegion, MemoryTable
from vhostuser.wire.requests import FrontendRequest

TAPS = ("tap0", "tap1")  # by turns
MTU = 9000
RING = 256
WINDOW = 300  # frames under way to one side; a tap queues 1000
TICK = 0.001  # seconds between two looks
LOOK_AWAY, LOOK_AWAY_EVERY = 0.03, 0.3  # seconds for which the guest does not receive
QUIET = 1.0  # seconds without a frame, after which none is under way any more
MARGIN = 60  # seconds for all to start, end and say so

_ADDRESSES = bytes.fromhex("525400000001 525400000002 88b5")  # the EtherType is IEEE 802's for local experiments
_TRAILER = struct.Struct("!IH")  # number, length of all
_CHECKSUM = struct.Struct("!I")
_TRAILER_SIZE = _TRAILER.size + _CHECKSUM.size
_PAGE = mmap.PAGESIZE
_DIMM_SIZE = 1 << 20
_GO = b"go"  # from the back-end to the host, where the name of the next tap came before
_PACKET_QDISC_BYPASS = 20
_PACKET_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_NOT_TAKEN = (errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO)  # no carrier or no room; down; gone


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done for how long.

    Attributes:
        seconds: for which frames are sent.
        packed: whether rings have the packed layout.
        rate: frames a second each way.
        table_every, swap_every: seconds from one memory table, and from one port, to the next.
    """

    seconds: float
    packed: bool
    rate: float = 12_000
    table_every: float = 1
    swap_every: float = 10


# ---- the run ---------------------------------------------------------------------------------------------------------


def datapath(plan: Plan) -> dict[str, Any]:
    """Run it.

    Returns:
        Frames each way, what was lost in swaps, how many tables and ports there were.

    Raises:
        RigError: a frame was damaged, came twice, was overtaken, or is missing without being counted as lost.
    """
    with ExitStack() as stack:
        netns = stack.enter_context(Netns(quiet=True))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhu-datapath-")))
        (folder / "seen").write_bytes(bytes(_PAGE))

        def start(role: str, control: socket.socket | None = None) -> Program:
            argv = [sys.executable, "-m", "tests.rig.datapath", role, str(folder), json.dumps(dataclasses.asdict(plan))]
            fds = [control.fileno()] if control else []
            program = Program(netns.argv([*argv, *map(str, fds)]), folder / f"{role}.log", pass_fds=fds)
            stack.callback(program.stop)
            program.wait_for_output("ready", 20)
            return program

        with ExitStack() as ends:
            ours, theirs = map(ends.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            backend, host = start("backend", ours), start("host", theirs)
        guest = start("guest")
        told = {"host": _outcome(host, plan), "guest": _outcome(guest, plan)}
        backend.send_signal(signal.SIGTERM)
        told["back-end"] = _outcome(backend, plan)
    return _judged(plan, told)


def _outcome(program: Program, plan: Plan) -> dict[str, Any]:
    if program.wait(plan.seconds + MARGIN):
        raise program.failure("a part of the run failed")
    outcome = json.loads(program.output.strip().rpartition("\n")[2])
    assert isinstance(outcome, dict)
    return outcome


def _judged(plan: Plan, told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    host, guest, counters = told["host"], told["guest"], told["back-end"]
    result = {
        "seconds": plan.seconds,
        "frames to the guest": {"sent": host["sent"], "received": guest["received"]},
        "frames to the host": {"sent": guest["sent"], "received": host["received"]},
        "frames a second, both ways": round((host["received"] + guest["received"]) / plan.seconds),
        "bytes both ways": host["bytes"] + guest["bytes"],
        "lost in swaps": counters["rx_lost_in_swaps"],
        "ports swapped": counters["port_swaps"],
        "memory tables": guest["tables"],
        "frames the host kept for the next tap": host["refused"],
        "dropped by the host's socket": host["dropped"],
        "counters": {name: counters[name] for name in ("rx_dropped", "rx_starved", "rx_direct", "tx_dropped")},
    }
    missing = host["sent"] - guest["received"]
    if missing != counters["rx_lost_in_swaps"]:
        raise RigError(f"{missing} frames did not reach the guest, {counters['rx_lost_in_swaps']} were lost: {result}")
    if guest["sent"] != host["received"]:
        raise RigError(f"{guest['sent'] - host['received']} frames did not reach the host: {result}")
    return result


# ---- frames ----------------------------------------------------------------------------------------------------------


class Frames:
    """Numbered frames of mixed sizes: half short, the others of all lengths, one in eight longer than a buffer."""

    def __init__(self, seed: int) -> None:
        noise = random.Random(seed)
        sizes = [*(range(64),) * 4, *(range(64, 1500),) * 3, range(1500, MTU)]
        lengths = [max(46, noise.choice(noise.choice(sizes))) - _TRAILER_SIZE for _ in range(1024)]
        self._bodies = [_ADDRESSES + noise.randbytes(length) for length in lengths]
        self._sums = [zlib.crc32(body) for body in self._bodies]
        self.count = 0

    def peek(self) -> bytes:
        """The next frame."""
        which = self.count % len(self._bodies)
        body = self._bodies[which]
        trailer = _TRAILER.pack(self.count, len(body) + _TRAILER_SIZE)
        return b"".join((body, trailer, _CHECKSUM.pack(zlib.crc32(trailer, self._sums[which]))))

    def advance(self) -> None:
        """It was sent."""
        self.count += 1


class Judge:
    """Looks at every frame that arrives.

    Attributes:
        received, size: how many, and their bytes.
        next: the number that is expected.
    """

    def __init__(self) -> None:
        self.received = self.size = self.next = 0

    def look_at(self, frame: bytes) -> None:
        """Count a frame. Raises RigError when it is damaged, or came before."""
        number, length = _TRAILER.unpack_from(frame, len(frame) - _TRAILER_SIZE)
        (checksum,) = _CHECKSUM.unpack_from(frame, len(frame) - _CHECKSUM.size)
        if length != len(frame) or zlib.crc32(memoryview(frame)[: -_CHECKSUM.size]) != checksum:
            raise RigError(f"{len(frame)} bytes after frame {self.next - 1} are none: {frame[:64].hex()}...")
        if number < self.next:
            raise RigError(f"frame {number} after frame {self.next - 1}")
        self.next = number + 1
        self.received += 1
        self.size += len(frame)


class Side:
    """One side's traffic: what it has to send by now, and when it is over.

    Args:
        number: 0 or 1; both sides show each other in a file what they have seen.
    """

    def __init__(self, folder: Path, plan: Plan, number: int) -> None:
        self.frames, self.judge = Frames(number), Judge()
        self._plan, self._number = plan, number
        with (folder / "seen").open("r+b") as file:
            self._seen = memoryview(mmap.mmap(file.fileno(), _PAGE)).cast("Q")
        self._floor = 0
        self._begin = self._last = time.monotonic()

    def start(self) -> None:
        """Time runs from now on."""
        self._begin = self._last = time.monotonic()

    def due(self) -> int:
        """How many frames are to be sent now."""
        elapsed = min(time.monotonic() - self._begin, self._plan.seconds)
        under_way = self.frames.count - max(self._seen[1 - self._number], self._floor)
        return min(int(elapsed * self._plan.rate) - self.frames.count, WINDOW - under_way)

    def forget(self) -> None:
        """What is under way may never arrive."""
        self._floor = self.frames.count

    def take_all(self, receive: Callable[[], bytes | None]) -> None:
        """Look at all that has arrived, and tell the other side."""
        before = self.judge.next
        while frame := receive():
            self.judge.look_at(frame)
        self._seen[self._number] = self.judge.next
        if self.judge.next != before:
            self._last = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether all was sent and nothing arrives any more."""
        now = time.monotonic()
        return now - self._begin > self._plan.seconds and now - self._last > QUIET

    def told(self, **more: int) -> str:
        """The outcome, a line of JSON."""
        judge = self.judge
        return json.dumps({"sent": self.frames.count, "received": judge.received, "bytes": judge.size, **more})


# ---- the back-end ----------------------------------------------------------------------------------------------------


async def backend(folder: Path, plan: Plan, control: socket.socket) -> None:
    """Serve a device until SIGTERM, and swap its port."""
    allow_interrupts()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with AsyncExitStack() as stack:
            device = stack.enter_context(closing(NetDevice(open_tap(TAPS[0]))))
            device.set_mtu(MTU)
            server = Server(device, await stack.enter_async_context(await listen(folder / "socket")))
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(server.run)
            nursery.start_soon(_swap_ports, device, server, plan, trio.socket.from_stdlib_socket(control))
            print("ready", flush=True)
            async for _ in signals:
                print(json.dumps(server.counters()), flush=True)
                nursery.cancel_scope.cancel()


async def _swap_ports(device: NetDevice, server: Server, plan: Plan, host: trio.socket.SocketType) -> None:
    """Go on with another tap again and again; the host listens at it before, and goes there after."""
    with trio.move_on_after(plan.seconds):
        while True:
            await trio.sleep(plan.swap_every)
            with trio.CancelScope(shield=True):
                name = TAPS[(device.swaps + 1) % len(TAPS)]
                tap = open_tap(name)
                await host.send(name.encode())
                await host.recv(1)
                await device.swap(tap, server.in_turns)
                await host.send(_GO)


# ---- the host --------------------------------------------------------------------------------------------------------


class Host:
    """The host's end of the tap that is current, and of the next one."""

    def __init__(self, side: Side, control: socket.socket) -> None:
        self.refused = self.dropped = 0
        self._side = side
        self._control = control
        self._here = self._next = _packet_socket(TAPS[0])

    def follow(self) -> None:
        """Do what the back-end asks for: listen at the tap that it names; then go there."""
        while select.select([self._control], [], [], 0)[0]:
            match self._control.recv(64):
                case b"":
                    raise RigError("the back-end is gone")
                case message if message != _GO:
                    self._next = _packet_socket(message.decode())
                    self._control.send(b"!")
                case _:
                    self.receive()  # what the guest sent before
                    self.close()
                    self._here = self._next
                    self._side.forget()

    def send(self) -> None:
        """Send what is due; what the tap does not take is sent later, or by the next tap."""
        for _ in range(self._side.due()):
            try:
                self._here.send(self._side.frames.peek())
            except OSError as error:
                if error.errno not in _NOT_TAKEN:
                    raise
                self.refused += 1
                return
            self._side.frames.advance()

    def receive(self) -> None:
        """Take all that has arrived."""
        self._side.take_all(self._frame)

    def _frame(self) -> bytes | None:
        while True:
            try:
                return self._here.recv(1 << 16)
            except BlockingIOError:
                return None
            except OSError as error:  # said once when the tap goes; what came before is still there
                if error.errno not in _NOT_TAKEN:
                    raise

    def close(self) -> None:
        """Leave the tap that is current."""
        statistics = self._here.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 8)
        self.dropped += struct.unpack("II", statistics)[1]
        self._here.close()


def _packet_socket(tap: str) -> socket.socket:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    packets.setsockopt(SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    packets.bind((tap, ETH_P_ALL))
    return packets


def host(folder: Path, plan: Plan, control: socket.socket) -> None:
    """Send and receive at whatever tap is current."""
    side = Side(folder, plan, 0)
    with closing(Host(side, control)) as here:
        print("ready", flush=True)
        while not side.over:
            here.follow()
            here.send()
            here.receive()
            time.sleep(TICK)
    print(side.told(refused=here.refused, dropped=here.dropped), flush=True)


# ---- the guest -------------------------------------------------------------------------------------------------------


async def guest(folder: Path, plan: Plan) -> None:
    """Send and receive; now and then look away for longer than the receive ring lasts: the tap's queue fills then."""
    side = Side(folder, plan, 1)
    with GuestRam() as memory, closing(RamRegion(0, _DIMM_SIZE)) as dimm:
        async with connect(folder / "socket", negotiate=False) as front_end:
            driver = await NetDriver.start(front_end, memory, size=RING, packed=plan.packed, tx_buffer_size=MTU + 64)
            tables = _Tables(memory, dimm, max(ring.used_addr for ring in (driver.rx, driver.tx)) + 8 * RING + 6)
            print("ready", flush=True)
            side.start()
            with closing(driver):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tables.replace, front_end, plan.table_every)
                    while not side.over:
                        _send(side, driver)
                        if trio.current_time() % LOOK_AWAY_EVERY > LOOK_AWAY:
                            side.take_all(lambda: packet.frame if (packet := driver.poll()) else None)
                        await trio.sleep(TICK)
                    nursery.cancel_scope.cancel()
    print(side.told(tables=tables.count), flush=True)


def _send(side: Side, driver: NetDriver) -> None:
    for _ in range(side.due()):
        if not driver.post(side.frames.peek()):
            break
        side.frames.advance()
    driver.tx.kick()


class _Tables:
    """The same memory, told anew again and again: cut at other places, in another order, with a DIMM that moves.

    Buffers that are with the device so lie in other regions each time, and across their borders.

    Args:
        rings_end: address up to which nothing is cut: an area of a ring lies in one region.
    """

    def __init__(self, memory: GuestRam, dimm: RamRegion, rings_end: int) -> None:
        self.count = 0
        self._memory, self._dimm = memory, dimm
        self._pages = range(rings_end // _PAGE + 1, memory.alloc(1) // _PAGE + 1)
        self._random = random.Random(2)

    async def replace(self, front_end: FrontEnd, every: float) -> None:
        """Replace the table for ever."""
        while True:
            await trio.sleep(every)
            pieces = [*self._pieces(), self._moved_dimm()]
            self._random.shuffle(pieces)
            table = MemoryTable(tuple(region for region, _ in pieces))
            with trio.CancelScope(shield=True):
                await front_end.request(FrontendRequest.SET_MEM_TABLE, table, [fd for _, fd in pieces])
            self.count += 1

    def _pieces(self) -> Iterator[tuple[MemoryRegion, int]]:
        low, high = self._memory.regions
        cuts = sorted(_PAGE * page for page in self._random.sample(self._pages, self._random.randint(1, 5)))
        for begin, end in zip([0, *cuts], [*cuts, low.memory_size], strict=True):
            yield MemoryRegion(begin, end - begin, USERSPACE_BASE + begin, begin), low.fd.fileno()
        yield high.message(), high.fd.fileno()

    def _moved_dimm(self) -> tuple[MemoryRegion, int]:
        begin = (1 << 36) + _DIMM_SIZE * self._random.randrange(1 << 10)
        return MemoryRegion(begin, _DIMM_SIZE, USERSPACE_BASE + begin, 0), self._dimm.fd.fileno()


def main() -> None:
    """Be the back-end, the host or the guest."""
    role, folder, plan, *fds = sys.argv[1:]
    match role, [socket.socket(fileno=int(fd)) for fd in fds]:
        case "backend", [control]:
            trio.run(backend, Path(folder), Plan(**json.loads(plan)), control)
        case "host", [control]:
            host(Path(folder), Plan(**json.loads(plan)), control)
        case "guest", []:
            trio.run(guest, Path(folder), Plan(**json.loads(plan)))


if __name__ == "__main__":
    main()

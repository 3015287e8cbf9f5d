"""Ring operations on hostile memory: random descriptor tables, which change while the device works on them.

:func:`wild_rings` is the run. The device, a net pump on a port whose packets come back, is a process of its own (this
module run as a program), so that a crash is seen for what it is; a second process maps the same memory and writes
random bytes into both rings, indices and tables without a pause. The first one lays out new tables between turns. Most
of what it writes could be right, or the first descriptor would end every burst: addresses mostly in memory, chains
mostly short.

What is counted are chains that the device took and gave back, and rings that it broke. Afterwards a driver that behaves
moves packets over the same pump's port, memory and code, and the process holds what it held.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.devices.bench import MODERN, Net
from tests.rig.process import Program, RigError
from tests.virtio.bench import PACKED, map_guest
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import discard
from vhostuser.devices.net.ports.sockets import Loop
from vhostuser.devices.net.pump import NetPump
from vhostuser.errors import PayloadError
from vhostuser.frontend.memory import GuestRam
from vhostuser.peer.footprint import Footprint
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import WORK
from vhostuser.virtio.memory import GuestMemory
from vhostuser.virtio.ring import FAULTS, Ring
from vhostuser.virtio.rings import area_sizes

NUM = 256  # entries of a ring
RAM = ((0, 1 << 20), (1 << 20, 1 << 16), (1 << 32, 1 << 16))  # two that touch, one far away
PAGE = 4096
SPAN = 0x4000  # bytes that a ring's areas may take
PLACES = (0x1000, 0x8000)  # of both rings, in the first region
TABLES = 0x10000  # indirect ones, which stay as they are
WRITTEN_OVER = range(PLACES[0], PLACES[-1] + SPAN)
PAUSE = 2e-5  # seconds between two random writes
TURNS = 8  # between two layouts at most
FEATURES = int(
    VirtioFeature.VERSION_1
    | VirtioFeature.RING_INDIRECT_DESC
    | VirtioFeature.RING_EVENT_IDX
    | NetFeature.MRG_RXBUF
    | NetFeature.CSUM
    | NetFeature.HOST_TSO4
)
LAYOUTS = {"split": 0, "packed": int(PACKED), "packed in order": int(PACKED | VirtioFeature.IN_ORDER)}
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
GROWTH = 4 << 20  # bytes of memory that a run may take

# ---- the run ---------------------------------------------------------------------------------------------------------


def wild_rings(operations: int, layout: str, seed: int, log: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Let a device work on hostile rings in a process of its own until it has done so many operations.

    Raises:
        RigError: it crashed, hung, kept something, or does not serve a driver that behaves any more.
    """
    words = ["device", str(operations), layout, str(seed)]
    with Program([sys.executable, "-m", "tests.rig.wild_rings", *words], log, env=env) as program:
        if program.wait(60 + operations / 2000):
            raise program.failure(f"{layout} rings, seed {seed}")
        result = json.loads(program.output.strip().rpartition("\n")[2])
    assert isinstance(result, dict)
    return result


# ---- the device ------------------------------------------------------------------------------------------------------


class WildDevice:
    """A pump between two rings whose content is random."""

    def __init__(self, ram: GuestRam, layout: str, seed: int) -> None:
        self.random = Random(seed)
        self.ram = ram
        self.features = FEATURES | LAYOUTS[layout]
        self.packed = layout != "split"
        self.memory: GuestMemory = map_guest(ram)
        self.port = Loop()
        self.port.configure(self.features, 12)
        self.pump = NetPump(0, self.features)
        self.pump.use(self.port.fileno(), 12, self.random.choice(list(Batching)))
        self.notifiers = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.faults: Counter[str] = Counter()
        self.starts = 0
        self.addresses = [self._areas(place) for place in PLACES]
        ends = [begin + size for begin, size in RAM]
        told = [ram.userspace_addr(begin) for begin, _ in RAM]
        self.wrong = (0, 1 << 63, 2**64 - 1, 2**64 - 8, *ends, *(end - 1 for end in ends), *told)
        self.tables = [*PLACES, *range(TABLES, TABLES + SPAN, 512)]
        for place in range(TABLES, TABLES + SPAN + 512, 512):
            nested = not self.random.randrange(16)
            ram.write(place, self._table(self.random.choices(range(32), k=NUM), nested=nested)[:512])

    def _areas(self, place: int) -> tuple[int, int, int]:
        sizes = area_sizes(self.features, NUM)
        driver = place + sizes[0]
        return place, driver, (driver + sizes[1] + 3) & ~3

    def close(self) -> None:
        """Let go of everything but the memory's files."""
        self.pump.close()
        self.port.close()
        self.memory.close()
        for fd in self.notifiers:
            os.close(fd)

    def round(self) -> None:
        """New tables, and turns on them; a ring that broke is started again somewhere."""
        for ring, areas in zip(self.pump.rings, self.addresses, strict=True):
            ring.enabled = self.random.random() < 0.95
            if ring.fault or not ring.started:
                self._start(ring, areas)
            else:
                self._lay_out(areas, ring.position())
        for _ in range(TURNS):
            if not self.pump.turn() & WORK:
                break
        if not self.random.randrange(8):
            discard(self.port.fileno())

    def operations(self) -> int:
        """Chains that were given back, and rings that broke."""
        return sum(ring.counters()["chains"] for ring in self.pump.rings) + self.faults.total()

    def _start(self, ring: Ring, areas: tuple[int, int, int]) -> None:
        if ring.fault:
            self.faults[FAULTS[ring.fault]] += 1
            ring.report()
        if ring.started:
            ring.stop()
        self.starts += 1
        told = self.ram.userspace_addr
        indirect = self.random.random() < 0.98
        ring.configure(NUM, (told(areas[0]), told(areas[1]), told(areas[2])), self.random.random() < 0.5, indirect)
        ring.adopt(self.memory)
        ring.set_kick(self.notifiers[0])
        ring.set_call(self.notifiers[1])
        ring.set_err(self.notifiers[2])
        base = self.random.randrange(NUM) | self.packed * self.random.choice((0, 1 << 15))
        self._lay_out(areas, base)
        try:
            ring.start(base)
        except PayloadError:  # a packed ring's slots deny the position, by the other process's doing
            self.faults["position refused"] += 1

    def _lay_out(self, areas: tuple[int, int, int], position: int) -> None:
        if self.packed:
            self.ram.write(areas[0], self._packed_table(position & 0x7FFF, bool(position & 1 << 15)))
            return
        self.ram.write(areas[0], self._table([self.random.randrange(NUM) for _ in range(NUM)]))
        heads = self.random.choices(range(NUM), k=NUM)
        if not self.random.randrange(20):
            heads[self.random.randrange(NUM)] = self.random.randrange(1 << 16)
        self.ram.write(areas[1] + 4, struct.pack(f"<{NUM}H", *heads))
        self.ram.store_u16(areas[1] + 4 + 2 * NUM, self.random.randrange(1 << 16))  # used_event
        ahead = NUM if self.random.randrange(50) else self.random.randrange(1 << 16)
        self.ram.store_u16(areas[1] + 2, position + ahead)

    def _packed_table(self, at: int, wrap: bool) -> bytes:
        """Every descriptor available to a device that is at slot `at`, but for some."""
        this_lap = AVAIL if wrap else USED
        laps = [(AVAIL | USED) ^ this_lap] * at + [this_lap] * (NUM - at)
        for _ in range(self.random.randrange(4)):
            laps[self.random.randrange(NUM)] = self.random.choice((0, AVAIL | USED))
        ids = self.random.choices(range(NUM), k=NUM)
        if not self.random.randrange(20):
            ids[self.random.randrange(NUM)] = self.random.randrange(1 << 16)
        return self._table(ids, laps)

    def _table(self, last: list[int], laps: list[int] | None = None, nested: bool = True) -> bytes:
        """A descriptor table; `last` is what a split descriptor ends with, and a packed one has before its flags."""
        choices = self.random.choices
        weights = (34, 34, 12, 12, 2 * nested, nested)
        kinds = choices((0, WRITE, NEXT, NEXT | WRITE, INDIRECT, INDIRECT | WRITE), weights, k=NUM)
        addresses = choices(range(0, RAM[1][0] + RAM[1][1] - 2048, 8), k=NUM)
        lengths = choices((12, 64, 72, 76, 128, 512, 1526, 1526), k=NUM)
        for _ in range(self.random.randrange(6)):
            addresses[self.random.randrange(NUM)] = self.random.choice(self.wrong)
            lengths[self.random.randrange(NUM)] = self.random.choice((0, 1, 11, 13, 65535, 70000, 2**32 - 1))
        for i, kind in enumerate(kinds):
            if kind & INDIRECT:
                addresses[i] = self.random.choice(self.tables)
                lengths[i] = 16 * self.random.randrange(1, 33) + (not self.random.randrange(50))
        fields = (
            zip(addresses, lengths, kinds, last, strict=True)
            if laps is None
            else zip(addresses, lengths, last, map(int.__or__, kinds, laps), strict=True)
        )
        return struct.pack("<" + "QIHH" * NUM, *(word for entry in fields for word in entry))


@contextmanager
def scribbler(ram: GuestRam, seed: int) -> Iterator[None]:
    """Another process that writes random bytes over both rings until the block ends."""
    fd = ram.regions[0].fd.fileno()
    words = ["scribble", str(fd), str(seed)]
    with Program([sys.executable, "-m", "tests.rig.wild_rings", *words], Path(os.devnull), pass_fds=[fd]):
        yield


def scribble(fd: int, seed: int) -> None:
    """Write until killed: single fields at random places, now and then a whole line of the cache."""
    random = Random(seed)
    with mmap.mmap(fd, WRITTEN_OVER.stop) as memory:
        while True:
            size = random.choice((1, 2, 2, 4, 8, 64))
            at = random.choice(WRITTEN_OVER) & -size
            memory[at : at + size] = random.randbytes(size)
            time.sleep(PAUSE)


def work(operations: int, layout: str, seed: int) -> dict[str, Any]:
    """Do so many operations, and show that no harm was done."""
    warm_up(layout, seed)
    before, resident = Footprint.of(os.getpid()), _resident()
    start = time.monotonic()
    with GuestRam(RAM, seals=0) as ram, closing(WildDevice(ram, layout, seed)) as device, scribbler(ram, seed):
        while device.operations() < operations:
            device.round()
        counters = device.pump.counters()
        result = {
            "operations": device.operations(),
            "chains dropped": counters["chains_dropped"],
            "packets sent": counters["tx_packets"],
            "packets received": counters["rx_packets"],
            "starts": device.starts,
            "rings broken": dict(device.faults.most_common()),
            "seconds": round(time.monotonic() - start, 1),
        }
    warm_up(layout, seed)
    if difference := before.difference(Footprint.of(os.getpid())):
        raise RigError(f"{layout} rings, seed {seed}: the process holds {difference}")
    if (grown := _resident() - resident) > GROWTH:
        raise RigError(f"{grown} bytes more memory than before, {GROWTH} are allowed")
    return {**result, "memory grown": grown}


def warm_up(layout: str, seed: int) -> None:
    """A driver that behaves: what it sends comes back, on rings of the same layout."""
    with GuestRam(RAM) as ram:
        net = Net(ram, MODERN | LAYOUTS[layout])
        try:
            for number in range(50):
                frame = bytes([number]) * 64
                net.transmit(bytes(12) + frame)
                buffers = net.post(2048)
                net.pump.turn()
                [sent] = net.received()
                net.host.send(sent)
                net.pump.turn()
                if net.content(buffers)[12:76] != frame:
                    raise RigError(f"frame {number} did not come back")
                for ring in (net.tx, net.rx):
                    net.reap_one(ring)
        finally:
            net.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


if __name__ == "__main__":
    if sys.argv[1] == "scribble":
        scribble(int(sys.argv[2]), int(sys.argv[3]))
    else:
        print(json.dumps(work(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))

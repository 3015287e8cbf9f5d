"""A ring with a record of what it has in flight: the driver and the memory stay, back-ends come and go."""

from __future__ import annotations

from typing import Self

from tests.virtio.bench import addresses, map_guest, signals
from tests.virtio.packed import FRESH, PackedDriver
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.inflight import Region, create, part_size
from vhostuser.virtio.layout import EITHER, EVENT, WORK
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.rings import make_ring


class Recorded:
    """A driver, its ring, the region of its back-ends, and the back-end of now.

    Attributes:
        ring: the ring of the present back-end.
        expected: the chains that the driver has made available and not seen again, in order.
    """

    pump: Pump
    ring: Ring

    def __init__(self, ram: GuestRam, packed: bool, size: int = 8, entries: int = 0) -> None:
        self.features = VirtioFeature.VERSION_1 | (VirtioFeature.RING_PACKED if packed else 0)
        self.ram = ram
        if packed:
            size -= 1
        self.driver: DriverRing | PackedDriver = (PackedDriver if packed else DriverRing)(ram, 0, size)
        entries = entries or size
        length = part_size(self.features, entries)
        self.file = create(length)
        self.region = Region(self.file.fileno(), 0, length, 1, entries)
        self.memory = map_guest(ram)
        self.buffer = (ram.alloc(64), 64)
        self.expected: list[int] = []
        self.base = FRESH if packed else 0
        self.alive = False

    def make_pump(self) -> tuple[Pump, Ring]:
        raise NotImplementedError

    def use(self, region: Region) -> None:
        """Record there from the next start on."""
        self.region.close()
        self.region = region

    @property
    def addresses(self) -> tuple[int, int, int]:
        """The ring's areas in the front-end's addresses."""
        return addresses(self.driver)

    def boot(self) -> None:
        """A back-end starts, told what a front-end knows whose back-end died: nothing new, or the used index."""
        self.pump, self.ring = self.make_pump()
        self.alive = True
        driver = self.driver
        self.ring.configure(driver.size, self.addresses, driver.event_idx, True)
        self.ring.adopt(self.memory)
        self.ring.set_kick(driver.kick_fd.fileno())
        self.ring.set_call(driver.call_fd.fileno())
        base = driver.used_idx if isinstance(driver, DriverRing) else self.base
        self.ring.start(base, self.region.part(0, self.features))

    def die(self) -> None:
        """The back-end is gone, without another store."""
        self.pump.close()
        self.alive = False

    def stop(self, keep: bool = False) -> int:
        """The back-end stops the ring, and is gone."""
        base = self.ring.stop(keep)
        self.die()
        return base

    def add(self, span: int = 1) -> None:
        """Make a chain of so many buffers available, if there is room."""
        if self.driver.free >= span:
            self.expected.append(self.driver.add(readable=[self.buffer] * span))

    def turn(self) -> None:
        """Turn until there is nothing to do."""
        while self.pump.turn() & (WORK | EVENT):
            assert not self.ring.fault

    def reap(self) -> int:
        """What the driver is told of: the chains that it expects, in order. How many."""
        seen = [used.head for used in self.driver.reap()]
        assert seen == self.expected[: len(seen)], (seen, self.expected)
        del self.expected[: len(seen)]
        return len(seen)

    def finish(self) -> None:
        """Everything is completed, and a few chains more."""
        for _ in range(3):
            self.turn()
            self.reap()
            assert not self.expected, self.expected
            for span in (1, 2, 1):
                self.add(span)
        self.turn()
        self.reap()
        assert not self.expected, self.expected

    def close(self) -> None:
        if self.alive:
            self.die()
        signals(self.driver.call_fd.fileno())
        self.driver.close()
        self.region.close()
        self.file.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RecordedChain(Recorded):
    """The back-end hands out one chain at a time."""

    pump: ChainPump

    def make_pump(self) -> tuple[Pump, Ring]:
        ring = make_ring(self.features, 0, EITHER)
        ring.enabled = True
        return ChainPump(ring), ring

    def turn(self) -> None:
        while self.pump.holding or self.pump.turn() & (WORK | EVENT):
            assert not self.ring.fault
            if self.pump.holding:
                self.pump.complete(self.pump.ticket, 0)


class RecordedBurst(Recorded):
    """The back-end is a net device's transmit half that is disabled: it takes bursts and throws them away."""

    def make_pump(self) -> tuple[Pump, Ring]:
        pump = NetPump(0, self.features)
        return pump, pump.tx

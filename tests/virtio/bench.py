"""A driver and a device on one memory and in one thread: the driver's side is the front-end's, written apart from ours.

The device's side is reached as the runtime reaches it: rings are configured and started, a pump is turned. Nothing else
of it can be called in the compiled edition, and one suite runs over both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from tests.virtio.packed import PackedDriver
from vhostuser.devices.net.pump import NetPump
from vhostuser.frontend.memory import GuestRam, RamRegion
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import DescriptorFlags, DriverRing
from vhostuser.virtio.features import VirtioFeature
from vhostuser.virtio.layout import EITHER, FAULT, WORK
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.ring import Ring
from vhostuser.virtio.rings import make_ring

D = TypeVar("D", DriverRing, PackedDriver)
PACKED = VirtioFeature.VERSION_1 | VirtioFeature.RING_PACKED
NEXT, WRITE, INDIRECT = DescriptorFlags.NEXT, DescriptorFlags.WRITE, DescriptorFlags.INDIRECT


def map_region(region: RamRegion) -> Mapping:
    """A guest's region as a back-end maps it."""
    return Mapping(
        region.fd.fileno(),
        region.guest_phys_addr,
        region.memory_size,
        region.userspace_addr,
        region.mmap_offset,
    )


def map_guest(ram: GuestRam, absent: int = FAULT) -> GuestMemory:
    """All of a guest's memory as a back-end maps it."""
    return GuestMemory([map_region(region) for region in ram.regions], absent)


def addresses(driver: DriverQueue | PackedDriver) -> tuple[int, int, int]:
    """A ring's areas in the front-end's addresses: descriptor, driver, device."""
    told = driver.memory.userspace_addr
    return told(driver.desc_addr), told(driver.avail_addr), told(driver.used_addr)


def start(ring: Ring, driver: DriverQueue | PackedDriver, memory: GuestMemory, indirect: bool = True) -> None:
    """Start the device's side where the driver's side begins, and take the call that a start makes."""
    ring.configure(driver.size, addresses(driver), driver.event_idx, indirect)
    ring.adopt(memory)
    ring.set_kick(driver.kick_fd.fileno())
    ring.set_call(driver.call_fd.fileno())
    ring.set_err(driver.err_fd.fileno())
    ring.enabled = True
    ring.start(driver.base)
    assert signals(driver.call_fd.fileno()) == 1


def signals(fd: int) -> int:
    """How often an eventfd was written since the last time somebody asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def shared_mappings() -> int:
    """How many shared file mappings this process has."""
    return len(re.findall(r"^\S+ ...s ", Path("/proc/self/maps").read_text(), re.MULTILINE))


class OneRing(Generic[D]):
    """A driver that a test plays, a pump, and what lies between them."""

    memory: GuestMemory
    driver: D
    pump: Pump

    def close(self) -> None:
        self.pump.close()
        self.driver.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AnyBench(OneRing[D]):
    """One ring: a driver that a test plays, and a pump that hands out its chains one by one.

    Attributes:
        ram: the guest's memory.
        memory: the device's view of it.
        driver: the driver's side.
        pump: the device's side; `ring` is its ring.
    """

    features: int = VirtioFeature.VERSION_1

    def __init__(
        self,
        ram: GuestRam,
        size: int = 16,
        *,
        base: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        absent: int = FAULT,
        expects: int = EITHER,
        region: int = 0,
    ) -> None:
        self.ram = ram
        self.memory = map_guest(ram, absent)
        self.driver = self.make_driver(ram, size, event_idx, region)
        self.driver.reset(base)
        self.ring = make_ring(self.features, 0, expects)
        self.pump: ChainPump = ChainPump(self.ring)
        start(self.ring, self.driver, self.memory, indirect)

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool, region: int) -> D:
        raise NotImplementedError

    def buffer(self, content: bytes, align: int = 1) -> tuple[int, int]:
        """A buffer that holds `content`."""
        address = self.ram.alloc(len(content), align)
        self.ram.write(address, content)
        return address, len(content)


class Bench(AnyBench[DriverRing]):
    """A split ring."""

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool, region: int) -> DriverRing:
        return DriverRing(ram, 0, size, event_idx=event_idx, region=region)

    def room(self, size: int) -> tuple[int, int]:
        """A buffer of so many bytes for the device to write."""
        return self.ram.alloc(size), size

    def table(self, entries: Sequence[tuple[int, int, int, int]], at: int | None = None) -> tuple[int, int]:
        """Put raw descriptors (addr, len, flags, next) into guest memory, as an indirect table: a buffer."""
        return put_table(self.ram, entries, at)

    def offer(self, *entries: tuple[int, int, int, int], head: int = 0) -> None:
        """Write raw descriptors from index 0 on, and make the chain that begins at `head` available."""
        offer(self.driver, *entries, head=head)


def put_table(ram: GuestRam, entries: Sequence[tuple[int, int, int, int]], at: int | None = None) -> tuple[int, int]:
    """Put raw descriptors (addr, len, flags, next) into guest memory, as an indirect table: a buffer."""
    address = ram.alloc(16 * len(entries)) if at is None else at
    for i, (addr, length, flags, following) in enumerate(entries):
        fields = addr.to_bytes(8, "little") + length.to_bytes(4, "little")
        fields += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
        for offset in range(16):  # byte by byte: a table may lie in two regions
            ram.write(address + 16 * i + offset, fields[offset : offset + 1])
    return address, 16 * len(entries)


def offer(driver: DriverRing, *entries: tuple[int, int, int, int], head: int = 0) -> None:
    """Write raw descriptors (addr, len, flags, next) from index 0 on, and make the chain at `head` available."""
    address = driver.desc_addr
    put_table(driver.memory, entries, address)
    driver.set_avail(driver.avail_idx, head)
    driver.avail_idx += 1


class PackedBench(AnyBench[PackedDriver]):
    """A packed ring."""

    features = PACKED

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool, region: int) -> PackedDriver:
        return PackedDriver(ram, 0, size, event_idx=event_idx, region=region)


class AnyDiscard(OneRing[D]):
    """One transmit ring that is disabled: a net pump takes its chains by bursts, drops them, and needs no port.

    So bursts and what they signal can be watched without packets.
    """

    features: int = VirtioFeature.VERSION_1

    def __init__(
        self, ram: GuestRam, size: int = 16, *, base: int = 0, event_idx: bool = False, poll_us: int = 0
    ) -> None:
        self.memory = map_guest(ram)
        self.driver = self.make_driver(ram, size, event_idx)
        self.driver.reset(base)
        self.pump: NetPump = NetPump(0, self.features, poll_us=poll_us)
        self.ring = self.pump.tx
        start(self.ring, self.driver, self.memory)
        self.ring.enabled = False
        self.buffer = (ram.alloc(64), 64)

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool) -> D:
        raise NotImplementedError

    def add(self, count: int = 1) -> list[int]:
        """Make so many chains available: their heads."""
        return [self.driver.add(readable=[self.buffer]) for _ in range(count)]


class Discard(AnyDiscard[DriverRing]):
    """A split ring."""

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool) -> DriverRing:
        return DriverRing(ram, 1, size, event_idx=event_idx)


class PackedDiscard(AnyDiscard[PackedDriver]):
    """A packed ring."""

    features = PACKED

    def make_driver(self, ram: GuestRam, size: int, event_idx: bool) -> PackedDriver:
        in_order = bool(self.features & VirtioFeature.IN_ORDER)
        return PackedDriver(ram, 1, size, event_idx=event_idx, in_order=in_order)


class InOrderDiscard(PackedDiscard):
    """A packed ring with IN_ORDER."""

    features = PACKED | VirtioFeature.IN_ORDER


def turn_until_idle(pump: Pump) -> int:
    """Turn as long as work is ready: what the last turn left to wait for."""
    while (todo := pump.turn()) == WORK:
        pass
    return todo

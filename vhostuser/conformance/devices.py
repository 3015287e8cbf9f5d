"""What makes a device complete a chain, so that rings are tested the same way on any device.

Must not know: messages, ring layouts.

How: a :class:`Device` knows on which ring a driver gives it work, which other rings a driver starts with it, and makes
:class:`Job` after job: the buffers of a chain, and what they have to hold when the device is done with it.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostuser.conformance.violation import Violation
from vhostuser.frontend.features import DriverFeature

if TYPE_CHECKING:
    from vhostuser.frontend.memory import GuestRam
    from vhostuser.frontend.rings import Buffer

_BLK_HEADER = struct.Struct("<IIQ")


@dataclass(frozen=True)
class Job:
    """A chain for the device.

    Attributes:
        readable, writable: Its buffers.
        done: Called with the number of bytes that the device says it has written. Raises Violation.
        sent: What it sends; what comes back has a header before it.
    """

    readable: Sequence[Buffer]
    writable: Sequence[Buffer]
    done: Callable[[int], None]
    sent: bytes = b""


class Device(ABC):
    """A kind of device.

    Attributes:
        name: As on the command line.
        rings: How many rings its driver starts.
        ring: On which of them it is given work.
        reads, writes: Whether the chains of that ring have something for the device to read, and to write.
        features: Virtio features without which the driver does not work.
        echo: On which ring what was sent may come back (:attr:`Offer.echo <vhostuser.conformance.check.Offer.echo>`);
            None for devices that send nothing.
        header_size: Bytes before what is sent, and before what comes back.
    """

    name: str
    rings: int
    ring: int
    reads: bool
    writes: bool
    features = int(DriverFeature.VERSION_1)
    echo: int | None = None
    header_size = 0

    @abstractmethod
    def job(self, memory: GuestRam, number: int = 0, region: int = 0) -> Job:
        """A chain for :attr:`ring`.

        Args:
            memory: Where its buffers are put.
            number: Of two jobs with different numbers the contents differ.
            region: The memory region that they are put into.
        """

    def buffers(self, ring: int) -> int:
        """The size of the buffers that its driver posts on another ring before it starts; 0 for none."""
        return 0


class Net(Device):
    """A network device: frames to transmit. What it receives, if its port sends them back, is for its own checks."""

    name = "net"
    rings = 2
    ring = 1
    reads = True
    writes = False
    echo = 0
    header_size = 12

    def job(self, memory: GuestRam, number: int = 0, region: int = 0) -> Job:
        """A frame with its header."""
        data = bytes(self.header_size) + self.frame(number)
        address = memory.alloc(len(data), region=region)
        memory.write(address, data)
        return Job([(address, len(data))], [], self._sent, data[self.header_size :])

    def frame(self, number: int) -> bytes:
        """An Ethernet frame whose length and bytes follow from its number."""
        size = 60 + number * 71 % 1455
        return bytes.fromhex("52540076680252540076680388b5") + bytes((number + i) & 0xFF for i in range(14, size))

    def buffers(self, ring: int) -> int:
        """For frames to receive."""
        return 0 if ring % 2 else 2048

    @staticmethod
    def _sent(written: int) -> None:
        if written:
            raise Violation(f"a chain without writable buffers came back with {written} bytes written")


class Blk(Device):
    """A block device: of its first ones, two sectors are read."""

    name = "blk"
    rings = 1
    ring = 0
    reads = True
    writes = True
    _SIZE = 2 * 512

    def job(self, memory: GuestRam, number: int = 0, region: int = 0) -> Job:
        """A read of two sectors (VIRTIO_BLK_T_IN): header, sectors, status."""
        header, data, status = (memory.alloc(size, region=region) for size in (_BLK_HEADER.size, self._SIZE, 1))
        memory.write(header, _BLK_HEADER.pack(0, 0, number % 8))
        memory.write(status, b"\xff")

        def done(written: int) -> None:
            if written != self._SIZE + 1:
                raise Violation(f"a read of {self._SIZE} bytes and a status came back with {written} bytes written")
            if (code := memory.read(status, 1)) != b"\0":
                raise Violation(f"a read came back with status {code.hex()}, not 00")

        return Job([(header, _BLK_HEADER.size)], [(data, self._SIZE), (status, 1)], done)


class Rng(Device):
    """An entropy source: bytes to fill."""

    name = "rng"
    rings = 1
    ring = 0
    reads = False
    writes = True
    _SIZE = 2048

    def job(self, memory: GuestRam, number: int = 0, region: int = 0) -> Job:
        """A buffer to fill."""
        address = memory.alloc(self._SIZE, region=region)
        memory.write(address, bytes(self._SIZE))

        def done(written: int) -> None:
            if not 0 < written <= self._SIZE:
                raise Violation(f"random bytes: {written} written to a buffer of {self._SIZE}")
            data = memory.read(address, written)
            if not (any(data[:16]) and any(data[-16:])):
                raise Violation(f"random bytes: {written}, the first or the last of which are zeros")

        return Job([], [(address, self._SIZE)], done)


DEVICES: dict[str, Device] = {device.name: device for device in (Net(), Blk(), Rng())}
"""The devices by name."""

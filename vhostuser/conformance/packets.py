"""Packets through the two rings of a network device whose port sends back what it gets, headers and buffers by hand.

Must not know: which statement is at stake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vhostuser.conformance.chains import Entry, chains_of, cut, linked
from vhostuser.conformance.probe import PROTOCOL
from vhostuser.conformance.violation import Violation
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.net import NetHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import Buffer
    from vhostuser.wire.features import ProtocolFeature

_PLAIN = NetHeader()


class Packet(NamedTuple):
    """What was received.

    Attributes:
        header: What stands before it.
        frame: All of it.
        pieces: The bytes that were written to each of its buffers, header included.
    """

    header: NetHeader
    frame: bytes
    pieces: Sequence[int]


def frame_of(size: int, number: int = 0) -> bytes:
    """An Ethernet frame of a size, at least 14 bytes; those with other numbers differ."""
    head = bytes.fromhex("525400766802 525400766803 88b5")
    return (head + bytes((number + i) & 0xFF for i in range(14, size)))[:size]


class Pair:
    """A queue pair.

    Args:
        probe: The check's.
        driver: Whose rings these are.
        number: Which of the pairs.

    Attributes:
        driver: It.
        rx, tx: The rings.
        header_size: Bytes before each packet.
        refused: Receive chains that came back empty since :meth:`start`.
    """

    def __init__(self, probe: Probe, driver: Driver, number: int = 0) -> None:
        features = driver.connection.features
        self.driver = driver
        self.rx, self.tx = (chains_of(probe, driver, 2 * number + index) for index in range(2))
        self.header_size = 12 if features & (DriverFeature.VERSION_1 | DriverFeature.MRG_RXBUF) else 10
        self.refused = 0
        self._mergeable = bool(features & DriverFeature.MRG_RXBUF)
        self._posted: dict[int, Sequence[Buffer]] = {}
        self._filled: list[bytes] = []
        self._probe = probe

    @classmethod
    async def start(cls, probe: Probe, virtio: int, *, size: int = 64, protocol: ProtocolFeature = PROTOCOL) -> Pair:
        """Negotiate these virtio features and no others, as far as they are offered, and start the rings, empty."""
        connection = await probe.negotiated(virtio, protocol)
        driver = probe.drive(connection, probe.memory())
        await driver.tell_memory()
        for index in range(2):
            await driver.start(driver.make_ring(index, size))
        return cls(probe, driver)

    async def another(self, number: int) -> Pair:
        """Start another pair of the same driver."""
        for index in (2 * number, 2 * number + 1):
            await self.driver.start(self.driver.make_ring(index))
        return Pair(self._probe, self.driver, number)

    # ---- receiving -----------------------------------------------------------------------------------------------

    def post(self, *sizes: int, count: int = 1) -> None:
        """Offer receive chains, each of buffers of these sizes, and kick."""
        for _ in range(count):
            self.offer(*linked((), [(self.driver.memory.alloc(size, region=1), size) for size in sizes]))
        self.rx.kick()

    def offer(self, *entries: Entry) -> None:
        """Offer a receive chain of these descriptors, without a kick."""
        self._posted[self.rx.offer(*entries)] = [(entry.addr, entry.length) for entry in entries]

    async def packets(self, count: int = 1) -> list[Packet]:
        """Wait for so many packets. Raises Violation if there are fewer, or more."""
        got: list[Packet] = []

        def enough() -> bool:
            got.extend(self.poll())
            return len(got) >= count

        if not await self.driver.until(enough) or len(got) > count:
            raise Violation(f"{count} packets were to be received, {len(got)} were")
        return got

    async def nothing(self, what: str) -> None:
        """Show that nothing is received for now."""
        if await self.driver.until(lambda: bool(self.poll()), self._probe.patience.silence):
            raise Violation(f"{what}: it was received")

    def poll(self) -> list[Packet]:
        """The packets that have come since this was asked last."""
        for used in self.rx.reap():
            buffers = self._posted.pop(used.head)
            if not used.written:
                self.refused += 1
                continue
            data = b"".join(self.driver.memory.read(*buffer) for buffer in buffers)
            self._filled.append(data[: used.written])
        packets = []
        while self._filled and (packet := self._first()) is not None:
            packets.append(packet)
        return packets

    def _first(self) -> Packet | None:
        head = self._filled[0][: self.header_size]
        if len(head) < self.header_size:
            raise Violation(f"a packet of {len(head)} bytes, which are not even a header of {self.header_size}")
        header = NetHeader.parse(head)
        count = header.num_buffers if self._mergeable else 1
        if count < 1:
            raise Violation(f"num_buffers is {count}")
        if count > len(self._filled):
            return None
        pieces, self._filled = self._filled[:count], self._filled[count:]
        return Packet(header, b"".join(pieces)[self.header_size :], [*map(len, pieces)])

    # ---- sending -------------------------------------------------------------------------------------------------

    def send(self, frame: bytes, header: NetHeader = _PLAIN, sizes: Sequence[int] = ()) -> None:
        """Offer a frame behind its header, in pieces of these sizes and one of the rest, and kick."""
        self.lay(frame, header, sizes)
        self.tx.kick()

    def lay(
        self, frame: bytes, header: NetHeader = _PLAIN, sizes: Sequence[int] = (), rest: Sequence[Buffer] = ()
    ) -> None:
        """The same without a kick; what a frame ends with may lie in buffers of its own."""
        data = header.pack(self.header_size) + frame
        address = self.driver.memory.alloc(len(data))
        self.driver.memory.write(address, data)
        self.tx.offer(*linked([*cut([(address, len(data))], sizes), *rest]))

    async def back(self, *frames: bytes) -> list[Packet]:
        """These frames and nothing else come back, in this order."""
        packets = await self.packets(len(frames))
        for number, (packet, frame) in enumerate(zip(packets, frames, strict=True)):
            if packet.frame != frame:
                raise Violation(
                    f"what came back as number {number} has {len(packet.frame)} bytes, and is not the frame of "
                    f"{len(frame)} bytes that was sent"
                )
        return packets

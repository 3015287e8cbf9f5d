"""A small network driver over a pair of rings: frames out, frames in.

Must not know: what the frames hold.

How: the transmit ring gets one buffer a frame, header in front. The receive ring is kept full of buffers of
one size; with MRG_RXBUF a frame may take several, and the header in the first says how many. What arrived
is copied out, and its buffer goes back to the device at once. Every buffer is allocated once.
"""

from __future__ import annotations

import struct
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, TypedDict, Unpack

import trio

from vhostuser.errors import LocalProtocolError, RemoteProtocolError
from vhostuser.fds import Closing
from vhostuser.frontend.features import RING_FEATURES, DriverFeature
from vhostuser.frontend.layouts import make_ring
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from vhostuser.frontend.client import FrontEnd
    from vhostuser.frontend.memory import GuestRam
    from vhostuser.frontend.rings import DriverQueue

DRIVER_FEATURES = RING_FEATURES | DriverFeature.MRG_RXBUF
"""What :meth:`NetDriver.start` acknowledges unless told otherwise: no offloads, so that frames are plain."""

_FIELDS = struct.Struct("<BBHHHH")
_NUM_BUFFERS = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class NetHeader:
    """``virtio_net_hdr``, in front of every frame.

    Attributes:
        flags: 1 the checksum is to be completed, 2 it was verified.
        gso_type: 0 none, 1 TCP/IPv4, 3 UDP fragments, 4 TCP/IPv6, 5 UDP; 0x80 with ECN.
        hdr_len, gso_size, csum_start, csum_offset: in bytes.
        num_buffers: Buffers that a received frame takes; absent from the ten-byte header, and then 1.
    """

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int) -> bytes:
        """Its bytes, ten or twelve."""
        fixed = _FIELDS.pack(self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset)
        return fixed if size == _FIELDS.size else fixed + _NUM_BUFFERS.pack(self.num_buffers)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it from ten or twelve bytes."""
        (num_buffers,) = _NUM_BUFFERS.unpack_from(data, _FIELDS.size) if len(data) > _FIELDS.size else (1,)
        flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = _FIELDS.unpack_from(data)
        return cls(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers)


class Packet(NamedTuple):
    """A received frame with the header that came before it."""

    header: NetHeader
    frame: bytes


class Sizes(TypedDict, total=False):
    """How large a driver makes its rings and buffers.

    Attributes:
        size: Descriptors in each ring, 256 unless told otherwise.
        rx_buffer_size, tx_buffer_size: As for :class:`NetDriver`.
    """

    size: int
    rx_buffer_size: int
    tx_buffer_size: int


class NetDriver(Closing):
    """A driver for one queue pair, with rings of either layout.

    Args:
        rx: The receive ring, of an even number.
        tx: The transmit ring, the number after it.
        features: The virtio features that were acknowledged.
        rx_buffer_size: Length of each receive buffer in bytes, header included.
        tx_buffer_size: The longest frame with its header that can be sent, in bytes.
    """

    def __init__(
        self, rx: DriverQueue, tx: DriverQueue, features: int, rx_buffer_size: int = 2048, tx_buffer_size: int = 2048
    ) -> None:
        self.rx = rx
        self.tx = tx
        self.header_size = 12 if features & (DriverFeature.VERSION_1 | DriverFeature.MRG_RXBUF) else 10
        self.mergeable = bool(features & DriverFeature.MRG_RXBUF)
        self._rx_buffer_size = rx_buffer_size
        self._tx_buffer_size = tx_buffer_size
        self._rx_unused = [rx.memory.alloc(rx_buffer_size) for _ in range(rx.size)]
        self._tx_unused = [tx.memory.alloc(tx_buffer_size) for _ in range(tx.size)]
        # Buffers with the device, by the head of their chain.
        self._rx_lent: dict[int, int] = {}
        self._tx_lent: dict[int, int] = {}
        self._filled: deque[bytes] = deque()

    @classmethod
    async def start(
        cls,
        front_end: FrontEnd,
        memory: GuestRam,
        *,
        features: int = DRIVER_FEATURES,
        packed: bool = False,
        in_order: bool = False,
        **sizes: Unpack[Sizes],
    ) -> NetDriver:
        """Bring a device up with one queue pair; see :meth:`start_pairs`."""
        [driver] = await cls.start_pairs(
            front_end, memory, 1, features=features, packed=packed, in_order=in_order, **sizes
        )
        return driver

    @classmethod
    async def start_pairs(
        cls,
        front_end: FrontEnd,
        memory: GuestRam,
        pairs: int,
        *,
        features: int = DRIVER_FEATURES,
        packed: bool = False,
        in_order: bool = False,
        **sizes: Unpack[Sizes],
    ) -> list[NetDriver]:
        """Bring a device up: negotiate, tell the memory, and open so many queue pairs.

        Args:
            front_end: The connection, nothing said on it yet (``connect(path, negotiate=False)``).
            memory: The guest's memory.
            pairs: Number of queue pairs; more than one need MQ.
            features: Virtio features to acknowledge if they are offered.
            packed: Insist on RING_PACKED. Without it, the rings are packed if `features` say so and it is offered.
            in_order: Insist on IN_ORDER.
            **sizes: See :class:`Sizes`.

        Raises:
            LocalProtocolError: The back-end does not offer what is insisted on, or has fewer queue pairs.
        """
        insisted = (
            DriverFeature.RING_PACKED * packed | DriverFeature.IN_ORDER * in_order | DriverFeature.MQ * (pairs > 1)
        )
        await front_end.negotiate(features | insisted)
        if missing := DriverFeature(insisted & ~int(front_end.features)):
            raise LocalProtocolError(f"the back-end offers {front_end.offered:#x}, without {missing!r}")
        if pairs > 1:
            await _check_pairs(front_end, pairs)
        await front_end.set_mem_table(memory)
        with ExitStack() as opened:
            drivers = [opened.enter_context(await cls.open_pair(front_end, pair, **sizes)) for pair in range(pairs)]
            opened.pop_all()
        return drivers

    @classmethod
    async def open_pair(
        cls,
        front_end: FrontEnd,
        pair: int = 0,
        *,
        size: int = 256,
        rx_buffer_size: int = 2048,
        tx_buffer_size: int = 2048,
    ) -> NetDriver:
        """Make the two rings of a pair in the front-end's memory, post receive buffers, and start the rings."""
        rx, tx = (make_ring(front_end.memory, 2 * pair + i, size, front_end.features) for i in range(2))
        try:
            driver = cls(rx, tx, front_end.features, rx_buffer_size, tx_buffer_size)
            driver.fill()
            await front_end.start_ring(rx)
            await front_end.start_ring(tx)
        except BaseException:
            rx.close()
            tx.close()
            raise
        # The first kick went to nobody: the ring was not started.
        rx.kick(force=True)
        return driver

    def fill(self) -> None:
        """Give the device every receive buffer that it does not have."""
        while self._rx_unused:
            address = self._rx_unused.pop()
            self._rx_lent[self.rx.add(writable=[(address, self._rx_buffer_size)])] = address
        self.rx.kick()

    async def send(self, frame: bytes, header: NetHeader | None = None) -> None:
        """Send a frame, waiting for room in the ring if need be.

        Raises:
            ValueError: The frame is longer than ``tx_buffer_size`` allows.
        """
        await trio.lowlevel.checkpoint()
        while not self.post(frame, header):
            await self.tx.wait_used()
        self.tx.kick()

    def post(self, frame: bytes, header: NetHeader | None = None) -> bool:
        """Make a frame available if there is room, which is returned. The device learns of it by ``tx.kick()``.

        Raises:
            ValueError: The frame is longer than ``tx_buffer_size`` allows.
        """
        data = (header or NetHeader()).pack(self.header_size) + frame
        if len(data) > self._tx_buffer_size:
            raise ValueError(f"a frame of {len(frame)} bytes and its header exceed {self._tx_buffer_size}")
        if self.collect_sent() == self.tx.size:
            return False
        address = self._tx_unused.pop()
        self.tx.memory.write(address, data)
        self._tx_lent[self.tx.add(readable=[(address, len(data))])] = address
        return True

    def collect_sent(self) -> int:
        """Take back the buffers of frames that were sent; return how many are still with the device."""
        for used in self.tx.reap():
            self._tx_unused.append(self._tx_lent.pop(used.head))
        return len(self._tx_lent)

    async def receive(self) -> Packet:
        """Wait for the next frame."""
        await trio.lowlevel.checkpoint()
        while (packet := self.poll()) is None:
            await self.rx.wait_used()
        return packet

    def poll(self) -> Packet | None:
        """The next frame if there is one. The buffers it was in go back to the device.

        Raises:
            RemoteProtocolError: A buffer too short for a header, or a number of buffers that cannot be.
        """
        self._collect_received()
        if not self._filled:
            return None
        header = self._header_of(self._filled[0])
        count = self._buffers_of(header)
        if count > len(self._filled):
            return None
        first = self._filled.popleft()
        rest = (self._filled.popleft() for _ in range(count - 1))
        return Packet(header, b"".join((first[self.header_size :], *rest)))

    def _collect_received(self) -> None:
        for used in self.rx.reap():
            address = self._rx_lent.pop(used.head)
            self._filled.append(self.rx.memory.read(address, used.written))
            self._rx_unused.append(address)
        self.fill()

    def _header_of(self, buffer: bytes) -> NetHeader:
        if len(buffer) < self.header_size:
            raise RemoteProtocolError(f"vring {self.rx.index}: {len(buffer)} bytes are no virtio_net_hdr")
        return NetHeader.parse(buffer[: self.header_size])

    def _buffers_of(self, header: NetHeader) -> int:
        if not self.mergeable:
            return 1  # the field has to be 1 then, but DPDK leaves it 0, and drivers do not look
        if not 1 <= header.num_buffers <= self.rx.size:
            raise RemoteProtocolError(
                f"vring {self.rx.index}: num_buffers {header.num_buffers}, the ring has {self.rx.size}"
            )
        return header.num_buffers

    def close(self) -> None:
        """Close the rings' eventfds; the memory stays the guest's."""
        self.rx.close()
        self.tx.close()


async def _check_pairs(front_end: FrontEnd, pairs: int) -> None:
    if ProtocolFeature.MQ not in front_end.protocol_features:
        raise LocalProtocolError(f"{pairs} queue pairs: the back-end does not offer the protocol feature MQ")
    offered = await front_end.word(FrontendRequest.GET_QUEUE_NUM)
    if pairs > offered:
        raise LocalProtocolError(f"{pairs} queue pairs: the back-end has {offered}")

"""The payloads of all requests as plain values, and :class:`Message`, a frame that passed the syntax checks.

Must not know: bytes (``layouts`` has them), rules between fields (the codec has those of one message, the
session those of a conversation). A value holds whatever its layout can carry; encoding refuses what does not
fit.

Every integer's annotation says its width on the wire, which is where the property tests take their values
from. A request without a payload has None.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from vhostuser.fds import FdBundle
    from vhostuser.wire.requests import RequestSpec

# The metadata is the width in bits.
u8 = Annotated[int, 8]
u16 = Annotated[int, 16]
u32 = Annotated[int, 32]
u55 = Annotated[int, 55]
u64 = Annotated[int, 64]

_SHOWN_IN_DECIMAL = 4096


class VringAddrFlags(IntFlag):
    """Flags of SET_VRING_ADDR."""

    LOG = 0x1
    """VHOST_VRING_F_LOG: writes to the used ring go to the dirty log, at the address ``log``."""


class XenMmapFlags(IntFlag):
    """Flags of a memory region with XEN_MMAP."""

    FOREIGN = 0x1
    GRANT = 0x2
    NO_ADVANCE_MAP = 0x100
    """The region cannot be mapped before it is used."""


class ShmemMapFlags(IntFlag):
    """Flags of SHMEM_MAP."""

    WRITABLE = 0x1


class DeviceStatus(IntFlag):
    """Bits of SET_STATUS and GET_STATUS (virtio 1.2, 2.1)."""

    ACKNOWLEDGE = 0x1
    DRIVER = 0x2
    DRIVER_OK = 0x4
    FEATURES_OK = 0x8
    DEVICE_NEEDS_RESET = 0x40
    FAILED = 0x80


class IotlbType(IntEnum):
    """Types of IOTLB_MSG."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class Payload:
    """Base of all payload values; shows them in one line."""

    __slots__ = ()

    def __str__(self) -> str:
        return " ".join(f"{f.name}={_show(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]


def _show(value: object) -> str:
    match value:
        case bool():
            return str(value)
        case int():
            return str(value) if abs(value) < _SHOWN_IN_DECIMAL else hex(value)
        case bytes():
            return value[:16].hex() + ("…" if len(value) > 16 else "")
        case tuple() if len(value) > 8:
            return f"({len(value)} values)"
        case tuple():
            return "(" + ", ".join(map(_show, value)) + ")"
        case Payload():
            return f"[{value}]"
    return str(value)


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """A single 64-bit word: features, counts, acknowledgements."""

    value: u64


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    """A ring and a number whose meaning the request gives: size, base, enable bit, byte order."""

    index: u32
    num: u32


@dataclass(frozen=True, slots=True)
class VringAddr(Payload):
    """Where a ring's parts lie.

    Attributes:
        index: Which ring.
        flags: :class:`VringAddrFlags`, unknown bits included.
        descriptor: Address of the descriptor table, 16-byte aligned.
        used: Address of the used ring, 4-byte aligned.
        available: Address of the available ring, 2-byte aligned.
        log: Guest-physical address of the used ring, for the dirty log.
    """

    index: u32
    flags: u32
    descriptor: u64
    used: u64
    available: u64
    log: u64


@dataclass(frozen=True, slots=True)
class VringFd(Payload):
    """The word of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.

    Attributes:
        index: Which ring.
        no_fd: No descriptor is attached: the back-end polls, or does not notify.
        reserved: Bits 9 to 63, shifted down; zero in a legal message.
    """

    index: u8
    no_fd: bool = False
    reserved: u55 = 0


@dataclass(frozen=True, slots=True)
class XenMmap(Payload):
    """How Xen maps a memory region (XEN_MMAP).

    Attributes:
        flags: :class:`XenMmapFlags`, unknown bits included.
        domid: The domain that the memory belongs to.
    """

    flags: u32
    domid: u32


@dataclass(frozen=True, slots=True)
class MemoryRegion(Payload):
    """A piece of guest memory that the back-end maps from a descriptor.

    Attributes:
        guest_phys_addr: Where the guest sees it.
        memory_size: Its length in bytes.
        userspace_addr: Where the front-end sees it; ring addresses are in these terms.
        mmap_offset: Where it begins in the file behind the descriptor.
        xen: The two more fields of XEN_MMAP, or None.
    """

    guest_phys_addr: u64
    memory_size: u64
    userspace_addr: u64
    mmap_offset: u64
    xen: XenMmap | None = None


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """All memory regions at once; descriptors come in the same order."""

    regions: tuple[MemoryRegion, ...]


@dataclass(frozen=True, slots=True)
class SingleRegion(Payload):
    """One memory region, to be added or removed."""

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class Log(Payload):
    """Size and file offset, in bytes, of the dirty log's shared memory."""

    mmap_size: u64
    mmap_offset: u64


@dataclass(frozen=True, slots=True)
class Iotlb(Payload):
    """An IOMMU translation that is missing, given or withdrawn.

    Attributes:
        iova: Begin of the range as the driver sees it.
        size: Its length in bytes.
        uaddr: Where the front-end sees it.
        perm: 0 none, 1 read, 2 write, 3 both.
        type: :class:`IotlbType`, or what else a peer sent.
    """

    iova: u64
    size: u64
    uaddr: u64
    perm: u8
    type: u8


@dataclass(frozen=True, slots=True)
class Config(Payload):
    """A piece of the device's configuration space.

    Attributes:
        offset: Where it begins.
        flags: 0 for what the driver may write, otherwise a write on behalf of migration.
        payload: The bytes; their number is the message's size field.
    """

    offset: u32
    flags: u32
    payload: bytes


@dataclass(frozen=True, slots=True)
class VringArea(Payload):
    """A notification page offered to, or withdrawn from (``vring.no_fd``), the guest."""

    vring: VringFd
    size: u64
    offset: u64


@dataclass(frozen=True, slots=True)
class Inflight(Payload):
    """Shared memory that records requests in flight.

    Attributes:
        mmap_size: Its length in bytes; 0 means that there is none.
        mmap_offset: Where it begins in its file.
        num_queues: How many rings it records.
        queue_size: Entries for each.
    """

    mmap_size: u64
    mmap_offset: u64
    num_queues: u16
    queue_size: u16


@dataclass(frozen=True, slots=True)
class SharedObject(Payload):
    """The name of a shared object: 16 bytes."""

    uuid: Annotated[bytes, 16]


@dataclass(frozen=True, slots=True)
class DeviceState(Payload):
    """Which way the back-end's state goes (0 save, 1 load), and in which phase of migration (0 stopped)."""

    direction: u32
    phase: u32


@dataclass(frozen=True, slots=True)
class ShmemMap(Payload):
    """A mapping that the back-end asks for inside a VIRTIO shared memory region.

    Attributes:
        shmid: Which shared memory region.
        fd_offset: Where the mapping begins in the descriptor's file.
        shm_offset: Where it begins in the region.
        length: Its length in bytes.
        flags: :class:`ShmemMapFlags`, unknown bits included.
    """

    shmid: u8
    fd_offset: u64
    shm_offset: u64
    length: u64
    flags: u64


@dataclass(frozen=True, slots=True)
class ShmemConfig(Payload):
    """Which VIRTIO shared memory regions exist.

    Attributes:
        nregions: How many.
        memory_sizes: 256 sizes in bytes, by region id; 0 for one that does not exist.
    """

    nregions: u32
    memory_sizes: Annotated[tuple[u64, ...], 256]


@dataclass(frozen=True, slots=True)
class CryptoSession(Payload):
    """A crypto session's parameters, left as bytes: no device here understands them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A request that passed the codec.

    Attributes:
        request: Its number.
        spec: Its row in the table of requests; None for a number that has none.
        payload: Its value, None where the request has no payload, bytes where there is no row.
        fds: The descriptors that came with it, still owned by whoever received the frame.
        need_reply: Whether the sender asked for an acknowledgement.
    """

    request: int
    spec: RequestSpec | None
    payload: Payload | bytes | None
    fds: FdBundle
    need_reply: bool = False

    @property
    def name(self) -> str:
        """The specification's name for the request, or its number."""
        return self.spec.name if self.spec else f"request {self.request}"

    def __str__(self) -> str:
        parts = [self.name]
        if self.payload is not None:
            parts.append(_show(self.payload) if isinstance(self.payload, bytes) else str(self.payload))
        if len(self.fds):
            parts.append(f"{len(self.fds)} fd" + "s" * (len(self.fds) > 1))
        if self.need_reply:
            parts.append("need_reply")
        return " ".join(parts)

"""The one table of requests: payload, descriptors, reply, gates and legal state of each.

Must not know: bytes, sockets, or how anybody carries a request out.

How: the decoder's checks, the session's gates, the front end, the fuzzer and the reference page in
``protocol-spec/`` all read these rows. A new request is one row here, one layout, and one handler.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from vhostuser.wire import messages as m
from vhostuser.wire.features import ProtocolFeature as P
from vhostuser.wire.features import VhostFeature

if TYPE_CHECKING:
    from collections.abc import Mapping


class FrontendRequest(IntEnum):
    """Requests from the front-end to the back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45


class BackendRequest(IntEnum):
    """Requests from the back-end to the front-end, on the channel that SET_BACKEND_REQ_FD opens."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Direction(Enum):
    """Who sends the request."""

    FRONTEND = "front-end to back-end"
    BACKEND = "back-end to front-end"


class Reply(Enum):
    """What the receiver of a request sends back."""

    ACK = "a U64 where REPLY_ACK is acknowledged and NEED_REPLY is set, else nothing"
    ALWAYS = "a reply of its own, whatever NEED_REPLY says"
    GATED = "a reply of its own once the gate is acknowledged, else as ACK"
    POSTCOPY = "a reply of its own in postcopy, else as ACK"


class LegalState(Enum):
    """What has to be at rest when a request comes."""

    ANY = "any time"
    RING_STOPPED = "while its ring is stopped"
    ALL_RINGS_STOPPED = "while all rings are stopped"


class FdRule(NamedTuple):
    """How many descriptors travel with a message; payloads may say more (``no_fd``, ``nregions``)."""

    min: int
    max: int

    def allows(self, count: int) -> bool:
        """Whether a message with so many descriptors is right."""
        return self.min <= count <= self.max

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max}"


NO_FDS = FdRule(0, 0)
ONE_FD = FdRule(1, 1)
MAYBE_FD = FdRule(0, 1)


@dataclass(frozen=True)
class RequestSpec:
    """One row of the table.

    Attributes:
        number: The request number on the wire.
        meaning: What it asks for, in one line.
        payload: Class of its payload, None for an empty one.
        fds: Descriptors that come with it.
        reply: When it is answered, and by what.
        reply_payload: Class of its own reply's payload; None where that is empty, or where there is only the
            acknowledgement.
        reply_fds: Descriptors that come with its own reply.
        gate: Protocol features that all have to be acknowledged.
        virtio_gate: Bits of the virtio feature word that the back-end has to have offered.
        state: What has to be at rest.
        refusal: Body of its own reply when it is refused; None for an empty one.
        note: What the columns cannot say.
    """

    number: FrontendRequest | BackendRequest
    meaning: str
    payload: type[m.Payload] | None = None
    fds: FdRule = NO_FDS
    reply: Reply = Reply.ACK
    reply_payload: type[m.Payload] | None = None
    reply_fds: FdRule = NO_FDS
    gate: P | None = None
    virtio_gate: VhostFeature | None = None
    state: LegalState = LegalState.ANY
    refusal: m.Payload | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The specification's name without its prefix."""
        return self.number.name

    @property
    def direction(self) -> Direction:
        """Who sends it."""
        return Direction.FRONTEND if isinstance(self.number, FrontendRequest) else Direction.BACKEND

    @property
    def reply_bodies(self) -> tuple[type[m.Payload], ...]:
        """Classes that the body of an answer can have; of two that fit a size, the first is meant."""
        own = (self.reply_payload,) if self.reply_payload else ()
        # An acknowledgement is as long as a memory table without regions, which nobody sends.
        return own if self.reply is Reply.ALWAYS else (m.U64, *own)

    def accepts(self, value: m.Payload | None, fds: int | None = None) -> bool:
        """Whether an answer says that the request was carried out.

        Args:
            value: What it holds; None for an empty one.
            fds: How many descriptors came with it; None: not known.
        """
        if fds is not None and fds < self.reply_fds.min:
            return False
        own_reply = self.reply is Reply.ALWAYS
        if value is None:
            return self.reply_payload is None or not (own_reply or self.reply is Reply.POSTCOPY)
        # Acknowledgements, and the replies that are one in all but name (those that have a value for a refusal).
        if isinstance(value, m.U64) and (not own_reply or self.refusal is not None):
            return not value.value & ~_NO_FD
        return True


_NO_FD = 0x100  # in the reply to SET_DEVICE_STATE_FD: success, and no other descriptor to use
_F = FrontendRequest
_B = BackendRequest
_FAILED = m.U64(1)
_FAILED_NO_FD = m.U64(0x101)  # bits 0-7: the error; bit 8: no descriptor is attached

_FRONTEND_ROWS = (
    RequestSpec(
        _F.GET_FEATURES,
        "Which virtio features the back-end offers.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        note="Also used as a barrier: its reply shows that everything before it is done.",
    ),
    RequestSpec(
        _F.SET_FEATURES,
        "Acknowledge virtio features.",
        m.U64,
        note="Enables all rings if without PROTOCOL_FEATURES. While one is started only LOG_ALL may change.",
    ),
    RequestSpec(_F.SET_OWNER, "Begin a session."),
    RequestSpec(_F.RESET_OWNER, "Disable all rings.", note="Deprecated."),
    RequestSpec(
        _F.SET_MEM_TABLE,
        "Replace the memory table.",
        m.MemoryTable,
        FdRule(1, 8),
        Reply.POSTCOPY,
        m.MemoryTable,
        note="A descriptor for each region, in order. In postcopy the reply has the back-end's addresses.",
    ),
    RequestSpec(
        _F.SET_LOG_BASE,
        "Set the shared memory of the dirty log.",
        m.Log,
        MAYBE_FD,
        Reply.GATED,
        m.Log,
        gate=P.LOG_SHMFD,
        refusal=_FAILED,
        note="Peers answer with nothing, a U64 or a Log in the body; the request's own Log suits them all.",
    ),
    RequestSpec(_F.SET_LOG_FD, "Set an eventfd to signal after writes to the dirty log.", None, ONE_FD),
    RequestSpec(
        _F.SET_VRING_NUM,
        "Set the size of a ring, in descriptors.",
        m.VringState,
        state=LegalState.RING_STOPPED,
    ),
    RequestSpec(
        _F.SET_VRING_ADDR,
        "Set the addresses of a ring.",
        m.VringAddr,
        note="Comes again while the ring is started, to switch its logging.",
    ),
    RequestSpec(
        _F.SET_VRING_BASE,
        "Set the position from which a ring goes on.",
        m.VringState,
        state=LegalState.RING_STOPPED,
    ),
    RequestSpec(
        _F.GET_VRING_BASE,
        "Stop a ring and tell its position.",
        m.VringState,
        reply=Reply.ALWAYS,
        reply_payload=m.VringState,
    ),
    RequestSpec(
        _F.SET_VRING_KICK,
        "Start a ring and set the eventfd by which it is kicked.",
        m.VringFd,
        MAYBE_FD,
        note="No descriptor with no_fd: the back-end has to poll.",
    ),
    RequestSpec(
        _F.SET_VRING_CALL,
        "Set the eventfd that notifies the driver.",
        m.VringFd,
        MAYBE_FD,
        note="No descriptor with no_fd: nobody wants to be notified.",
    ),
    RequestSpec(_F.SET_VRING_ERR, "Set the eventfd that tells of a broken ring.", m.VringFd, MAYBE_FD),
    RequestSpec(
        _F.GET_PROTOCOL_FEATURES,
        "Which protocol features the back-end offers.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        virtio_gate=VhostFeature.PROTOCOL_FEATURES,
    ),
    RequestSpec(
        _F.SET_PROTOCOL_FEATURES,
        "Acknowledge protocol features.",
        m.U64,
        virtio_gate=VhostFeature.PROTOCOL_FEATURES,
        note="Whether it is acknowledged itself follows from the new bits.",
    ),
    RequestSpec(
        _F.GET_QUEUE_NUM,
        "How many queues the back-end has.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        gate=P.MQ,
        note="For net devices front-ends take it as a number of pairs.",
    ),
    RequestSpec(
        _F.SET_VRING_ENABLE,
        "Enable (1) or disable (0) a ring.",
        m.VringState,
        virtio_gate=VhostFeature.PROTOCOL_FEATURES,
        note="Illegal after SET_FEATURES without PROTOCOL_FEATURES; QEMU sends it before any SET_FEATURES.",
    ),
    RequestSpec(
        _F.SEND_RARP,
        "Announce a guest's address on the network after migration.",
        m.U64,
        gate=P.RARP,
        note="The address is in the first six bytes.",
    ),
    RequestSpec(
        _F.NET_SET_MTU,
        "Set the MTU.",
        m.U64,
        gate=P.NET_MTU,
        virtio_gate=VhostFeature.NET_MTU,
        note="QEMU sends it before SET_FEATURES.",
    ),
    RequestSpec(_F.SET_BACKEND_REQ_FD, "Set the socket for the back-end's requests.", None, ONE_FD, gate=P.BACKEND_REQ),
    RequestSpec(
        _F.IOTLB_MSG,
        "Give or withdraw an IOMMU translation.",
        m.Iotlb,
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        virtio_gate=VhostFeature.ACCESS_PLATFORM,
        refusal=_FAILED,
    ),
    RequestSpec(
        _F.SET_VRING_ENDIAN,
        "Set the byte order of a legacy ring: 0 little, 1 big.",
        m.VringState,
        gate=P.CROSS_ENDIAN,
        state=LegalState.RING_STOPPED,
    ),
    RequestSpec(
        _F.GET_CONFIG,
        "Read from the configuration space.",
        m.Config,
        reply=Reply.ALWAYS,
        reply_payload=m.Config,
        gate=P.CONFIG,
        note="The request has as many bytes, not yet filled, as the reply.",
    ),
    RequestSpec(_F.SET_CONFIG, "Write to the configuration space.", m.Config, gate=P.CONFIG),
    RequestSpec(
        _F.CREATE_CRYPTO_SESSION,
        "Create a crypto session.",
        m.CryptoSession,
        reply=Reply.ALWAYS,
        reply_payload=m.CryptoSession,
        gate=P.CRYPTO_SESSION,
    ),
    RequestSpec(_F.CLOSE_CRYPTO_SESSION, "Close a crypto session.", m.U64, gate=P.CRYPTO_SESSION),
    RequestSpec(
        _F.POSTCOPY_ADVISE,
        "Prepare for postcopy and hand over a userfaultfd.",
        reply=Reply.ALWAYS,
        reply_fds=ONE_FD,
        gate=P.PAGEFAULT,
    ),
    RequestSpec(
        _F.POSTCOPY_LISTEN,
        "Postcopy begins with the next memory table.",
        gate=P.PAGEFAULT,
        note="Only between POSTCOPY_ADVISE and the first SET_MEM_TABLE.",
    ),
    RequestSpec(
        _F.POSTCOPY_END,
        "Postcopy is over.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        gate=P.PAGEFAULT,
        refusal=_FAILED,
    ),
    RequestSpec(
        _F.GET_INFLIGHT_FD,
        "Create the shared memory that records requests in flight.",
        m.Inflight,
        reply=Reply.ALWAYS,
        reply_payload=m.Inflight,
        reply_fds=MAYBE_FD,
        gate=P.INFLIGHT_SHMFD,
        note="A reply with mmap_size 0 has no descriptor: there is none.",
    ),
    RequestSpec(
        _F.SET_INFLIGHT_FD,
        "Set the shared memory that records requests in flight.",
        m.Inflight,
        ONE_FD,
        gate=P.INFLIGHT_SHMFD,
    ),
    RequestSpec(_F.GPU_SET_SOCKET, "Set the socket of the GPU protocol.", None, ONE_FD, note="For GPU devices."),
    RequestSpec(_F.RESET_DEVICE, "Disable all rings and reset the device.", gate=P.RESET_DEVICE),
    RequestSpec(_F.VRING_KICK, "Kick a ring by message.", m.VringState, gate=P.INBAND_NOTIFICATIONS),
    RequestSpec(
        _F.GET_MAX_MEM_SLOTS,
        "How many memory regions the back-end can hold.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        gate=P.CONFIGURE_MEM_SLOTS,
    ),
    RequestSpec(
        _F.ADD_MEM_REG,
        "Add a memory region.",
        m.SingleRegion,
        ONE_FD,
        Reply.POSTCOPY,
        m.SingleRegion,
        gate=P.CONFIGURE_MEM_SLOTS,
        note="In postcopy the reply has the back-end's address.",
    ),
    RequestSpec(
        _F.REM_MEM_REG,
        "Remove a memory region.",
        m.SingleRegion,
        MAYBE_FD,
        gate=P.CONFIGURE_MEM_SLOTS,
        note="The file offset does not count. Older front-ends attach a descriptor; it is closed.",
    ),
    RequestSpec(_F.SET_STATUS, "Set the virtio device status.", m.U64, gate=P.STATUS),
    RequestSpec(
        _F.GET_STATUS,
        "What the virtio device status is.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        gate=P.STATUS,
    ),
    RequestSpec(
        _F.GET_SHARED_OBJECT,
        "Get the descriptor of a shared object of this back-end.",
        m.SharedObject,
        reply=Reply.ALWAYS,
        reply_payload=m.SharedObject,
        reply_fds=MAYBE_FD,
        gate=P.SHARED_OBJECT,
    ),
    RequestSpec(
        _F.SET_DEVICE_STATE_FD,
        "Begin to move the back-end's state through a descriptor.",
        m.DeviceState,
        ONE_FD,
        Reply.ALWAYS,
        m.U64,
        MAYBE_FD,
        gate=P.DEVICE_STATE,
        state=LegalState.ALL_RINGS_STOPPED,
        refusal=_FAILED_NO_FD,
        note="Reply: bits 0-7 an error, bit 8 (0x100) no descriptor; otherwise the one to use instead.",
    ),
    RequestSpec(
        _F.CHECK_DEVICE_STATE,
        "Whether all of the state arrived.",
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        gate=P.DEVICE_STATE,
        refusal=_FAILED,
    ),
    RequestSpec(
        _F.GET_SHMEM_CONFIG,
        "Which VIRTIO shared memory regions the device has.",
        reply=Reply.ALWAYS,
        reply_payload=m.ShmemConfig,
        gate=P.SHMEM,
    ),
    RequestSpec(
        _F.GET_VRING_BASE_SKIP_DRAIN,
        "Stop a ring at once and tell its position; what is in flight stays recorded.",
        m.VringState,
        reply=Reply.ALWAYS,
        reply_payload=m.VringState,
        gate=P.GET_VRING_BASE_SKIP_DRAIN | P.GET_VRING_BASE_INFLIGHT | P.INFLIGHT_SHMFD,
    ),
)

_BACKEND_ROWS = (
    RequestSpec(
        _B.IOTLB_MSG,
        "An IOMMU translation is missing, or an access failed.",
        m.Iotlb,
        gate=P.BACKEND_REQ,
        virtio_gate=VhostFeature.ACCESS_PLATFORM,
    ),
    RequestSpec(_B.CONFIG_CHANGE_MSG, "The configuration space changed.", gate=P.BACKEND_REQ | P.CONFIG),
    RequestSpec(
        _B.VRING_HOST_NOTIFIER_MSG,
        "Offer a notification page for a ring, or withdraw it.",
        m.VringArea,
        MAYBE_FD,
        gate=P.BACKEND_REQ | P.BACKEND_SEND_FD | P.HOST_NOTIFIER,
        note="No descriptor with no_fd: withdrawn.",
    ),
    RequestSpec(
        _B.VRING_CALL,
        "Notify the driver by message.",
        m.VringState,
        gate=P.BACKEND_REQ | P.INBAND_NOTIFICATIONS,
    ),
    RequestSpec(
        _B.VRING_ERR,
        "Tell of a broken ring by message.",
        m.VringState,
        gate=P.BACKEND_REQ | P.INBAND_NOTIFICATIONS,
    ),
    RequestSpec(
        _B.SHARED_OBJECT_ADD,
        "Announce a shared object.",
        m.SharedObject,
        gate=P.BACKEND_REQ | P.SHARED_OBJECT,
    ),
    RequestSpec(
        _B.SHARED_OBJECT_REMOVE,
        "Withdraw a shared object.",
        m.SharedObject,
        gate=P.BACKEND_REQ | P.SHARED_OBJECT,
    ),
    RequestSpec(
        _B.SHARED_OBJECT_LOOKUP,
        "Get the descriptor of another back-end's shared object.",
        m.SharedObject,
        reply=Reply.ALWAYS,
        reply_payload=m.U64,
        reply_fds=MAYBE_FD,
        gate=P.BACKEND_REQ | P.SHARED_OBJECT,
        refusal=_FAILED,
    ),
    RequestSpec(
        _B.SHMEM_MAP,
        "Map a file into a VIRTIO shared memory region.",
        m.ShmemMap,
        ONE_FD,
        gate=P.BACKEND_REQ | P.BACKEND_SEND_FD | P.SHMEM,
    ),
    RequestSpec(
        _B.SHMEM_UNMAP,
        "Remove a mapping as a whole.",
        m.ShmemMap,
        gate=P.BACKEND_REQ | P.SHMEM,
    ),
)

FRONTEND_REQUESTS: Mapping[int, RequestSpec] = MappingProxyType({row.number: row for row in _FRONTEND_ROWS})
"""Requests that a back-end receives, by number."""

BACKEND_REQUESTS: Mapping[int, RequestSpec] = MappingProxyType({row.number: row for row in _BACKEND_ROWS})
"""Requests that a front-end receives on the back-end's channel, by number."""


def spec_of(direction: Direction, number: int) -> RequestSpec | None:
    """The row of a request, None for a number that the specification does not know."""
    table = FRONTEND_REQUESTS if direction is Direction.FRONTEND else BACKEND_REQUESTS
    return table.get(number)

"""What a transcript consists of: one entry for each thing that either side did.

Must not know: sockets, files; how an entry is written down (``file``) or done again (``player``).

A conversation is a list of entries and nothing else: a recording, a test's finding and what a fuzzer is about to try
are the same kind of thing, so one player plays them all, and what can be left out of the list makes a smaller one.
Descriptors and pieces of guest memory have names; two entries with the same name mean the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from vhostuser.session.witness import Side as Side
from vhostuser.wire.frames import Frame, HeaderFlags, LentFds
from vhostuser.wire.requests import Direction


class Kind(Enum):
    """What a descriptor is of."""

    MEMORY = "memory"
    EVENTFD = "eventfd"
    SOCKET = "socket"
    PIPE_READ = "pipe for reading"
    PIPE_WRITE = "pipe for writing"
    FILE = "file"
    CONNECTION = "this connection"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor as it can be told, so that one like it can be made.

    Attributes:
        name: What the transcript calls it.
        kind: What it is of.
        size: Length in bytes, of memory and files.
        seals: Seals of memory (``F_GET_SEALS``).
        block: Size of a page of memory where that is not the usual one, else 0.
        blocking: Whether reads of an eventfd wait.
        full: Whether an eventfd has counted as far as it can.
        path: Of a file that anybody can open.
        writable: Whether such a file is open for writing, too: who maps memory may need that.
    """

    name: str
    kind: Kind
    size: int = 0
    seals: int = 0
    block: int = 0
    blocking: bool = False
    full: bool = False
    path: str = ""
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A message, or what somebody sent in place of one.

    Attributes:
        side: Who sent it.
        request, flags, payload: As in its frame.
        size: The header's size field where it is not the payload's length.
        fds: The descriptors that came along.
        own_channel: Whether it went over the back-end's own channel (SET_BACKEND_REQ_FD).
        pieces: Lengths of the pieces it was sent in; what is left follows in one. Empty: all at once.
        cut: How many of its bytes were sent; None for all.
        answer: How it was answered, where a recording holds no more than that: ``reply`` (its own), ``ack``.
        time: Seconds since the beginning.
        rules: Identifiers of the rules that it broke, as whoever recorded it saw it.
        bent: What whoever recorded it changed before it went on, in words.
    """

    side: Side
    request: int
    flags: int = 1
    payload: bytes = b""
    size: int | None = None
    fds: tuple[Descriptor, ...] = ()
    own_channel: bool = False
    pieces: tuple[int, ...] = ()
    cut: int | None = None
    answer: str | None = None
    time: float = 0.0
    rules: tuple[str, ...] = ()
    bent: tuple[str, ...] = ()

    @property
    def from_front_end(self) -> bool:
        """Whether the front-end said it."""
        return self.side is Side.FRONTEND

    @property
    def direction(self) -> Direction:
        """Whose requests the numbers on its channel are; a reply has that of its request."""
        return Direction.BACKEND if self.own_channel else Direction.FRONTEND

    @property
    def is_reply(self) -> bool:
        """Whether the REPLY flag is set."""
        return bool(self.flags & HeaderFlags.REPLY)

    @property
    def whole(self) -> bool:
        """Whether all of it was sent, and the header does not lie about its size."""
        return self.cut is None and self.size in (None, len(self.payload))

    def frame(self, fds: LentFds | None = None) -> Frame:
        """Its frame, with these descriptors."""
        return Frame(self.request, self.flags, self.payload, LentFds(()) if fds is None else fds, self.size)


@dataclass(frozen=True, slots=True)
class Wrote:
    """The front-end wrote into guest memory; or the back-end did, into a part of a ring.

    Attributes:
        memory: The memory's name; where the back-end wrote, the part and the ring: ``used 0`` (``passed``).
        offset: Where in its file, or behind the part's begin, in bytes.
        data: What; of several, each in turn for `seconds`, while the conversation goes on.
        seconds: 0 for once.
        time: Seconds since the beginning.
    """

    memory: str
    offset: int
    data: tuple[bytes, ...]
    seconds: float = 0.0
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Saw:
    """The front-end looked into guest memory when it was done, and found this.

    Attributes:
        memory: The memory's name.
        offset: Where in its file, in bytes.
        data: What was there.
        time: Seconds since the beginning.
    """

    memory: str
    offset: int
    data: bytes
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Resized:
    """Who had passed memory changed its length."""

    memory: str
    size: int
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Signalled:
    """The front-end wrote to an eventfd or a pipe that it had passed, as it does to kick; or the back-end, to call."""

    name: str
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing happened for so many seconds, and that matters."""

    seconds: float
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Closed:
    """A side closed the connection; what follows is said on a new one."""

    side: Side = Side.FRONTEND
    time: float = 0.0


Entry = Said | Wrote | Saw | Resized | Signalled | Paused | Closed


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole conversation.

    Attributes:
        entries: What happened, in order.
        front_end, back_end: What the two sides were, in words.
        scene: What happened, in words.
        offer: What a back-end has to offer for the front-end to behave so: ``virtio_features``,
            ``protocol_features``, ``vrings``.
    """

    entries: tuple[Entry, ...]
    front_end: str = ""
    back_end: str = ""
    scene: str = ""
    offer: tuple[tuple[str, int], ...] = ()

    def but(self, entries: tuple[Entry, ...]) -> Transcript:
        """The same with other entries."""
        return replace(self, entries=entries)

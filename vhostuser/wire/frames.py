"""One message as it stands on the socket: header, payload bytes, descriptors.

Must not know: which requests exist and what their payloads mean. A :class:`Frame` can therefore be built,
encoded and shown however wrong it is; that is what fuzzers send and what traces print. The codec judges it.

How: the header is three native 32-bit words. :func:`check_header` is the only judgement here, and the channel
asks for it before it reads, or reserves room for, a payload whose length a stranger chose.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING

from vhostuser.errors import FramingError, LocalProtocolError
from vhostuser.fds import FdBundle, OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER_SIZE = 12
MAX_PAYLOAD = 4096
"""Longest payload that is read, in bytes: the specification's longest has 2056; rust-vmm allows 4096 too."""
MAX_FDS = 253
"""SCM_MAX_FD, the most that the kernel passes with one message: with room for it nothing is truncated."""
VERSION = 1
VERSION_MASK = 0x3

_HEADER = struct.Struct("=III")
_WORD = 0xFFFFFFFF
_SHOWN_BYTES = 16


class HeaderFlags(IntFlag):
    """Flags of the header. The two bits below them are a field, the version."""

    REPLY = 0x4
    NEED_REPLY = 0x8


@dataclass(frozen=True, slots=True)
class Header:
    """The three words in front of every payload.

    Attributes:
        request: Request number, as it came.
        flags: Version and :class:`HeaderFlags`, reserved bits included.
        size: Length of the payload in bytes.
    """

    request: int
    flags: int
    size: int

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Read a header from exactly ``HEADER_SIZE`` bytes; whatever they hold, they are a header."""
        return cls(*_HEADER.unpack(data))

    def pack(self) -> bytes:
        """The header's bytes; each word is cut to 32 bits."""
        return _HEADER.pack(self.request & _WORD, self.flags & _WORD, self.size & _WORD)

    @property
    def version(self) -> int:
        """The protocol version that the sender claims."""
        return self.flags & VERSION_MASK


class LentFds(FdBundle):
    """Descriptors that a caller lends to a frame for sending: shown, never closed, never taken."""

    __slots__ = ("_numbers",)

    def __init__(self, fds: Iterable[int]) -> None:
        super().__init__()
        self._numbers = list(fds)

    def take(self) -> OwnedFd:
        """Refuse: what is only lent cannot change its owner. Raises LocalProtocolError."""
        raise LocalProtocolError("the descriptors of this frame are lent; their owner is elsewhere")

    def close(self) -> None:
        """Forget the descriptors and leave them open."""
        self._numbers.clear()

    def filenos(self) -> list[int]:
        """The numbers that were lent."""
        return list(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"<LentFds {self._numbers}>"


@dataclass(slots=True)
class Frame:
    """Header, payload and descriptors of one message, right or wrong.

    Attributes:
        request: Request number.
        flags: The header's flags word, version included.
        payload: The bytes that follow the header.
        fds: Descriptors that travel with the header. A received frame owns them; its receiver has to close
            them.
        size: What the header's size field says when it is not the payload's length (frames that are wrong on
            purpose).
    """

    request: int
    flags: int
    payload: bytes = b""
    fds: FdBundle = field(default_factory=FdBundle)
    size: int | None = None

    def header(self) -> Header:
        """The header that goes in front of the payload."""
        return Header(self.request, self.flags, len(self.payload) if self.size is None else self.size)

    def encode(self) -> bytes:
        """Header and payload as bytes."""
        return self.header().pack() + self.payload

    @property
    def is_reply(self) -> bool:
        """Whether the REPLY flag is set."""
        return bool(self.flags & HeaderFlags.REPLY)

    @property
    def need_reply(self) -> bool:
        """Whether the NEED_REPLY flag is set."""
        return bool(self.flags & HeaderFlags.NEED_REPLY)

    def describe(self, name: str | None = None) -> str:
        """One line for a trace; a long payload is cut short.

        Args:
            name: The request's name, where the reader of the trace knows the direction; else the number is
                shown.
        """
        header = self.header()
        words = [name or f"request {header.request}", f"flags {header.flags:#x}", f"size {header.size}"]
        if self.payload:
            more = "…" if len(self.payload) > _SHOWN_BYTES else ""
            words.append(f"payload {self.payload[:_SHOWN_BYTES].hex()}{more}")
        if len(self.fds):
            words.append(f"{len(self.fds)} fd" + "s" * (len(self.fds) > 1))
        return " ".join(words)

    def __str__(self) -> str:
        return self.describe()


def check_header(header: Header) -> None:
    """Judge what must be right before a payload is read. Reserved flag bits are tolerated.

    Raises:
        FramingError: The version is not 1, or the payload is longer than ``MAX_PAYLOAD``.
    """
    if header.version != VERSION:
        words = f"request {header.request}: version {header.version}, only {VERSION} is defined"
        raise FramingError(words, rule="VU-HDR-2")
    if header.size > MAX_PAYLOAD:
        raise FramingError(f"request {header.request}: size {header.size}, the limit is {MAX_PAYLOAD}", rule="VU-HDR-4")

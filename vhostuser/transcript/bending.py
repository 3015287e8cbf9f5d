"""Changes to a conversation on its way: bits that are cleared, messages that come late, not at all, or damaged.

Must not know: sockets, clocks; who sees what was changed.

How: what is to be changed is said by picks, ``GET_FEATURES`` for a request and ``GET_FEATURES.reply`` for its answers,
on either channel. Each message is held against all of them: cleared, corrupted, dropped or delayed. Whatever is done is
told in words, chance included.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vhostuser.wire.frames import HEADER_SIZE, Frame, Header
from vhostuser.wire.requests import Direction, spec_of

REPLY = ".reply"
_WORD = 8
_LAST_NUMBER = 0xFFFFFFFF
_NAMES = {spec.name for direction in Direction for n in range(256) if (spec := spec_of(direction, n))}

T = TypeVar("T")

_Kind = tuple[str, bool]
"""A request's name, or its number, and whether its answers are meant."""


@dataclass(frozen=True)
class Pick:
    """Which messages are meant.

    Attributes:
        name: A request's name, or its number where it has none; None for all messages.
        reply: Whether its answers are meant.
        nth: Only the one of this number, counted from 1; None for each.
    """

    name: str | None = None
    reply: bool = False
    nth: int | None = None

    @classmethod
    def parse(cls, word: str) -> Pick:
        """``REQUEST`` or ``REQUEST.reply``. Raises ValueError for a request that does not exist."""
        name, reply = word.removesuffix(REPLY), word.endswith(REPLY)
        if name not in _NAMES and not (name.isdecimal() and int(name) <= _LAST_NUMBER):
            raise ValueError(f"{name!r} is no request; a name as GET_FEATURES is needed, or a number")
        return cls(name, reply)

    def fits(self, kind: _Kind, nth: int) -> bool:
        """Whether the n-th message of a kind is meant."""
        return (self.name is None or (self.name, self.reply) == kind) and self.nth in (None, nth)


@dataclass(frozen=True)
class Corruption:
    """What to damage in a message.

    Attributes:
        pick: Which messages.
        offset: Where, in bytes from the begin of its header; None for one bit that chance picks.
        data: The bytes to put there.
    """

    pick: Pick
    offset: int | None = None
    data: bytes = b""


@dataclass(frozen=True)
class Bent:
    """What became of a message.

    Attributes:
        frame: What goes on; None if it was dropped.
        delay: Seconds to wait before.
        words: What was done to it, if anything.
    """

    frame: Frame | None
    delay: float = 0.0
    words: tuple[str, ...] = ()


@dataclass
class Bending:
    """What is to be changed; counts what it has seen.

    Attributes:
        features: Bits that are cleared in answers to GET_FEATURES.
        protocol_features: Bits that are cleared in answers to GET_PROTOCOL_FEATURES.
        corruptions: What to damage.
        drops: What not to pass on.
        delays: What comes late, and by how many seconds.
        seed: Of chance.
    """

    features: int = 0
    protocol_features: int = 0
    corruptions: Sequence[Corruption] = ()
    drops: Sequence[Pick] = ()
    delays: Sequence[tuple[Pick, float]] = ()
    seed: int = 0
    _seen: Counter[_Kind] = field(default_factory=Counter, init=False)
    _chance: random.Random = field(default_factory=random.Random, init=False)

    def __post_init__(self) -> None:
        self._chance.seed(self.seed)
        self._counted = {pick.name for pick in self.drops if pick.nth is not None}

    def bend(self, direction: Direction, frame: Frame) -> Bent:
        """What goes on in place of a message.

        Args:
            direction: Whose requests the numbers are: of a reply, those of the request.
            frame: The message; what goes on has its descriptors.
        """
        spec = spec_of(direction, frame.request)
        kind = (spec.name if spec else str(frame.request)), frame.is_reply
        if kind[0] in self._counted:
            self._seen[kind] += 1
        nth, words = self._seen[kind], list[str]()
        frame = self._cleared(kind, frame, words)
        for corruption in self.corruptions:
            if corruption.pick.fits(kind, nth):
                frame = self._corrupted(corruption, frame, words)
        if any(pick.fits(kind, nth) for pick in self.drops):
            return Bent(None, 0.0, (*words, "dropped"))
        delay = sum(seconds for pick, seconds in self.delays if pick.fits(kind, nth))
        if delay:
            words.append(f"{delay:g} s late")
        return Bent(frame, delay, tuple(words))

    def _cleared(self, kind: _Kind, frame: Frame, words: list[str]) -> Frame:
        masks = {("GET_FEATURES", True): self.features, ("GET_PROTOCOL_FEATURES", True): self.protocol_features}
        word = int.from_bytes(frame.payload, sys.byteorder)
        bits = word & masks.get(kind, 0)
        if not bits or len(frame.payload) != _WORD:
            return frame
        words.append(f"{bits:#x} cleared")
        return replace(frame, payload=(word - bits).to_bytes(_WORD, sys.byteorder))

    def _corrupted(self, corruption: Corruption, frame: Frame, words: list[str]) -> Frame:
        data = bytearray(frame.encode())
        if corruption.offset is None:
            begin = HEADER_SIZE if frame.payload else 0
            end = len(data) if frame.payload else _WORD  # the request and its flags: the size is left alone
            at, bit = self._chance.randrange(begin, end), self._chance.randrange(8)
            data[at] ^= 1 << bit
            words.append(f"bit {bit} of byte {at} flipped")
        elif corruption.offset + len(corruption.data) > len(data):
            words.append(f"not corrupted: it has {len(data)} bytes")
        else:
            where = slice(corruption.offset, corruption.offset + len(corruption.data))
            words.append(f"bytes from {corruption.offset} on: {data[where].hex()} became {corruption.data.hex()}")
            data[where] = corruption.data
        header, payload = Header.parse(bytes(data[:HEADER_SIZE])), bytes(data[HEADER_SIZE:])
        return Frame(header.request, header.flags, payload, frame.fds, header.size)


# ---- words of a command line -----------------------------------------------------------------------------------------


def parse_delay(word: str) -> tuple[Pick, float]:
    """``SECONDS`` for all messages, ``REQUEST=SECONDS``. Raises ValueError."""
    name, _, number = word.rpartition("=")
    seconds = _number(number, float, "seconds")
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{number}: seconds are not below 0, and end")
    return (Pick.parse(name) if name else Pick()), seconds


def parse_drop(word: str) -> Pick:
    """``REQUEST`` for each, ``REQUEST=N`` for the N-th. Raises ValueError."""
    name, given, number = word.partition("=")
    pick = Pick.parse(name)
    if not given:
        return pick
    nth = _number(number, int, "a number")
    if nth < 1:
        raise ValueError(f"{number}: the first one is number 1")
    return replace(pick, nth=nth)


def parse_corruption(word: str) -> Corruption:
    """``REQUEST`` for a random bit, ``REQUEST:OFFSET=HEX``. Raises ValueError."""
    name, given, rest = word.partition(":")
    pick = Pick.parse(name)
    if not given:
        return Corruption(pick)
    if not (found := re.fullmatch(r"(\d+)=((?:[0-9a-fA-F]{2})+)", rest)):
        raise ValueError(f"{rest!r}: an offset and bytes in hexadecimal are needed, as in 12=ff00")
    return Corruption(pick, int(found[1]), bytes.fromhex(found[2]))


def _number(word: str, kind: Callable[[str], T], what: str) -> T:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{word!r} is not {what}") from None

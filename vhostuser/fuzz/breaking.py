"""Ways to break a rule: small changes to a conversation that was right.

Must not know: single requests; who sends what to whom.

How: a change takes an entry of a list and puts others in its place. It looks at what every message has (a number,
flags, a size, a payload of some class, descriptors, a place in the order) and never at which request it is, so new
requests are broken like the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.stage import ODDITIES
from vhostuser.fuzz.values import edge, spoiled
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Kind, Paused, Resized, Said
from vhostuser.wire import layouts
from vhostuser.wire.frames import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, HeaderFlags
from vhostuser.wire.messages import Payload
from vhostuser.wire.requests import BACKEND_REQUESTS, FRONTEND_REQUESTS, Direction, spec_of

_WORD = (1 << 32) - 1
_UNKNOWN = (0, max(FRONTEND_REQUESTS) + 1, 255, 256, _WORD)
_SIZES = (0, 1, 4, 7, 8, 12, 16, 20, 24, 40, 264, 272, 1024, MAX_PAYLOAD, MAX_PAYLOAD + 1, 1 << 16)

Change = Callable[[Random, Said], list[Entry]]


def broken(random: Random, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The conversation with one change, or with several: rarely many."""
    changed = list(entries)
    for _ in range(1 + min(int(random.expovariate(1.0)), 5)):
        places = [at for at, entry in enumerate(changed) if isinstance(entry, Said)]
        if not places:
            break
        at = random.choice(places)
        if random.random() < 0.12:
            _reorder(random, changed, at)
        else:
            said = changed[at]
            assert isinstance(said, Said)
            changed[at : at + 1] = misspoken(random, said)
    return tuple(changed)


def misspoken(random: Random, said: Said) -> list[Entry]:
    """What to do in place of a message, with one thing wrong about it."""
    return random.choices(_CHANGES, _WEIGHTS)[0](random, said)


def _reorder(random: Random, entries: list[Entry], at: int) -> None:
    """Say it elsewhere, again elsewhere, or not at all."""
    match random.randrange(3):
        case 0:
            entries.insert(random.randrange(len(entries)), entries.pop(at))
        case 1:
            entries.insert(random.randrange(len(entries) + 1), entries[at])
        case _:
            del entries[at]


# ---- what a message says ---------------------------------------------------------------------------------------------


def _field(random: Random, said: Said) -> list[Entry]:
    """Another value in one field of its payload."""
    kind = _payload_kind(said)
    if kind is None:
        return _bits(random, said)
    try:
        payload = layouts.parse(kind, said.payload)
        return [replace(said, payload=layouts.build(spoiled(random, payload)))]
    except (VhostUserError, KeyError):  # what it has there is of another kind already
        return _bits(random, said)


def _payload_kind(said: Said) -> type[Payload] | None:
    """The class of what a message carries, if it is right."""
    spec = spec_of(said.direction, said.request)
    if spec is None:
        return None
    if not said.is_reply:
        return spec.payload
    return next((kind for kind in spec.reply_bodies if len(said.payload) in layouts.legal_sizes(kind)), None)


def _bits(random: Random, said: Said) -> list[Entry]:
    """Some other bits, whatever they mean."""
    data = bytearray(said.payload or random.randbytes(8))
    for _ in range(random.choice((1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return [replace(said, payload=bytes(data))]


def _length(random: Random, said: Said) -> list[Entry]:
    """A payload of another length; the header says so."""
    length = random.choice((*_SIZES, max(len(said.payload) - 1, 0), len(said.payload) + 1, len(said.payload) + 8))
    filler = bytes(length) if random.random() < 0.5 else random.randbytes(length)
    return [replace(said, payload=said.payload[:length] + filler[len(said.payload) :])]


def _lie(random: Random, said: Said) -> list[Entry]:
    """A header that says another length than the payload has."""
    near = [len(said.payload) + step for step in (-8, -4, -1, 1, 4, 8) if len(said.payload) + step >= 0]
    return [replace(said, size=random.choice((*near, *_SIZES, edge(random, 32))))]


def _flags(random: Random, said: Said) -> list[Entry]:
    flipped = random.choice((1, 2, 3, HeaderFlags.REPLY, HeaderFlags.NEED_REPLY, 1 << random.randrange(4, 32)))
    return [replace(said, flags=said.flags ^ flipped)]


def _number(random: Random, said: Said) -> list[Entry]:
    """Another request with the same content, or one that there is not."""
    known = FRONTEND_REQUESTS if said.direction is Direction.FRONTEND else BACKEND_REQUESTS
    other = random.choice(list(known)) if random.random() < 0.6 else random.choice(_UNKNOWN)
    return [replace(said, request=int(other))]


# ---- what comes with it ----------------------------------------------------------------------------------------------


def _fds(random: Random, said: Said) -> list[Entry]:
    """None, more, others, the same ones in another order, as many as there can be."""
    odd = random.choice(ODDITIES)
    choices: list[tuple[Descriptor, ...]] = [
        (),
        (*said.fds, odd),
        (odd, *said.fds[1:]),
        said.fds[::-1],
        said.fds * 2,
        (odd,) * random.choice((2, 8, 9, 16, MAX_FDS)),
    ]
    return [replace(said, fds=random.choice(choices)[:MAX_FDS])]


def _shrink(random: Random, said: Said) -> list[Entry]:
    """Its memory changes its length right after it was passed."""
    memory = [fd.name for fd in said.fds if fd.kind is Kind.MEMORY]
    return [said, Resized(random.choice(memory), random.choice((0, 1, 4096, 1 << 20)))] if memory else [said]


# ---- when it comes ---------------------------------------------------------------------------------------------------


def _split(random: Random, said: Said) -> list[Entry]:
    whole = HEADER_SIZE + len(said.payload)
    pieces = [random.choice((1, 3, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1)) for _ in range(random.randint(1, 4))]
    return [replace(said, pieces=(1,) * whole if random.random() < 0.2 else tuple(pieces))]


def _cut(random: Random, said: Said) -> list[Entry]:
    """Its beginning alone; then nothing, or the end of the connection, or the next message."""
    part = replace(said, cut=random.randrange(1, HEADER_SIZE + len(said.payload)))
    closed = Closed(said.side)
    endings: tuple[list[Entry], ...] = ([closed], [Paused(0.01), closed], [])
    return [part, *random.choice(endings)]


def _leave(random: Random, said: Said) -> list[Entry]:
    """Say it and be gone before it is answered."""
    return [replace(said, flags=said.flags & ~HeaderFlags.NEED_REPLY), Closed(said.side)]


def _often(random: Random, said: Said) -> list[Entry]:
    return [said] * random.choice((2, 3, 20))


_CHANGES: tuple[Change, ...] = (
    *(_field, _bits, _length, _lie, _flags, _number),
    *(_fds, _shrink, _split, _cut, _leave, _often),
)
_WEIGHTS = (10, 2, 2, 1, 1, 2, 4, 1, 1, 1, 1, 1)

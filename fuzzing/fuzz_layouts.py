"""Payloads as values and as bytes: each kind's layout there and back.

Input::

    kind     u8: which payload class, in alphabetical order
    field    u8: which of the value's fields is changed in the end, if that is an integer
    number   i72: what to
    payload  cut to the longest size that the class can have, filled up with zeros to the shortest

A payload is parsed, or refused with PayloadError; a value is built, or refused with LocalProtocolError because a field
does not fit. Findings are every other exception; bytes that a value did not come from, but for padding; and bytes that
another value comes from.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace

from fuzzing import protocol
from fuzzing.engine import fuzz
from fuzzing.feed import Feed
from vhostuser.errors import LocalProtocolError, PayloadError
from vhostuser.wire import layouts
from vhostuser.wire.messages import (
    Inflight,
    Iotlb,
    MemoryTable,
    Payload,
    ShmemConfig,
    ShmemMap,
    SingleRegion,
)
from vhostuser.wire.requests import FRONTEND_REQUESTS

KINDS = sorted(
    {kind for spec in protocol.ROWS for kind in (spec.payload, spec.reply_payload) if kind},
    key=lambda kind: kind.__name__,
)
PADDED = (Inflight, Iotlb, MemoryTable, ShmemConfig, ShmemMap, SingleRegion)
"""Have bytes that are written as zero and not looked at; all others are rebuilt byte by byte."""
words = protocol.words


def one_input(data: bytes) -> None:
    """Parse, build, change a field, build again."""
    feed = Feed(data)
    kind = KINDS[feed.number(1) % len(KINDS)]
    field, number = feed.number(1), int.from_bytes(feed.some(9), "little", signed=True)
    payload = sized(kind, feed.rest())
    try:
        value = layouts.parse(kind, payload)
    except PayloadError:
        return
    assert "\n" not in str(value)
    built = there_and_back(value)
    assert built == payload or kind in PADDED, f"{value}: {built.hex()} was {payload.hex()}"
    with suppress(LocalProtocolError):
        there_and_back(changed(value, field, number))


def sized(kind: type[Payload], data: bytes) -> bytes:
    """The longest beginning of some bytes that the payload can be."""
    sizes = layouts.legal_sizes(kind)
    size = max((size for size in sizes if size <= len(data)), default=min(sizes))
    return data[:size].ljust(size, b"\0")


def there_and_back(value: Payload) -> bytes:
    """A value's bytes, from which the same value comes. Raises LocalProtocolError if a field does not fit."""
    built = layouts.build(value)
    assert len(built) in layouts.legal_sizes(type(value)), f"{value} takes {len(built)} bytes"
    assert layouts.parse(type(value), built) == value, f"{value} comes back as another value"
    return built


def changed(value: Payload, field: int, number: int) -> Payload:
    """The value with another number in a field; the same value if that field is no number."""
    names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    name = names[field % len(names)]
    return replace(value, **{name: number}) if type(getattr(value, name)) is int else value  # type: ignore[type-var]


def seeds() -> Iterator[bytes]:
    """The shortest payload of each kind, and those of the recorded conversations."""
    for kind in KINDS:
        yield seed(kind, protocol.payload_of(kind))
    for conversation in protocol.conversations():
        for frame in conversation.frames:
            if sent := FRONTEND_REQUESTS[frame.request].payload:
                yield seed(sent, frame.payload)


def seed(kind: type[Payload], payload: bytes) -> bytes:
    """The input that stands for a payload."""
    return bytes((KINDS.index(kind), 0)) + bytes(9) + payload


if __name__ == "__main__":
    fuzz(one_input)

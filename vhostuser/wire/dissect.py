"""Bytes as they stand in a stream, taken apart: every field with its place, its value and what that means.

Must not know: what was said before; descriptors, which are no bytes.

How: whatever the bytes are, each of them ends up in a field. Where a message ends is what its header says, right or
wrong. ``layouts`` tells where the fields of a payload lie, ``codec`` what is wrong with a message. Bytes that belong to
no field are fields of their own: ``surplus`` behind a payload that is complete without them, ``cut payload`` and ``cut
header`` where the stream ends too early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from vhostuser.errors import FdError, RemoteProtocolError
from vhostuser.wire import layouts
from vhostuser.wire.codec import faults
from vhostuser.wire.frames import HEADER_SIZE, Frame, Header, LentFds
from vhostuser.wire.meanings import FeatureNames, flags_meaning, meaning
from vhostuser.wire.messages import Payload
from vhostuser.wire.requests import Direction, RequestSpec, spec_of


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes that belong together.

    Attributes:
        offset: Of its first byte in the stream. Of a bit field, that of its word.
        size: In bytes. Of a bit field, that of its word.
        name: ``header.size``, ``regions[1].guest_phys_addr``.
        raw: The bytes.
        value: What they stand for; None for padding and for what no layout knows.
        meaning: That in words, where there are some.
        bits: Of a bit field, the number of its lowest bit in the word, and how many it has.
    """

    offset: int
    size: int
    name: str
    raw: bytes
    value: int | bytes | None = None
    meaning: str = ""
    bits: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """What is wrong with a message.

    Attributes:
        rule: Identifier of the statement that says so.
        text: What was found.
    """

    rule: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """One message, or what is there of one.

    Attributes:
        offset: Of its first byte in the stream.
        size: How many bytes there are of it.
        name: The request's name, ``request 99`` for an unknown one; of a reply, that of the request. Empty where there
            is no whole header.
        is_reply: Whether its flag says that it is a reply.
        fields: All its bytes, in order.
        broken: What is wrong with it, as far as one message tells.
    """

    offset: int
    size: int
    name: str
    is_reply: bool
    fields: tuple[Field, ...]
    broken: tuple[BrokenRule, ...]


@dataclass(frozen=True, slots=True)
class Dissection:
    """A stream's messages; the last one may be cut."""

    parts: tuple[Part, ...]

    @property
    def fields(self) -> Iterator[Field]:
        """All fields of the stream, in order."""
        for part in self.parts:
            yield from part.fields

    @property
    def broken(self) -> Iterator[BrokenRule]:
        """All that is wrong, in order."""
        for part in self.parts:
            yield from part.broken


def dissect(
    data: bytes, direction: Direction, *, fds: int | None = None, feature_names: FeatureNames = ()
) -> Dissection:
    """Take bytes apart. Never raises, whatever they are.

    Args:
        data: Messages, one after another, as one side sent them.
        direction: Whose requests there are on the channel. A message is a reply if its flag says so.
        fds: How many descriptors came with the first message; None: that is not judged. With later ones it never is.
        feature_names: Names for virtio feature bits, besides those that concern vhost-user itself.
    """
    parts: list[Part] = []
    at = 0
    while at < len(data):
        part = _part(data, at, direction, None if parts else fds, feature_names)
        parts.append(part)
        at += part.size
    return Dissection(tuple(parts))


def _part(data: bytes, at: int, direction: Direction, fds: int | None, names: FeatureNames) -> Part:
    head = data[at : at + HEADER_SIZE]
    if len(head) < HEADER_SIZE:
        text = f"{len(head)} of {HEADER_SIZE} header bytes"
        rest = Field(at, len(head), "cut header", head, meaning=text)
        return Part(at, len(head), "", False, (rest,), (BrokenRule("VU-HDR-1", text),))
    header = Header.parse(head)
    begin = at + HEADER_SIZE
    payload = data[begin : begin + header.size]
    frame = Frame(header.request, header.flags, payload, LentFds(range(fds or 0)), header.size)
    spec = spec_of(direction, header.request)
    return Part(
        at,
        HEADER_SIZE + len(payload),
        spec.name if spec else f"request {header.request}",
        frame.is_reply,
        (*_header_fields(head, at, spec), *_payload_fields(frame, begin, spec, names)),
        tuple(BrokenRule(error.rule, error.text) for error in _judged(direction, frame, fds)),
    )


def _judged(direction: Direction, frame: Frame, fds: int | None) -> Iterator[RemoteProtocolError]:
    for error in faults(direction, frame):
        if fds is not None or not isinstance(error, FdError):
            yield error


def _header_fields(head: bytes, at: int, spec: RequestSpec | None) -> Iterator[Field]:
    header = Header.parse(head)
    meanings = {"request": spec.name if spec else "unknown", "flags": flags_meaning(header.flags), "size": ""}
    step = HEADER_SIZE // len(meanings)
    for place, field in enumerate(fields(Header)):
        begin = step * place
        raw, value = head[begin : begin + step], getattr(header, field.name)
        yield Field(at + begin, step, f"header.{field.name}", raw, value, meanings[field.name])


def _payload_fields(frame: Frame, begin: int, spec: RequestSpec | None, names: FeatureNames) -> Iterator[Field]:
    payload = frame.payload
    kind = _kind(frame, spec)
    end = 0
    for place in layouts.places(kind, payload):
        assert spec is not None  # or there are no places
        assert kind is not None
        end = place.offset + place.size
        words = meaning(spec, kind, place.path, place.value, frame.is_reply, names)
        yield Field(
            begin + place.offset, place.size, place.path, payload[place.offset : end], place.value, words, place.bits
        )
    if rest := payload[end:]:
        missing = frame.header().size - len(payload)
        if missing:
            name, words = "cut payload", f"{missing} bytes are missing"
        else:
            name, words = ("surplus", "not looked at") if spec else ("payload", "")
        yield Field(begin + end, len(rest), name, rest, meaning=words)


def _kind(frame: Frame, spec: RequestSpec | None) -> type[Payload] | None:
    """The class that the payload is of; of a reply, the one that its size fits, or its own."""
    if spec is None:
        return None
    if not frame.is_reply:
        return spec.payload
    size = frame.header().size
    fitting = (kind for kind in spec.reply_bodies if size in layouts.legal_sizes(kind))
    return next(fitting, spec.reply_payload)

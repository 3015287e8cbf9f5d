"""What the protocol gives a fuzzer to begin with: a message of each row, recorded conversations, words.

All of it comes from the table of requests and from ``protocol-spec/transcripts``, and is the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vhostuser.transcript.entries import Said
from vhostuser.transcript.file import load
from vhostuser.wire import layouts
from vhostuser.wire.codec import encode_ack, encode_refusal
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import MAX_PAYLOAD, VERSION, Frame, Header, HeaderFlags, LentFds
from vhostuser.wire.messages import MemoryRegion, MemoryTable, Payload
from vhostuser.wire.requests import BACKEND_REQUESTS, FRONTEND_REQUESTS, RequestSpec

TRANSCRIPTS = Path(__file__).resolve().parent.parent / "protocol-spec" / "transcripts"
ROWS = (*FRONTEND_REQUESTS.values(), *BACKEND_REQUESTS.values())
ASKS, REPLIES = VERSION | HeaderFlags.NEED_REPLY, VERSION | HeaderFlags.REPLY


class Conversation(NamedTuple):
    """What a real front-end said, and to a back-end that offered what."""

    virtio_features: int
    protocol_features: int
    vrings: int
    frames: list[Frame]


def conversations() -> Iterator[Conversation]:
    """The recorded ones; descriptors are only counted."""
    for path in sorted(TRANSCRIPTS.glob("*.jsonl")):
        transcript = load(path)
        said = (entry for entry in transcript.entries if isinstance(entry, Said) and entry.from_front_end)
        frames = [entry.frame(LentFds(range(len(entry.fds)))) for entry in said if not entry.own_channel]
        yield Conversation(**dict(transcript.offer), frames=frames)


def requests() -> Iterator[tuple[RequestSpec, Frame]]:
    """A legal request of each row."""
    for spec in ROWS:
        fds = LentFds(range(min(spec.fds.max, 1)))
        yield spec, Frame(spec.number, ASKS, payload_of(spec.payload), fds)


def replies() -> Iterator[tuple[RequestSpec, Frame]]:
    """Each row's own reply, its refusal and its acknowledgement."""
    for spec in ROWS:
        yield spec, Frame(spec.number, REPLIES, payload_of(spec.reply_payload), LentFds(range(spec.reply_fds.max)))
        yield spec, encode_refusal(spec)
        yield spec, encode_ack(spec, 0)


def payload_of(kind: type[Payload] | None) -> bytes:
    """The shortest payload of a class, of zeros but for its counts."""
    if kind is MemoryTable:
        return layouts.build(MemoryTable((MemoryRegion(0, 0, 0, 0),)))
    return bytes(min(layouts.legal_sizes(kind)))


def _words() -> Iterator[tuple[str, bytes]]:
    for spec, frame in requests():
        header = Header(spec.number, VERSION, len(frame.payload))
        yield f"{spec.direction.name}_{spec.name}", header.pack()
        yield f"{spec.direction.name}_{spec.name}_asks", frame.header().pack()
    for spec in ROWS:
        yield f"number_{spec.number:d}", spec.number.to_bytes(4, "little")
        for kind in (spec.payload, spec.reply_payload):
            for size in sorted(layouts.legal_sizes(kind))[:4]:
                yield f"size_{size}", size.to_bytes(4, "little")
    yield "size_limit", MAX_PAYLOAD.to_bytes(4, "little")
    for flags in (VERSION, ASKS, REPLIES):
        yield f"flags_{flags:d}", int(flags).to_bytes(4, "little")
    for features in (VhostFeature, ProtocolFeature):
        for feature in features:
            yield f"{features.__name__}_{feature.name}", feature.to_bytes(8, "little")
    for bit in (15, 16, 32, 63):
        yield f"bit_{bit}", (1 << bit).to_bytes(8, "little")
    yield "no_fd", (1 << 8).to_bytes(8, "little")


def words() -> dict[str, bytes]:
    """Headers, numbers, sizes, flags and feature bits, by name."""
    return dict(_words())

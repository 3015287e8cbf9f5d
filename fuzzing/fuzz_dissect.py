"""Any bytes of a stream, taken apart into messages and fields.

Input::

    side     u8: bit 0 the back-end's requests
    fds      u8: 0 nobody counted the descriptors that came with the first message; else so many and one more
    stream   messages, one after another

Nothing is refused, whatever the bytes are. Findings are every exception; a byte that is in no field, or in two that are
no bit fields of one word; a value in a field that breaks its line; and a first message that is whole and, by what is
said to be wrong with it, should be decoded or refused, while the decoder does the other.
"""

from collections.abc import Iterator
from itertools import pairwise

from fuzzing import protocol
from fuzzing.engine import fuzz
from fuzzing.feed import FIRST_FD, Feed
from vhostuser.errors import RemoteProtocolError
from vhostuser.wire.codec import decode, decode_reply
from vhostuser.wire.dissect import Dissection, Part, dissect
from vhostuser.wire.frames import HEADER_SIZE, Frame, Header, LentFds
from vhostuser.wire.requests import Direction, spec_of

BACKEND = 1
UNKNOWN_REQUEST = "VU-HDR-8"
words = protocol.words


def one_input(data: bytes) -> None:
    """Take a stream apart, and decode its first message."""
    feed = Feed(data)
    direction = Direction.BACKEND if feed.number(1) & BACKEND else Direction.FRONTEND
    fds = feed.number(1) - 1
    stream = feed.rest()
    dissection = dissect(stream, direction, fds=None if fds < 0 else fds)
    check_fields(dissection, stream)
    if dissection.parts and fds >= 0:
        check_verdict(dissection.parts[0], direction, stream, fds)


def check_fields(dissection: Dissection, stream: bytes) -> None:
    """Hold fields to the bytes that they are made of."""
    spans = sorted({(field.offset, field.offset + field.size) for field in dissection.fields})
    ends = [0, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == ends[:-1], f"fields do not lie side by side: {spans}"
    assert ends[-1] == len(stream), f"{ends[-1]} of {len(stream)} bytes are in fields"
    for field in dissection.fields:
        assert field.raw == stream[field.offset : field.offset + field.size], f"{field} has other bytes"
        assert "\n" not in f"{field.name} {field.meaning}"
    for part, following in pairwise(dissection.parts):
        assert part.offset + part.size == following.offset


def check_verdict(part: Part, direction: Direction, stream: bytes, fds: int) -> None:
    """Hold what is said to be wrong with a message to what the decoder does with it."""
    if part.size < HEADER_SIZE:
        assert part.broken, "a header that is cut is right"
        return
    header = Header.parse(stream[:HEADER_SIZE])
    lent = LentFds(range(FIRST_FD, FIRST_FD + fds))
    frame = Frame(header.request, header.flags, stream[HEADER_SIZE : part.size], lent, header.size)
    broken = [rule.text for rule in part.broken if rule.rule != UNKNOWN_REQUEST]  # which the session refuses
    if header.size != len(frame.payload):
        assert broken, "a payload that is cut is right"
    elif not (frame.is_reply and spec_of(direction, header.request) is None):  # nobody can have asked for that
        raised = refusal(direction, frame)
        assert broken[:1] == raised, f"{broken}, and the decoder raises {raised}"


def refusal(direction: Direction, frame: Frame) -> list[str]:
    """Why the decoder refuses a frame; empty if it does not."""
    spec = spec_of(direction, frame.request)
    try:
        decode_reply(spec, frame) if spec is not None and frame.is_reply else decode(direction, frame)
    except RemoteProtocolError as error:
        return [error.text]
    return []


def seeds() -> Iterator[bytes]:
    """A request and the replies of each row; the recorded conversations as streams, whole and cut."""
    for spec, frame in (*protocol.requests(), *protocol.replies()):
        side = BACKEND if spec.direction is Direction.BACKEND else 0
        yield bytes((side, 1 + len(frame.fds))) + frame.encode()
    for conversation in protocol.conversations():
        stream = b"".join(frame.encode() for frame in conversation.frames)
        yield bytes((0, 0)) + stream
        yield bytes((0, 1)) + stream[: len(stream) // 2]


if __name__ == "__main__":
    fuzz(one_input)

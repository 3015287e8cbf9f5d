"""Any frame through the codec, of either direction, requests and replies.

Input::

    what     u8: bit 0 the back-end's direction, bit 1 a reply
    fds      u8: how many descriptors come with it
    frame    as on the socket: request u32, flags u32, size u32, payload

A frame is decoded, or refused with FramingError, PayloadError or FdError. Findings are every other exception; a
description of more than one line; and a message or reply that, encoded again, is not the same one.
"""

from collections.abc import Iterator

from fuzzing import protocol
from fuzzing.engine import fuzz
from fuzzing.feed import FIRST_FD, Feed
from vhostuser.errors import FdError, FramingError, PayloadError
from vhostuser.wire.codec import decode, decode_reply, describe, encode, encode_ack, encode_reply, undecoded
from vhostuser.wire.frames import Frame
from vhostuser.wire.messages import U64, Payload
from vhostuser.wire.requests import Direction, RequestSpec, spec_of

REFUSED = (FramingError, PayloadError, FdError)
BACKEND, REPLY = 1, 2
words = protocol.words


def one_input(data: bytes) -> None:
    """Decode a request or a reply."""
    feed = Feed(data)
    what = feed.number(1)
    direction = Direction.BACKEND if what & BACKEND else Direction.FRONTEND
    frame = feed.frame(fds=feed.number(1))
    assert "\n" not in describe(direction, frame)
    spec = spec_of(direction, frame.request)
    if not what & REPLY:
        check_request(direction, frame)
    elif spec is not None:
        check_reply(spec, frame)


def check_request(direction: Direction, frame: Frame) -> None:
    """Decode a request, and what it encodes to."""
    raw = undecoded(direction, frame)
    assert (raw.request, raw.payload) == (frame.request, frame.payload)
    try:
        message = decode(direction, frame)
    except REFUSED:
        return
    again = encode(direction, message.request, message.payload, frame.fds, message.need_reply)
    assert decode(direction, again) == message, f"{message} is encoded as {again}"


def check_reply(spec: RequestSpec, frame: Frame) -> None:
    """Decode a reply, and what it encodes to."""
    try:
        body = decode_reply(spec, frame)
    except REFUSED:
        return
    if body is None and spec.reply_payload is not None:
        return  # a refusal, which says no more
    again = encoded(spec, body)
    assert decode_reply(spec, again) == body, f"{spec.name}: {body} is encoded as {again}"


def encoded(spec: RequestSpec, body: Payload | None) -> Frame:
    """The reply with that body, or the acknowledgement."""
    if type(body) is (spec.reply_payload or type(None)):
        return encode_reply(spec, body, range(FIRST_FD, FIRST_FD + spec.reply_fds.max))
    assert isinstance(body, U64), f"{spec.name}: {body} is neither its reply nor an acknowledgement"
    return encode_ack(spec, body.value)


def seeds() -> Iterator[bytes]:
    """A request and the replies of each row, and every message of the recorded conversations."""
    for spec, frame in protocol.requests():
        yield seed(BACKEND if spec.direction is Direction.BACKEND else 0, frame)
    for spec, frame in protocol.replies():
        yield seed(REPLY | (BACKEND if spec.direction is Direction.BACKEND else 0), frame)
    for conversation in protocol.conversations():
        for frame in conversation.frames:
            yield seed(0, frame)


def seed(what: int, frame: Frame) -> bytes:
    """The input that stands for a frame."""
    return bytes((what, len(frame.fds))) + frame.encode()


if __name__ == "__main__":
    fuzz(one_input)

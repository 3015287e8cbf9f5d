"""Frames to messages and back: the syntax of one message at a time.

Must not know: what was negotiated, what state the rings are in, sockets. Rules of a conversation are the
session's.

How: the row of the request says which payload and how many descriptors may come; ``layouts`` turns bytes into
values. A request with a size that it cannot have means that the two sides no longer agree where messages
begin, so the connection has to close; a legal size with an illegal content is refused and the stream goes on.
Descriptors are counted here and owned by the frame throughout.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vhostuser.errors import (
    FdError,
    FramingError,
    LocalProtocolError,
    PayloadError,
    RemoteProtocolError,
    UnsupportedRequestError,
)
from vhostuser.fds import FdBundle
from vhostuser.wire import layouts
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags, LentFds, check_header
from vhostuser.wire.messages import U64, MemoryTable, Message, Payload, VringArea, VringFd
from vhostuser.wire.requests import (
    NO_FDS,
    ONE_FD,
    Direction,
    FdRule,
    FrontendRequest,
    RequestSpec,
    spec_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REPLY_FLAGS = VERSION | HeaderFlags.REPLY
_REGION_REQUESTS = frozenset({FrontendRequest.SET_MEM_TABLE, FrontendRequest.ADD_MEM_REG, FrontendRequest.REM_MEM_REG})


def decode(direction: Direction, frame: Frame) -> Message:
    """Turn a request's frame into a message.

    A number without a row gives a message without a spec and with its bytes as payload. Descriptors stay the
    frame's: the caller closes ``frame.fds`` whether this succeeds or raises.

    Raises:
        FramingError: Version, REPLY flag or size cannot belong to a request; the connection has to close.
        PayloadError: A field that the syntax fixes is wrong.
        FdError: Descriptors are missing or surplus.
    """
    message = undecoded(direction, frame)
    check_header(frame.header())
    if frame.is_reply:
        words = f"{message.name}: flags {frame.flags:#x}, a request has no REPLY flag"
        raise FramingError(words, rule="VU-HDR-3")
    _check_length(frame, message.name)
    return message if message.spec is None else replace(message, payload=_content(message.spec, frame))


def undecoded(direction: Direction, frame: Frame) -> Message:
    """The message of a frame that :func:`decode` refused, with bytes as payload: enough to answer. Never
    raises."""
    spec = spec_of(direction, frame.request)
    return Message(frame.request, spec, frame.payload, frame.fds, frame.need_reply)


def is_postcopy_ack(frame: Frame) -> bool:
    """Whether the front-end acknowledges addresses that it was told in post-copy. As a request it would be malformed.

    QEMU acknowledges a series of ADD_MEM_REG once. Its acknowledgement has the number of the last request and a zero
    where the payload should be; others send no payload.
    """
    return frame.request in _REGION_REQUESTS and frame.payload in (b"", bytes(8))


def faults(direction: Direction, frame: Frame) -> list[RemoteProtocolError]:
    """All that is wrong with one frame, a reply if its flag says so, where requests go in this direction. Never raises.

    The first is what :func:`decode`, or :func:`decode_reply`, raises. An unknown number is one, too: every session
    refuses it.
    """
    found: list[RemoteProtocolError] = []
    spec, name = spec_of(direction, frame.request), undecoded(direction, frame).name
    with _noted(found):
        if frame.is_reply:
            _check_reply_flags(frame, name)
        else:
            check_header(frame.header())
    try:
        _check_length(frame, name)
    except FramingError as error:
        return [*found, error]  # the content is not all of it
    with _noted(found):
        if spec is not None:
            _reply_content(spec, frame) if frame.is_reply else _content(spec, frame)
        elif not frame.is_reply:
            raise UnsupportedRequestError(f"{name} is unknown", rule="VU-HDR-8")
    return found


def describe(direction: Direction, frame: Frame) -> str:
    """One line about a frame, with the request's name and values where they can be read. Never raises."""
    spec = spec_of(direction, frame.request)
    if spec is None or frame.is_reply:
        return frame.describe(spec.name if spec else None)
    try:
        return str(decode(direction, frame))
    except (FramingError, PayloadError, FdError):
        return frame.describe(spec.name)


def encode(
    direction: Direction,
    request: int,
    payload: Payload | bytes | None = None,
    fds: FdBundle | Iterable[int] = (),
    need_reply: bool = False,
) -> Frame:
    """Build the frame of a request.

    Args:
        direction: Who sends it.
        request: Its number.
        payload: Its value; plain bytes for a request that has no row.
        fds: A bundle, which then belongs to the frame, or numbers, which are only lent to it.
        need_reply: Whether to ask for an acknowledgement.

    Raises:
        LocalProtocolError: The payload or the number of descriptors is not what the request has.
    """
    bundle = _bundle(fds)
    flags = VERSION | (HeaderFlags.NEED_REPLY if need_reply else 0)
    spec = spec_of(direction, request)
    if spec is None:
        if isinstance(payload, Payload):
            raise LocalProtocolError(f"request {request} is unknown; its payload can only be bytes")
        return Frame(request, flags, payload or b"", bundle)
    if type(payload) is not (spec.payload or type(None)):
        raise LocalProtocolError(f"{spec.name}: payload {payload!r} instead of {_kind_name(spec.payload)}")
    allowed, rule = _request_fds(spec, payload)
    if not allowed.allows(len(bundle)):
        raise LocalProtocolError(f"{spec.name}: {len(bundle)} descriptors instead of {allowed}", rule=rule)
    return Frame(request, flags, _build(payload), bundle)


def encode_reply(spec: RequestSpec, payload: Payload | None = None, fds: FdBundle | Iterable[int] = ()) -> Frame:
    """Build a request's own reply; descriptors as for :func:`encode`.

    Raises:
        LocalProtocolError: The payload or the number of descriptors is not what the reply has.
    """
    bundle = _bundle(fds)
    if type(payload) is not (spec.reply_payload or type(None)):
        raise LocalProtocolError(f"{spec.name}: reply {payload!r} instead of {_kind_name(spec.reply_payload)}")
    if not spec.reply_fds.allows(len(bundle)):
        raise LocalProtocolError(f"{spec.name}: reply with {len(bundle)} descriptors instead of {spec.reply_fds}")
    return Frame(spec.number, _REPLY_FLAGS, _build(payload), bundle)


def encode_ack(request: RequestSpec | int, value: int) -> Frame:
    """Build the acknowledgement of a request, known or not: 0 for done, anything else for failed."""
    number = request if isinstance(request, int) else request.number
    return Frame(number, _REPLY_FLAGS, layouts.build(U64(value)))


def encode_refusal(spec: RequestSpec) -> Frame:
    """Build the reply of a refused request that has its own reply: empty, unless its row says otherwise."""
    return Frame(spec.number, _REPLY_FLAGS, _build(spec.refusal))


def decode_reply(spec: RequestSpec, frame: Frame) -> Payload | None:
    """Read the answer to a request: its own reply, or the acknowledgement as a :class:`U64`.

    Returns:
        The value, or None for an empty body, which is a refusal wherever the reply has a payload.

    Raises:
        FramingError: This frame is not an answer to that request; the connection has to close.
        PayloadError: A field that the syntax fixes is wrong.
        FdError: Surplus descriptors.
    """
    if frame.request != spec.number:
        raise FramingError(f"{spec.name}: answered by a message with request number {frame.request}", rule="VU-HDR-7")
    _check_reply_flags(frame, spec.name)
    return _reply_content(spec, frame)


def _reply_content(spec: RequestSpec, frame: Frame) -> Payload | None:
    bodies = spec.reply_bodies
    _check_size(frame, f"{spec.name} reply", (*bodies, None), rule="VU-PAY-1")
    _check_fds(f"{spec.name} reply", FdRule(0, spec.reply_fds.max), "VU-FD-1", frame.fds)
    kind = next((kind for kind in bodies if len(frame.payload) in layouts.legal_sizes(kind)), None)
    return _parse(f"{spec.name} reply", kind, frame.payload)


def _content(spec: RequestSpec, frame: Frame) -> Payload | None:
    _check_size(frame, spec.name, (spec.payload,), rule="VU-HDR-6")
    payload = _parse(spec.name, spec.payload, frame.payload)
    _check_fds(spec.name, *_request_fds(spec, payload), frame.fds)
    return payload


def _check_length(frame: Frame, name: str) -> None:
    if (size := frame.header().size) != len(frame.payload):
        raise FramingError(f"{name}: size {size}, payload of {len(frame.payload)} bytes", rule="VU-HDR-1")


def _check_reply_flags(frame: Frame, name: str) -> None:
    if frame.flags != _REPLY_FLAGS:
        raise FramingError(f"{name}: reply with flags {frame.flags:#x}, not {_REPLY_FLAGS:#x}", rule="VU-HDR-7")


def _check_size(frame: Frame, name: str, kinds: tuple[type[Payload] | None, ...], rule: str) -> None:
    if not any(len(frame.payload) in layouts.legal_sizes(kind) for kind in kinds):
        expected = " or ".join(_sized(kind) for kind in kinds)
        raise FramingError(f"{name}: payload of {len(frame.payload)} bytes instead of {expected}", rule=rule)


def _parse(name: str, kind: type[Payload] | None, data: bytes) -> Payload | None:
    if kind is None:
        return None
    try:
        payload = layouts.parse(kind, data)
    except PayloadError as error:
        raise PayloadError(f"{name}: {error.text}", rule=error.rule) from error
    vring = payload.vring if isinstance(payload, VringArea) else payload
    # Bits 0-7 are the index and bit 8 is no_fd; all others have to be zero.
    if isinstance(vring, VringFd) and vring.reserved:
        words = f"{name}: reserved bits {vring.reserved << 9:#x} are set (vring {vring.index})"
        raise PayloadError(words, rule="VU-PAY-4")
    return payload


def _request_fds(spec: RequestSpec, payload: Payload | None) -> tuple[FdRule, str]:
    """How many descriptors come with a request, and the statement that says so: the row's number, made exact by a
    payload that tells it."""
    match payload:
        case VringFd(no_fd=no_fd) | VringArea(vring=VringFd(no_fd=no_fd)):
            return NO_FDS if no_fd else ONE_FD, "VU-FD-2"
        case MemoryTable(regions=regions):
            return FdRule(len(regions), len(regions)), "VU-FD-3"
    return spec.fds, "VU-FD-1"


def _check_fds(name: str, allowed: FdRule, rule: str, fds: FdBundle) -> None:
    if not allowed.allows(len(fds)):
        raise FdError(f"{name}: {len(fds)} descriptors instead of {allowed}", rule=rule)


@contextmanager
def _noted(errors: list[RemoteProtocolError]) -> Iterator[None]:
    try:
        yield
    except RemoteProtocolError as error:
        errors.append(error)


def _bundle(fds: FdBundle | Iterable[int]) -> FdBundle:
    return fds if isinstance(fds, FdBundle) else LentFds(fds)


def _build(payload: Payload | None) -> bytes:
    return b"" if payload is None else layouts.build(payload)


def _kind_name(kind: type[Payload] | None) -> str:
    return kind.__name__ if kind else "no payload"


def _sized(kind: type[Payload] | None) -> str:
    sizes = sorted(layouts.legal_sizes(kind))
    span = " or ".join(map(str, sizes)) if len(sizes) < 3 else f"{sizes[0]} to {sizes[-1]}"
    return f"{_kind_name(kind)} ({span})"

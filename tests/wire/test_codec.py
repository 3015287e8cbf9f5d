"""The codec: golden bytes, every row there and back, and what hostile frames get.

Invariant: any frame either decodes or raises FramingError, PayloadError or FdError. Never anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.payloads import PROPERTY, payloads
from vhostuser.errors import FdError, FramingError, LocalProtocolError, PayloadError, RemoteProtocolError
from vhostuser.fds import FdBundle
from vhostuser.wire import layouts
from vhostuser.wire import messages as m
from vhostuser.wire.codec import (
    decode,
    decode_reply,
    describe,
    encode,
    encode_ack,
    encode_refusal,
    encode_reply,
    undecoded,
)
from vhostuser.wire.frames import HEADER_SIZE, MAX_PAYLOAD, Frame, Header, LentFds
from vhostuser.wire.messages import Message
from vhostuser.wire.requests import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    BackendRequest,
    Direction,
    FrontendRequest,
    Reply,
    RequestSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

R = FrontendRequest
FRONTEND = Direction.FRONTEND
ROWS = [*FRONTEND_REQUESTS.values(), *BACKEND_REQUESTS.values()]
REGION = m.MemoryRegion(0x1000, 0x2000, 0x7F00_0000_0000, 0x3000)
REGION_BYTES = "0010000000000000 0020000000000000 00000000007f0000 0030000000000000"


def _named(spec: RequestSpec) -> str:
    return f"{spec.direction.name}-{spec.name}"


def outcome_of(function: Callable[..., Any], *arguments: object) -> Any:
    """What the function returns, or the documented error that it raises."""
    try:
        return function(*arguments)
    except (FramingError, PayloadError, FdError) as error:
        return error


every_row = pytest.mark.parametrize("spec", ROWS, ids=_named)


def lent(count: int) -> LentFds:
    """Descriptors that nobody opens or closes."""
    return LentFds(range(100, 100 + count))


def fd_count(spec: RequestSpec, payload: m.Payload | None) -> int:
    """How many descriptors belong to a legal request."""
    match payload:
        case m.VringFd(no_fd=no_fd) | m.VringArea(vring=m.VringFd(no_fd=no_fd)):
            return 0 if no_fd else 1
        case m.MemoryTable(regions=regions):
            return len(regions)
    return spec.fds.max


def legal_request(spec: RequestSpec, data: st.DataObject) -> Frame:
    """Any frame that the row allows."""
    payload = data.draw(payloads(spec.payload)) if spec.payload else None
    need_reply = data.draw(st.booleans())
    return encode(spec.direction, spec.number, payload, lent(fd_count(spec, payload)), need_reply)


# Little-endian, as x86 and arm64 hosts send them: golden bytes cannot be in everybody's byte order.
GOLDEN = [
    (encode(FRONTEND, R.GET_FEATURES), "01000000 01000000 00000000"),
    (
        encode_reply(FRONTEND_REQUESTS[R.GET_FEATURES], m.U64(1 << 15 | 1 << 30 | 1 << 32)),
        "01000000 05000000 08000000 0080004001000000",
    ),
    (encode(FRONTEND, R.SET_VRING_NUM, m.VringState(0, 256)), "08000000 01000000 08000000 00000000 00010000"),
    (encode(FRONTEND, R.SET_VRING_KICK, m.VringFd(1), lent(1)), "0c000000 01000000 08000000 0100000000000000"),
    (encode(FRONTEND, R.SET_VRING_KICK, m.VringFd(1, no_fd=True)), "0c000000 01000000 08000000 0101000000000000"),
    (
        encode(FRONTEND, R.SET_VRING_ENABLE, m.VringState(0, 1), need_reply=True),
        "12000000 09000000 08000000 00000000 01000000",
    ),
    (encode_ack(FRONTEND_REQUESTS[R.SET_VRING_ENABLE], 0), "12000000 05000000 08000000 0000000000000000"),
    (
        encode(FRONTEND, R.SET_VRING_ADDR, m.VringAddr(0, m.VringAddrFlags.LOG, 0x10, 0x20, 0x30, 0x40)),
        "09000000 01000000 28000000 00000000 01000000"
        "1000000000000000 2000000000000000 3000000000000000 4000000000000000",
    ),
    (
        encode(FRONTEND, R.SET_MEM_TABLE, m.MemoryTable((REGION,)), lent(1), need_reply=True),
        f"05000000 09000000 28000000 01000000 00000000 {REGION_BYTES}",
    ),
    (
        encode(FRONTEND, R.ADD_MEM_REG, m.SingleRegion(REGION), lent(1), need_reply=True),
        f"25000000 09000000 28000000 0000000000000000 {REGION_BYTES}",
    ),
    (
        encode(FRONTEND, R.SET_LOG_BASE, m.Log(0x8000, 0), lent(1), need_reply=True),
        "06000000 09000000 10000000 0080000000000000 0000000000000000",
    ),
    (
        encode(FRONTEND, R.SEND_RARP, m.U64(int.from_bytes(bytes.fromhex("525400123456"), "little"))),
        "13000000 01000000 08000000 5254001234560000",
    ),
    (
        encode(FRONTEND, R.GET_INFLIGHT_FD, m.Inflight(0, 0, 2, 256)),
        "1f000000 01000000 18000000 0000000000000000 0000000000000000 0200 0001 00000000",
    ),
    (
        encode(FRONTEND, R.SET_DEVICE_STATE_FD, m.DeviceState(0, 0), lent(1)),
        "2a000000 01000000 08000000 00000000 00000000",
    ),
]


@pytest.mark.proves("VU-HDR-1", "VU-PAY-1", "VU-PAY-2", "VU-PAY-4", "VU-HDR-7")
@pytest.mark.parametrize(("frame", "expected"), GOLDEN, ids=lambda value: getattr(value, "request", ""))
def test_golden_bytes(frame: Frame, expected: str) -> None:
    assert frame.encode() == bytes.fromhex(expected)


@every_row
@PROPERTY
@given(data=st.data())
def test_every_request_there_and_back(spec: RequestSpec, data: st.DataObject) -> None:
    frame = legal_request(spec, data)
    message = decode(spec.direction, frame)
    assert message.spec is spec
    again = encode(spec.direction, spec.number, message.payload, frame.fds, message.need_reply)
    assert again == frame
    assert describe(spec.direction, frame).startswith(spec.name)


@pytest.mark.proves("VU-HDR-7")
@every_row
@PROPERTY
@given(data=st.data())
def test_every_reply_there_and_back(spec: RequestSpec, data: st.DataObject) -> None:
    value = data.draw(payloads(spec.reply_payload)) if spec.reply_payload else None
    frame = encode_reply(spec, value, lent(spec.reply_fds.max))
    assert (frame.request, frame.flags) == (spec.number, 0x5)
    assert decode_reply(spec, frame) == value


@pytest.mark.proves("VU-REP-2")
@every_row
def test_acknowledgement_is_read_where_there_can_be_one(spec: RequestSpec) -> None:
    ack = encode_ack(spec, 0)
    if m.U64 in spec.reply_bodies:
        assert decode_reply(spec, ack) == m.U64(0)
    else:
        assert isinstance(outcome_of(decode_reply, spec, ack), FramingError | m.VringState | m.CryptoSession)


@pytest.mark.proves("VU-REP-5", "VU-REP-8")
@every_row
def test_refusal_is_empty_or_a_failure(spec: RequestSpec) -> None:
    refused = decode_reply(spec, encode_refusal(spec))
    assert refused is None or (isinstance(refused, m.U64) and refused.value != 0)


# -- hostile frames -------------------------------------------------------------------------------------------


@PROPERTY
@given(
    st.sampled_from(Direction),
    st.integers(0, 50) | st.integers(0, 0xFFFFFFFF),
    st.sampled_from([1, 9]) | st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=400) | st.binary(max_size=MAX_PAYLOAD),
    st.integers(0, 10),
)
def test_any_frame_decodes_or_raises_what_is_documented(
    direction: Direction, request: int, flags: int, payload: bytes, fds: int
) -> None:
    frame = Frame(request, flags, payload, lent(fds))
    outcome = outcome_of(decode, direction, frame)
    assert isinstance(outcome, RemoteProtocolError | Message)
    assert "\n" not in str(outcome)
    assert undecoded(direction, frame).request == request
    assert "\n" not in describe(direction, frame)


@every_row
@PROPERTY
@given(data=st.data())
def test_any_bytes_of_a_legal_size(spec: RequestSpec, data: st.DataObject) -> None:
    sizes = sorted(layouts.legal_sizes(spec.payload))
    size = data.draw(st.sampled_from(sizes))
    frame = Frame(
        spec.number, 1, data.draw(st.binary(min_size=size, max_size=size)), lent(data.draw(st.integers(0, 9)))
    )
    outcome = outcome_of(decode, spec.direction, frame)
    if isinstance(outcome, Message):
        assert isinstance(outcome.payload, spec.payload or type(None))
    else:
        assert isinstance(outcome, PayloadError | FdError)
        assert str(outcome).startswith(spec.name)


@every_row
@PROPERTY
@given(data=st.data())
def test_any_bytes_as_a_reply(spec: RequestSpec, data: st.DataObject) -> None:
    frame = Frame(spec.number, 5, data.draw(st.binary(max_size=400)), lent(data.draw(st.integers(0, 2))))
    outcome = outcome_of(decode_reply, spec, frame)
    assert isinstance(outcome, (RemoteProtocolError, *spec.reply_bodies, type(None)))


@pytest.mark.proves("VU-HDR-6")
@every_row
@PROPERTY
@given(data=st.data())
@pytest.mark.parametrize("step", [-1, 1])
def test_a_size_off_by_one_closes(spec: RequestSpec, step: int, data: st.DataObject) -> None:
    frame = legal_request(spec, data)
    payload = (frame.payload + b"\0")[: len(frame.payload) + step] if len(frame.payload) + step >= 0 else b"\0"
    wrong = Frame(frame.request, frame.flags, payload, frame.fds)
    if len(payload) in layouts.legal_sizes(spec.payload):  # a payload of no fixed size; its count tells
        assert spec.payload in (m.Config, m.CryptoSession)
        return
    with pytest.raises(FramingError, match=spec.name):
        decode(spec.direction, wrong)


@pytest.mark.proves("VU-HDR-2")
@every_row
@pytest.mark.parametrize("version", [0, 2, 3])
def test_every_request_of_another_version_closes(spec: RequestSpec, version: int) -> None:
    with pytest.raises(FramingError, match="version"):
        decode(spec.direction, Frame(spec.number, version))


@pytest.mark.proves("VU-HDR-3")
@every_row
@PROPERTY
@given(data=st.data())
def test_a_request_with_the_reply_flag_closes(spec: RequestSpec, data: st.DataObject) -> None:
    frame = legal_request(spec, data)
    frame.flags |= 4
    with pytest.raises(FramingError, match="REPLY"):
        decode(spec.direction, frame)


@pytest.mark.proves("VU-HDR-7")
@pytest.mark.parametrize("flags", [0x1, 0x4, 0x6, 0xD, 0x15])
def test_a_reply_with_other_flags_closes(flags: int) -> None:
    spec = FRONTEND_REQUESTS[R.GET_FEATURES]
    with pytest.raises(FramingError, match=f"flags {flags:#x}, not 0x5"):
        decode_reply(spec, Frame(spec.number, flags, bytes(8)))


@pytest.mark.proves("VU-HDR-7")
def test_a_reply_to_another_request_closes() -> None:
    with pytest.raises(FramingError, match="request number 2"):
        decode_reply(FRONTEND_REQUESTS[R.GET_FEATURES], Frame(2, 5, bytes(8)))


@pytest.mark.proves("VU-HDR-8")
@pytest.mark.parametrize("number", [0, 46, 0xFFFFFFFF])
def test_unknown_requests_keep_number_and_bytes(number: int) -> None:
    message = decode(FRONTEND, Frame(number, 9, b"abc", lent(3)))
    assert (message.spec, message.payload, message.need_reply) == (None, b"abc", True)
    assert str(message) == f"request {number} 616263 3 fds need_reply"


def test_a_size_field_that_lies_closes() -> None:
    with pytest.raises(FramingError, match="size 7, payload of 8 bytes"):
        decode(FRONTEND, Frame(R.SET_FEATURES, 1, bytes(8), size=7))


# -- descriptors and payload bits -----------------------------------------------------------------------------


@pytest.mark.proves("VU-FD-1")
@every_row
@PROPERTY
@given(data=st.data())
def test_surplus_descriptors_are_refused_and_stay_with_the_frame(spec: RequestSpec, data: st.DataObject) -> None:
    frame = legal_request(spec, data)
    surplus = Frame(frame.request, frame.flags, frame.payload, lent(len(frame.fds) + 1))
    with pytest.raises(FdError, match=f"{spec.name}: {len(surplus.fds)} descriptors"):
        decode(spec.direction, surplus)
    assert len(surplus.fds) == len(frame.fds) + 1


@pytest.mark.proves("VU-FD-1")
@pytest.mark.parametrize("spec", [row for row in ROWS if row.fds.min], ids=_named)
@PROPERTY
@given(data=st.data())
def test_missing_descriptors_are_refused(spec: RequestSpec, data: st.DataObject) -> None:
    frame = legal_request(spec, data)
    with pytest.raises(FdError, match=f"{spec.name}: 0 descriptors"):
        decode(spec.direction, Frame(frame.request, frame.flags, frame.payload))


@pytest.mark.proves("VU-FD-2")
@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR])
@pytest.mark.parametrize(("no_fd", "fds"), [(True, 1), (False, 0), (False, 2)])
def test_no_fd_bit_and_descriptors_agree(request_: FrontendRequest, no_fd: bool, fds: int) -> None:
    payload = layouts.build(m.VringFd(3, no_fd))
    with pytest.raises(FdError, match=request_.name):
        decode(FRONTEND, Frame(request_, 1, payload, lent(fds)))


@pytest.mark.proves("VU-FD-2")
def test_no_fd_bit_withdraws_a_host_notifier() -> None:
    payload = m.VringArea(m.VringFd(0, no_fd=True), 4096, 0)
    assert decode(Direction.BACKEND, encode(Direction.BACKEND, BackendRequest.VRING_HOST_NOTIFIER_MSG, payload))


@pytest.mark.proves("VU-FD-3")
@pytest.mark.parametrize("fds", [0, 1, 3])
def test_a_descriptor_for_each_region(fds: int) -> None:
    payload = layouts.build(m.MemoryTable((REGION, REGION)))
    with pytest.raises(FdError, match=f"SET_MEM_TABLE: {fds} descriptors instead of 2"):
        decode(FRONTEND, Frame(R.SET_MEM_TABLE, 1, payload, lent(fds)))


@pytest.mark.proves("VU-FD-4")
@pytest.mark.parametrize("fds", [0, 1])
def test_a_region_is_removed_with_and_without_a_descriptor(fds: int) -> None:
    frame = encode(FRONTEND, R.REM_MEM_REG, m.SingleRegion(REGION), lent(fds))
    assert decode(FRONTEND, frame).payload == m.SingleRegion(REGION)


@pytest.mark.proves("VU-PAY-4")
@pytest.mark.parametrize("bit", [9, 31, 32, 63])
def test_reserved_bits_of_a_ring_index_are_refused(bit: int) -> None:
    payload = m.U64(1 << bit | 0x101)
    frame = Frame(R.SET_VRING_CALL, 1, layouts.build(payload))
    with pytest.raises(PayloadError, match=f"SET_VRING_CALL: reserved bits {1 << bit:#x} are set"):
        decode(FRONTEND, frame)


@pytest.mark.proves("VU-PAY-7")
@pytest.mark.parametrize("count", range(1, 9))
def test_regions_with_and_without_xen_fields(count: int) -> None:
    for xen in (None, m.XenMmap(1, 7)):
        region = m.MemoryRegion(1, 2, 3, 4, xen)
        table = m.MemoryTable((region,) * count)
        assert decode(FRONTEND, encode(FRONTEND, R.SET_MEM_TABLE, table, lent(count))).payload == table
        single = m.SingleRegion(region)
        assert decode(FRONTEND, encode(FRONTEND, R.ADD_MEM_REG, single, lent(1))).payload == single


@pytest.mark.proves("VU-REP-7")
@pytest.mark.parametrize(
    ("body", "expected"),
    [(b"", None), (bytes(8), m.U64(0)), (bytes(16), m.Log(0, 0))],
    ids=["empty", "u64", "log"],
)
def test_every_known_answer_to_set_log_base_is_read(body: bytes, expected: m.Payload | None) -> None:
    assert decode_reply(FRONTEND_REQUESTS[R.SET_LOG_BASE], Frame(R.SET_LOG_BASE, 5, body)) == expected


# -- our own callers ------------------------------------------------------------------------------------------


def test_encode_refuses_what_the_row_does_not_have() -> None:
    with pytest.raises(LocalProtocolError, match="SET_FEATURES: payload None instead of U64"):
        encode(FRONTEND, R.SET_FEATURES)
    with pytest.raises(LocalProtocolError, match="SET_FEATURES: 1 descriptors instead of 0"):
        encode(FRONTEND, R.SET_FEATURES, m.U64(0), lent(1))
    with pytest.raises(LocalProtocolError, match="request 99 is unknown"):
        encode(FRONTEND, 99, m.U64(0))
    with pytest.raises(LocalProtocolError, match="GET_FEATURES: reply None instead of U64"):
        encode_reply(FRONTEND_REQUESTS[R.GET_FEATURES])
    with pytest.raises(LocalProtocolError, match="GET_FEATURES: reply with 1 descriptors instead of 0"):
        encode_reply(FRONTEND_REQUESTS[R.GET_FEATURES], m.U64(0), lent(1))


def test_a_wrong_size_is_told_with_the_right_ones() -> None:
    with pytest.raises(FramingError, match=r"SET_FEATURES: payload of 7 bytes instead of U64 \(8\)"):
        decode(FRONTEND, Frame(R.SET_FEATURES, 1, bytes(7)))
    with pytest.raises(FramingError, match=r"payload of 4 bytes instead of MemoryTable \(8 to 4088\)"):
        decode(FRONTEND, Frame(R.SET_MEM_TABLE, 1, bytes(4)))
    with pytest.raises(FramingError, match=r"payload of 9 bytes instead of no payload \(0\)"):
        decode(FRONTEND, Frame(R.SET_OWNER, 1, bytes(9)))


def test_unknown_requests_can_be_sent() -> None:
    assert encode(FRONTEND, 99, b"xyz", need_reply=True).encode() == Header(99, 9, 3).pack() + b"xyz"


def test_a_bundle_changes_its_owner_and_numbers_do_not() -> None:
    bundle = FdBundle()
    assert encode(FRONTEND, R.REM_MEM_REG, m.SingleRegion(REGION), bundle).fds is bundle
    assert isinstance(encode(FRONTEND, R.ADD_MEM_REG, m.SingleRegion(REGION), [100]).fds, LentFds)


def test_descriptions_name_what_can_be_read() -> None:
    frame = encode(FRONTEND, R.SET_VRING_KICK, m.VringFd(1), lent(1), need_reply=True)
    assert describe(FRONTEND, frame) == "SET_VRING_KICK index=1 no_fd=False reserved=0 1 fd need_reply"
    assert describe(FRONTEND, Frame(R.SET_VRING_KICK, 1, b"\1")) == "SET_VRING_KICK flags 0x1 size 1 payload 01"
    assert describe(FRONTEND, encode_ack(77, 1)) == "request 77 flags 0x5 size 8 payload 0100000000000000"


def test_header_of_an_acknowledgement() -> None:
    data = encode_ack(FRONTEND_REQUESTS[R.SET_OWNER], 1).encode()
    assert Header.parse(data[:HEADER_SIZE]) == Header(R.SET_OWNER, 5, 8)
    assert FRONTEND_REQUESTS[R.SET_OWNER].reply is Reply.ACK

"""Dissection: whatever the bytes are, each of them is in a field, and what is wrong is what the codec says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.payloads import KINDS, PROPERTY, payloads
from vhostuser.errors import FdError, RemoteProtocolError
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire import layouts
from vhostuser.wire import messages as m
from vhostuser.wire.codec import decode, decode_reply, encode, encode_ack, encode_reply, faults
from vhostuser.wire.dissect import Dissection, Field, Part, dissect
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, Frame, HeaderFlags
from vhostuser.wire.messages import Payload
from vhostuser.wire.requests import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    BackendRequest,
    Direction,
    FrontendRequest,
    RequestSpec,
)

R = FrontendRequest
B = BackendRequest
FRONTEND, BACKEND = Direction
REGION = m.MemoryRegion(0x1000, 0x2000, 0x7F00_0000_0000, 0x3000)
ROWS = [*FRONTEND_REQUESTS.values(), *BACKEND_REQUESTS.values()]
TOP_LEVEL = [kind for kind in KINDS if kind not in (m.MemoryRegion, m.XenMmap)]

directions = st.sampled_from(Direction)
frames = st.builds(
    Frame,
    st.integers(0, 50),
    st.sampled_from([1, 1, 5, 9, 0, 2, 13, 0x80000001]),
    st.binary(max_size=80),
    size=st.one_of(st.none(), st.integers(0, 100), st.just(0xFFFFFFFF)),
)


def at(value: Any, path: str) -> Any:
    """What a path names in a payload value."""
    for name in path.replace("[", ".").replace("]", "").split("."):
        value = value[int(name)] if name.isdecimal() else getattr(value, name)
    return value


def tiles(fields: list[Field], end: int) -> None:
    """Fields lie side by side from 0 to `end`; bit fields share a word."""
    spans = sorted({(field.offset, field.offset + field.size) for field in fields})
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans)][: len(spans)]
    assert not spans or spans[-1][1] == end


def whole(data: bytes, direction: Direction = FRONTEND, fds: int | None = None) -> Dissection:
    """A dissection in which every byte is in a field, once, and as it was."""
    dissection = dissect(data, direction, fds=fds)
    tiles(list(dissection.fields), len(data))
    for field in dissection.fields:
        assert field.raw == data[field.offset : field.offset + field.size]
    for before, part in pairwise(dissection.parts):
        assert before.offset + before.size == part.offset
    return dissection


def one(data: bytes, direction: Direction = FRONTEND, fds: int | None = None) -> Part:
    """The only message."""
    (part,) = whole(data, direction, fds).parts
    return part


def shown(part: Part, name: str) -> tuple[object, str]:
    """Value and meaning of one field."""
    (found,) = [field for field in part.fields if field.name == name]
    return found.value, found.meaning


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-PAY-1")
@pytest.mark.parametrize("kind", TOP_LEVEL, ids=lambda kind: kind.__name__)
@PROPERTY
@given(data=st.data())
def test_the_places_of_a_payload_are_those_of_its_values(kind: type[Payload], data: st.DataObject) -> None:
    value = data.draw(payloads(kind))
    encoded = layouts.build(value)
    places = list(layouts.places(kind, encoded))
    tiles([Field(place.offset, place.size, place.path, b"") for place in places], len(encoded))
    for place in places:
        if place.path not in ("nregions", "padding") and (kind, place.path) != (m.Config, "size"):
            assert place.value == at(value, place.path), place


@pytest.mark.parametrize("kind", TOP_LEVEL, ids=lambda kind: kind.__name__)
@PROPERTY
@given(data=st.binary(max_size=120))
def test_places_in_any_bytes(kind: type[Payload], data: bytes) -> None:
    places = list(layouts.places(kind, data))
    end = max((place.offset + place.size for place in places), default=0)
    tiles([Field(place.offset, place.size, place.path, b"") for place in places], end)
    assert end <= len(data)


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(frames, directions)
def test_the_first_fault_is_what_the_codec_raises(frame: Frame, direction: Direction) -> None:
    found = faults(direction, frame)
    spec = (FRONTEND_REQUESTS if direction is FRONTEND else BACKEND_REQUESTS).get(frame.request)
    if frame.is_reply and spec is None:
        return  # nobody can have asked
    if frame.size not in (None, len(frame.payload)):
        assert found  # the channel would wait for the rest
        return
    raised: list[RemoteProtocolError] = []
    try:
        decode_reply(spec, frame) if frame.is_reply and spec else decode(direction, frame)
    except RemoteProtocolError as error:
        raised = [error]
    unknown = [error for error in found if error.rule == "VU-HDR-8"]
    assert [str(error) for error in found if error not in unknown][:1] == list(map(str, raised))
    assert bool(unknown) == (spec is None)


def test_several_things_are_wrong_with_one_message() -> None:
    part = one(Frame(R.SET_VRING_NUM, 2, bytes(7)).encode())
    assert [broken.rule for broken in part.broken] == ["VU-HDR-2", "VU-HDR-6"]


def test_descriptors_are_judged_if_they_were_counted() -> None:
    table = encode(FRONTEND, R.SET_MEM_TABLE, m.MemoryTable((REGION, REGION)), [1, 2]).encode()
    assert not one(table).broken
    assert not one(table, fds=2).broken
    assert [broken.rule for broken in one(table, fds=1).broken] == ["VU-FD-3"]
    assert not list(whole(table * 2, fds=2).broken)  # nobody knows of the second


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: f"{spec.direction.name}-{spec.name}")
@PROPERTY
@given(data=st.data())
def test_what_the_table_allows_breaks_no_rule(spec: RequestSpec, data: st.DataObject) -> None:
    payload = data.draw(payloads(spec.payload)) if spec.payload else None
    frame = Frame(spec.number, VERSION, layouts.build(payload) if payload else b"")
    part = one(frame.encode(), spec.direction)
    assert (part.name, part.is_reply, part.broken) == (spec.name, False, ())
    body = data.draw(payloads(spec.reply_payload)) if spec.reply_payload else None
    answer = one(encode_reply(spec, body, range(spec.reply_fds.min)).encode(), spec.direction)
    assert (answer.name, answer.is_reply, answer.broken) == (spec.name, True, ())


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(frames).map(lambda all_: b"".join(f.encode() for f in all_))),
       directions, st.one_of(st.none(), st.integers(0, 9)))  # fmt: skip
def test_any_bytes_survive(data: bytes, direction: Direction, fds: int | None) -> None:
    dissection = whole(data, direction, fds)
    for part in dissection.parts:
        if any(field.name.startswith("cut ") for field in part.fields):
            assert part is dissection.parts[-1]
            assert "VU-HDR-1" in [broken.rule for broken in part.broken]


def test_several_messages_and_a_rest() -> None:
    data = encode(FRONTEND, R.SET_OWNER).encode() + encode_ack(R.SET_OWNER, 0).encode() + b"\x01\x00\x00"
    dissection = whole(data)
    assert [(part.offset, part.size, part.name, part.is_reply) for part in dissection.parts] == [
        (0, 12, "SET_OWNER", False),
        (12, 20, "SET_OWNER", True),
        (32, 3, "", False),
    ]
    assert [field.name for field in dissection.parts[2].fields] == ["cut header"]
    assert [broken.text for broken in dissection.broken] == ["3 of 12 header bytes"]


def test_a_cut_payload_shows_what_is_whole() -> None:
    part = one(encode(FRONTEND, R.SET_VRING_ADDR, m.VringAddr(1, 1, 0x10, 0x20, 0x30, 0x40)).encode()[:-19])
    assert [field.name for field in part.fields[3:]] == ["index", "flags", "descriptor", "cut payload"]
    assert shown(part, "cut payload") == (None, "19 bytes are missing")
    assert [(broken.rule, broken.text) for broken in part.broken] == [
        ("VU-HDR-1", "SET_VRING_ADDR: size 40, payload of 21 bytes")
    ]


def test_bytes_behind_a_payload() -> None:
    """User-mode Linux sends room for two regions with a table of one."""
    frame = encode(FRONTEND, R.SET_MEM_TABLE, m.MemoryTable((REGION,)), [1])
    frame.payload += bytes(32)
    part = one(frame.encode())
    assert [field.name for field in part.fields][-2:] == ["regions[0].mmap_offset", "surplus"]
    assert (part.fields[-1].offset, part.fields[-1].size) == (52, 32)
    assert not part.broken


def test_an_unknown_request() -> None:
    part = one(Frame(99, VERSION, b"abc").encode())
    assert part.name == "request 99"
    assert shown(part, "header.request") == (99, "unknown")
    assert shown(part, "payload") == (None, "")
    assert [broken.rule for broken in part.broken] == ["VU-HDR-8"]


def test_a_size_that_nobody_would_read() -> None:
    part = one(Frame(R.SET_FEATURES, VERSION, bytes(8), size=0xFFFFFFFF).encode())
    assert [broken.rule for broken in part.broken] == ["VU-HDR-4", "VU-HDR-1"]
    assert shown(part, "value") == (0, "none")


def test_fields_lie_where_the_stream_has_them() -> None:
    data = encode(FRONTEND, R.SET_OWNER).encode() + encode(FRONTEND, R.SET_VRING_KICK, m.VringFd(7), [9]).encode()
    _, kick = whole(data).parts
    assert [(field.name, field.offset, field.size, field.bits) for field in kick.fields] == [
        ("header.request", 12, 4, None),
        ("header.flags", 16, 4, None),
        ("header.size", 20, 4, None),
        ("index", 24, 8, (0, 8)),
        ("no_fd", 24, 8, (8, 1)),
        ("reserved", 24, 8, (9, 55)),
    ]


# ---- meanings --------------------------------------------------------------------------------------------------------


def ask(request: FrontendRequest | BackendRequest, payload: Payload | None = None) -> Part:
    """The dissection of a request."""
    direction = FRONTEND if isinstance(request, FrontendRequest) else BACKEND
    spec = (FRONTEND_REQUESTS if direction is FRONTEND else BACKEND_REQUESTS)[request]
    fds = int(not payload.no_fd) if isinstance(payload, m.VringFd) else spec.fds.min
    if isinstance(payload, m.MemoryTable):
        fds = len(payload.regions)
    return one(encode(direction, request, payload, range(fds)).encode(), direction)


def answer(request: FrontendRequest, payload: Payload) -> Part:
    """The dissection of a request's own reply."""
    return one(encode_reply(FRONTEND_REQUESTS[request], payload).encode())


XEN = m.MemoryRegion(1, 2, 3, 4, m.XenMmap(0x103, 7))


@pytest.mark.parametrize(
    ("part", "field", "meaning"),
    [
        (ask(R.SET_OWNER), "header.request", "SET_OWNER"),
        (ask(R.SET_OWNER), "header.flags", "version 1"),
        (one(Frame(R.SET_OWNER, 0x2D).encode()), "header.flags", "version 1, REPLY, NEED_REPLY, bit 5"),
        (ask(R.SET_FEATURES, m.U64(VhostFeature.LOG_ALL | 1 << 63)), "value", "LOG_ALL, bit 63"),
        (answer(R.GET_FEATURES, m.U64(VhostFeature.RING_PACKED)), "value", "RING_PACKED"),
        (ask(R.SET_PROTOCOL_FEATURES, m.U64(ProtocolFeature.MQ | 1 << 40)), "value", "MQ, bit 40"),
        (answer(R.GET_PROTOCOL_FEATURES, m.U64(0)), "value", "none"),
        (ask(R.SET_STATUS, m.U64(0x8F)), "value", "ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED"),
        (ask(R.SET_STATUS, m.U64(0)), "value", "reset"),
        (answer(R.GET_STATUS, m.U64(0x40)), "value", "DEVICE_NEEDS_RESET"),
        (ask(R.SET_VRING_ENABLE, m.VringState(0, 1)), "num", "enabled"),
        (ask(R.SET_VRING_NUM, m.VringState(0, 1)), "num", ""),
        (ask(R.SET_VRING_CALL, m.VringFd(1, no_fd=True)), "no_fd", "no descriptor comes along"),
        (ask(R.SET_VRING_CALL, m.VringFd(1)), "no_fd", "a descriptor comes along"),
        (ask(R.SET_VRING_ADDR, m.VringAddr(0, 1, 0, 0, 0, 0)), "flags", "LOG"),
        (ask(R.SET_MEM_TABLE, m.MemoryTable((XEN,))), "regions[0].xen.flags", "FOREIGN, GRANT, NO_ADVANCE_MAP"),
        (ask(R.ADD_MEM_REG, m.SingleRegion(XEN)), "region.xen.flags", "FOREIGN, GRANT, NO_ADVANCE_MAP"),
        (ask(R.IOTLB_MSG, m.Iotlb(1, 2, 3, 3, 2)), "perm", "read and write"),
        (ask(R.IOTLB_MSG, m.Iotlb(1, 2, 3, 3, 2)), "type", "UPDATE"),
        (ask(R.IOTLB_MSG, m.Iotlb(1, 2, 3, 9, 9)), "type", "unknown"),
        (ask(R.SET_CONFIG, m.Config(0, 1, b"x")), "flags", "migration"),
        (ask(R.SET_DEVICE_STATE_FD, m.DeviceState(1, 0)), "direction", "load"),
        (ask(R.SET_DEVICE_STATE_FD, m.DeviceState(1, 0)), "phase", "stopped"),
        (answer(R.SET_DEVICE_STATE_FD, m.U64(0x100)), "value", "done, no other descriptor is to be used"),
        (answer(R.SET_DEVICE_STATE_FD, m.U64(0x101)), "value", "failed"),
        (answer(R.CHECK_DEVICE_STATE, m.U64(0)), "value", "done"),
        (answer(R.GET_QUEUE_NUM, m.U64(2)), "value", ""),
        (one(encode_ack(R.SET_VRING_NUM, 0).encode()), "value", "done"),
        (one(encode_ack(R.SET_VRING_NUM, 5).encode()), "value", "failed"),
        (ask(R.GET_SHARED_OBJECT, m.SharedObject(bytes(range(16)))), "uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (ask(B.SHMEM_MAP, m.ShmemMap(0, 0, 0, 1, 1)), "flags", "WRITABLE"),
        (ask(B.VRING_CALL, m.VringState(1, 0)), "num", ""),
    ],
)  # fmt: skip
def test_what_a_value_means(part: Part, field: str, meaning: str) -> None:
    assert shown(part, field)[1] == meaning


def test_the_address_of_an_announcement() -> None:
    frame = Frame(R.SEND_RARP, VERSION, bytes.fromhex("5254006677880000"))
    assert shown(one(frame.encode()), "value")[1] == "52:54:00:66:77:88"


def test_names_of_further_features_are_the_callers() -> None:
    word = VirtioFeature.VERSION_1 | VirtioFeature.RING_PACKED
    data = encode(FRONTEND, R.SET_FEATURES, m.U64(word)).encode()
    (part,) = dissect(data, FRONTEND, feature_names=[VirtioFeature]).parts
    assert shown(part, "value")[1] == "VERSION_1, RING_PACKED"
    assert shown(one(data), "value")[1] == "bit 32, RING_PACKED"


def test_a_reply_is_told_by_its_flag() -> None:
    part = one(Frame(R.GET_VRING_BASE, VERSION | HeaderFlags.REPLY, bytes(8)).encode())
    assert part.is_reply
    assert [field.name for field in part.fields[3:]] == ["index", "num"]


def test_an_error_of_descriptors_is_one() -> None:
    """What the judgement of descriptors that were not counted rests on."""
    table = encode(FRONTEND, R.SET_MEM_TABLE, m.MemoryTable((REGION,)), [1]).encode()
    found = faults(FRONTEND, Frame(R.SET_MEM_TABLE, VERSION, table[12:]))
    assert [type(error) for error in found] == [FdError]

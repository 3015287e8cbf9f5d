"""Frames: the header, and that anything can be built and shown."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.payloads import PROPERTY
from vhostuser.errors import FramingError, LocalProtocolError
from vhostuser.fds import FdBundle
from vhostuser.wire.frames import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Frame,
    Header,
    HeaderFlags,
    LentFds,
    check_header,
)

WORDS = st.integers(0, 0xFFFFFFFF)


@pytest.mark.proves("VU-HDR-1")
@PROPERTY
@given(WORDS, WORDS, WORDS)
def test_header_is_three_native_words(request: int, flags: int, size: int) -> None:
    header = Header(request, flags, size)
    assert header.pack() == struct.pack("=III", request, flags, size)
    assert Header.parse(header.pack()) == header


@PROPERTY
@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_twelve_bytes_are_a_header(data: bytes) -> None:
    assert Header.parse(data).pack() == data


@pytest.mark.proves("VU-HDR-2")
@pytest.mark.parametrize("version", [0, 2, 3])
def test_other_versions_cannot_be_followed(version: int) -> None:
    with pytest.raises(FramingError, match=f"version {version}"):
        check_header(Header(1, version | HeaderFlags.NEED_REPLY, 0))


@pytest.mark.proves("VU-HDR-4")
@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 0xFFFFFFFF])
def test_long_payload_is_refused_by_the_header_alone(size: int) -> None:
    with pytest.raises(FramingError, match=f"size {size}, the limit is 4096"):
        check_header(Header(5, 1, size))


def test_longest_payload_passes() -> None:
    check_header(Header(5, 1, MAX_PAYLOAD))


@pytest.mark.proves("VU-HDR-5")
@PROPERTY
@given(st.integers(0, 0x0FFFFFFF))
def test_reserved_flag_bits_are_tolerated(bits: int) -> None:
    check_header(Header(1, bits << 4 | 1, 0))


@PROPERTY
@given(st.integers(), st.integers(), st.binary(max_size=64), st.none() | st.integers())
def test_any_frame_can_be_encoded_and_shown(request: int, flags: int, payload: bytes, size: int | None) -> None:
    frame = Frame(request, flags, payload, size=size)
    data = frame.encode()
    assert data[HEADER_SIZE:] == payload
    assert Header.parse(data[:HEADER_SIZE]).size == (len(payload) if size is None else size) % (1 << 32)
    assert "\n" not in str(frame)


def test_description_is_short_and_names_what_is_there() -> None:
    frame = Frame(5, 9, bytes(264), LentFds([1, 2]))
    assert frame.describe("SET_MEM_TABLE") == (
        "SET_MEM_TABLE flags 0x9 size 264 payload 00000000000000000000000000000000… 2 fds"
    )


def test_lent_descriptors_survive_their_frame() -> None:
    reader, writer = os.pipe()
    with FdBundle([reader, writer]):
        frame = Frame(12, 1, bytes(8), LentFds([reader]))
        assert frame.fds.filenos() == [reader]
        with pytest.raises(LocalProtocolError):
            frame.fds.take()
        frame.fds.close()
        assert len(frame.fds) == 0
        del frame
        os.fstat(reader)

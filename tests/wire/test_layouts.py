"""Layouts: sizes, and values that survive the way to bytes and back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.payloads import KINDS, PROPERTY, payloads
from vhostuser.errors import LocalProtocolError, PayloadError
from vhostuser.wire import layouts
from vhostuser.wire import messages as m

if TYPE_CHECKING:
    from vhostuser.wire.messages import Payload

# Parts of other payloads; they have no message of their own.
TOP_LEVEL = [kind for kind in KINDS if kind not in (m.MemoryRegion, m.XenMmap)]

# Sizes of the C structures of the specification.
SIZES = {
    m.U64: 8,
    m.VringState: 8,
    m.VringAddr: 40,
    m.VringFd: 8,
    m.Log: 16,
    m.Iotlb: 32,
    m.VringArea: 24,
    m.SharedObject: 16,
    m.DeviceState: 8,
    m.ShmemMap: 40,
    m.ShmemConfig: 2056,
}


def _kind_name(kind: type[Payload]) -> str:
    return kind.__name__


@pytest.mark.proves("VU-PAY-1")
@pytest.mark.parametrize("kind", SIZES, ids=_kind_name)
def test_fixed_sizes(kind: type[Payload]) -> None:
    assert layouts.legal_sizes(kind) == {SIZES[kind]}


@pytest.mark.proves("VU-PAY-1")
@pytest.mark.parametrize("kind", TOP_LEVEL, ids=_kind_name)
@PROPERTY
@given(data=st.data())
def test_round_trip(kind: type[Payload], data: st.DataObject) -> None:
    value = data.draw(payloads(kind))
    encoded = layouts.build(value)
    assert len(encoded) in layouts.legal_sizes(kind)
    assert layouts.parse(kind, encoded) == value


@pytest.mark.parametrize("kind", KINDS, ids=_kind_name)
@PROPERTY
@given(data=st.data())
def test_values_are_shown_in_one_line(kind: type[Payload], data: st.DataObject) -> None:
    assert "\n" not in str(data.draw(payloads(kind)))


@pytest.mark.parametrize(
    "value",
    [
        m.U64(1 << 64),
        m.U64(-1),
        m.VringState(1 << 32, 0),
        m.VringFd(256),
        m.VringFd(0, reserved=1 << 55),
        m.SharedObject(bytes(15)),
        m.ShmemConfig(0, (0,) * 255),
        m.MemoryTable((m.MemoryRegion(0, 0, 0, 1 << 64),)),
    ],
    ids=str,
)
def test_what_does_not_fit_is_our_callers_error(value: Payload) -> None:
    with pytest.raises(LocalProtocolError, match=type(value).__name__):
        layouts.build(value)


@pytest.mark.proves("VU-PAY-6")
def test_inflight_is_read_with_and_without_padding_and_sent_with_it() -> None:
    value = m.Inflight(1, 2, 3, 4)
    encoded = layouts.build(value)
    assert len(encoded) == 24
    assert layouts.parse(m.Inflight, encoded) == value == layouts.parse(m.Inflight, encoded[:20])


@pytest.mark.proves("VU-PAY-3")
@pytest.mark.parametrize("nregions", [0, 9, 0xFFFFFFFF])
def test_table_with_a_count_out_of_range(nregions: int) -> None:
    data = nregions.to_bytes(4, sys.byteorder) + bytes(4 + 32)
    with pytest.raises(PayloadError, match=rf"nregions {nregions} is not in 1\.\.8"):
        layouts.parse(m.MemoryTable, data)


@pytest.mark.parametrize("room", [2, 3, 8])
def test_table_with_room_for_more_regions_than_it_counts(room: int) -> None:
    """User-mode Linux always sends room for two; what is not counted is not looked at."""
    region = m.MemoryRegion(1, 2, 3, 4)
    data = layouts.build(m.MemoryTable((region,))) + b"\xff" * (32 * (room - 1))
    assert layouts.parse(m.MemoryTable, data) == m.MemoryTable((region,))


@pytest.mark.proves("VU-PAY-3")
@pytest.mark.parametrize(("nregions", "regions"), [(2, 1), (8, 1), (8, 9)])
def test_table_with_a_count_that_contradicts_the_size(nregions: int, regions: int) -> None:
    data = nregions.to_bytes(4, sys.byteorder) + bytes(4 + 32 * regions)
    with pytest.raises(PayloadError, match=f"nregions {nregions} does not match a payload of {len(data)} bytes"):
        layouts.parse(m.MemoryTable, data)


@pytest.mark.proves("VU-PAY-7")
def test_four_xen_regions_are_told_from_five_plain_ones_of_the_same_size() -> None:
    four, five = (n.to_bytes(4, sys.byteorder) + bytes(4 + 160) for n in (4, 5))
    assert {region.xen for region in layouts.parse(m.MemoryTable, four).regions} == {m.XenMmap(0, 0)}
    assert {region.xen for region in layouts.parse(m.MemoryTable, five).regions} == {None}


@pytest.mark.proves("VU-PAY-5")
@pytest.mark.parametrize("size", [2, 4, 257, 0xFFFFFFFF])
def test_config_with_a_size_that_is_wrong(size: int) -> None:
    data = bytes(4) + size.to_bytes(4, sys.byteorder) + bytes(4 + 3)
    with pytest.raises(PayloadError, match=f"config size {size}"):
        layouts.parse(m.Config, data)


@pytest.mark.proves("VU-PAY-8")
def test_padding_is_written_as_zero_and_not_looked_at() -> None:
    region = m.MemoryRegion(1, 2, 3, 4)
    encoded = layouts.build(m.SingleRegion(region))
    assert encoded[:8] == bytes(8)
    assert layouts.parse(m.SingleRegion, b"\xff" * 8 + encoded[8:]).region == region


@pytest.mark.proves("VU-PAY-9")
def test_an_objects_name_is_its_uuid_as_written() -> None:
    written = "00112233-4455-6677-8899-aabbccddeeff"
    assert layouts.build(m.SharedObject(UUID(written).bytes)).hex() == written.replace("-", "")
    assert UUID(bytes=layouts.parse(m.SharedObject, bytes.fromhex(written.replace("-", ""))).uuid) == UUID(written)

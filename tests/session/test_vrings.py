"""Rules about one ring that need no conversation; the playbooks in test_backend.py have the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.payloads import PROPERTY, payloads
from vhostuser.errors import PayloadError
from vhostuser.session.vrings import MAX_VRING_NUM, check_vring_values, vring_index
from vhostuser.wire.messages import U64, Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, RequestSpec

WITH_PAYLOAD = [row for row in FRONTEND_REQUESTS.values() if row.payload]


@pytest.mark.parametrize(
    ("payload", "index"),
    [(VringState(7, 1), 7), (VringFd(8), 8), (VringAddr(9, 0, 0, 0, 0, 0), 9), (U64(3), None), (b"abc", None)],
    ids=str,
)
def test_which_ring_a_payload_is_about(payload: Payload | bytes, index: int | None) -> None:
    assert vring_index(payload) == index


@pytest.mark.proves("VU-RING-12")
@PROPERTY
@given(num=st.integers(0, 0xFFFFFFFF) | st.sampled_from([1 << bit for bit in range(32)]), packed=st.booleans())
def test_a_ring_size_is_judged_by_range_and_layout(num: int, packed: bool) -> None:
    legal = 1 <= num <= MAX_VRING_NUM and (packed or num.bit_count() == 1)
    try:
        check_vring_values(FrontendRequest.SET_VRING_NUM, VringState(0, num), packed, MAX_VRING_NUM)
    except PayloadError:
        assert not legal
    else:
        assert legal


@pytest.mark.parametrize("spec", WITH_PAYLOAD, ids=lambda row: row.name)
@PROPERTY
@given(data=st.data())
def test_values_are_judged_or_left_alone(spec: RequestSpec, data: st.DataObject) -> None:
    assert spec.payload
    payload = data.draw(payloads(spec.payload))
    error: PayloadError | None = None
    try:
        check_vring_values(spec.number, payload, data.draw(st.booleans()), MAX_VRING_NUM)
    except PayloadError as refused:
        error = refused
    assert error is None or str(error).startswith(f"{spec.name}: ")

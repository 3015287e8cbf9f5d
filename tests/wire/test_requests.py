"""The table of requests: complete, and free of contradictions."""

from __future__ import annotations

import pytest

from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.requests import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    BackendRequest,
    Direction,
    FrontendRequest,
    LegalState,
    Reply,
    RequestSpec,
    spec_of,
)

ROWS = [*FRONTEND_REQUESTS.values(), *BACKEND_REQUESTS.values()]


def _named(spec: RequestSpec) -> str:
    return f"{spec.direction.name}-{spec.name}"


def test_every_number_of_the_specification_has_a_row() -> None:
    assert list(FRONTEND_REQUESTS) == list(range(1, 46)) == list(FrontendRequest)
    assert list(BACKEND_REQUESTS) == list(range(1, 11)) == list(BackendRequest)


@pytest.mark.parametrize("spec", ROWS, ids=_named)
def test_row_contradicts_itself_nowhere(spec: RequestSpec) -> None:
    assert spec_of(spec.direction, spec.number) is spec
    assert spec.meaning.endswith(".")
    for kind in (spec.payload, *spec.reply_bodies):
        assert layouts.legal_sizes(kind)
    if spec.reply is Reply.ACK:
        assert (spec.reply_payload, spec.reply_fds.max, spec.refusal) == (None, 0, None)
    if spec.reply is Reply.GATED:
        assert spec.gate
    if spec.refusal:
        assert isinstance(spec.refusal, spec.reply_bodies)
    if spec.state is LegalState.RING_STOPPED:
        assert spec.payload
        assert "index" in spec.payload.__slots__


@pytest.mark.parametrize("spec", BACKEND_REQUESTS.values(), ids=_named)
def test_back_end_requests_need_their_channel(spec: RequestSpec) -> None:
    assert spec.gate
    assert ProtocolFeature.BACKEND_REQ in spec.gate
    assert (spec.fds.max > 0) == (ProtocolFeature.BACKEND_SEND_FD in spec.gate)


@pytest.mark.parametrize("number", [0, 46, 0xFFFFFFFF])
def test_unknown_numbers_have_no_row(number: int) -> None:
    assert spec_of(Direction.FRONTEND, number) is None


def test_feature_bits_are_masks_without_gaps() -> None:
    assert [feature.value for feature in ProtocolFeature] == [1 << bit for bit in range(24)]
    assert int(VhostFeature.PROTOCOL_FEATURES) == 0x40000000
    assert int(VhostFeature.LOG_ALL) == 0x04000000


def test_feature_words_keep_unknown_bits() -> None:
    # A front-end of the future must see its own word in a trace.
    assert int(ProtocolFeature(0xFF00_0000_0000_0001)) == 0xFF00_0000_0000_0001

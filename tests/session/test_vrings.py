"""What vhost-user says about rings: their states, and the values of their requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.session.playbook import (
    WITHOUT_XEN,
    Playbook,
    ask,
    negotiated,
    offer,
    refusal,
    refused,
    reply,
    silence,
    started,
    status,
)
from tests.wire.payloads import PROPERTY, payloads
from vhostuser.errors import NotNegotiatedError, PayloadError, StateError
from vhostuser.session.backend import Done
from vhostuser.session.vrings import MAX_VRING_NUM, VringStatus, check_packed_base, check_vring_values, vring_index
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import U64, DeviceState, Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, LegalState, Reply, RequestSpec

R = FrontendRequest
F = VhostFeature

RING_REQUESTS: list[tuple[FrontendRequest, Payload]] = [
    (R.SET_VRING_NUM, VringState(4, 256)),
    (R.SET_VRING_ADDR, VringAddr(4, 0, 0, 0, 0, 0)),
    (R.SET_VRING_BASE, VringState(4, 0)),
    (R.GET_VRING_BASE, VringState(4, 0)),
    (R.GET_VRING_BASE_SKIP_DRAIN, VringState(4, 0)),
    (R.SET_VRING_KICK, VringFd(4)),
    (R.SET_VRING_CALL, VringFd(4)),
    (R.SET_VRING_ERR, VringFd(4)),
    (R.SET_VRING_ENABLE, VringState(4, 1)),
    (R.SET_VRING_ENDIAN, VringState(4, 0)),
    (R.VRING_KICK, VringState(4, 0)),
]
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
        check_vring_values(R.SET_VRING_NUM, VringState(0, num), packed, MAX_VRING_NUM)
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


# -- in conversation -------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-RING-1")
def test_rings_are_stopped_and_disabled_at_first(book: Playbook) -> None:
    assert book.session.vrings == [VringStatus(started=False, enabled=False)] * 4
    assert book.session.suspended


@pytest.mark.proves("VU-RING-2")
def test_features_without_protocol_features_enable_every_ring(book: Playbook) -> None:
    book >> ask(R.SET_FEATURES, U64(1 << 32)) << silence
    assert [status(book, index) for index in range(4)] == [(False, True)] * 4


@pytest.mark.proves("VU-RING-3")
def test_features_with_protocol_features_leave_the_enable_bits_alone() -> None:
    book = negotiated()
    book >> ask(R.SET_VRING_ENABLE, VringState(1, 1)) << silence
    book >> ask(R.SET_FEATURES, U64(F.PROTOCOL_FEATURES | F.LOG_ALL)) << silence
    assert [status(book, index)[1] for index in range(4)] == [False, True, False, False]


@pytest.mark.proves("VU-RING-4")
def test_rings_are_not_enabled_one_by_one_without_protocol_features(book: Playbook) -> None:
    book >> ask(R.SET_FEATURES, U64(1 << 32)) << silence
    frame = ask(R.SET_VRING_ENABLE, VringState(0, 0))
    book >> frame << refused(NotNegotiatedError, "PROTOCOL_FEATURES is not acknowledged") << silence
    assert status(book) == (False, True)


@pytest.mark.proves("VU-RING-5")
def test_rings_may_be_enabled_before_anything_else(book: Playbook) -> None:
    book >> ask(R.SET_VRING_ENABLE, VringState(0, 1)) << silence
    assert status(book) == (False, True)
    book >> ask(R.SET_VRING_ENABLE, VringState(0, 0)) << silence
    assert status(book) == (False, False)


@pytest.mark.proves("VU-RING-6")
@pytest.mark.parametrize("request_", [R.SET_VRING_ENABLE, R.SET_VRING_ENDIAN])
@pytest.mark.parametrize("num", [2, 0x100, 0xFFFFFFFF])
def test_a_switch_is_zero_or_one(request_: FrontendRequest, num: int) -> None:
    book = negotiated()
    book >> ask(request_, VringState(1, num)) << refused(PayloadError, r"neither 0 nor 1 \(vring 1\)") << silence


@pytest.mark.proves("VU-RING-7")
@pytest.mark.parametrize(("request_", "payload"), RING_REQUESTS, ids=lambda value: getattr(value, "name", ""))
def test_a_ring_that_does_not_exist_is_refused_everywhere(request_: FrontendRequest, payload: Payload) -> None:
    answer = refusal if FRONTEND_REQUESTS[request_].reply is Reply.ALWAYS else silence
    frame = ask(request_, payload)
    negotiated() >> frame << refused(PayloadError, "vring 4 does not exist, there are 4") << answer


@pytest.mark.proves("VU-RING-7")
@pytest.mark.parametrize("index", [256, 65536, 65537, 0xFFFFFFFF])
def test_a_ring_index_is_compared_with_all_of_its_bits(index: int) -> None:
    negotiated() >> ask(R.SET_VRING_NUM, VringState(index, 256)) << refused(PayloadError, f"vring {index}") << silence


def test_every_request_about_a_ring_is_in_the_list() -> None:
    with_ring = {row.number for row in FRONTEND_REQUESTS.values() if row.payload in (VringState, VringAddr, VringFd)}
    assert with_ring == {request for request, _ in RING_REQUESTS}


@pytest.mark.proves("VU-RING-8")
@pytest.mark.parametrize("kick", [VringFd(2), VringFd(2, no_fd=True)], ids=["eventfd", "polling"])
def test_a_kick_descriptor_starts_its_ring_and_no_other(kick: VringFd) -> None:
    book = negotiated()
    book >> ask(R.SET_VRING_KICK, kick) << silence
    assert [status(book, index)[0] for index in range(4)] == [False, False, True, False]
    assert not book.session.suspended


@pytest.mark.proves("VU-RING-9")
def test_a_kick_by_message_starts_its_ring() -> None:
    book = negotiated()
    book >> ask(R.VRING_KICK, VringState(1, 0)) << silence
    assert status(book, 1) == (True, False)


@pytest.mark.proves("VU-RING-10")
@pytest.mark.parametrize("request_", [R.GET_VRING_BASE, R.GET_VRING_BASE_SKIP_DRAIN])
def test_getting_the_base_stops_the_ring_and_leaves_it_enabled(request_: FrontendRequest) -> None:
    book = started()
    book >> ask(R.SET_VRING_ENABLE, VringState(0, 1)) << silence
    assert status(book) == (True, True)
    book >> ask(request_, VringState(0, 0)) >> Done(VringState(0, 9)) << reply(VringState(0, 9))
    assert status(book) == (False, True)


@pytest.mark.proves("VU-RING-31")
@pytest.mark.parametrize("num", [0, 1, 0xFFFFFFFF])
def test_what_is_reserved_beside_a_ring_index_is_not_looked_at(num: int) -> None:
    book = started()
    book >> ask(R.GET_VRING_BASE, VringState(0, num)) >> Done(VringState(0, 9)) << reply(VringState(0, 9))
    book >> ask(R.VRING_KICK, VringState(0, num)) << silence
    assert status(book) == (True, False)


@pytest.mark.proves("VU-RING-11")
def test_a_ring_that_was_never_set_has_a_base(book: Playbook) -> None:
    for _ in range(2):
        book >> ask(R.GET_VRING_BASE, VringState(3, 0)) >> Done(VringState(3, 0)) << reply(VringState(3, 0))


@pytest.mark.proves("VU-RING-12")
@pytest.mark.parametrize("num", [0, 32769, 65536, 0xFFFFFFFF])
@pytest.mark.parametrize("layout", [0, F.RING_PACKED])
def test_a_ring_size_out_of_range_is_refused(num: int, layout: int) -> None:
    book = negotiated(virtio_features=F.PROTOCOL_FEATURES | layout)
    book >> ask(R.SET_VRING_NUM, VringState(1, num)) << refused(PayloadError, rf"{num} is not in 1\.\.32768") << silence


@pytest.mark.proves("VU-RING-12")
def test_a_split_ring_has_a_power_of_two() -> None:
    book = negotiated()
    for num in (1, 2, 256, 32768):
        book >> ask(R.SET_VRING_NUM, VringState(1, num)) << silence
    for num in (3, 255, 32767):
        problem = rf"SET_VRING_NUM: {num} is not a power of two \(vring 1\)"
        book >> ask(R.SET_VRING_NUM, VringState(1, num)) << refused(PayloadError, problem) << silence


@pytest.mark.proves("VU-RING-12")
def test_a_packed_ring_has_any_size() -> None:
    negotiated(virtio_features=F.RING_PACKED) >> ask(R.SET_VRING_NUM, VringState(0, 255)) << silence


@pytest.mark.proves("VU-RING-12")
def test_the_offer_bounds_the_ring_size() -> None:
    book = Playbook(offer(max_vring_num=1024))
    book >> ask(R.SET_VRING_NUM, VringState(0, 1024)) << silence
    book >> ask(R.SET_VRING_NUM, VringState(0, 2048)) << refused(PayloadError, r"not in 1\.\.1024") << silence


@pytest.mark.proves("VU-RING-13")
@pytest.mark.parametrize(
    "spec",
    [row for row in FRONTEND_REQUESTS.values() if row.state is LegalState.RING_STOPPED],
    ids=lambda row: row.name,
)
def test_what_a_started_ring_relies_on_does_not_change(spec: RequestSpec) -> None:
    book = started(1)
    book >> ask(spec.number, VringState(1, 1)) << refused(StateError, f"{spec.name}: vring 1 is started") << silence
    book >> ask(spec.number, VringState(0, 1)) << silence


@pytest.mark.proves("VU-RING-14")
def test_a_split_base_has_sixteen_bits_and_a_packed_one_all() -> None:
    book = negotiated()
    book >> ask(R.SET_VRING_BASE, VringState(0, 0xFFFF)) << silence
    book >> ask(R.SET_VRING_BASE, VringState(0, 0x10000)) << refused(PayloadError, "0x10000 is above 0xffff") << silence
    book = negotiated(virtio_features=F.RING_PACKED)
    book >> ask(R.SET_VRING_BASE, VringState(0, 0x80008000)) << silence


@pytest.mark.proves("VU-PACKED-1")
@given(st.integers(0, 0x7FFF), st.booleans(), st.integers(0, 0x7FFF), st.booleans(), st.integers(1, MAX_VRING_NUM))
def test_a_packed_base_lies_in_the_ring(avail: int, avail_wrap: bool, used: int, used_wrap: bool, num: int) -> None:
    base = avail | avail_wrap << 15 | used << 16 | used_wrap << 31
    if max(avail, used) < num:
        check_packed_base(3, base, num)
        return
    slot = f"avail slot {avail}" if avail >= num else f"used slot {used}"
    with pytest.raises(PayloadError, match=rf"{slot} of {base:#x} is not below the size {num} \(vring 3\)"):
        check_packed_base(3, base, num)


@pytest.mark.proves("VU-RING-15")
@pytest.mark.parametrize(
    ("layout", "part", "address", "legal"),
    [
        (0, "descriptor", 8, False),
        (0, "available", 1, False),
        (0, "available", 2, True),
        (0, "used", 2, False),
        (0, "used", 4, True),
        (F.RING_PACKED, "descriptor", 8, False),
        (F.RING_PACKED, "available", 2, False),
        (F.RING_PACKED, "used", 2, False),
        (F.RING_PACKED, "available", 4, True),
    ],
)
def test_ring_addresses_are_aligned(layout: int, part: str, address: int, legal: bool) -> None:
    book = negotiated(virtio_features=layout)
    parts = {"descriptor": 0, "used": 0, "available": 0, part: address}
    book >> ask(R.SET_VRING_ADDR, VringAddr(index=0, flags=0, log=1, **parts))
    if not legal:
        book << refused(PayloadError, f"SET_VRING_ADDR: {part} {address:#x} is not a multiple of")
    book << silence


@pytest.mark.proves("VU-RING-16", "VU-RING-17")
def test_addresses_and_descriptors_of_a_started_ring_may_be_replaced() -> None:
    book = started()
    book >> ask(R.SET_VRING_ADDR, VringAddr(0, 1, 0x1000, 0x2000, 0x3000, 0x2000)) << silence
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        book >> ask(request, VringFd(0)) << silence
    assert status(book) == (True, False)


@pytest.mark.proves("VU-RING-18")
@pytest.mark.parametrize("request_", [R.RESET_OWNER, R.RESET_DEVICE])
def test_a_reset_disables_and_stops_every_ring(request_: FrontendRequest) -> None:
    book = started()
    book >> ask(R.SET_VRING_ENABLE, VringState(1, 1)) << silence
    book >> ask(request_) << silence
    assert [status(book, index) for index in range(4)] == [(False, False)] * 4
    assert book.session.protocol_features == WITHOUT_XEN


@pytest.mark.proves("VU-RING-19")
@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_VRING_ERR])
def test_notification_descriptors_come_at_any_time(book: Playbook, request_: FrontendRequest) -> None:
    book >> ask(request_, VringFd(0)) << silence
    book >> ask(request_, VringFd(0, no_fd=True)) << silence
    assert status(book) == (False, False)


@pytest.mark.proves("VU-RING-20")
def test_device_state_moves_while_all_rings_are_stopped() -> None:
    book = started(2)
    frame = ask(R.SET_DEVICE_STATE_FD, DeviceState(0, 0))
    book >> frame << refused(StateError, r"vrings \[2\] are started") << reply(U64(0x101))
    book >> ask(R.GET_VRING_BASE, VringState(2, 0)) >> Done(VringState(2, 0)) << reply(VringState(2, 0))
    book >> frame >> Done(U64(0x100)) << reply(U64(0x100))

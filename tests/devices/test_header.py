"""virtio_net_hdr: what a driver may ask for, by what it negotiated."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.devices.net.features import REQUIRES, SUPPORTED, NetFeature, consistent, header_size
from vhostuser.devices.net.header import judge
from vhostuser.frontend.net import NetHeader
from vhostuser.virtio.features import VirtioFeature

F = NetFeature
FRAME = 1514
NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
ALL = int(SUPPORTED)
TSO = F.CSUM | F.HOST_TSO4 | F.HOST_TSO6

GOOD = {
    "nothing asked": (0, NetHeader()),
    "checksum": (F.CSUM, NetHeader(flags=NEEDS_CSUM, csum_start=34, csum_offset=16)),
    "checksum in the last two bytes": (F.CSUM, NetHeader(flags=NEEDS_CSUM, csum_start=FRAME - 2)),
    "hdr_len is the frame": (0, NetHeader(hdr_len=FRAME)),
    "TSO4": (TSO, NetHeader(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16)),
    "TSO6": (TSO, NetHeader(NEEDS_CSUM, TCPV6, 74, 1428, 54, 16)),
    "TSO4 with ECN": (TSO | F.HOST_ECN, NetHeader(NEEDS_CSUM, TCPV4 | ECN, 54, 1448, 34, 16)),
    "TSO6 with ECN": (TSO | F.HOST_ECN, NetHeader(NEEDS_CSUM, TCPV6 | ECN, 74, 1428, 54, 16)),
    "UFO": (F.CSUM | F.HOST_UFO, NetHeader(NEEDS_CSUM, UDP, 42, 1480, 34, 6)),
    "USO": (F.CSUM | F.HOST_USO, NetHeader(NEEDS_CSUM, UDP_L4, 42, 1472, 34, 6)),
    "gso_size 1": (TSO, NetHeader(NEEDS_CSUM, TCPV4, 54, 1, 34, 16)),
    "fields without their flag mean nothing": (0, NetHeader(csum_start=0xFFFF, csum_offset=0xFFFF, gso_size=0xFFFF)),
    "num_buffers means nothing": (0, NetHeader(num_buffers=0xFFFF)),
}
BAD = {
    "checksum not negotiated": (0, NetHeader(flags=NEEDS_CSUM, csum_start=34, csum_offset=16)),
    "csum_start beyond the frame": (ALL, NetHeader(flags=NEEDS_CSUM, csum_start=FRAME)),
    "csum_start one byte too far": (ALL, NetHeader(flags=NEEDS_CSUM, csum_start=FRAME - 1)),
    "csum_offset beyond the frame": (ALL, NetHeader(flags=NEEDS_CSUM, csum_start=34, csum_offset=FRAME - 35)),
    "csum_start and csum_offset wrap 16 bits": (ALL, NetHeader(flags=NEEDS_CSUM, csum_start=0xFFFF, csum_offset=35)),
    "both at their most": (ALL, NetHeader(flags=NEEDS_CSUM, csum_start=0xFFFF, csum_offset=0xFFFF)),
    "hdr_len beyond the frame": (ALL, NetHeader(hdr_len=FRAME + 1)),
    "hdr_len 65535": (ALL, NetHeader(NEEDS_CSUM, TCPV4, 0xFFFF, 1448, 34, 16)),
    "gso_size 0": (ALL, NetHeader(NEEDS_CSUM, TCPV4, 54, 0, 34, 16)),
    "gso_size 0 with UFO": (ALL, NetHeader(NEEDS_CSUM, UDP, 42, 0, 34, 6)),
    "TSO4 not negotiated": (ALL & ~F.HOST_TSO4, NetHeader(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16)),
    "TSO6 not negotiated": (ALL & ~F.HOST_TSO6, NetHeader(NEEDS_CSUM, TCPV6, 74, 1428, 54, 16)),
    "UFO not negotiated": (ALL & ~F.HOST_UFO, NetHeader(NEEDS_CSUM, UDP, 42, 1480, 34, 6)),
    "USO not negotiated": (ALL & ~F.HOST_USO, NetHeader(NEEDS_CSUM, UDP_L4, 42, 1472, 34, 6)),
    "ECN not negotiated": (ALL & ~F.HOST_ECN, NetHeader(NEEDS_CSUM, TCPV4 | ECN, 54, 1448, 34, 16)),
    "ECN alone": (ALL, NetHeader(gso_type=ECN)),
    "ECN alone with a size": (ALL, NetHeader(gso_type=ECN, gso_size=1448)),
    "ECN with UFO": (ALL, NetHeader(NEEDS_CSUM, UDP | ECN, 42, 1480, 34, 6)),
    "ECN with USO": (ALL, NetHeader(NEEDS_CSUM, UDP_L4 | ECN, 42, 1472, 34, 6)),
    **{
        f"gso_type {kind:#x}": (ALL, NetHeader(NEEDS_CSUM, kind, 54, 1448, 34, 16))
        for kind in (2, 6, 7, 8, 0x10, 0x20, 0x40, 0x41, 0x7F, 0xFF)
    },
}


@pytest.mark.proves("VIO-NET-3")
@pytest.mark.parametrize("size", [10, 12])
@pytest.mark.parametrize("name", GOOD)
def test_headers_that_are_right(name: str, size: int) -> None:
    features, header = GOOD[name]
    assert judge(header.pack(size), FRAME, features) == (True, header.pack(size))


@pytest.mark.proves("VIO-NET-3")
@pytest.mark.parametrize("size", [10, 12])
@pytest.mark.parametrize("name", BAD)
def test_headers_that_are_wrong(name: str, size: int) -> None:
    features, header = BAD[name]
    assert judge(header.pack(size), FRAME, features)[0] is False


@pytest.mark.proves("VIO-NET-4")
@pytest.mark.parametrize("flags", [DATA_VALID, RSC_INFO, DATA_VALID | RSC_INFO, 0xF8, 0xFE])
def test_flags_that_only_receiving_has_are_cleared(flags: int) -> None:
    plain = NetHeader(csum_start=34, csum_offset=16)
    wanted = NetHeader(NEEDS_CSUM, 0, csum_start=34, csum_offset=16)
    assert judge(NetHeader(flags, csum_start=34, csum_offset=16).pack(12), FRAME, ALL) == (True, plain.pack(12))
    sent = NetHeader(flags | NEEDS_CSUM, csum_start=34, csum_offset=16)
    assert judge(sent.pack(12), FRAME, ALL) == (True, wanted.pack(12))


OFFLOADS = {TCPV4: F.HOST_TSO4, TCPV6: F.HOST_TSO6, UDP: F.HOST_UFO, UDP_L4: F.HOST_USO}
HEADERS = st.builds(
    NetHeader,
    st.one_of(st.sampled_from([0, NEEDS_CSUM]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, *OFFLOADS, TCPV4 | ECN, TCPV6 | ECN, ECN]), st.integers(0, 255)),
    *[st.one_of(st.integers(0, 1600), st.integers(0, 0xFFFF)) for _ in range(4)],
)
FEATURES = st.lists(st.sampled_from([*OFFLOADS.values(), F.CSUM, F.HOST_ECN]), unique=True).map(
    lambda bits: sum(int(bit) for bit in bits)
)


@pytest.mark.proves("VIO-NET-3")
@given(HEADERS, st.integers(14, 1600), FEATURES)
def test_the_verdict_is_the_specifications(header: NetHeader, frame: int, features: int) -> None:
    kind, ecn = header.gso_type & ~ECN, bool(header.gso_type & ECN)
    right = header.hdr_len <= frame
    if header.flags & NEEDS_CSUM:
        right &= bool(features & F.CSUM) and header.csum_start + header.csum_offset + 2 <= frame
    if header.gso_type:
        right &= kind in OFFLOADS and bool(features & OFFLOADS[kind]) and header.gso_size > 0
        right &= not ecn or (kind in (TCPV4, TCPV6) and bool(features & F.HOST_ECN))
    assert judge(header.pack(12), frame, features)[0] is right


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-NET-1")
@pytest.mark.parametrize(
    ("features", "size"),
    [(0, 10), (F.CSUM, 10), (F.MRG_RXBUF, 12), (VirtioFeature.VERSION_1, 12), (SUPPORTED, 12)],
)
def test_header_size(features: int, size: int) -> None:
    assert header_size(features) == size


WORDS = st.lists(st.sampled_from([*F, VirtioFeature.VERSION_1, 1 << 30]), unique=True).map(
    lambda bits: sum(int(bit) for bit in bits)
)


@pytest.mark.proves("VIO-NET-2")
@given(WORDS)
def test_no_feature_stays_without_what_it_needs(features: int) -> None:
    kept = consistent(features)
    assert kept & ~features == 0
    assert consistent(kept) == kept
    for bit, needed in REQUIRES.items():
        assert not kept & bit or kept & needed
    for bit in F:  # and nothing else is lost
        if features & bit and not kept & bit:
            assert bit in REQUIRES


def test_requirements_of_requirements() -> None:
    assert consistent(F.HOST_ECN | F.HOST_TSO4) == 0
    assert consistent(F.GUEST_ECN | F.GUEST_TSO6 | F.CSUM) == F.CSUM
    whole = int(SUPPORTED | VirtioFeature.VERSION_1)
    assert consistent(whole) == whole
    assert consistent(0) == 0


def test_bits_that_are_not_the_networks_stay() -> None:
    others = ((1 << 64) - 1) & ~sum(int(bit) for bit in F)
    assert consistent(others) == others


def test_judging_leaves_the_given_header_alone() -> None:
    header = os.urandom(12)
    copy = bytes(header)
    judge(header, FRAME, ALL)
    assert header == copy

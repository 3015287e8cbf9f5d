"""Messages in words: names and values where they can be read, and never an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transcript.conversations import NEED_REPLY, answers, asks
from vhostuser.session.witness import Side
from vhostuser.transcript.entries import Descriptor, Kind, Said
from vhostuser.transcript.wording import sentence_of, values_of
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.messages import U64, Log, MemoryRegion, MemoryTable, VringFd, VringState
from vhostuser.wire.requests import BackendRequest, FrontendRequest

R, B = FrontendRequest, BackendRequest
SENTENCES = [
    (asks(R.GET_FEATURES), "GET_FEATURES"),
    (answers(R.GET_FEATURES, U64(0x100000004)), "GET_FEATURES reply 0x100000004"),
    (asks(R.SET_FEATURES, U64(0), NEED_REPLY), "SET_FEATURES 0x0 need_reply"),
    (answers(R.SET_FEATURES, U64(0)), "SET_FEATURES ack 0"),
    (answers(R.SET_OWNER, U64(22)), "SET_OWNER ack 22"),
    (asks(R.SET_PROTOCOL_FEATURES, U64(9)), "SET_PROTOCOL_FEATURES 0x9 (MQ, REPLY_ACK)"),
    (answers(R.GET_QUEUE_NUM, U64(2)), "GET_QUEUE_NUM reply 2"),
    (answers(R.SET_LOG_BASE, Log(8, 0)), "SET_LOG_BASE reply mmap_size=8 mmap_offset=0"),
    (answers(R.GET_VRING_BASE, VringState(1, 7)), "GET_VRING_BASE reply index=1 num=7"),
    (answers(R.GET_VRING_BASE), "GET_VRING_BASE reply"),
    (asks(R.SET_VRING_KICK, VringFd(1, True, 3)), "SET_VRING_KICK index=1 no_fd reserved=0x3"),
    (
        asks(R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 1, 2, 3), MemoryRegion(4, 5, 6, 7)))),
        "SET_MEM_TABLE guest_phys_addr=0 memory_size=1 userspace_addr=2 mmap_offset=3; "
        "guest_phys_addr=4 memory_size=5 userspace_addr=6 mmap_offset=7",
    ),
    (Said(Side.BACKEND, B.VRING_CALL, 1, b"\2" + bytes(7), own_channel=True), "VRING_CALL index=2 num=0"),
    (Said(Side.FRONTEND, B.SHMEM_MAP, 5, bytes(8), own_channel=True), "SHMEM_MAP ack 0"),
    (Said(Side.FRONTEND, 99, 0x101, b"ab", size=7), "request 99 6162 flags=0x101 size=7"),
    (Said(Side.FRONTEND, R.SET_VRING_NUM, 1, b"odd"), "SET_VRING_NUM 6f6464"),
    (Said(Side.FRONTEND, 99, 1, bytes(33)), f"request 99 {'00' * 32}…"),
]


@pytest.mark.parametrize(("said", "sentence"), SENTENCES, ids=[sentence[:40] for _, sentence in SENTENCES])
def test_messages_have_sentences(said: Said, sentence: str) -> None:
    assert sentence_of(said) == sentence


@pytest.mark.parametrize(
    ("fd", "words"),
    [
        (Descriptor("memory 0", Kind.MEMORY, size=3 << 20, seals=6), "memory 0 (memory, 3 MiB, sealed GROW|SHRINK)"),
        (Descriptor("m", Kind.MEMORY, size=1 << 30, block=2 << 20), "m (memory, 1 GiB, pages of 2 MiB)"),
        (Descriptor("m", Kind.MEMORY, size=1000), "m (memory, 1000 bytes)"),
        (Descriptor("kick 0", Kind.EVENTFD), "kick 0 (eventfd)"),
        (Descriptor("f", Kind.FILE, path="/tmp/\x1b[2J"), "f (file, /tmp/\\x1b[2J)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_descriptors_have_words(fd: Descriptor, words: str) -> None:
    assert sentence_of(asks(R.SET_OWNER, None, 1, fd)) == f"SET_OWNER with {words}"


def test_feature_bits_have_names_where_they_are_brought() -> None:
    said = answers(R.GET_FEATURES, U64(1 << 32 | 1 << 5))
    assert values_of(said, [VirtioFeature]) == "0x100000020 (bit 5, VERSION_1)"


@given(
    st.builds(
        Said,
        st.sampled_from(Side),
        st.integers(0, 60) | st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=80),
        st.none() | st.integers(0, 2**32 - 1),
        own_channel=st.booleans(),
    )
)
def test_any_message_has_a_sentence_of_one_line(said: Said) -> None:
    assert sentence_of(said).isprintable()

"""The channel against a raw socket: what a peer may do to a stream, and what becomes of its descriptors."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from vhostuser.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vhostuser.limits import Limits
from vhostuser.transport.channel import Channel
from vhostuser.wire.frames import Frame, LentFds

PROPERTY = settings(max_examples=50, deadline=None, derandomize=REPEATABLE)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SET_VRING_KICK = Frame(12, 0x1, struct.pack("=Q", 1))
GET_FEATURES = Frame(1, 0x1)


def make_pair(limits: Limits | None = None) -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(trio.socket.from_stdlib_socket(ours), limits), theirs


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Channel, socket.socket]]:
    channel, peer = make_pair()
    with peer:
        async with channel:
            yield channel, peer


@contextmanager
def memfds(count: int) -> Iterator[list[int]]:
    """Descriptors to pass; each shows in the target which one it is."""
    fds = [os.memfd_create(f"fd{i}", os.MFD_CLOEXEC) for i in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def send(peer: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert peer.sendmsg([data], ancillary) == len(data)


def targets(frame: Frame) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}").split()[0] for fd in frame.fds.filenos()]


####
# Whole messages, however they come
####


async def test_a_frame_arrives_as_sent(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    send(peer, SET_VRING_KICK.encode())
    frame = await channel.receive()
    assert (frame.request, frame.flags, frame.payload, len(frame.fds)) == (12, 0x1, SET_VRING_KICK.payload, 0)


async def test_single_bytes_make_a_frame(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    for byte in SET_VRING_KICK.encode():
        send(peer, bytes([byte]))
    assert (await channel.receive()).payload == SET_VRING_KICK.payload


async def test_bytes_may_come_while_the_receiver_waits(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    frames: list[Frame] = []

    async def receive() -> None:
        frames.append(await channel.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for byte in SET_VRING_KICK.encode():
            await trio.testing.wait_all_tasks_blocked()
            assert frames == []
            send(peer, bytes([byte]))
    assert frames[0].payload == SET_VRING_KICK.payload


@PROPERTY
@given(payloads=st.lists(st.binary(max_size=64), min_size=1, max_size=5), data=st.data())
def test_any_split_of_the_stream_gives_the_same_frames(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(Frame(1, 0x1, payload).encode() for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    async def main() -> list[bytes]:
        channel, peer = make_pair()
        with peer:
            async with channel:
                for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                    send(peer, stream[begin:end])
                return [(await channel.receive()).payload for _ in payloads]

    assert trio.run(main) == payloads


async def test_a_message_of_the_longest_payload(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    send(peer, Frame(5, 0x1, bytes(4096)).encode())
    assert len((await channel.receive()).payload) == 4096


async def test_descriptors_of_joined_messages_stay_with_their_message(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(3) as fds:
        send(peer, GET_FEATURES.encode())
        send(peer, SET_VRING_KICK.encode(), fds[:1])
        send(peer, SET_VRING_KICK.encode() + GET_FEATURES.encode(), fds[1:])
        send(peer, SET_VRING_KICK.encode())
    seen = []
    for _ in range(5):
        with (frame := await channel.receive()).fds:
            seen.append(targets(frame))
    assert seen == [[], ["/memfd:fd0"], ["/memfd:fd1", "/memfd:fd2"], [], []]


async def test_received_descriptors_are_not_inherited(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(1) as fds:
        os.set_inheritable(fds[0], True)
        send(peer, SET_VRING_KICK.encode(), fds)
    with (await channel.receive()).fds as bundle:
        assert not os.get_inheritable(bundle.filenos()[0])


async def test_descriptors_may_come_late_in_a_header_that_is_split(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    data = SET_VRING_KICK.encode()
    with memfds(1) as fds:
        send(peer, data[:5])
        send(peer, data[5:], fds)
    with (frame := await channel.receive()).fds:
        assert targets(frame) == ["/memfd:fd0"]


async def test_as_many_descriptors_as_the_kernel_passes(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(1) as fds:
        send(peer, SET_VRING_KICK.encode(), fds * 253)
    with (await channel.receive()).fds as bundle:
        assert len(bundle) == 253


async def test_credentials_are_ignored() -> None:
    channel, peer = make_pair()
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with peer:
        async with channel:
            with memfds(1) as fds:
                send(peer, SET_VRING_KICK.encode(), fds * 253)
            with (await channel.receive()).fds as bundle:
                assert len(bundle) == 253


####
# The peer closes
####


async def test_end_between_messages(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    send(peer, GET_FEATURES.encode())
    peer.close()
    await channel.receive()
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match=r"^closed$"):
            await channel.receive()


@pytest.mark.parametrize("count", range(1, 20))
async def test_end_in_the_middle(count: int, pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(2) as fds:
        send(peer, SET_VRING_KICK.encode()[:count], fds)
    peer.close()
    where = f"{count} of 12 header" if count < 12 else f"{count - 12} of 8 payload"
    with pytest.raises(ConnectionClosedError, match=f"closed after {where} bytes"):
        await channel.receive()


async def test_reset_by_a_peer_that_left_our_bytes_unread(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    await channel.send(GET_FEATURES)
    peer.close()
    with pytest.raises(ConnectionClosedError):
        await channel.receive()


async def test_send_to_a_closed_peer(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.close()
    with pytest.raises(ConnectionClosedError, match="Broken pipe"):
        await channel.send(GET_FEATURES)


####
# The peer breaks the stream
####


@pytest.mark.parametrize("header", [Frame(1, 0x0), Frame(1, 0x2), Frame(1, 0x3), Frame(1, 0x1, size=4097)])
async def test_bad_header(header: Frame, pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(1) as fds:
        send(peer, header.encode(), fds)
    with pytest.raises(FramingError):
        await channel.receive()
    with pytest.raises(FramingError, match="left unfinished"):
        await channel.receive()


async def test_descriptors_on_payload_bytes(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    data = SET_VRING_KICK.encode()
    with memfds(3) as fds:
        send(peer, data[:12], fds[:1])
        send(peer, data[12:], fds[1:])
    with pytest.raises(FramingError, match="2 descriptors with payload bytes"):
        await channel.receive()


async def test_two_blocks_of_descriptors_in_one_header(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    data = SET_VRING_KICK.encode()
    with memfds(1) as fds:
        send(peer, data[:4], fds * 200)
        send(peer, data[4:], fds * 100)
    with pytest.raises(FramingError, match="second block"):
        await channel.receive()


async def test_truncated_descriptors(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    # As if this process could open only two more: the kernel delivers those and drops the rest.
    monkeypatch.setattr("vhostuser.transport.channel._CONTROL_SIZE", socket.CMSG_LEN(2 * 4))
    channel, peer = pair
    with memfds(1) as fds:
        send(peer, SET_VRING_KICK.encode(), fds * 5)
    with pytest.raises(FramingError, match="MSG_CTRUNC"):
        await channel.receive()


@pytest.mark.parametrize("count", range(1, 20))
async def test_stall_in_the_middle(count: int, autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair(Limits(message_timeout=30))
    with peer:
        async with channel:
            with memfds(2) as fds:
                send(peer, SET_VRING_KICK.encode()[:count], fds)
            where = f"{count} of 12 header" if count < 12 else f"{count - 12} of 8 payload"
            with pytest.raises(FramingError, match=f"stalled: {where} bytes after 30 s"):
                await channel.receive()
            assert trio.current_time() == pytest.approx(30, abs=1)


async def test_silence_between_messages_has_no_limit(autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair()
    with peer:
        async with channel:
            with trio.move_on_after(3600) as scope:
                await channel.receive()
            assert scope.cancelled_caught


async def receive_for_ever(channel: Channel) -> None:
    while True:
        (await channel.receive()).fds.close()


@PROPERTY
@given(st.binary(max_size=64), st.integers(0, 3))
def test_any_bytes_end_in_a_documented_error(data: bytes, fd_count: int) -> None:
    async def main() -> None:
        channel, peer = make_pair()
        async with channel:
            with memfds(fd_count) as fds, peer:
                send(peer, data, fds)
            with pytest.raises((ConnectionClosedError, FramingError)):
                await receive_for_ever(channel)

    trio.run(main)


####
# Sending
####


async def test_send_carries_borrowed_descriptors(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with memfds(2) as fds:
        await channel.send(Frame(12, 0x1, b"\0" * 8, LentFds(fds)))
        data, [(_, _, block)], _, _ = peer.recvmsg(100, 1024)
        received = list(array.array("i", block))
        assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in fds]
    for fd in received:
        os.close(fd)
    assert data == struct.pack("=III", 12, 0x1, 8) + b"\0" * 8


@pytest.mark.proves("VU-FRONT-1")
async def test_a_long_frame_goes_in_parts_with_descriptors_on_the_first(autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair()
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    payload = os.urandom(100_000)
    read: list[tuple[bytes, int]] = []

    async def drain() -> None:
        reader = trio.socket.from_stdlib_socket(peer)
        while sum(len(data) for data, _ in read) < len(payload) + 12:
            data, ancillary, _, _ = await reader.recvmsg(1 << 20, 1024)
            for _, _, block in ancillary:
                for fd in array.array("i", block):
                    os.close(fd)
            read.append((data, len(ancillary)))

    with peer:
        async with channel, trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            with memfds(1) as fds:
                await channel.send(Frame(24, 0x5, payload, LentFds(fds)))
    assert b"".join(data for data, _ in read)[12:] == payload
    assert [blocks for _, blocks in read] == [1] + [0] * (len(read) - 1)
    assert len(read) > 1


async def test_a_peer_that_never_reads(autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair(Limits(send_timeout=5))
    with peer:
        async with channel:

            async def flood() -> None:
                while True:
                    await channel.send(Frame(1, 0x5, bytes(8)))

            with pytest.raises(FramingError, match="reads too slowly"):
                await flood()
            assert trio.current_time() == pytest.approx(5, abs=1)


async def test_an_unfinished_send_makes_the_stream_unusable(autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair()
    with peer:
        async with channel:
            with trio.move_on_after(1) as scope:
                await channel.send(Frame(1, 0x5, bytes(1 << 20)))
            assert scope.cancelled_caught
            with pytest.raises(FramingError, match="left unfinished while sending"):
                await channel.send(GET_FEATURES)


async def test_too_many_descriptors_in_flight(
    pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, _ = pair

    async def refuse(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")

    monkeypatch.setattr(channel._socket, "sendmsg", refuse)
    with pytest.raises(FramingError, match="too many are in flight"):
        await channel.send(GET_FEATURES)


async def test_more_descriptors_than_the_kernel_passes(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    with memfds(1) as fds, pytest.raises(LocalProtocolError, match="254 descriptors"):
        await channel.send(Frame(1, 0x1, fds=LentFds(fds * 254)))


####
# Tasks
####


async def test_cancelled_before_the_first_byte_the_stream_goes_on(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive()
    send(peer, GET_FEATURES.encode())
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive()
    assert (await channel.receive()).request == 1


async def test_cancelled_in_the_middle_nothing_leaks(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.receive)
        with memfds(2) as fds:
            send(peer, SET_VRING_KICK.encode()[:15], fds)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(FramingError, match="left unfinished while receiving"):
        await channel.receive()


async def test_two_receivers_conflict(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await channel.receive()
        nursery.cancel_scope.cancel()


async def test_two_senders_conflict(autojump_clock: trio.testing.MockClock) -> None:
    channel, peer = make_pair()
    with peer:
        async with channel, trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, Frame(1, 0x5, bytes(1 << 20)))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="sending"):
                await channel.send(GET_FEATURES)
            nursery.cancel_scope.cancel()


async def test_closing_wakes_the_receiver(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await channel.aclose()


async def test_a_closed_channel_says_so(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    await channel.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()
    with pytest.raises(trio.ClosedResourceError):
        await channel.send(GET_FEATURES)

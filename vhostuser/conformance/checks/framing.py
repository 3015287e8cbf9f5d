"""Headers, where messages begin and end, and who is served when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY, REPLY, REQUEST
from vhostuser.conformance.violation import Violation
from vhostuser.errors import ConnectionClosedError
from vhostuser.wire import layouts
from vhostuser.wire.frames import HEADER_SIZE, MAX_PAYLOAD
from vhostuser.wire.messages import U64, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, RequestSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostuser.conformance.probe import Probe

R = FrontendRequest
_ENOUGH = 100_000  # requests whose answers fill any socket's buffers


@checks("VU-HDR-1")
async def a_message_may_come_in_pieces(probe: Probe) -> None:
    connection = await probe.negotiated()
    call = probe.eventfd(name="call")
    for sizes in ([1] * (HEADER_SIZE + 7), [HEADER_SIZE], [7]):
        await connection.send(connection.frame(R.SET_VRING_CALL, VringFd(0), [call], flags=REQUEST), pieces=sizes)
        await connection.talks()


@checks("VU-HDR-1")
async def messages_may_come_in_one_piece(probe: Probe) -> None:
    connection = await probe.negotiated()
    features = connection.frame(R.SET_FEATURES, U64(connection.features), flags=REQUEST)
    question = connection.frame(R.GET_FEATURES, flags=REQUEST)
    await connection.send_joined(*(features, question) * 3)
    for _ in range(3):
        answer = await connection.hear("an answer to each of three GET_FEATURES that came at once")
        if (answer.request, answer.payload) != (R.GET_FEATURES, layouts.build(U64(probe.offer.virtio))):
            raise Violation(f"three times SET_FEATURES and GET_FEATURES at once: {answer} came")


@checks("VU-HDR-2")
async def another_version_closes(probe: Probe) -> None:
    for version in (0, 2, 3):
        for request in (R.GET_FEATURES, R.SET_OWNER):
            connection = await probe.negotiated()
            await connection.closes(connection.frame(request, flags=version))


@checks("VU-HDR-3")
async def a_request_with_the_reply_flag_closes(probe: Probe) -> None:
    for flags in (REPLY, REPLY | NEED_REPLY):
        connection = await probe.negotiated()
        await connection.closes(connection.frame(R.GET_FEATURES, flags=flags))


@checks("VU-HDR-4")
async def a_payload_too_long_closes(probe: Probe) -> None:
    for size in (MAX_PAYLOAD + 1, 0x10000, 0xFFFFFFFF):
        connection = await probe.negotiated()
        await connection.closes(connection.frame(R.SET_MEM_TABLE, size=size))


@checks("VU-HDR-5")
async def reserved_flags_are_tolerated(probe: Probe) -> None:
    connection = await probe.negotiated()
    for bits in (0x10, 0x8000, 0x80000000, 0xFFFFFFF0):
        await connection.accepted(R.GET_FEATURES, flags=REQUEST | bits)


@checks("VU-HDR-6")
async def a_size_that_cannot_be_closes(probe: Probe) -> None:
    for spec in FRONTEND_REQUESTS.values():
        for size in _illegal_sizes(spec):
            connection = await probe.negotiated()
            await connection.closes(connection.frame(spec.number, bytes(size)))


def _illegal_sizes(spec: RequestSpec) -> Iterator[int]:
    """Just above and just below what a request's payload can have."""
    legal = layouts.legal_sizes(spec.payload)
    for size in (max(legal) + 1, min(legal) - 1):
        if 0 <= size <= MAX_PAYLOAD and size not in legal:
            yield size


@checks("VU-HDR-7")
async def a_reply_repeats_the_request(probe: Probe) -> None:
    connection = await probe.negotiated()
    connection.strict = True  # the number and the flags of each answer are looked at
    await connection.accepted(R.GET_FEATURES, flags=NEED_REPLY)
    await connection.accepted(R.GET_FEATURES, flags=REQUEST | 0x10)
    await connection.accepted(R.GET_VRING_BASE, VringState(0, 0), flags=NEED_REPLY)
    await connection.accepted(R.SET_VRING_NUM, VringState(0, 64))
    await connection.accepted(R.SET_OWNER)


@checks("VU-HDR-8")
async def an_unknown_request_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    for number in (0, 46, 0xFFFFFFFF):
        await connection.ignored(connection.frame(number, flags=REQUEST))
        await connection.refused(connection.frame(number))


@checks("VU-HDR-9", slow=True)
async def a_message_that_does_not_end_is_not_waited_for(probe: Probe) -> None:
    connection = await probe.negotiated()
    await trio.sleep(probe.patience.silence)  # between two messages
    await connection.talks()
    await connection.send(connection.frame(R.SET_FEATURES, U64(0)), cut=HEADER_SIZE + 4)
    await connection.closes_in_time("SET_FEATURES without the second half of its payload")


@checks("VU-HDR-9", slow=True)
async def who_reads_no_answers_is_not_waited_for(probe: Probe) -> None:
    connection = await probe.negotiated()
    # our end is full once theirs is, which is when they wait for us
    question = connection.frame(R.GET_FEATURES, flags=REQUEST)
    try:
        with trio.move_on_after(probe.patience.answer) as waiting:
            for _ in range(_ENOUGH):
                await connection.channel.send(question)
                waiting.deadline = trio.current_time() + probe.patience.answer
    except ConnectionClosedError:
        return
    with trio.move_on_after(probe.patience.limit):
        await connection.channel.wait_hangup()
        return
    raise Violation(f"GET_FEATURES again and again, no answer read: still open after {probe.patience.limit:g} s")


@checks("VU-COM-1")
async def a_second_front_end_waits(probe: Probe) -> None:
    first = await probe.negotiated()
    second = await probe.connect(beside=True)
    await second.unanswered(second.frame(R.GET_FEATURES, flags=REQUEST))
    await first.talks()
    first.close()
    answer = await second.hear("the answer to what the second front-end asked while the first was served")
    if answer.request != R.GET_FEATURES:
        raise Violation(f"the second front-end asked GET_FEATURES, {answer} came")

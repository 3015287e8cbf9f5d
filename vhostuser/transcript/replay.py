"""A recorded front-end is played to a live back-end, and what the back-end does differently now is told.

Must not know: how the back-end was started.

How: the player says what was said; answers are held against the recorded ones, request by request. What depends on
memory or traffic is not (``exchanges`` has the table): a recording has neither. The back-end's own requests are
answered, and not compared: whether they come depends on devices and rings. After a closing that was not recorded, the
rest of that connection counts as not played, and is one difference. At the end it has to answer one more front-end: of
the last message, or of the leaving, it may have died.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vhostuser.errors import VhostUserError
from vhostuser.transcript.compare import BACK_END, CONNECTION, Difference, answer_in_words, answered_differently
from vhostuser.transcript.entries import Closed, Entry, Said, Side, Transcript
from vhostuser.transcript.exchanges import Exchange, exchanges
from vhostuser.transcript.player import QUESTION, Connect, Heard, Performance, play
from vhostuser.transcript.staging import staged
from vhostuser.transcript.wording import name_of
from vhostuser.transport.channel import Channel

PATIENCE = 5.0
"""Seconds for an answer: a back-end may finish requests in flight first."""


async def replay(transcript: Transcript, connect: Connect, patience: float = PATIENCE) -> list[Difference]:
    """Play a recording's front-end.

    Args:
        transcript: The recording.
        connect: Opens a connection to the back-end.
        patience: Seconds to wait for an answer, and for closings that were recorded.

    Returns:
        What is different now; of each, ``one`` is what was recorded.

    Raises:
        VhostUserError: The back-end was not reached at all; as `connect` raised it.
        OSError: There are no more descriptors to be had.
    """
    steps = list(staged(transcript.entries))
    recorded = {exchange.number: exchange for exchange in exchanges(transcript.entries)}
    door = _Door(connect)
    performance = await play(
        [entry for _, entry in steps],
        door.connect,
        patience=patience,
        awaited=lambda at: isinstance(steps[at][1], Said) and bool(recorded[steps[at][0]].kinds),
    )
    if door.failure is not None and not door.opened:
        raise door.failure
    found = list(_differences(transcript.entries, recorded, performance, [number for number, _ in steps]))
    if performance.hung is None and performance.unreachable is None:
        fate = await _fate(connect, patience)
        found += [] if fate is None else [Difference(len(transcript.entries) - 1, None, BACK_END, "goes on", fate)]
    return found


class _Door:
    """The way to the back-end.

    Attributes:
        opened: Whether there ever was a connection.
        failure: Why the last one did not come about.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.opened = False
        self.failure: VhostUserError | None = None

    async def connect(self) -> Channel:
        try:
            channel = await self._connect()
        except VhostUserError as error:
            self.failure = error
            raise
        self.opened = True
        return channel


async def _fate(connect: Connect, patience: float) -> str | None:
    """What became of the back-end if it does not answer a next front-end; None if it does."""
    for _ in range(2):  # one that is about to end closes a connection that came meanwhile, and takes no other
        look = await play([QUESTION], connect, patience=patience)
        if look.heard:
            return None
        if look.unreachable is not None:
            return "is gone: takes no connection any more"
        if look.hung is not None:
            break
    return "does not answer the next front-end"


def _differences(
    entries: Sequence[Entry], recorded: Mapping[int, Exchange], performance: Performance, numbers: Sequence[int]
) -> Iterator[Difference]:
    """What is different; `numbers` are the entries' numbers by those of what was played."""
    present = _present(recorded, performance, numbers)
    end = numbers[performance.played] if performance.played < len(numbers) else len(entries)
    if performance.hung is not None:
        end = numbers[performance.hung]
    for connection, closer in _connections(entries):
        closed = next((numbers[at] for at in performance.closed if numbers[at] in connection), None)
        for number in connection:
            if number in recorded and number < end and (closed is None or number < closed or present[number].answers):
                yield from _contrast(recorded[number], present[number])
        if closed is not None:
            lost = any(recorded[number].kinds and not present[number].answers
                       for number in range(closed, connection.stop) if number in recorded)  # fmt: skip
            if lost or closer is not Side.BACKEND:
                yield _difference(recorded, closed, "closes the connection")
        elif closer is Side.BACKEND and connection.stop <= end:
            yield Difference(connection.stop - 1, None, CONNECTION, "the back-end closes it", "it stays open")
    if performance.hung is not None:
        yield _difference(recorded, numbers[performance.hung], "neither answers nor closes the connection any more")
    if performance.unreachable is not None:
        yield _difference(recorded, numbers[performance.unreachable], "takes no connection any more")


def _present(recorded: Mapping[int, Exchange], performance: Performance, numbers: Sequence[int]) -> dict[int, Exchange]:
    """The recorded messages with the answers that came now."""
    answers: defaultdict[int, list[Said]] = defaultdict(list)
    for heard in performance.heard:
        if not heard.own_channel:
            answers[numbers[heard.after if heard.answers is None else heard.answers]].append(_said(heard))
    return {number: replace(exchange, asked=replace(exchange.asked, answer=None), answers=tuple(answers[number]))
            for number, exchange in recorded.items()}  # fmt: skip


def _said(heard: Heard) -> Said:
    return Said(Side.BACKEND, heard.frame.request, heard.frame.flags, heard.frame.payload, fds=heard.fds)


def _contrast(recorded: Exchange, present: Exchange) -> Iterator[Difference]:
    if answered_differently(recorded, present):
        yield _difference({recorded.number: recorded}, recorded.number, answer_in_words(present))


def _difference(recorded: Mapping[int, Exchange], number: int, other: str) -> Difference:
    if number not in recorded:
        return Difference(number, None, CONNECTION, "goes on", other)
    exchange = recorded[number]
    return Difference(number, None, name_of(exchange.asked), answer_in_words(exchange), other)


def _connections(entries: Sequence[Entry]) -> Iterator[tuple[range, Side | None]]:
    """The numbers of each connection's entries, and who closed it."""
    begin = 0
    for number, entry in enumerate(entries):
        if isinstance(entry, Closed):
            yield range(begin, number + 1), entry.side
            begin = number + 1
    if begin < len(entries):
        yield range(begin, len(entries)), None

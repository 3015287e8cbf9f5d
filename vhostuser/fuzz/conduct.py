"""How front-ends were answered in a campaign: each request, how often and in which way, and what came of it.

Must not know: targets, chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import Enum

from vhostuser.errors import FdError, PayloadError, VhostUserError
from vhostuser.transcript.counterpart import Asked, Counterplay, is_turn
from vhostuser.transcript.entries import Closed, Entry, Paused, Said
from vhostuser.wire.codec import decode, decode_reply
from vhostuser.wire.frames import LentFds
from vhostuser.wire.requests import BACKEND_REQUESTS, FRONTEND_REQUESTS, Direction


class Way(Enum):
    """Ways to answer a request, or to say one."""

    WELL = "well"
    VALUES = "other values"
    FORM = "bad form"
    FDS = "descriptors"
    REFUSED = "refused"
    OFTEN = "often"
    LATE = "late"
    NEVER = "never"
    CLOSED = "closed"
    BESIDES = "besides"
    """Well, and something else happened that it was not about."""


class Conduct:
    """A place for each request of the front-end by the way of answering it, and for each of the back-end's own.

    Of the latter it counts how they were said.
    """

    title = "Answered, and asked on its own channel (own), in which way"
    columns = tuple(way.value for way in Way)

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Way]] = Counter()

    def rows(self) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
        """Each request that was said, by its name, and how often in each way."""
        names = [spec.name for spec in FRONTEND_REQUESTS.values()]
        names += [_own(number) for number in BACKEND_REQUESTS]
        for name in names:
            yield name, tuple((self._counts[name, way],) for way in Way)

    def unvisited(self) -> list[str]:
        """The requests that were never answered at all."""
        return [name for name, row in self.rows() if not any(count for (count,) in row)]

    def add(self, entries: Sequence[Entry], counterplay: Counterplay) -> set[tuple[object, ...]]:
        """Count a conversation, as far as it was played.

        Returns:
            What it did: each request, how it was answered, and what the front-end did then.
        """
        behaviour = set[tuple[object, ...]]()
        asked = counterplay.asked
        for at, question in enumerate(asked):
            name, way = _name(question.said.request), way_of(question, entries)
            self._counts[name, way] += 1
            behaviour.add((name, way, _name(asked[at + 1].said.request) if at + 1 < len(asked) else _end(counterplay)))
        for entry in entries[: counterplay.played]:
            if isinstance(entry, Said) and entry.own_channel and not entry.from_front_end:
                self._counts[_own(entry.request), own_way_of(entry)] += 1
        behaviour.update(("own", answer.request, bool(answer.value)) for answer in counterplay.own_answers)
        return behaviour


def following(entries: Sequence[Entry], cue: int) -> Iterator[Entry]:
    """What is done after a cue."""
    for entry in entries[cue + 1 :]:
        if is_turn(entry):
            return
        yield entry


def way_of(question: Asked, entries: Sequence[Entry]) -> Way:
    """How a message was answered in this conversation."""
    if not question.cue:
        return Way.WELL
    cue, acts = entries[question.after], list(following(entries, question.after))
    said = [act for act in acts if isinstance(act, Said) and not act.own_channel]
    if any(isinstance(act, Closed) for act in acts):
        return Way.CLOSED
    if not said:
        late = acts and all(isinstance(act, Paused) for act in acts)
        return Way.LATE if late else Way.BESIDES if acts else Way.WELL
    if len(said) > 1 or (isinstance(cue, Said) and cue.answer):
        return Way.OFTEN
    return _way_of_answer(question.said.request, question.good, said[0])


def _way_of_answer(request: int, good: Said | None, answer: Said) -> Way:
    if answer.cut == 0:
        return Way.NEVER
    spec = FRONTEND_REQUESTS.get(request)
    if spec is None or good is None or not answer.whole:
        return Way.FORM
    if answer.fds != good.fds:
        return Way.FDS
    if answer.payload == good.payload and answer.flags == good.flags and answer.request == good.request:
        return Way.WELL
    try:
        value = decode_reply(spec, answer.frame())
    except PayloadError:
        return Way.VALUES
    except VhostUserError:
        return Way.FORM
    return Way.VALUES if spec.accepts(value, len(answer.fds)) else Way.REFUSED


def own_way_of(said: Said) -> Way:
    """How a request of the back-end was said."""
    try:
        decode(Direction.BACKEND, said.frame(LentFds(range(len(said.fds)))))
    except FdError:
        return Way.FDS
    except PayloadError:
        return Way.VALUES
    except VhostUserError:
        return Way.FORM
    return Way.WELL if said.whole else Way.FORM


def _name(request: int) -> str:
    spec = FRONTEND_REQUESTS.get(request)
    return spec.name if spec else "an unknown request"


def _own(request: int) -> str:
    spec = BACKEND_REQUESTS.get(request)
    return f"own {spec.name}" if spec else "own, unknown"


def _end(counterplay: Counterplay) -> str:
    return "closed" if counterplay.closed else "silence"

"""Two conversations side by side: what one does and the other does not, and what both do in different ways.

Must not know: sockets, where the conversations come from.

How: the messages that ask for something are aligned as lines of two texts are, by request and ring; closings are
lines, too. Where both say the same, what they say and how it is answered is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from vhostuser.transcript.entries import Closed, Entry, Said, Side, Transcript
from vhostuser.transcript.exchanges import Exchange, differ, exchanges, is_traffic
from vhostuser.transcript.wording import name_of, sentence_of

_EXACT = 2000
"""Lines that are aligned as well as can be; with more, those that come very often are no help, or it takes too long."""

CONNECTION, BACK_END = "the connection", "the back-end"
"""What a difference is about that is about no request."""

_CLOSED = "closes the connection"
_MISSING = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same.

    Attributes:
        number: Number of the entry in the first conversation; None if there is none.
        other_number: Number of the entry in the second; None if there is none, or no second one.
        about: The request, or what else it is about.
        one: What the first has, in words.
        other: What the second has.
    """

    number: int | None
    other_number: int | None
    about: str
    one: str
    other: str


_Step = Exchange | tuple[int, Closed]


def compare(one: Transcript, other: Transcript, of: Side | None = None) -> list[Difference]:
    """What differs between two conversations.

    Args:
        one, other: The conversations. Of one in format 1, kinds of answers are known, and are compared.
        of: Compare what this side says, and take what the other says as given; None for both.
    """
    found = list(_compare(_steps(one.entries), _steps(other.entries), of))
    if of is not None or (_is_complete(one) and _is_complete(other)):
        found += _compare(_own_steps(one.entries), _own_steps(other.entries), of)
    return found


def _is_complete(transcript: Transcript) -> bool:
    """Whether it has what the back-end said: format 1 has not."""
    return any(isinstance(entry, Said) and not entry.from_front_end for entry in transcript.entries)


def _steps(entries: Sequence[Entry]) -> list[_Step]:
    closings = [(number, entry) for number, entry in enumerate(entries) if isinstance(entry, Closed)]
    asked = [exchange for exchange in exchanges(entries) if not is_traffic(exchange.asked)]
    return sorted([*asked, *closings], key=_number)


def _own_steps(entries: Sequence[Entry]) -> list[_Step]:
    return [exchange for exchange in exchanges(entries, own_channel=True) if not is_traffic(exchange.asked)]


def _number(step: _Step) -> int:
    return step.number if isinstance(step, Exchange) else step[0]


def _key(step: _Step) -> object:
    return step.key if isinstance(step, Exchange) else Closed


def _compare(one: Sequence[_Step], other: Sequence[_Step], of: Side | None) -> Iterator[Difference]:
    keys, other_keys = [_key(step) for step in one], [_key(step) for step in other]
    autojunk = max(len(keys), len(other_keys)) > _EXACT
    for kind, begin, end, other_begin, other_end in SequenceMatcher(None, keys, other_keys, autojunk).get_opcodes():
        if kind == "equal":
            for step, twin in zip(one[begin:end], other[other_begin:other_end], strict=True):
                yield from _contrast(step, twin, of)
        else:
            for step in one[begin:end]:
                yield Difference(_number(step), None, _about(step), _words(step), _MISSING)
            for step in other[other_begin:other_end]:
                yield Difference(None, _number(step), _about(step), _MISSING, _words(step))


def _contrast(one: _Step, other: _Step, of: Side | None) -> Iterator[Difference]:
    place = _number(one), _number(other), _about(one)
    if not isinstance(one, Exchange) or not isinstance(other, Exchange):
        if _words(one) != _words(other):
            yield Difference(*place, _words(one), _words(other))
        return
    asks = one.asked.side
    if of in (None, asks) and differ(one.asked, other.asked, one.resumes or other.resumes):
        yield Difference(*place, sentence_of(one.asked), sentence_of(other.asked))
    if of is not asks and answered_differently(one, other):
        yield Difference(*place, answer_in_words(one), answer_in_words(other))


def answered_differently(one: Exchange, other: Exchange) -> bool:
    """Whether two messages got different answers, as far as these are known and can be compared."""
    if one.kinds != other.kinds:
        return True
    bent = any(answer.bent for answer in (*one.answers, *other.answers))
    # where only the kinds are known, there are fewer answers than kinds
    return not bent and any(map(differ, one.answers, other.answers))


def answer_in_words(exchange: Exchange) -> str:
    """What was said to a message."""
    known = exchange.answers or exchange.kinds
    return "; ".join(sentence_of(answer) if isinstance(answer, Said) else answer for answer in known) or "no answer"


def _about(step: _Step) -> str:
    return name_of(step.asked) if isinstance(step, Exchange) else CONNECTION


def _words(step: _Step) -> str:
    if isinstance(step, Exchange):
        return sentence_of(step.asked)
    return f"the {step[1].side.value} {_CLOSED}"

"""What a back-end can do wrong: small departures from a conversation in which it did all it was asked.

Must not know: single front-ends; what came of it.

How: a conversation is known by what the front-end said in it, each message with the answer that it should get. At some
of these messages something else is put in place of the answer, or besides it. What is said wrongly is made wrong as the
front-end's messages are (``breaking``); what only a back-end can do stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from vhostuser.errors import VhostUserError
from vhostuser.fuzz import used
from vhostuser.fuzz.breaking import misspoken
from vhostuser.fuzz.stage import ODDITIES, memory
from vhostuser.fuzz.values import edge
from vhostuser.transcript.counterpart import Asked
from vhostuser.transcript.entries import Closed, Entry, Paused, Said, Side, Signalled
from vhostuser.wire import layouts
from vhostuser.wire.codec import encode_ack, encode_refusal
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.frames import VERSION, HeaderFlags
from vhostuser.wire.messages import (
    U64,
    Iotlb,
    Payload,
    SharedObject,
    ShmemMap,
    VringAddr,
    VringArea,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import BACKEND_REQUESTS, FRONTEND_REQUESTS, Reply, RequestSpec
from vhostuser.wire.requests import FrontendRequest as R

_PLACES = 4  # where something is wrong, at most
_IF_ANSWERED = 3  # how often one at a message that is answered, for one at another
_TRIES = 30  # to find something that can be done at a place
_PAUSES = (0.02, 0.2, 0.7)
_OBJECTS = (bytes(16), bytes(15) + b"\x01", bytes([255] * 16))
_PAGE = 4096

Fitting = Callable[[Asked, Sequence[Entry]], bool]


def misled(random: Random, entries: Sequence[Entry], asked: Sequence[Asked], wanted: Fitting) -> tuple[Entry, ...]:
    """The conversation with something wrong at one more place, or at several.

    Args:
        random: Chance.
        entries: The conversation.
        asked: What a front-end said in it.
        wanted: Whether something may be done at a message.
    """
    weights = [_IF_ANSWERED if question.good else 1 for question in asked]
    count = min(1 + int(random.expovariate(1.2)), _PLACES)
    grown, last = _Grown(entries, asked), 0
    for place in sorted(set(random.choices(range(len(asked)), weights, k=count))):
        situation = Situation.after([question.said for question in asked[: place + 1]])
        for act in random.choices(_ACTS, _WEIGHTS, k=_TRIES):
            first, acts = act(random, asked[place], situation)
            if acts and wanted(asked[place], acts):
                grown.put(place, acts, since=last, answered_first=first)
                last = place + 1
                break
    return tuple(grown.entries)


class _Grown:
    """A conversation into which more is put, from its begin to its end."""

    def __init__(self, entries: Sequence[Entry], asked: Sequence[Asked]) -> None:
        self.entries = list(entries)
        self._asked = asked
        self._more = 0

    def put(self, place: int, acts: Sequence[Entry], *, since: int, answered_first: bool) -> None:
        """Have something done when the front-end says a message; at none from `since` to that one anything was put."""
        question = self._asked[place]
        cue = replace(question.said, time=0.0, answer="reply" if answered_first else None)
        at = question.after + self._more
        if question.cue:
            self.entries[at : at + 1] = [cue, *acts]
            self._more += len(acts)
            return
        before = self._asked[since:place]
        passed = sum(q.said.request == cue.request and q.after == question.after and not q.cue for q in before)
        more = [*[replace(cue, answer=None)] * passed, cue, *acts]
        self.entries[at + 1 : at + 1] = more
        self._more += len(more)


@dataclass
class Situation:
    """How far a front-end has come.

    Attributes:
        channel: Whether there is a channel for the back-end's own requests.
        packed: Whether rings are packed.
        rings: The rings of which it told where they are, with their sizes.
    """

    channel: bool = False
    packed: bool = False
    rings: dict[int, int] = field(default_factory=dict)

    @classmethod
    def after(cls, said: Sequence[Said]) -> Situation:
        """Where it is after these messages."""
        situation, sizes = cls(), dict[int, int]()
        for message in said:
            match _payload_of(message):
                case U64(word) if message.request == R.SET_FEATURES:
                    situation.packed = bool(word & VhostFeature.RING_PACKED)
                case VringState(index, num) if message.request == R.SET_VRING_NUM:
                    sizes[index] = num
                case VringAddr(index=index):
                    situation.rings[index] = max(sizes.get(index, 1), 1)
            situation.channel |= message.request == R.SET_BACKEND_REQ_FD
        return situation


def _payload_of(said: Said) -> Payload | None:
    spec = FRONTEND_REQUESTS.get(said.request)
    if spec is None or spec.payload is None or len(said.payload) not in layouts.legal_sizes(spec.payload):
        return None
    try:
        return layouts.parse(spec.payload, said.payload)
    except VhostUserError:
        return None


Done = tuple[bool, list[Entry]]
"""Whether the message is answered well first, and what is done then; nothing where that makes no sense."""


# ---- in place of an answer -------------------------------------------------------------------------------------------


def _answer_wrongly(random: Random, asked: Asked, situation: Situation) -> Done:
    return False, misspoken(random, asked.good) if asked.good else []


def _offer(random: Random, asked: Asked, situation: Situation) -> Done:
    """Another word about itself: more than there is, less than it needs, bits that contradict each other."""
    spec = FRONTEND_REQUESTS.get(asked.said.request)
    if asked.good is None or spec is None or spec.reply_payload is not U64:
        return False, []
    word = int.from_bytes(asked.good.payload, "little")
    other = random.choice(
        (0, (1 << 64) - 1, word ^ 1 << random.randrange(64), word & random.getrandbits(64), random.getrandbits(64),
         word & ~(1 << random.randrange(64)), word | random.getrandbits(64), random.randrange(4))
    )  # fmt: skip
    return False, [replace(asked.good, payload=layouts.build(U64(other)))]


def _refuse(random: Random, asked: Asked, situation: Situation) -> Done:
    spec = FRONTEND_REQUESTS.get(asked.said.request)
    if asked.good is None or spec is None:
        return False, []
    frame = (
        encode_refusal(spec) if spec.reply is Reply.ALWAYS else encode_ack(spec, random.choice((1, edge(random, 64))))
    )
    return False, [replace(asked.good, payload=frame.payload, fds=())]


def _keep_silent(random: Random, asked: Asked, situation: Situation) -> Done:
    return False, [replace(asked.good, cut=0)] if asked.good else []


def _be_late(random: Random, asked: Asked, situation: Situation) -> Done:
    return False, [Paused(random.choice(_PAUSES))] if asked.good else []


def _leave(random: Random, asked: Asked, situation: Situation) -> Done:
    """Close the connection, before the answer or after it."""
    return random.random() < 0.5, [Closed(Side.BACKEND)]


# ---- besides ---------------------------------------------------------------------------------------------------------


def _say_unasked(random: Random, asked: Asked, situation: Situation) -> Done:
    """An answer to another request, or to none, or a request where only the front-end has any."""
    spec = random.choice(list(FRONTEND_REQUESTS.values()))
    kind = spec.reply_payload or U64
    body = random.randbytes(random.choice(sorted(layouts.legal_sizes(kind))[:8]))
    flags = VERSION | random.choice((HeaderFlags.REPLY, HeaderFlags.REPLY, 0, HeaderFlags.NEED_REPLY))
    return random.random() < 0.7, [Said(Side.BACKEND, spec.number, flags, body)]


def _ask(random: Random, asked: Asked, situation: Situation) -> Done:
    """Some requests of its own, right ones and broken ones."""
    if not situation.channel:
        return False, []
    acts: list[Entry] = []
    for _ in range(random.choice((1, 1, 2, 4))):
        said = own_request(random, random.choice(list(BACKEND_REQUESTS.values())))
        acts += misspoken(random, said) if random.random() < 0.4 else [said]
    # what would end the connection is left to others: the channel ends with it
    return True, [act for act in acts if not isinstance(act, Closed)]


def _give_back(random: Random, asked: Asked, situation: Situation) -> Done:
    """Put garbage into a used ring."""
    if not situation.rings:
        return False, []
    ring = random.choice(list(situation.rings))
    acts = list(used.returned(random, ring, situation.rings[ring], situation.packed))
    return True, [*acts, Paused(_PAUSES[1])]


def _call(random: Random, asked: Asked, situation: Situation) -> Done:
    """Call a driver for nothing, or tell of a broken ring."""
    ring = random.choice(list(situation.rings) or [0])
    return True, [Signalled(f"{random.choice(('call', 'call', 'err'))} {ring}")] * random.choice((1, 2, 50))


_ACTS = (_answer_wrongly, _offer, _refuse, _keep_silent, _be_late, _leave, _say_unasked, _ask, _give_back, _call)
_WEIGHTS = (10, 4, 2, 1, 0.5, 1, 2, 6, 6, 0.5)


# ---- its own requests ------------------------------------------------------------------------------------------------


def own_request(random: Random, spec: RequestSpec) -> Said:
    """A request of the back-end's, as it may say it; mostly it asks for an acknowledgement."""
    payload = _own_payload(random, spec)
    count = random.randint(spec.fds.min, spec.fds.max)
    if isinstance(payload, VringArea):
        count = 0 if payload.vring.no_fd else 1
    fds = (memory(9, random.choice((_PAGE, 1 << 21))), *ODDITIES) if random.random() < 0.3 else (memory(9, 1 << 21),)
    flags = VERSION | (HeaderFlags.NEED_REPLY if random.random() < 0.8 else 0)
    body = layouts.build(payload) if payload else b""
    passed = tuple(random.choice(fds) for _ in range(count))
    return Said(Side.BACKEND, spec.number, flags, body, fds=passed, own_channel=True)


def _own_payload(random: Random, spec: RequestSpec) -> Payload | None:
    """A payload of the right kind, with values that may mean something."""
    ring = random.choice((0, 0, 1, 2, edge(random, 8)))
    length = random.choice((_PAGE, _PAGE, 1 << 20, 0, edge(random, 64)))
    place = random.choice((0, 0, _PAGE, edge(random, 64)))
    match spec.payload:
        case None:
            return None
        case kind if kind is Iotlb:
            return Iotlb(
                place, length, edge(random, 64), random.randrange(4), random.choice((1, 4, random.randrange(8)))
            )
        case kind if kind is VringState:
            return VringState(ring, random.choice((0, 0, edge(random, 32))))
        case kind if kind is VringArea:
            return VringArea(VringFd(ring, random.random() < 0.3), length, place)
        case kind if kind is SharedObject:
            return SharedObject(random.choice(_OBJECTS))
        case kind if kind is ShmemMap:
            return ShmemMap(
                random.choice((0, 1, ring)), place, random.choice((0, _PAGE, place)), length, random.randrange(2)
            )
    raise VhostUserError(f"{spec.payload.__name__}: no back-end knows what to put into it")

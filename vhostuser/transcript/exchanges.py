"""A conversation as questions with their answers, and what of those can be compared with another conversation's.

Must not know: sockets; what is done about a difference.

How: an answer belongs to the first message of its request that waits for one; what nothing waits for is put to the last
message. What depends on where memory lies, or on what went through the rings, differs each time without a difference in
behaviour: the tables below say what is left out, and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from vhostuser.transcript.entries import Closed, Descriptor, Entry, Said, Side
from vhostuser.transcript.wording import kind_of, payload_of
from vhostuser.wire.frames import HeaderFlags
from vhostuser.wire.messages import Payload
from vhostuser.wire.requests import BackendRequest as B
from vhostuser.wire.requests import FrontendRequest as R
from vhostuser.wire.requests import Reply, spec_of

_ELSEWHERE = "where a process has its memory, which is another place each time"
_TRAFFIC = "how much went through the ring"
_STATE = "the state that went through a descriptor, which is in no recording"

LEFT_OUT: Mapping[tuple[R, Side], tuple[frozenset[str], str]] = MappingProxyType(
    {
        (R.SET_MEM_TABLE, Side.FRONTEND): (frozenset({"userspace_addr"}), _ELSEWHERE),
        (R.SET_MEM_TABLE, Side.BACKEND): (frozenset({"userspace_addr"}), _ELSEWHERE),
        (R.ADD_MEM_REG, Side.FRONTEND): (frozenset({"userspace_addr"}), _ELSEWHERE),
        (R.ADD_MEM_REG, Side.BACKEND): (frozenset({"userspace_addr"}), _ELSEWHERE),
        (R.REM_MEM_REG, Side.FRONTEND): (frozenset({"userspace_addr"}), _ELSEWHERE),
        (R.SET_VRING_ADDR, Side.FRONTEND): (frozenset({"descriptor", "used", "available", "log"}), _ELSEWHERE),
        (R.GET_VRING_BASE, Side.BACKEND): (frozenset({"num"}), _TRAFFIC),
        (R.GET_VRING_BASE_SKIP_DRAIN, Side.BACKEND): (frozenset({"num"}), _TRAFFIC),
        (R.CHECK_DEVICE_STATE, Side.BACKEND): (frozenset({"value"}), _STATE),
    }
)
"""Fields that are not compared, by request and by who says it, and what they depend on.

The number of SET_VRING_BASE is not compared either, but for a ring's first one: later ones say where traffic left it.
"""

TRAFFIC = frozenset({R.VRING_KICK, R.IOTLB_MSG})
OWN_TRAFFIC = frozenset({B.VRING_CALL, B.VRING_ERR, B.IOTLB_MSG})
"""Messages that come as the rings are used, on either channel. Whether they come is not compared."""


Key = tuple[int, int | None]
"""A request, and the ring if it is about one."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and what was said to it.

    Attributes:
        number: Number of the message's entry.
        asked: The message.
        answers: What was said to it: as a rule nothing, or one answer.
        resumes: Whether it tells where traffic left a ring.
    """

    number: int
    asked: Said
    answers: tuple[Said, ...] = ()
    resumes: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of which kinds the answers are; known even where a recording holds no more."""
        if self.asked.answer and not self.answers:
            return (self.asked.answer,)
        return tuple(map(kind_of, self.answers))

    @property
    def key(self) -> Key:
        """What it is about: its request, and the ring if it is about one."""
        payload = payload_of(self.asked)
        index = getattr(payload, "index", None)
        return self.asked.request, index


def exchanges(entries: Sequence[Entry], own_channel: bool = False) -> list[Exchange]:
    """The exchanges of a conversation, in order.

    Args:
        entries: The conversation.
        own_channel: Those of the back-end's own channel rather than the others.
    """
    asks = Side.BACKEND if own_channel else Side.FRONTEND
    found: list[Exchange] = []
    waiting, told = list[int](), set[int | None]()
    for number, entry in enumerate(entries):
        if isinstance(entry, Closed):
            waiting.clear()
        elif isinstance(entry, Said) and entry.own_channel is own_channel:
            if entry.side is asks:
                if _waits(entry):
                    waiting.append(len(found))
                found.append(_exchange(number, entry, told))
            elif found:
                at = next((at for at in waiting if found[at].asked.request == entry.request), len(found) - 1)
                found[at] = replace(found[at], answers=(*found[at].answers, entry))
                if at in waiting:
                    waiting.remove(at)
    return found


def _exchange(number: int, asked: Said, told: set[int | None]) -> Exchange:
    """An exchange that begins; `told` are the rings whose positions were told before."""
    exchange = Exchange(number, asked)
    if asked.request != R.SET_VRING_BASE or asked.own_channel:
        return exchange
    _, ring = exchange.key
    resumes = ring in told
    told.add(ring)
    return replace(exchange, resumes=resumes)


def _waits(asked: Said) -> bool:
    spec = spec_of(asked.direction, asked.request)
    return bool(asked.flags & HeaderFlags.NEED_REPLY) or (spec is not None and spec.reply is not Reply.ACK)


def is_traffic(said: Said) -> bool:
    """Whether a message, or its answer, comes as the rings are used."""
    return said.request in (OWN_TRAFFIC if said.own_channel else TRAFFIC)


def differ(one: Said, other: Said, resumes: bool = False) -> bool:
    """Whether two messages of the same request differ in anything that can be compared.

    Args:
        one, other: The messages.
        resumes: Whether they tell where traffic left a ring.
    """
    left_out: frozenset[str] = frozenset({"num"}) if resumes else frozenset()
    if not one.own_channel and one.request in set(R):
        left_out |= LEFT_OUT.get((R(one.request), one.side), (frozenset(), ""))[0]
    if (one.flags, one.size, len(one.fds)) != (other.flags, other.size, len(other.fds)):
        return True
    if dict(_values(one, left_out)) != dict(_values(other, left_out)):
        return True
    return not all(map(_alike, one.fds, other.fds))


def _values(said: Said, left_out: frozenset[str]) -> Iterator[tuple[str, object]]:
    """The values of a payload by their places in it, but for those that are left out."""
    payload = payload_of(said)
    yield from _within(payload, "", left_out) if isinstance(payload, Payload) else [("", payload)]


def _within(payload: Payload, place: str, left_out: frozenset[str]) -> Iterator[tuple[str, object]]:
    for field in fields(payload):  # type: ignore[arg-type]
        if field.name in left_out:
            continue
        value = getattr(payload, field.name)
        parts = value if isinstance(value, tuple) else (value,)
        for number, part in enumerate(parts):
            inner = f"{place}{field.name}.{number}."
            yield from _within(part, inner, left_out) if isinstance(part, Payload) else [(inner, part)]


def _alike(one: Descriptor, other: Descriptor) -> bool:
    """Whether two descriptors are of the same kind, with the same seals and pages where both are known."""
    known = one.size and other.size
    return one.kind is other.kind and (not known or (one.seals, one.block) == (other.seals, other.block))

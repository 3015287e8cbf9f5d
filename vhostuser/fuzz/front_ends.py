"""Front-ends as what a campaign is aimed at: where they come from, and how they are answered.

Must not know: what is done about findings.

How: what a front-end says to a back-end that does all it is asked is a conversation, and each message in it a place
where something is done wrong (``misconduct``). What led to something new is kept, and more is done wrong in it. What is
known to lead to a finding is mostly left out, by its shape: which request it was put to, and what it looked like.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from vhostuser.errors import VhostUserError
from vhostuser.fuzz.conduct import Conduct, following
from vhostuser.fuzz.front_end import OFFER, UNKNOWN, FrontEnd, Habits, Parting, Tempo, introduction
from vhostuser.fuzz.misconduct import misled
from vhostuser.fuzz.target import ENVIRONMENT, LIMITS
from vhostuser.fuzz.verdict import Examined
from vhostuser.peer.program import started
from vhostuser.transcript.counterpart import PART_OF, Asked, Counterplay, is_turn
from vhostuser.transcript.entries import Entry, Said, Transcript, Wrote
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import connect, listen
from vhostuser.wire.frames import VERSION, HeaderFlags

_GROWN = 60  # entries of a conversation from which others grow, at most
_COURSES = 1000  # conversations of which is known how they went
_LEFT_OUT = 0.97
_LEFT_OUT_IF_IN_FORM = 0.6
"""Where only values differ from those of a good answer, others of them may lead elsewhere."""

Shape = tuple[int | None, frozenset[tuple[object, ...]]]
"""Which request something was done at, None for any; and what, but for values."""


class FrontEnds:
    """Where front-ends come from, and how they are answered.

    Args:
        command: A command line with ``{socket}``.
        connects: Whether it is for the back-end to connect: the front-end listens.
        asking: Seconds of silence after which its conversation counts as over while its habits are learned, and that it
            has to come again.
    """

    plural = "front-ends"
    trials = 40

    def __init__(self, command: str, connects: bool = False, asking: float = UNKNOWN) -> None:
        self._command = command
        self._asking = asking
        self._connects = connects
        self._habits = Habits()
        self._plain: list[tuple[Asked, ...]] = []
        self._courses: dict[tuple[Entry, ...], tuple[Asked, ...]] = {}
        self._avoided: set[Shape] = set()
        self.reached = Conduct()

    async def ask(self) -> None:
        """Learn a front-end's habits. Raises VhostUserError if it says nothing."""
        async with self.target() as target:
            first = await target.play((), self._asking)
            if not first.asked:
                raise VhostUserError(await target.why_silent())
            self._plain.append(tuple(first.asked))
            parting, absence, last_words = await target.part(self._asking)
            later = await target.play((), self._asking) if parting is Parting.RETURNS else first
            self._plain.append(tuple(later.asked))
        tempi = Tempo.of(first.asked), Tempo.of(later.asked)
        self._habits = Habits(parting, absence, *tempi, last_words, introduction(first.asked, tempi[0].messages))

    @property
    def introduction(self) -> tuple[Entry, ...]:
        """How a front-end comes to where its driver runs."""
        return self._habits.introduction

    @asynccontextmanager
    async def target(self) -> AsyncIterator[FrontEnd]:
        """A front-end, alive at first. Raises ProgramError if it cannot be started."""
        async with AsyncExitStack() as stack:
            if self._connects:
                program = await stack.enter_async_context(started(self._command, env=ENVIRONMENT))
                arrive: Callable[[], Awaitable[Channel]] = partial(connect, program.path, LIMITS)
            else:
                path = Path(stack.enter_context(TemporaryDirectory(prefix="vhostuser-fuzz-"))) / "vhost-user.sock"
                arrive = (await stack.enter_async_context(await listen(path, LIMITS))).accept
                running = started(self._command, path=path, listens=False, env=ENVIRONMENT)
                program = await stack.enter_async_context(running)
            async with FrontEnd(program, arrive, self._habits) as front_end:
                yield front_end

    def conversation(self, random: Random, kept: Sequence[tuple[Entry, ...]]) -> tuple[Entry, ...]:
        """Something wrong in a conversation that was right, or one thing more in one that was kept."""
        base = random.choice(kept) if kept and random.random() < 0.5 else ()
        if len(base) > _GROWN:
            base = ()
        asked = self._courses.get(base) if base else random.choice(self._plain)
        if asked is None:
            return base  # it was kept by another campaign: how does it go?
        return misled(random, base, asked, lambda question, acts: self._wanted(random, question, acts))

    def _wanted(self, random: Random, question: Asked, acts: Sequence[Entry]) -> bool:
        shape = shape_of(question.said.request, acts)
        left_out = _LEFT_OUT_IF_IN_FORM if _is_in_form(shape) else _LEFT_OUT
        return self._avoided.isdisjoint({shape, shape_of(None, acts)}) or random.random() >= left_out

    def learn(self, entries: tuple[Entry, ...], examined: Examined[Counterplay]) -> set[tuple[object, ...]]:
        """Count what a conversation did, and remember how it went; what ended a front-end is found often enough."""
        if examined.fatal:
            self.avoid(entries[: examined.performance.played])
        self._courses[entries] = tuple(examined.performance.asked)
        if len(self._courses) > _COURSES:
            self._courses.pop(next(iter(self._courses)))
        return self.reached.add(entries, examined.performance)

    def avoid(self, entries: Sequence[Entry]) -> None:
        """Mostly leave out what was done last in this conversation."""
        turns = [at for at, entry in enumerate(entries) if is_turn(entry) and any(following(entries, at))]
        at = turns[-1] if turns else -1
        cue = entries[at] if turns else None
        self._avoided.add(shape_of(cue.request if isinstance(cue, Said) else None, list(following(entries, at))))

    def transcript(self, entries: tuple[Entry, ...], scene: str = "") -> Transcript:
        """A conversation as a transcript; its head has what is offered unless the conversation says otherwise."""
        offer = {
            "virtio_features": OFFER.virtio_features,
            "protocol_features": int(OFFER.protocol_features),
            "vrings": OFFER.vrings,
        }
        return Transcript(entries, back_end=PART_OF, scene=scene, offer=tuple(offer.items()))


def shape_of(request: int | None, acts: Sequence[Entry]) -> Shape:
    """The shape of what is done at a message; without a message, at any."""
    return request, frozenset(_shape(request, act) for act in acts)


def _shape(request: int | None, act: Entry) -> tuple[object, ...]:
    match act:
        case Said(own_channel=own):
            form = "own" if own else "answer" if act.request == request else "other"
            kinds = tuple(sorted(fd.kind.value for fd in act.fds))
            return form, act.request if own else None, act.flags, act.whole, len(act.payload), kinds
        case Wrote():
            return "write", act.memory.partition(" ")[0]
    return (type(act).__name__,)


def _is_in_form(shape: Shape) -> bool:
    """Whether only values are wrong."""
    return all(form[:4] == ("answer", None, VERSION | HeaderFlags.REPLY, True) for form in shape[1])

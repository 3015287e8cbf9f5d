"""``vhostuser replay``: either side of a recorded conversation, played again."""

from __future__ import annotations

import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
import trio
from rich.text import Text

from vhostuser.cli.options import Parsed, Seconds
from vhostuser.cli.terminal import Terminal
from vhostuser.cli.tools import Tool
from vhostuser.errors import EndpointError
from vhostuser.session.backend import Offer
from vhostuser.session.witness import Side
from vhostuser.transcript.answers import Answers
from vhostuser.transcript.bending import Pick
from vhostuser.transcript.compare import BACK_END, CONNECTION, Difference, compare
from vhostuser.transcript.counterpart import PART_OF, play_back_end
from vhostuser.transcript.entries import Transcript
from vhostuser.transcript.file import load
from vhostuser.transcript.proxy import PATIENT
from vhostuser.transcript.replay import PATIENCE, replay
from vhostuser.transcript.stand_in import StandIn
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Listener, connect, listen
from vhostuser.wire.features import ProtocolFeature as P

_DIFFERENT = 1
_COLOURS = ("green", "red")


def _abouts(word: str) -> frozenset[str]:
    """What the differences are about that a word means. Raises ValueError."""
    if word in (BACK_END, CONNECTION):
        return frozenset({word})
    pick = Pick.parse(word)
    if pick.reply:
        raise ValueError(f"{word!r}: a request is needed; its answers are part of it")
    return frozenset({pick.name or "", f"request {pick.name}"})


_EXCEPTED = Parsed[frozenset[str]]("REQUEST", frozenset, _abouts)


@click.command("replay", cls=Tool)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("path", required=False)
@click.option(
    "--as",
    "side",
    type=click.Choice([side.value for side in Side]),
    default=Side.FRONTEND.value,
    show_default=True,
    help="Which side to play, to a live other one at PATH.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare with another transcript; nobody is played to.",
)
@click.option(
    "--except",
    "excepted",
    type=_EXCEPTED,
    multiple=True,
    help="Tell no difference in this request, such as GET_FEATURES of a back-end that offers other things; or in "
    "'the back-end', of one that ends with its front-end.",
)
@click.option(
    "--patience",
    type=Seconds(0, min_open=True),
    default=PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the back-end, and for each of its answers; or, once a front-end came, for it to go on.",
)
def command(
    file: Path,
    path: str | None,
    side: str,
    against: Path | None,
    excepted: tuple[frozenset[str], ...],
    patience: float,
) -> None:
    """Play a transcript's front-end to the back-end at PATH, and tell what it answers differently now.

    At the end the back-end has to answer one more front-end: it may be gone.

    With --as back-end wait at PATH for a front-end, answer it as recorded, and tell what it asks differently. A
    transcript that says what is offered, as those of fuzz-frontend do, is a part of a conversation: it is done where
    the front-end comes to it, all else is answered well until the front-end is silent, and nothing is compared.

    Memory and descriptors are fresh, so what depends on addresses or on packets is not compared. Status 0: no
    difference, 1: some, 2: it could not be done.

    Example: vhostuser replay vm1.jsonl /run/vm1.sock
    """
    if (path is None) == (against is None):
        raise click.UsageError("exactly one of PATH and --against is needed")
    transcript = load(file)
    if against is not None:
        found = compare(transcript, load(against))
    else:
        assert path is not None
        if side == Side.BACKEND.value and transcript.back_end == PART_OF:
            trio.run(_play_part, transcript, path, patience)
            return
        found = trio.run(_play if side == Side.FRONTEND.value else _stand_in, transcript, path, patience)
    found = [difference for difference in found if not any(difference.about in about for about in excepted)]
    if against is not None and found:
        click.echo(f"< {file}\n> {against}")
    _report(found, ("recorded", "now") if against is None else ("<", ">"))
    if found:
        raise SystemExit(_DIFFERENT)


async def _play(transcript: Transcript, path: str, patience: float) -> list[Difference]:
    reason = "nobody answers there"

    def absent(why: str) -> None:
        nonlocal reason
        reason = why

    async def reach() -> Channel:
        with trio.move_on_after(patience):
            return await connect(path, absent=absent)
        raise EndpointError(f"{path}: {reason}")

    return await replay(transcript, reach, patience)


async def _stand_in(transcript: Transcript, path: str, patience: float) -> list[Difference]:
    """Wait for front-ends until the recording is at its end, or the front-end falls silent."""
    back_end = StandIn(transcript, patience)
    await _serve(path, back_end.serve)
    if not back_end.came:
        raise EndpointError(f"{path}: no front-end came")
    return compare(transcript, transcript.but(tuple(back_end.heard)), of=Side.FRONTEND)


async def _play_part(transcript: Transcript, path: str, patience: float) -> None:
    """Wait for front-ends, until one has nothing more to say."""
    told = dict(transcript.offer)
    offer = Offer(told.get("virtio_features", 0), P(told.get("protocol_features", 0)), told.get("vrings", 2))
    came = False

    async def play(endpoint: Listener) -> None:
        async def accept() -> Channel:
            nonlocal came
            with trio.move_on_after(patience if came else math.inf):
                channel = await endpoint.accept()
                came = True
                return channel
            raise EndpointError(f"{path}: no front-end came again")

        counterplay = await play_back_end(transcript.entries, accept, Answers(offer), quiet=patience)
        click.echo(f"played {counterplay.played} of {len(transcript.entries)} entries")

    await _serve(path, play)
    if not came:
        raise EndpointError(f"{path}: no front-end came")


async def _serve(path: str, serve: Callable[[Listener], Awaitable[None]]) -> None:
    """Listen and serve to the end, or until SIGINT or SIGTERM comes."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with await listen(path, PATIENT) as endpoint, trio.open_nursery() as nursery:
            click.echo(f"listening at {path} for a front-end", err=True)

            async def to_the_end() -> None:
                await serve(endpoint)
                nursery.cancel_scope.cancel()

            nursery.start_soon(to_the_end)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


def _report(found: Sequence[Difference], columns: tuple[str, str]) -> None:
    console = Terminal(highlight=False, emoji=False, markup=False)
    width = max(map(len, columns))
    for difference in found:
        places = [
            f"entry {number + 1}" for number in (difference.number, difference.other_number) if number is not None
        ]
        console.print(Text(f"{difference.about} ({', '.join(places)})", "bold"), soft_wrap=True)
        for column, words, colour in zip(columns, (difference.one, difference.other), _COLOURS, strict=True):
            console.print(Text(f"  {column:{width}}  {words}", colour), soft_wrap=True)
    console.print("no difference" if not found else f"differences: {len(found)}")

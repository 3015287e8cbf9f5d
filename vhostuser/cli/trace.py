"""``vhostuser trace``: what a front-end and a back-end say to each other, message by message."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vhostuser.cli.options import DEVICE, FEATURE_NAMES, Parsed
from vhostuser.cli.terminal import Terminal
from vhostuser.cli.tools import Tool, naming
from vhostuser.devices.net.features import NetFeature
from vhostuser.session.witness import Side
from vhostuser.spec.statements import statements
from vhostuser.transcript.bending import Bending, Corruption, Pick, parse_corruption, parse_delay, parse_drop
from vhostuser.transcript.file import Recorder
from vhostuser.transcript.proxy import PATIENT, Began, Ended, Passed, Proxy
from vhostuser.transcript.wording import descriptor_in_words, header_of, name_of, values_of
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import Connector, listen
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.meanings import FeatureNames

_COLOURS = {Side.FRONTEND: "cyan", Side.BACKEND: "green"}
_OWN_CHANNEL = "magenta"
_TIME_WIDTH = 11
_SIDE_WIDTH = max(len(side.value) for side in Side)
_MAX_SEED = 1 << 32


def _mask(names: dict[str, int], words: str) -> int:
    """The bits of ``NAME,NAME`` or of a number."""
    mask = 0
    for word in filter(None, words.split(",")):
        if word.upper() in names:
            mask |= names[word.upper()]
        elif word[:1].isdecimal():
            mask |= int(word, 0)
        else:
            raise ValueError(f"{word!r}: a number, or one of {', '.join(names)}")
    return mask


_VIRTIO_NAMES: dict[str, int] = {
    **NetFeature.__members__,
    **VirtioFeature.__members__,
    **VhostFeature.__members__,
}
_FEATURES = Parsed("NAME,...", int, lambda words: _mask(_VIRTIO_NAMES, words))
_PROTOCOL_FEATURES = Parsed("NAME,...", int, lambda words: _mask({**ProtocolFeature.__members__}, words))
_DELAY = Parsed[tuple[Pick, float]]("[REQUEST=]SECONDS", tuple, parse_delay)
_DROP = Parsed("REQUEST[=N]", Pick, parse_drop)
_CORRUPTION = Parsed("REQUEST[:OFFSET=HEX]", Corruption, parse_corruption)


@click.command("trace", cls=Tool)
@click.argument("listen_at", metavar="LISTEN")
@click.argument("connect_to", metavar="CONNECT")
@click.option("--client", is_flag=True, help="The back-end is to connect to LISTEN; a front-end listens at CONNECT.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a transcript, which `vhostuser replay` plays again.",
)
@click.option(
    "--clear-features",
    type=_FEATURES,
    default="0",
    help="Clear bits in answers to GET_FEATURES: names, or a number as 0x8000.",
)
@click.option(
    "--clear-protocol-features",
    type=_PROTOCOL_FEATURES,
    default="0",
    help="Clear bits in answers to GET_PROTOCOL_FEATURES.",
)
@click.option(
    "--delay", "delays", type=_DELAY, multiple=True, help="Pass on each message, or each of a request, so much later."
)
@click.option(
    "--drop", "drops", type=_DROP, multiple=True, help="Do not pass on a request: each time, or the N-th time."
)
@click.option(
    "--corrupt",
    "corruptions",
    type=_CORRUPTION,
    multiple=True,
    help="Put bytes in place of a request's, counted from its header; or flip a random bit.",
)
@click.option("--seed", type=click.IntRange(0, _MAX_SEED), metavar="N", help="Of the random bits; told if not given.")
@DEVICE
def command(
    listen_at: str,
    connect_to: str,
    client: bool,
    record: Path | None,
    clear_features: int,
    clear_protocol_features: int,
    delays: tuple[tuple[Pick, float], ...],
    drops: tuple[Pick, ...],
    corruptions: tuple[Corruption, ...],
    seed: int | None,
    device: str | None,
) -> None:
    """Show what a front-end and a back-end say to each other, and which rules they break.

    Front-ends connect to LISTEN; each gets a connection of its own to the back-end at CONNECT. Descriptors are passed
    on, and the back-end's own channel is shown, too. REQUEST.reply in place of REQUEST means its answers. SIGINT and
    SIGTERM end it, with status 0; status 2: it could not be done.

    Example: vhostuser trace /run/trace.sock /run/vm1.sock --record vm1.jsonl
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), sys.byteorder)
        if any(corruption.offset is None for corruption in corruptions):
            click.echo(f"random bits: --seed {seed}", err=True)
    bending = Bending(clear_features, clear_protocol_features, corruptions, drops, delays, seed)
    with ExitStack() as stack:
        recorder = None
        if record is not None:
            with naming("--record", record):
                recorder = stack.enter_context(Recorder(record))
        console = Terminal(highlight=False, emoji=False, markup=False)
        screen = _Screen(console, recorder, FEATURE_NAMES[device])
        trio.run(_serve, listen_at, connect_to, Side.BACKEND if client else Side.FRONTEND, screen, bending)


async def _serve(listen_at: str, connect_to: str, listening: Side, screen: _Screen, bending: Bending) -> None:
    """Serve until SIGINT or SIGTERM."""
    connector = Connector(connect_to, PATIENT)

    async def reach() -> Channel:
        click.echo(f"connecting to {connect_to}", err=True)
        return await connector.next_channel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, Proxy(screen.show, bending) as proxy:
        async with await listen(listen_at, PATIENT) as endpoint, trio.open_nursery() as nursery:
            click.echo(f"listening at {listen_at} for a {listening.value}", err=True)
            nursery.start_soon(proxy.serve, endpoint, reach, listening)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


class _Screen:
    """Prints what goes through, in colours where a terminal shows it, and records it if there is a recorder."""

    def __init__(self, console: Console, recorder: Recorder | None, names: FeatureNames) -> None:
        self._console = console
        self._recorder = recorder
        self._names = names

    def show(self, event: Began | Passed | Ended) -> None:
        """Show and record an event."""
        match event:
            case Began(front_end, back_end, time):
                names = _program(front_end), _program(back_end)
                self._print(time, Text(f"front-end {names[0]}, back-end {names[1]}", "bold"))
                if self._recorder is not None:
                    self._recorder.begin(*names)
            case Passed():
                self._show_message(event)
                if self._recorder is not None and not event.dropped:
                    self._recorder.add(event.said)
            case Ended(closed, own_channel, why):
                what = "the back-end's own channel" if own_channel else "the connection"
                text = f"{closed.side.value} closed {what}" if not why else f"{closed.side.value}, {what}: {why}"
                self._print(closed.time, Text(text, "bold" if not why else "bold red"))
                if self._recorder is not None and not own_channel:
                    self._recorder.add(closed)

    def _show_message(self, passed: Passed) -> None:
        said = passed.said
        arrow = "⇒" if said.own_channel else "→"
        colour = _OWN_CHANNEL if said.own_channel else _COLOURS[said.side]
        text = Text()
        text.append(f"{said.side.value:{_SIDE_WIDTH}} {arrow} ", colour)
        text.append(name_of(said), f"bold {colour}")
        for words in (values_of(said, self._names), header_of(said)):
            text.append(f" {words}" if words else "")
        if said.fds:
            text.append(f" with {', '.join(map(descriptor_in_words, said.fds))}", "dim")
        self._print(said.time, text)
        for words in said.bent:
            self._print(None, Text(f"~ bent: {words}", "yellow"))
        for breach in passed.breaches:
            self._print(None, Text(f"! {breach.text}", "bold red"))
            statement = statements().get(breach.rule or "")
            if statement is not None:
                self._print(None, Text(f"  {statement.id} ({statement.kind}): {statement.text}", "red"))

    def _print(self, time: float | None, text: Text) -> None:
        """A line with its time. What does not fit on a terminal goes on below, behind the time; in a pipe, a line
        stays one."""
        moment = Text(f"{'' if time is None else f'{time:.6f}':>{_TIME_WIDTH}}", "dim")
        if not self._console.is_terminal:
            self._console.print(moment, text, soft_wrap=True)
            return
        line = Table.grid(padding=(0, 1))
        line.add_column(width=_TIME_WIDTH, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(moment, text)
        self._console.print(line)


def _program(pid: int) -> str:
    """What a process is called, as far as it can be told."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "unknown"
    name = os.path.basename(words[0])
    if name.startswith("python"):  # rather the module or the script, and its command
        name = " ".join(os.path.basename(word) for word in words[1:4] if not word.startswith("-")) or name
    return "".join(letter for letter in name if letter.isprintable()) or "unknown"

"""``vhostuser decode``: bytes of a conversation, field by field, and the rules that they break.

Must not know: where fields lie or what is wrong with them (``wire.dissect``), how that is shown (``cli.shown``).

How: whatever comes in becomes pieces that one side sent: bytes, the same in hexadecimal digits, or each message of
a transcript, with its time.
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click

from vhostuser.cli.options import DEVICE, FEATURE_NAMES
from vhostuser.cli.shown import Shown
from vhostuser.cli.tools import Tool
from vhostuser.transcript.entries import Said, Side
from vhostuser.transcript.file import TranscriptError, parse
from vhostuser.wire.dissect import Part, dissect
from vhostuser.wire.meanings import FeatureNames
from vhostuser.wire.requests import Direction

MAX_INPUT = 64 << 20
"""Longest input that is read, in bytes."""

_SIDES = {side.value: side for side in Side}
_XXD = re.compile(r"\s*[0-9a-f]+:\s+((?:[0-9a-f]+ )*[0-9a-f]+)(?:  .*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """Bytes that one side sent.

    Attributes:
        data: Those.
        side: Whose requests there are on their channel.
        fds: How many descriptors came with the first message; None: unknown.
        sender: Who sent them, where that is known; else the flags of replies tell.
        time: When, in seconds since the conversation began; None: unknown.
    """

    data: bytes
    side: Side
    fds: int | None = None
    sender: Side | None = None
    time: float | None = None

    def messages(self, names: FeatureNames) -> Iterator[Shown]:
        """Its messages; `names` of virtio feature bits."""
        direction = Direction.FRONTEND if self.side is Side.FRONTEND else Direction.BACKEND
        for part in dissect(self.data, direction, fds=self.fds, feature_names=names).parts:
            yield Shown(part, (self.sender or self._sender_of(part)).value, self.time)

    def _sender_of(self, part: Part) -> Side:
        if not part.is_reply:
            return self.side
        return Side.BACKEND if self.side is Side.FRONTEND else Side.FRONTEND


@click.command("decode", cls=Tool)
@click.argument("source", metavar="[FILE|-|HEX...]", nargs=-1)
@click.option(
    "--from",
    "sender",
    type=click.Choice(list(_SIDES)),
    default="front-end",
    show_default=True,
    help="Whose requests there are on the channel; replies are told by their flag.",
)
@click.option(
    "--fds",
    type=click.IntRange(0),
    metavar="N",
    help="How many descriptors came with the first message; else that is not judged.",
)
@DEVICE
@click.option("--hex", "digits", is_flag=True, help="The input is hexadecimal digits.")
@click.option("--binary", is_flag=True, help="The input is the bytes themselves.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    source: tuple[str, ...],
    sender: str,
    fds: int | None,
    device: str | None,
    digits: bool,
    binary: bool,
    as_json: bool,
) -> None:
    """Show the fields of messages, and the rules that each of them breaks.

    The input is a file, - for the standard input, or hexadecimal digits: one message or several, or a transcript. The
    exit status is 0 if no rule is broken, 1 if one is, 2 if it could not be done.

    Example: vhostuser decode 0c000000 01000000 08000000 0101000000000000
    """  # fmt: skip
    if digits and binary:
        raise click.UsageError("--hex and --binary: the input is one of them")
    form = "hex" if digits else "binary" if binary else None
    pieces = _pieces(source, _SIDES[sender], fds, form)
    shown = [message for piece in pieces for message in piece.messages(FEATURE_NAMES[device])]
    _show(shown, as_json)
    context.exit(int(any(message.part.broken for message in shown)))


def _show(shown: Iterable[Shown], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([message.json() for message in shown], indent=2))
    elif sys.stdout.isatty():
        for message in shown:
            message.print_table()
    else:
        for message in shown:
            click.echo("\n".join(message.lines()))


# ---- what comes in ---------------------------------------------------------------------------------------------------


def _pieces(source: tuple[str, ...], side: Side, fds: int | None, form: str | None) -> list[Piece]:
    """What is to be shown. Raises click.UsageError."""
    if source not in ((), ("-",)) and not (len(source) == 1 and os.path.exists(source[0])):
        if form == "binary":
            raise click.UsageError(f"--binary: {source[0]}: no such file")
        try:
            return [Piece(_bytes_of(" ".join(source)), side, fds)]
        except ValueError as error:
            raise click.UsageError(f"{source[0]}: no such file, and {error}") from None
    name, data = _read(source[0] if source else "-")
    if form is None and data.lstrip()[:1] == b"{" and 0 not in data:
        return _recorded(name, data)
    if form == "hex" or (form is None and _is_text(data)):
        try:
            data = _bytes_of(data.decode(errors="replace"))
        except ValueError as error:
            what = "" if form else "neither a transcript nor hexadecimal: "
            raise click.UsageError(f"{name}: {what}{error}; --binary takes the bytes as they are") from None
    return [Piece(data, side, fds)]


def _read(path: str) -> tuple[str, bytes]:
    """A file's name and content. Raises click.UsageError."""
    name = "standard input" if path == "-" else path
    try:
        with click.open_file(path, "rb") as file:
            data = file.read(MAX_INPUT + 1)
    except OSError as error:
        raise click.UsageError(f"{name}: {error.strerror}") from error
    if len(data) > MAX_INPUT:
        raise click.UsageError(f"{name}: more than {MAX_INPUT} bytes")
    if not data:
        raise click.UsageError(f"{name}: empty")
    return name, data


def _is_text(data: bytes) -> bool:
    """Whether somebody wrote it to be read: most messages have a NUL."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def _bytes_of(text: str) -> bytes:
    """The bytes that hexadecimal digits stand for, with any white space, or as xxd prints them. Raises ValueError."""
    lines = [line for line in text.splitlines() if line.strip()]
    printed = [match[1] for line in lines if (match := _XXD.fullmatch(line))]
    digits = "".join("".join(printed if len(printed) == len(lines) else lines).split())
    if stranger := next((letter for letter in digits if letter not in string.hexdigits), None):
        raise ValueError(f"{stranger!r} is no hexadecimal digit")
    if len(digits) % 2:
        raise ValueError(f"{len(digits)} hexadecimal digits are no whole number of bytes")
    return bytes.fromhex(digits)


def _recorded(name: str, data: bytes) -> list[Piece]:
    """The messages of a transcript. Raises click.UsageError."""
    try:
        entries = parse(data.decode(errors="replace"), name).entries
    except TranscriptError as error:
        raise click.UsageError(error.text) from error
    return [_recorded_message(entry) for entry in entries if isinstance(entry, Said)]


def _recorded_message(said: Said) -> Piece:
    side = Side.BACKEND if said.own_channel else Side.FRONTEND
    return Piece(said.frame().encode()[: said.cut], side, len(said.fds), said.side, said.time)

"""Dissected messages for readers: a table on a terminal, plain lines on a pipe, JSON for programs.

Must not know: where messages come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vhostuser.cli.terminal import Terminal
from vhostuser.spec.statements import statements
from vhostuser.wire.dissect import BrokenRule, Field, Part

_COLUMNS = ("offset", "size", "field", "value", "meaning")
_SHOWN_IN_DECIMAL = 4096
_SHOWN_BYTES = 16


@dataclass(frozen=True)
class Shown:
    """A message with what is known of it besides its bytes.

    Attributes:
        part: The message.
        sender: Who sent it: ``front-end`` or ``back-end``.
        time: When, in seconds since the conversation began; None: unknown.
    """

    part: Part
    sender: str
    time: float | None = None

    @property
    def heading(self) -> str:
        """Who said what, in one line."""
        time = "" if self.time is None else f"{self.time:.6f} s  "
        name = self.part.name or "no message"
        return f"{time}{self.sender}: {name}{' reply' if self.part.is_reply else ''}, {self.part.size} bytes"

    def print_table(self) -> None:
        """For a terminal."""
        table = Table(title=Text(self.heading, "bold"), title_justify="left", box=SIMPLE_HEAD)
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name == "offset" else "left", overflow="fold")
        for row in self._rows():
            table.add_row(*map(Text, row))
        Terminal().print(table, *(Text(line, "red") for line in self._complaints()), "", sep="\n")

    def lines(self) -> Iterator[str]:
        """For a pipe: no colours, no frames, no line is broken."""
        rows = [_COLUMNS, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        yield self.heading
        for offset, *others in rows:
            cells = (cell.ljust(width) for cell, width in zip(others, widths[1:], strict=True))
            yield "  ".join(("", offset.rjust(widths[0]), *cells)).rstrip()
        yield from (f"  {line}" for line in self._complaints())
        yield ""

    def json(self) -> dict[str, Any]:
        """For programs. Bytes are hexadecimal digits."""
        return {
            "time": self.time,
            "from": self.sender,
            "offset": self.part.offset,
            "size": self.part.size,
            "name": self.part.name,
            "reply": self.part.is_reply,
            "fields": [_field(field) for field in self.part.fields],
            "broken": [_broken(broken) for broken in self.part.broken],
        }

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for _, run in groupby(self.part.fields, _run_of):
            first, *others = run
            if len(others) < 2:
                yield from map(_row, (first, *others))
            else:
                yield _row(first, others[-1])

    def _complaints(self) -> Iterator[str]:
        for broken in self.part.broken:
            statement = statements().get(broken.rule or "")
            yield f"broken: {broken.text}"
            if statement is not None:
                yield f"        {statement.id} ({statement.kind}): {statement.text}"


def _run_of(field: Field) -> object:
    """Elements of an array that are 0 share a row; of what else there is, each has its own."""
    array, bracket, _ = field.name.rpartition("[")
    return array if bracket and field.name.endswith("]") and field.value == 0 else field


def _row(field: Field, last: Field | None = None) -> tuple[str, ...]:
    """A field's row, or that of a run of fields."""
    name, end = field.name, field.offset + field.size
    if last is not None:
        name = f"{name.removesuffix(']')}..{last.name.rpartition('[')[2]}"
        end = last.offset + last.size
    size = str(end - field.offset)
    if field.bits is not None:
        low, width = field.bits
        size += f", bit {low}" if width == 1 else f", bits {low}-{low + width - 1}"
    return str(field.offset), size, name, _value(field), field.meaning


def _value(field: Field) -> str:
    if isinstance(field.value, int):
        value = int(field.value)
        return str(value) if value < _SHOWN_IN_DECIMAL else hex(value)
    return field.raw[:_SHOWN_BYTES].hex() + ("…" if len(field.raw) > _SHOWN_BYTES else "")


def _field(field: Field) -> dict[str, Any]:
    value = field.value.hex() if isinstance(field.value, bytes) else field.value
    told = {"offset": field.offset, "size": field.size, "name": field.name, "raw": field.raw.hex(), "value": value,
            "meaning": field.meaning}  # fmt: skip
    return told if field.bits is None else told | {"bits": list(field.bits)}


def _broken(broken: BrokenRule) -> dict[str, Any]:
    statement = statements().get(broken.rule or "")
    more = {} if statement is None else {"kind": statement.kind, "statement": statement.text}
    return {"rule": broken.rule, "text": broken.text, **more}

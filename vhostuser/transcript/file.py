"""Transcripts as files of JSON Lines; ``protocol-spec/transcripts/README.md`` describes the format.

Must not know: sockets.

How: the first line is the head, each other line an entry: a message, or an event. Keys that say nothing are left out.
Format 1 has messages of the front-end alone, each with the kind of answer that it got; it is read, not written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from vhostuser.errors import VhostUserError
from vhostuser.fds import Closing
from vhostuser.transcript.entries import (
    Closed,
    Descriptor,
    Entry,
    Kind,
    Paused,
    Resized,
    Said,
    Saw,
    Side,
    Signalled,
    Transcript,
    Wrote,
)
from vhostuser.transcript.wording import ACK, REPLY, values_of
from vhostuser.wire.requests import Direction, spec_of

FORMAT = "vhost-user transcript 2"
_FORMATS = ("vhost-user transcript 1", FORMAT)
_DESCRIPTOR_WORDS = ("size", "seals", "block", "blocking", "full", "path", "writable")
_WORD = 2**32 - 1
_LONG = 2**64 - 1
_ABSENT: Any = object()
_SHOWN = 40  # letters of a value that is none

E = TypeVar("E", bound=Enum)


class TranscriptError(VhostUserError):
    """A file is no transcript."""


# ---- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Transcript:
    """Read a transcript.

    Raises:
        TranscriptError: the file is none; says in which line and why.
        OSError: it cannot be read.
    """
    return parse(path.read_text(errors="replace"), str(path))


def parse(text: str, name: str = "transcript") -> Transcript:
    """Read a transcript out of its text. Raises TranscriptError, with `name` and the line's number."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise TranscriptError(f"{name}: empty, not even a head")
    head = _object(lines[0][1], f"{name}:1")
    if head.get("format") not in _FORMATS:
        raise TranscriptError(f"{name}:1: format {head.get('format')!r}; known are {', '.join(_FORMATS)}")
    if head.get("byte_order", sys.byteorder) != sys.byteorder:
        raise TranscriptError(f"{name}:1: byte order {head['byte_order']!r}, this machine's is {sys.byteorder!r}")
    entries: list[Entry] = []
    for number, line in lines[1:]:
        where = f"{name}:{number}"
        try:
            entries.append(_entry(_object(line, where), len(entries)))
        except ValueError as error:
            raise TranscriptError(f"{where}: {error}") from None
    front_end = str(head.get("front_end", head.get("peer", "")))
    back_end, scene = str(head.get("back_end", "")), str(head.get("scene", ""))
    try:
        return Transcript(tuple(entries), front_end, back_end, scene, _offer(head))
    except ValueError as error:
        raise TranscriptError(f"{name}:1: {error}") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"{where}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise TranscriptError(f"{where}: {type(value).__name__} instead of an object")
    return value


def _offer(head: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    told = _value(head, "offer", dict, "an object", {})
    return tuple((key, _bits(told, key)) for key in told)


def _bits(line: dict[str, Any], key: str) -> int:
    told = line[key]
    if isinstance(told, str):
        try:
            told = int(told, 0)
        except ValueError:
            raise _wrong(key, told, "a number, as 0x10") from None
    return _whole({key: told}, key, _LONG)


def _entry(line: dict[str, Any], position: int) -> Entry:
    time = _seconds(line, "time", 0.0)
    match line.get("event"):
        case None:
            return _said(line, time, position)
        case "closed":
            return Closed(_one_of(Side, line, "by", Side.FRONTEND.value), time)
        case "write":
            pieces = line.get("data")
            data = tuple(map(_bytes, pieces)) if isinstance(pieces, list) else (_data(line, "data"),)
            seconds = _seconds(line, "seconds", 0.0)
            return Wrote(_text(line, "memory"), _whole(line, "offset", _LONG), data, seconds, time)
        case "saw":
            return Saw(_text(line, "memory"), _whole(line, "offset", _LONG), _data(line, "data"), time)
        case "resize":
            return Resized(_text(line, "memory"), _whole(line, "size", _LONG), time)
        case "signal":
            return Signalled(_text(line, "fd"), time)
        case "pause":
            return Paused(_seconds(line, "seconds"), time)
        case other:
            raise _wrong("event", other, "one of closed, write, saw, resize, signal, pause")


def _said(line: dict[str, Any], time: float, position: int) -> Said:
    own_channel = _value(line, "own_channel", bool, "true or false", False)
    answer = line.get("answer")
    if answer not in (None, REPLY, ACK):
        raise _wrong("answer", answer, f"{REPLY} or {ACK}")
    return Said(
        _one_of(Side, line, "from"),
        _request(line, _direction(own_channel)),
        _whole(line, "flags", _WORD),
        _data(line, "payload"),
        None if line.get("size") is None else _whole(line, "size", _WORD),
        tuple(_descriptor(told, f"fd {position}.{at}") for at, told in enumerate(_list(line, "fds"))),
        own_channel,
        tuple(_whole({"pieces": piece}, "pieces", _WORD) for piece in _list(line, "pieces")),
        None if line.get("cut") is None else _whole(line, "cut", _WORD),
        answer,
        time,
        tuple(map(str, _list(line, "rules"))),
        tuple(map(str, _list(line, "bent"))),
    )


def _direction(own_channel: bool) -> Direction:
    """Whose requests the numbers on a channel are; a reply has that of its request."""
    return Direction.BACKEND if own_channel else Direction.FRONTEND


def _request(line: dict[str, Any], direction: Direction) -> int:
    told = _value(line, "request", str | int, "a request's name, or its number")
    if isinstance(told, int):
        return _whole(line, "request", _WORD)
    number = next((n for n in range(256) if (spec := spec_of(direction, n)) and spec.name == told), None)
    if number is None:
        whose = Side.BACKEND if direction is Direction.BACKEND else Side.FRONTEND
        raise _wrong("request", told, f"the name of a {whose.value}'s request, or its number")
    return number


def _descriptor(told: Any, name: str) -> Descriptor:
    if not isinstance(told, dict):
        raise _wrong("fds", told, "an object for each descriptor")
    return Descriptor(
        _text(told, "name", name),
        _one_of(Kind, told, "kind"),
        size=_whole(told, "size", _LONG, 0),
        seals=_whole(told, "seals", _WORD, 0),
        block=_whole(told, "block", _LONG, 0),
        blocking=_value(told, "blocking", bool, "true or false", False),
        full=_value(told, "full", bool, "true or false", False),
        path=_text(told, "path", ""),
        writable=_value(told, "writable", bool, "true or false", False),
    )


# what stands under a key; ValueError names the key, what is there and what could be


def _value(line: dict[str, Any], key: str, kinds: type | UnionType, wanted: str, absent: Any = _ABSENT) -> Any:
    value = line.get(key)
    if value is None and absent is not _ABSENT:
        return absent
    if key not in line:
        raise ValueError(f"{key} is missing: {wanted}")
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise _wrong(key, value, wanted)
    return value


def _wrong(key: str, value: Any, wanted: str) -> ValueError:
    told = repr(value)
    return ValueError(f"{key}: {told if len(told) <= _SHOWN else told[:_SHOWN] + '…'} is not {wanted}")


def _whole(line: dict[str, Any], key: str, most: int, absent: Any = _ABSENT) -> int:
    wanted = f"a whole number up to {most:#x}"
    value: int = _value(line, key, int, wanted, absent)
    if not 0 <= value <= most:
        raise _wrong(key, value, wanted)
    return value


def _seconds(line: dict[str, Any], key: str, absent: Any = _ABSENT) -> float:
    value = _value(line, key, int | float, "a number of seconds", absent)
    if not 0 <= value <= _LONG:
        raise _wrong(key, value, "a number of seconds")
    return float(value)


def _text(line: dict[str, Any], key: str, absent: Any = _ABSENT) -> str:
    text: str = _value(line, key, str, "a string", absent)
    return text


def _list(line: dict[str, Any], key: str) -> list[Any]:
    values: list[Any] = _value(line, key, list, "a list", [])
    return values


def _data(line: dict[str, Any], key: str) -> bytes:
    return _bytes(_text(line, key), key)


def _bytes(digits: Any, key: str = "data") -> bytes:
    try:
        return bytes.fromhex(digits)
    except (ValueError, TypeError):
        raise _wrong(key, digits, "bytes in hexadecimal digits") from None


def _one_of(kind: type[E], line: dict[str, Any], key: str, absent: Any = _ABSENT) -> E:
    allowed = ", ".join(str(member.value) for member in kind)
    word = _text(line, key, absent)
    try:
        return kind(word)
    except ValueError:
        raise _wrong(key, word, f"one of {allowed}") from None


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(transcript: Transcript, path: Path) -> None:
    """Write a transcript to a file. Raises OSError."""
    path.write_text("".join(f"{line}\n" for line in lines_of(transcript)))


def lines_of(transcript: Transcript) -> Iterator[str]:
    """The lines of its file, without their ends."""
    yield json.dumps(_head(transcript))
    for entry in transcript.entries:
        yield line_of(entry)


class Recorder(Closing):
    """A transcript that is written while the conversation goes on: a line is in the file as soon as it is known.

    Args:
        path: The file; what was in it is gone.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._begun = False

    def begin(self, front_end: str, back_end: str) -> None:
        """Write the head, if it is not there yet. Raises OSError."""
        if not self._begun:
            self._begun = True
            print(json.dumps(_head(Transcript((), front_end, back_end))), file=self._file)

    def add(self, entry: Entry) -> None:
        """Write an entry. Raises OSError."""
        print(line_of(entry), file=self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _head(transcript: Transcript) -> dict[str, Any]:
    told = {
        "front_end": transcript.front_end,
        "back_end": transcript.back_end,
        "scene": transcript.scene,
        "offer": {key: hex(value) for key, value in transcript.offer},
    }
    return {"format": FORMAT, "byte_order": sys.byteorder} | {key: value for key, value in told.items() if value}


def line_of(entry: Entry) -> str:
    """One entry as a line."""
    told = {"time": round(entry.time, 6)} | _written(entry)
    return json.dumps(told)


def _written(entry: Entry) -> dict[str, Any]:
    match entry:
        case Said():
            return _message(entry)
        case Closed(side=side):
            return {"event": "closed", "by": side.value}
        case Wrote(memory, offset, data, seconds):
            pieces = [piece.hex() for piece in data]
            lasting = {"seconds": seconds} if seconds else {}
            return {"event": "write", "memory": memory, "offset": offset,
                    "data": pieces[0] if len(pieces) == 1 else pieces, **lasting}  # fmt: skip
        case Saw(memory, offset, seen):
            return {"event": "saw", "memory": memory, "offset": offset, "data": seen.hex()}
        case Resized(memory, size):
            return {"event": "resize", "memory": memory, "size": size}
        case Signalled(name):
            return {"event": "signal", "fd": name}
        case Paused(seconds):
            return {"event": "pause", "seconds": seconds}


def _message(said: Said) -> dict[str, Any]:
    spec = spec_of(said.direction, said.request)
    told = {
        "from": said.side.value,
        "request": spec.name if spec else said.request,
        "flags": said.flags,
        "payload": said.payload.hex(),
        "text": values_of(said),
        "fds": [_told(fd) for fd in said.fds],
    }
    more = {
        "size": said.size,
        "own_channel": said.own_channel or None,
        "pieces": list(said.pieces) or None,
        "cut": said.cut,
        "answer": said.answer,
        "rules": list(said.rules) or None,
        "bent": list(said.bent) or None,
    }
    return told | {key: value for key, value in more.items() if value is not None}


def _told(fd: Descriptor) -> dict[str, Any]:
    words = {word: getattr(fd, word) for word in _DESCRIPTOR_WORDS}
    return {"name": fd.name, "kind": fd.kind.value} | {word: value for word, value in words.items() if value}

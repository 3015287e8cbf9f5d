"""Transcripts as files of JSON Lines; ``protocol-spec/transcripts/README.md`` describes the format.

Must not know: sockets.

How: the first line is the head, each other line an entry: a message, or an event. Keys that say nothing are left out.
Format 1 has messages of the front-end alone, each with the kind of answer that it got; it is read, not written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from vhostuser.transcript.wording import values_of
from vhostuser.wire.requests import Direction, spec_of

FORMAT = "vhost-user transcript 2"
_FORMATS = ("vhost-user transcript 1", FORMAT)
_DESCRIPTOR_WORDS = ("size", "seals", "block", "blocking", "full", "path")


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
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise TranscriptError(f"{where}: {type(error).__name__}: {error}") from None
    offer = tuple((key, _number(value)) for key, value in head.get("offer", {}).items())
    front_end = str(head.get("front_end", head.get("peer", "")))
    return Transcript(tuple(entries), front_end, str(head.get("back_end", "")), str(head.get("scene", "")), offer)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TranscriptError(f"{where}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise TranscriptError(f"{where}: {type(value).__name__} instead of an object")
    return value


def _number(value: str | int) -> int:
    return int(value, 0) if isinstance(value, str) else int(value)


def _entry(line: dict[str, Any], position: int) -> Entry:
    time = float(line.get("time", 0.0))
    match line.get("event"):
        case None:
            return _said(line, time, position)
        case "closed":
            return Closed(Side(line.get("by", Side.FRONTEND.value)), time)
        case "write":
            data = line["data"]
            pieces = (data,) if isinstance(data, str) else tuple(data)
            return Wrote(line["memory"], int(line["offset"]), tuple(map(bytes.fromhex, pieces)),
                         float(line.get("seconds", 0.0)), time)  # fmt: skip
        case "saw":
            return Saw(line["memory"], int(line["offset"]), bytes.fromhex(line["data"]), time)
        case "resize":
            return Resized(line["memory"], int(line["size"]), time)
        case "signal":
            return Signalled(line["fd"], time)
        case "pause":
            return Paused(float(line["seconds"]), time)
        case other:
            raise ValueError(f"event {other!r} is unknown")


def _said(line: dict[str, Any], time: float, position: int) -> Said:
    side, own_channel = Side(line["from"]), bool(line.get("own_channel", False))
    size, cut = line.get("size"), line.get("cut")
    return Said(
        side,
        _request(line["request"], _direction(own_channel)),
        int(line["flags"]),
        bytes.fromhex(line["payload"]),
        None if size is None else int(size),
        tuple(_descriptor(told, f"fd {position}.{at}") for at, told in enumerate(line.get("fds", ()))),
        own_channel,
        tuple(map(int, line.get("pieces", ()))),
        None if cut is None else int(cut),
        line.get("answer"),
        time,
        tuple(line.get("rules", ())),
        tuple(line.get("bent", ())),
    )


def _direction(own_channel: bool) -> Direction:
    """Whose requests the numbers on a channel are; a reply has that of its request."""
    return Direction.BACKEND if own_channel else Direction.FRONTEND


def _request(told: str | int, direction: Direction) -> int:
    if isinstance(told, int):
        return told
    number = next((n for n in range(256) if (spec := spec_of(direction, n)) and spec.name == told), None)
    if number is None:
        raise ValueError(f"request {told!r} is unknown")
    return number


def _descriptor(told: dict[str, Any], name: str) -> Descriptor:
    words = {word: told[word] for word in _DESCRIPTOR_WORDS if word in told}
    return Descriptor(str(told.get("name", name)), Kind(told["kind"]), **words)


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

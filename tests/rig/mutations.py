"""Recorded messages, changed in every way, taken apart: the dissector's account of any bytes has to be complete.

:func:`mutations` is the run; everything follows from the seed. A sample is up to three recorded messages in a row, with
up to four changes: bits turned, words put in that mean something somewhere, bytes cut out, put in or said twice.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.rig.process import RigError
from vhostuser.transcript.entries import Said
from vhostuser.transcript.file import load
from vhostuser.wire.dissect import Dissection, dissect
from vhostuser.wire.requests import Direction

TRANSCRIPTS = Path(__file__).resolve().parents[2] / "protocol-spec" / "transcripts"
WORDS = (0, 1, 2, 5, 8, 9, 12, 20, 22, 24, 31, 37, 44, 99, 255, 256, 257, 4096, 4097, 2**31, 2**32 - 1)


def recorded() -> list[bytes]:
    """Every different message of the transcripts."""
    said = [entry for path in sorted(TRANSCRIPTS.glob("*.jsonl")) for entry in load(path).entries]
    return sorted({entry.frame().encode() for entry in said if isinstance(entry, Said)})


def _turn_bit(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data[at] ^= 1 << random.randrange(8)


def _put_word(random: Random, data: bytearray) -> None:
    at = random.randrange(0, len(data), 4)
    data[at : at + 4] = struct.pack("=I", random.choice(WORDS))


def _cut(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randrange(1, 20)]


def _put_in(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.randrange(1, 20))


def _end(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data)) :]


def _repeat(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data += data[at : at + random.randrange(1, 100)]


_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (_turn_bit, _put_word, _cut, _put_in, _end, _repeat)


def mutated(random: Random, messages: list[bytes]) -> bytes:
    """A sample."""
    data = bytearray(b"".join(random.choices(messages, k=random.randrange(1, 4))))
    for change in random.choices(_CHANGES, k=random.randrange(1, 5)):
        if data:
            change(random, data)
    return bytes(data)


def check(data: bytes, dissection: Dissection) -> None:
    """Look whether each byte is in one field, or in the bit fields of one word. Raises RigError."""
    at = begin = 0
    for field in dissection.fields:
        if field.offset not in (at, begin) or field.raw != data[field.offset : field.offset + field.size]:
            raise RigError(f"{field} is not where {data.hex()} goes on, at {at}")
        begin, at = field.offset, field.offset + field.size
    if at != len(data):
        raise RigError(f"bytes from {at} of {data.hex()} are in no field")


def mutations(count: int, seed: int) -> dict[str, Any]:
    """Take `count` samples apart. Raises RigError for one that the dissector does not do justice to."""
    random, messages = Random(seed), recorded()
    rules: Counter[str] = Counter()
    parts = broken = 0
    for number in range(count):
        data = mutated(random, messages)
        direction = random.choice(list(Direction))
        fds = random.choice((None, 0, 1, 2))
        try:
            dissection = dissect(data, direction, fds=fds)
        except Exception as error:
            raise RigError(f"sample {number}, {data.hex()} {direction.value}: {error!r}") from error
        check(data, dissection)
        found = [rule.rule or "no rule" for rule in dissection.broken]
        rules.update(found)
        parts += len(dissection.parts)
        broken += bool(found)
    return {
        "seed": seed,
        "recorded messages": len(messages),
        "samples": count,
        "messages": parts,
        "samples that break a rule": broken,
        "rules broken": dict(sorted(rules.items())),
    }

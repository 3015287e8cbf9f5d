"""Values that mean trouble: for each field of a payload by its width, and by where the conversation's memory lies.

Must not know: single requests.

How: payload classes carry the width of each field in their annotations, so a field of any payload, nested ones too, can
be found and given another value without a list of payloads here.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from random import Random
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from vhostuser.fuzz.stage import MEMORY_SIZE, REGIONS, USERSPACE
from vhostuser.wire.messages import Payload

_PAGE = 4096
_SMALL = (0, 1, 2, 3, 7, 8, 9, 15, 16, 63, 64, 127, 128, 255, 256, 257, 1023, 1024, 4095, 4096)


@cache
def edges(width: int) -> tuple[int, ...]:
    """Numbers of so many bits at which programs go wrong: around powers of two, around limits, around our memory."""
    top = (1 << width) - 1
    powers = [(1 << shift) + step for shift in range(width + 1) for step in (-1, 0, 1)]
    wraps = [top - step for step in (0, 1, 7, 15, _PAGE - 1, _PAGE, MEMORY_SIZE - 1, MEMORY_SIZE)]
    places = [
        base + begin + offset
        for base in (0, USERSPACE)
        for begin in REGIONS
        for offset in (-1, 0, 1, 8, _PAGE, MEMORY_SIZE - 16, MEMORY_SIZE - 1, MEMORY_SIZE, MEMORY_SIZE + 1)
    ]
    return tuple(sorted({number for number in (*_SMALL, *powers, *wraps, *places) if 0 <= number <= top}))


def edge(random: Random, width: int) -> int:
    """One of them, a small one as likely as any other; or any number at all."""
    match random.randrange(8):
        case 0:
            return random.getrandbits(width)
        case 1 | 2 | 3:
            return random.choice([number for number in _SMALL if number >> width == 0])
    return random.choice(edges(width))


def spoiled(random: Random, payload: Payload) -> Payload:
    """The same payload with another value in one of its fields."""
    hints = get_type_hints(type(payload), include_extras=True)
    name = random.choice([field.name for field in fields(payload)])  # type: ignore[arg-type]
    return replace(payload, **{name: _other(random, hints[name], getattr(payload, name))})  # type: ignore[type-var]


def _other(random: Random, hint: Any, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and get_origin(hint) is Annotated:
        width = get_args(hint)[1]
        if random.random() < 0.2:
            return value ^ 1 << random.randrange(width)
        if random.random() < 0.2:
            return (value + random.choice((-1, 1))) % (1 << width)
        return edge(random, width)
    if isinstance(value, bytes):
        return random.randbytes(len(value) if get_origin(hint) is Annotated else random.choice((0, 1, 8, 256)))
    if isinstance(value, tuple) and value:
        at = random.randrange(len(value))
        inner = _other(random, Annotated[int, 64], value[at])
        return (*value[:at], inner, *value[at + 1 :])
    if is_dataclass(value) and isinstance(value, Payload):
        return spoiled(random, value)
    return value

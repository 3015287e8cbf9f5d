"""Hypothesis strategies for payload values, derived from the annotations of the payload classes."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hypothesis import settings
from hypothesis import strategies as st

from tests.examples import REPEATABLE
from vhostuser.wire import messages as m
from vhostuser.wire.layouts import MAX_CONFIG_SIZE, MAX_REGIONS

# Most properties run once for each row of the table, so a few examples each are many.
PROPERTY = settings(max_examples=30, deadline=None, derandomize=REPEATABLE)

KINDS = [kind for kind in vars(m).values() if isinstance(kind, type) and kind.__base__ is m.Payload]

# What an annotation cannot say: bounds that the syntax sets for a whole message.
_BOUNDED: dict[tuple[type[m.Payload], str], st.SearchStrategy[Any]] = {
    (m.VringFd, "reserved"): st.just(0),
    (m.Config, "payload"): st.binary(max_size=MAX_CONFIG_SIZE),
    (m.CryptoSession, "data"): st.binary(min_size=1, max_size=600),
    (m.MemoryRegion, "xen"): st.none(),
}


def payloads(kind: type[m.Payload]) -> st.SearchStrategy[Any]:
    """Values of a payload class that the codec accepts."""
    if kind is m.MemoryTable:
        return _tables()
    return st.builds(kind, **_arguments(kind))


def _tables() -> st.SearchStrategy[m.MemoryTable]:
    plain = payloads(m.MemoryRegion)
    xen = st.builds(m.MemoryRegion, **{**_arguments(m.MemoryRegion), "xen": payloads(m.XenMmap)})
    lists = st.one_of(*(st.lists(regions, min_size=1, max_size=MAX_REGIONS) for regions in (plain, xen)))
    return st.builds(m.MemoryTable, regions=lists.map(tuple))


def _arguments(kind: type[m.Payload]) -> dict[str, st.SearchStrategy[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return {name: _BOUNDED[kind, name] if (kind, name) in _BOUNDED else _of_hint(hints[name]) for name in names}


def _of_hint(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is Annotated:
        base, width = get_args(hint)
        if base is int:
            return st.integers(0, (1 << width) - 1)
        if base is bytes:
            return st.binary(min_size=width, max_size=width)
        (element, _) = get_args(base)
        return st.lists(_of_hint(element), min_size=width, max_size=width).map(tuple)
    return st.booleans() if hint is bool else payloads(hint)

"""The byte layouts of all payloads, declared with Construct.

Must not know: requests, descriptors, what a value means.

How: each payload class has one declaration and the set of sizes that it can have. Construct trusts counts and
does not mind trailing bytes, so the size is checked by the caller against :func:`legal_sizes`, and counts are
compared with the size here, before Construct sees a byte. Integers stay plain integers. Padding is written as
zero and not looked at. :func:`places` walks the same declarations, for who wants to see each field.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar, cast

import construct as cs  # noqa: TID251 - this is the one module that may

from vhostuser.errors import LocalProtocolError, PayloadError
from vhostuser.wire import messages
from vhostuser.wire.frames import MAX_PAYLOAD
from vhostuser.wire.messages import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

MAX_REGIONS = 8
"""Memory regions in one SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS)."""
MAX_CONFIG_SIZE = 256
"""Bytes of configuration space (VHOST_USER_MAX_CONFIG_SIZE)."""

_TABLE_PREFIX = 8
_REGION_SIZE = 32
_XEN_REGION_SIZE = 40
_CONFIG_PREFIX = 12
_INFLIGHT_SIZES = frozenset({20, 24})

P = TypeVar("P", bound=Payload)


@dataclass(frozen=True)
class _Layout:
    """A payload's declaration, its possible sizes, and what looks at its counts before parsing.

    ``measure`` gives the parameters that the declaration reads from ``this._params``.
    """

    construct: Any
    sizes: Collection[int]
    measure: Callable[[bytes], dict[str, int]]


def legal_sizes(kind: type[Payload] | None) -> Collection[int]:
    """Sizes in bytes that a payload of this class can have; 0 alone for None."""
    return _LAYOUTS[kind].sizes if kind else _NO_PAYLOAD


def parse(kind: type[P], data: bytes) -> P:
    """Turn bytes of a legal size into a value.

    Raises:
        PayloadError: A count inside contradicts the size or its limit.
    """
    layout = _LAYOUTS[kind]
    try:
        return cast("P", layout.construct.parse(data, **layout.measure(data)))
    except cs.ConstructError as error:
        raise PayloadError(f"{kind.__name__} does not fit into {len(data)} bytes", rule="VU-PAY-1") from error


def build(value: Payload) -> bytes:
    """Turn a value into bytes.

    Raises:
        LocalProtocolError: A field does not fit into its place.
    """
    try:
        return cast("bytes", _LAYOUTS[type(value)].construct.build(value))
    except cs.ConstructError as error:
        raise LocalProtocolError(f"{value!r} cannot be encoded: {error}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field of a payload lies, and what is there.

    Attributes:
        path: Its name, behind those of what it is part of: ``regions[1].guest_phys_addr``; padding is ``padding``.
        offset: In bytes from the payload's begin. Of a bit field, that of its word.
        size: In bytes. Of a bit field, that of its word.
        value: What is there; of padding None.
        bits: Of a bit field, the number of its lowest bit in that word, and how many it has.
    """

    path: str
    offset: int
    size: int
    value: int | bytes | None
    bits: tuple[int, int] | None = None


def places(kind: type[Payload] | None, data: bytes) -> Iterator[Place]:
    """The fields of a payload, in order, as far as the bytes go. Never raises, whatever they are.

    A field that is not whole is left out, and so is what the declaration knows nothing of.
    """
    if kind is None:
        return
    layout = _LAYOUTS[kind]
    try:
        measures = layout.measure(data)
    except (PayloadError, cs.ConstructError):  # a count that cannot be
        measures = {"region_size": _REGION_SIZE, "size": len(data)}
    with suppress(cs.StreamError):
        yield from _walk(layout.construct, "", _context(measures), BytesIO(data))


def _walk(construct: Any, path: str, context: Any, stream: BytesIO) -> Iterator[Place]:
    """What a declaration finds from where the stream stands. Raises StreamError where the bytes end."""
    match construct:
        case cs.Struct():
            inner = _context(context._params)
            for part in construct.subcons:
                yield from _walk(part, _below(path, part.name or "padding"), inner, stream)
        case cs.Array():
            for index in range(cs.evaluate(construct.count, context)):
                yield from _walk(construct.subcon, f"{path}[{index}]", context, stream)
        case cs.IfThenElse():
            if construct.condfunc(context):
                yield from _walk(construct.thensubcon, path, context, stream)
        case cs.Transformed():
            yield from _walk_bits(construct, path, stream)
        case cs.Subconstruct() if not isinstance(construct, cs.Padded):  # named, counted, made a value: the same bytes
            yield from _walk(construct.subcon, path, context, stream)
        case _:
            offset = stream.tell()
            value = construct.parse_stream(stream, **context)
            context[path.rpartition(".")[2]] = value  # others may depend on it
            if stream.tell() > offset:
                yield Place(path, offset, stream.tell() - offset, value)


def _walk_bits(construct: Any, path: str, stream: BytesIO) -> Iterator[Place]:
    offset = stream.tell()
    values = construct.parse_stream(stream)
    while isinstance(construct, cs.Transformed):
        construct = construct.subcon
    low = 0
    for part in reversed(construct.subcons):
        bits = low, part.sizeof()
        yield Place(_below(path, part.name), offset, stream.tell() - offset, values[part.name], bits)
        low += part.sizeof()


def _context(measures: Mapping[str, int]) -> Any:
    return cs.Container(_building=False, _params=cs.Container(measures))


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _value(kind: type[Payload], construct: Any) -> Any:
    """Make a declaration parse to, and build from, a payload value with the same field names."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    def decode(container: Any, _context: Any) -> Payload:
        found = {name: container[name] for name in names}
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in found.items()})

    def encode(value: Payload, _context: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    return cs.ExprAdapter(construct, decode, encode)


def _native_bits(construct: Any) -> Any:
    """Bits are declared from the highest down; in memory they lie in the host's byte order."""
    return cs.ByteSwapped(construct) if sys.byteorder == "little" else construct


def _has_xen(context: Any) -> bool:
    if context._building:
        return context.xen is not None
    return bool(context._params.region_size == _XEN_REGION_SIZE)


def _has_inflight_padding(context: Any) -> bool:
    # The specification's fields end at 20; every peer moves the C structure of 24, and so do we.
    return bool(context._building or context._params.size == max(_INFLIGHT_SIZES))


_U64 = _value(messages.U64, cs.Struct("value" / cs.Int64un))

_VRING_STATE = _value(messages.VringState, cs.Struct("index" / cs.Int32un, "num" / cs.Int32un))

_VRING_ADDR = _value(
    messages.VringAddr,
    cs.Struct(
        "index" / cs.Int32un,
        "flags" / cs.Int32un,
        "descriptor" / cs.Int64un,
        "used" / cs.Int64un,
        "available" / cs.Int64un,
        "log" / cs.Int64un,
    ),
)

_VRING_FD = _value(
    messages.VringFd,
    _native_bits(
        cs.BitStruct("reserved" / cs.BitsInteger(55), "no_fd" / cs.Flag, "index" / cs.BitsInteger(8)),
    ),
)

_XEN_MMAP = _value(messages.XenMmap, cs.Struct("flags" / cs.Int32un, "domid" / cs.Int32un))

_MEMORY_REGION = _value(
    messages.MemoryRegion,
    cs.Struct(
        "guest_phys_addr" / cs.Int64un,
        "memory_size" / cs.Int64un,
        "userspace_addr" / cs.Int64un,
        "mmap_offset" / cs.Int64un,
        "xen" / cs.If(_has_xen, _XEN_MMAP),
    ),
)

_MEMORY_TABLE = _value(
    messages.MemoryTable,
    cs.Struct(
        "nregions" / cs.Rebuild(cs.Int32un, cs.len_(cs.this.regions)),
        cs.Padding(4),
        "regions" / cs.Array(cs.this.nregions, _MEMORY_REGION),
    ),
)

_SINGLE_REGION = _value(messages.SingleRegion, cs.Struct(cs.Padding(8), "region" / _MEMORY_REGION))

_LOG = _value(messages.Log, cs.Struct("mmap_size" / cs.Int64un, "mmap_offset" / cs.Int64un))

_IOTLB = _value(
    messages.Iotlb,
    cs.Struct(
        "iova" / cs.Int64un,
        "size" / cs.Int64un,
        "uaddr" / cs.Int64un,
        "perm" / cs.Int8un,
        "type" / cs.Int8un,
        cs.Padding(6),
    ),
)

_CONFIG = _value(
    messages.Config,
    cs.Struct(
        "offset" / cs.Int32un,
        "size" / cs.Rebuild(cs.Int32un, cs.len_(cs.this.payload)),
        "flags" / cs.Int32un,
        "payload" / cs.Bytes(cs.this.size),
    ),
)

_VRING_AREA = _value(
    messages.VringArea,
    cs.Struct("vring" / _VRING_FD, "size" / cs.Int64un, "offset" / cs.Int64un),
)

_INFLIGHT = _value(
    messages.Inflight,
    cs.Struct(
        "mmap_size" / cs.Int64un,
        "mmap_offset" / cs.Int64un,
        "num_queues" / cs.Int16un,
        "queue_size" / cs.Int16un,
        cs.If(_has_inflight_padding, cs.Padding(4)),
    ),
)

_SHARED_OBJECT = _value(messages.SharedObject, cs.Struct("uuid" / cs.Bytes(16)))

_DEVICE_STATE = _value(messages.DeviceState, cs.Struct("direction" / cs.Int32un, "phase" / cs.Int32un))

_SHMEM_MAP = _value(
    messages.ShmemMap,
    cs.Struct(
        "shmid" / cs.Int8un,
        cs.Padding(7),
        "fd_offset" / cs.Int64un,
        "shm_offset" / cs.Int64un,
        "length" / cs.Int64un,
        "flags" / cs.Int64un,
    ),
)

_SHMEM_CONFIG = _value(
    messages.ShmemConfig,
    cs.Struct("nregions" / cs.Int32un, cs.Padding(4), "memory_sizes" / cs.Array(256, cs.Int64un)),
)

_CRYPTO_SESSION = _value(messages.CryptoSession, cs.Struct("data" / cs.GreedyBytes))


def _measure_nothing(_data: bytes) -> dict[str, int]:
    return {}


def _measure_size(data: bytes) -> dict[str, int]:
    return {"size": len(data)}


def _measure_table(data: bytes) -> dict[str, int]:
    nregions = cs.Int32un.parse(data)
    if not 1 <= nregions <= MAX_REGIONS:
        raise PayloadError(f"nregions {nregions} is not in 1..{MAX_REGIONS}", rule="VU-PAY-3")
    size = len(data) - _TABLE_PREFIX
    for region_size in (_REGION_SIZE, _XEN_REGION_SIZE):
        if size == nregions * region_size:
            return {"region_size": region_size}
    # User-mode Linux sends room for two regions, whatever nregions says; what is not counted is not looked at.
    if size % _REGION_SIZE or not nregions * _REGION_SIZE < size <= MAX_REGIONS * _REGION_SIZE:
        raise PayloadError(f"nregions {nregions} does not match a payload of {len(data)} bytes", rule="VU-PAY-3")
    return {"region_size": _REGION_SIZE}


def _measure_single_region(data: bytes) -> dict[str, int]:
    return {"region_size": len(data) - _TABLE_PREFIX}


def _measure_config(data: bytes) -> dict[str, int]:
    size, follows = cs.Int32un.parse(data[4:8]), len(data) - _CONFIG_PREFIX
    if size > MAX_CONFIG_SIZE:
        raise PayloadError(f"config size {size} is above the limit {MAX_CONFIG_SIZE}", rule="VU-PAY-5")
    if size != follows:
        raise PayloadError(f"config size {size} does not match the {follows} bytes that follow", rule="VU-PAY-5")
    return {}


def _fixed(construct: Any) -> _Layout:
    return _Layout(construct, frozenset({construct.sizeof()}), _measure_nothing)


_NO_PAYLOAD = frozenset({0})

# Sizes of a table include those whose nregions is then refused by name: a count out of range is a wrong
# value, while a size that no count explains means that the stream is out of step.
_TABLE_SIZES = frozenset(
    size for step in (_REGION_SIZE, _XEN_REGION_SIZE) for size in range(_TABLE_PREFIX, MAX_PAYLOAD + 1, step)
)

_LAYOUTS: dict[type[Payload], _Layout] = {
    messages.U64: _fixed(_U64),
    messages.VringState: _fixed(_VRING_STATE),
    messages.VringAddr: _fixed(_VRING_ADDR),
    messages.VringFd: _fixed(_VRING_FD),
    messages.MemoryTable: _Layout(_MEMORY_TABLE, _TABLE_SIZES, _measure_table),
    messages.SingleRegion: _Layout(
        _SINGLE_REGION,
        frozenset({_TABLE_PREFIX + _REGION_SIZE, _TABLE_PREFIX + _XEN_REGION_SIZE}),
        _measure_single_region,
    ),
    messages.Log: _fixed(_LOG),
    messages.Iotlb: _fixed(_IOTLB),
    messages.Config: _Layout(_CONFIG, range(_CONFIG_PREFIX, MAX_PAYLOAD + 1), _measure_config),
    messages.VringArea: _fixed(_VRING_AREA),
    messages.Inflight: _Layout(_INFLIGHT, _INFLIGHT_SIZES, _measure_size),
    messages.SharedObject: _fixed(_SHARED_OBJECT),
    messages.DeviceState: _fixed(_DEVICE_STATE),
    messages.ShmemMap: _fixed(_SHMEM_MAP),
    messages.ShmemConfig: _fixed(_SHMEM_CONFIG),
    messages.CryptoSession: _Layout(_CRYPTO_SESSION, range(1, MAX_PAYLOAD + 1), _measure_nothing),
}

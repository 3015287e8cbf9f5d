"""Messages of a transcript in words, for readers.

Must not know: where the words go. Never raises, however wrong a message is.
"""

from __future__ import annotations

import fcntl

from vhostuser.errors import PayloadError
from vhostuser.transcript.entries import Descriptor, Kind, Said
from vhostuser.wire import layouts
from vhostuser.wire.frames import VERSION, HeaderFlags
from vhostuser.wire.meanings import FeatureNames, meaning
from vhostuser.wire.messages import U64, MemoryRegion, MemoryTable, Payload, SingleRegion, VringFd
from vhostuser.wire.requests import FrontendRequest as R
from vhostuser.wire.requests import Reply, spec_of

REPLY, ACK = "reply", "ack"
"""Kinds of answers."""

_SEALS = {name.removeprefix("F_SEAL_"): getattr(fcntl, name) for name in dir(fcntl) if name.startswith("F_SEAL_")}
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_SHOWN_BYTES = 32
_SHOWN_IN_DECIMAL = 4096
_FEATURES = frozenset({R.GET_FEATURES, R.SET_FEATURES})


def payload_of(said: Said) -> Payload | bytes | None:
    """Its payload as a value; the bytes where they cannot be one, None where there are none."""
    spec = spec_of(said.direction, said.request)
    if spec is not None:
        for kind in spec.reply_bodies if said.is_reply else (spec.payload,):
            if kind is not None and len(said.payload) in layouts.legal_sizes(kind):
                try:
                    return layouts.parse(kind, said.payload)
                except PayloadError:
                    break
    return said.payload or None


def name_of(said: Said) -> str:
    """What it is: the request's name or number, and of an answer, of which kind."""
    spec = spec_of(said.direction, said.request)
    name = spec.name if spec else f"request {said.request}"
    return f"{name} {kind_of(said)}" if said.is_reply else name


def kind_of(answer: Said) -> str:
    """Of which kind an answer is: `REPLY`, the request's own, or `ACK`."""
    spec = spec_of(answer.direction, answer.request)
    if spec is None or (spec.reply is not Reply.ALWAYS and isinstance(payload_of(answer), U64)):
        return ACK
    return REPLY


def values_of(said: Said, names: FeatureNames = ()) -> str:
    """Its payload in words; empty for none.

    Args:
        said: The message.
        names: For virtio feature bits, which are numbers without.
    """
    match payload_of(said):
        case None:
            return ""
        case bytes(data):
            return data[:_SHOWN_BYTES].hex() + ("…" if len(data) > _SHOWN_BYTES else "")
        case U64(word):
            meant = _meaning(said, word, names)
            as_bits = meant is not None or word >= _SHOWN_IN_DECIMAL
            return (hex(word) if as_bits else str(word)) + (f" ({meant})" if meant else "")
        case MemoryTable(regions):
            return "; ".join(map(_region, regions))
        case SingleRegion(region):
            return _region(region)
        case VringFd(index, no_fd, reserved):
            return f"index={index}" + " no_fd" * no_fd + (f" reserved={reserved:#x}" if reserved else "")
        case payload:
            return str(payload)


def _meaning(said: Said, word: int, names: FeatureNames) -> str | None:
    """What a word of bits means, as far as its bits have names; None for a number."""
    spec = spec_of(said.direction, said.request)
    if spec is None or (said.is_reply and kind_of(said) == ACK):
        return None
    if said.request in _FEATURES and not names:
        return ""
    return meaning(spec, U64, "value", word, said.is_reply, names) or None


def _region(region: MemoryRegion) -> str:
    return str(region).removesuffix(" xen=None")


def header_of(said: Said) -> str:
    """What its header says besides request and size; empty for nothing special."""
    rest = said.flags & ~int(HeaderFlags.REPLY | HeaderFlags.NEED_REPLY)
    words = ["need_reply"] if said.flags & HeaderFlags.NEED_REPLY else []
    words += [f"flags={said.flags:#x}"] if rest != VERSION else []
    words += [f"size={said.size}"] if said.size not in (None, len(said.payload)) else []
    return " ".join(words)


def descriptor_in_words(fd: Descriptor) -> str:
    """Name, kind, size and seals of a descriptor."""
    words = [fd.kind.value]
    if fd.kind in (Kind.MEMORY, Kind.FILE):
        words += [_size(fd.size)] if fd.size else []
        words += [f"pages of {_size(fd.block)}"] if fd.block else []
        words += [f"sealed {'|'.join(name for name, bit in _SEALS.items() if fd.seals & bit)}"] if fd.seals else []
    if fd.path:
        words.append(ascii(fd.path)[1:-1])  # a stranger named it
    return f"{fd.name} ({', '.join(words)})"


def _size(number: int) -> str:
    for unit, name in _UNITS:
        if number and not number % unit:
            return f"{number // unit} {name}"
    return f"{number} bytes"


def sentence_of(said: Said) -> str:
    """All of it in one line: what it is, its values, its header, its descriptors."""
    fds = ", ".join(map(descriptor_in_words, said.fds))
    return " ".join(filter(None, (name_of(said), values_of(said), header_of(said), f"with {fds}" if fds else "")))

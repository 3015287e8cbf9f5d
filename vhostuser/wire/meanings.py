"""What single values of messages mean, in words, for who reads bytes.

Must not know: where a value lies; what a device makes of its own feature bits, of which the caller may bring the names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import IntFlag
from typing import Any
from uuid import UUID

from vhostuser.wire import messages as m
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION_MASK, HeaderFlags
from vhostuser.wire.requests import FrontendRequest as R
from vhostuser.wire.requests import Reply, RequestSpec

FeatureNames = Iterable[type[IntFlag]]
"""Classes that have names for bits of the virtio feature word; the first that has one counts."""

_NO_FD = 0x100  # in the reply to SET_DEVICE_STATE_FD


def bit_names(word: int, names: FeatureNames) -> str:
    """The set bits of a word, lowest first: their names, or their numbers where there is none."""
    return ", ".join(_bit_name(bit, names) for bit in range(word.bit_length()) if word >> bit & 1) or "none"


def _bit_name(bit: int, names: FeatureNames) -> str:
    return next((kind(1 << bit).name or "" for kind in names if 1 << bit in kind.__members__.values()), f"bit {bit}")


def flags_meaning(flags: int) -> str:
    """The header's flags word."""
    rest = flags & ~VERSION_MASK
    return f"version {flags & VERSION_MASK}" + (f", {bit_names(rest, [HeaderFlags])}" if rest else "")


def meaning(
    spec: RequestSpec, kind: type[m.Payload], path: str, value: Any, is_reply: bool, names: FeatureNames = ()
) -> str:
    """What the value of one field means; empty where it means itself.

    Args:
        spec: The request, or the one that is answered.
        kind: The payload's class.
        path: The field's name (``layouts.Place.path``).
        value: Its value.
        is_reply: Whether it is in a reply.
        names: For virtio feature bits, besides those that concern vhost-user itself.
    """
    if kind is m.U64:
        return _word_meaning(spec, value, is_reply, (VhostFeature, *names))
    name = path.rpartition(".")[2]
    if name == "num":
        return _NUM.get(spec.number, {}).get(value, "")
    owner = m.XenMmap if ".xen." in path else kind
    return _FIELDS.get((owner, name), _FIELDS.get((None, name), _nothing))(value)


def _word_meaning(spec: RequestSpec, word: int, is_reply: bool, names: FeatureNames) -> str:
    acknowledges = is_reply and (spec.reply is not Reply.ALWAYS or spec.refusal is not None)
    match spec.number:
        case R.SET_DEVICE_STATE_FD if word & _NO_FD and spec.accepts(m.U64(word)):
            return "done, no other descriptor is to be used"
        case _ if acknowledges:
            return "done" if spec.accepts(m.U64(word)) else "failed"
        case R.GET_FEATURES | R.SET_FEATURES:
            return bit_names(word, names)
        case R.GET_PROTOCOL_FEATURES | R.SET_PROTOCOL_FEATURES:
            return bit_names(word, [ProtocolFeature])
        case R.GET_STATUS | R.SET_STATUS:
            return bit_names(word, [m.DeviceStatus]) if word else "reset"
        case R.SEND_RARP:
            return word.to_bytes(8, sys.byteorder)[:6].hex(":")
    return ""


def _nothing(value: Any) -> str:
    return ""


def _one_of(*words: str, first: int = 0) -> Callable[[int], str]:
    return lambda value: words[value - first] if 0 <= value - first < len(words) else "unknown"


def _bits(names: type[IntFlag]) -> Callable[[int], str]:
    return lambda word: bit_names(word, [names]) if word else ""


# of the second word beside a ring's index, by request
_NUM: dict[int, dict[int, str]] = {
    R.SET_VRING_ENABLE: {0: "disabled", 1: "enabled"},
    R.SET_VRING_ENDIAN: {0: "little", 1: "big"},
}

# by class and field; by field alone for what several classes have
_FIELDS: dict[tuple[type[m.Payload] | None, str], Callable[[Any], str]] = {
    (None, "no_fd"): lambda no_fd: "no descriptor comes along" if no_fd else "a descriptor comes along",
    (None, "reserved"): lambda bits: "has to be 0" if bits else "",
    (m.XenMmap, "flags"): _bits(m.XenMmapFlags),
    (m.VringAddr, "flags"): _bits(m.VringAddrFlags),
    (m.Config, "flags"): _one_of("what the driver may write", "migration"),
    (m.ShmemMap, "flags"): _bits(m.ShmemMapFlags),
    (m.Iotlb, "perm"): _one_of("no access", "read", "write", "read and write"),
    (m.Iotlb, "type"): _one_of("MISS", "UPDATE", "INVALIDATE", "ACCESS_FAIL", first=1),
    (m.DeviceState, "direction"): _one_of("save", "load"),
    (m.DeviceState, "phase"): _one_of("stopped"),
    (m.SharedObject, "uuid"): lambda name: str(UUID(bytes=name)),
}

"""What vhost-user says about a single ring: its two state bits and the values that its requests may carry.

Must not know: where a ring's memory is and what lies in it. The two bits are independent of each other: a
started ring may be disabled (a net device then drops what the driver sends), an enabled one may be stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

from vhostuser.errors import PayloadError
from vhostuser.wire.messages import Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest

MAX_VRING_NUM = 32768
"""Most descriptors that a ring can have (virtio, Virtqueues)."""

_SPLIT_ALIGNMENT = {"descriptor": 16, "available": 2, "used": 4}
# With packed rings the same three fields hold descriptor ring, driver area and device area.
_PACKED_ALIGNMENT = {"descriptor": 16, "available": 4, "used": 4}
_MAX_SPLIT_BASE = 0xFFFF
_PACKED_SLOT = 0x7FFF  # of each half of a base; the bit above is a wrap counter


@dataclass(slots=True)
class VringStatus:
    """State bits of one ring.

    Attributes:
        started: The back-end may touch the ring's memory.
        enabled: The back-end may process the ring.
    """

    started: bool = False
    enabled: bool = False


def vring_index(payload: object) -> int | None:
    """Which ring a payload is about, None where it is about none."""
    return payload.index if isinstance(payload, VringState | VringAddr | VringFd) else None


def check_vring_values(request: int, payload: Payload, packed: bool, max_num: int) -> None:
    """Judge size, base, addresses or enable bit of a ring's request.

    Args:
        request: The request number.
        payload: Its value; whatever is not about these is left alone.
        packed: Whether the packed layout was acknowledged.
        max_num: Largest ring that is accepted, in descriptors.

    Raises:
        PayloadError: The value is illegal.
    """
    match request, payload:
        case FrontendRequest.SET_VRING_NUM, VringState(index, num):
            _check_num(index, num, packed, max_num)
        case FrontendRequest.SET_VRING_BASE, VringState(index, base):
            if not packed and base > _MAX_SPLIT_BASE:
                words = f"SET_VRING_BASE: {base:#x} is above {_MAX_SPLIT_BASE:#x} (vring {index})"
                raise PayloadError(words, rule="VU-RING-14")
        case FrontendRequest.SET_VRING_ENABLE | FrontendRequest.SET_VRING_ENDIAN, VringState(index, num):
            if num not in (0, 1):
                name = FrontendRequest(request).name
                raise PayloadError(f"{name}: {num} is neither 0 nor 1 (vring {index})", rule="VU-RING-6")
        case FrontendRequest.SET_VRING_ADDR, VringAddr():
            _check_alignment(payload, _PACKED_ALIGNMENT if packed else _SPLIT_ALIGNMENT)


def check_packed_base(index: int, base: int, num: int) -> None:
    """Judge where a packed ring shall go on; size and base come in any order, so this is for when both are known.

    Raises:
        PayloadError: One of the base's two slots is not in the ring.
    """
    for name, half in (("avail", base), ("used", base >> 16)):
        if (slot := half & _PACKED_SLOT) >= num:
            words = f"SET_VRING_BASE: {name} slot {slot} of {base:#x} is not below the size {num} (vring {index})"
            raise PayloadError(words, rule="VU-PACKED-1")


def check_ring(index: int, num: int, base: int, addr: VringAddr, packed: bool) -> None:
    """Judge a ring as a whole before it starts: each value may have come when another layout was acknowledged.

    Raises:
        PayloadError: A value is not one of the present layout.
    """
    for request, payload in (
        (FrontendRequest.SET_VRING_NUM, VringState(index, num)),
        (FrontendRequest.SET_VRING_BASE, VringState(index, base)),
        (FrontendRequest.SET_VRING_ADDR, addr),
    ):
        check_vring_values(request, payload, packed, MAX_VRING_NUM)
    if packed:
        check_packed_base(index, base, num)


def _check_num(index: int, num: int, packed: bool, max_num: int) -> None:
    if not 1 <= num <= max_num:
        raise PayloadError(f"SET_VRING_NUM: {num} is not in 1..{max_num} (vring {index})", rule="VU-RING-12")
    if not packed and num & (num - 1):
        raise PayloadError(f"SET_VRING_NUM: {num} is not a power of two (vring {index})", rule="VU-RING-12")


def _check_alignment(addr: VringAddr, alignment: dict[str, int]) -> None:
    for part, step in alignment.items():
        address = getattr(addr, part)
        if address % step:
            words = f"SET_VRING_ADDR: {part} {address:#x} is not a multiple of {step} (vring {addr.index})"
            raise PayloadError(words, rule="VU-RING-15")

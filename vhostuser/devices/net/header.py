"""virtio_net_hdr as a driver sends it: the one judgement that every packet passes before it reaches a port.

The header lies in private memory: it was copied once, and what is judged here is what the port gets. Layout (virtio
1.2, section 5.1.6)::

    flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16, num_buffers u16
"""

from __future__ import annotations

import cython

from vhostuser.devices.net.features import NetFeature

if not cython.compiled:  # the compiled edition has the same names from its .pxd
    from vhostuser.virtio.primitives import load_u8, load_u16, store_u8

_NEEDS_CSUM = cython.declare(cython.int, 1)
_TCPV4 = cython.declare(cython.int, 1)
_UDP = cython.declare(cython.int, 3)
_TCPV6 = cython.declare(cython.int, 4)
_UDP_L4 = cython.declare(cython.int, 5)
_ECN = cython.declare(cython.int, 0x80)

# what a driver may ask for; a mask of our own, since the feature word does not fit a C int
_CSUM = cython.declare(cython.uint, 1)
_TSO4 = cython.declare(cython.uint, 2)
_TSO6 = cython.declare(cython.uint, 4)
_TSO_ECN = cython.declare(cython.uint, 8)
_UFO = cython.declare(cython.uint, 16)
_USO = cython.declare(cython.uint, 32)

_OFFLOADS = {
    NetFeature.CSUM: 1,
    NetFeature.HOST_TSO4: 2,
    NetFeature.HOST_TSO6: 4,
    NetFeature.HOST_ECN: 8,
    NetFeature.HOST_UFO: 16,
    NetFeature.HOST_USO: 32,
}


def offloads_of(features: int) -> int:
    """The mask for :func:`admit` that goes with acknowledged features."""
    return sum(mask for bit, mask in _OFFLOADS.items() if features & bit)


def admit(header: cython.ulonglong, frame: cython.ulonglong, offloads: cython.uint) -> cython.bint:
    """Whether the header at an address is right for a frame of so many bytes; clears flags that a driver may not set.

    > The driver MUST NOT set VIRTIO_NET_HDR_F_DATA_VALID (5.1.6.2.1); likewise the flags that only receiving has.
    """
    flags: cython.int = load_u8(header)
    gso: cython.int = load_u8(header + 1)
    kind: cython.int = gso & ~_ECN
    needed: cython.uint
    if load_u16(header + 2) > frame:
        return False
    if flags & _NEEDS_CSUM and (not offloads & _CSUM or load_u16(header + 6) + load_u16(header + 8) + 2 > frame):
        return False
    store_u8(header, flags & _NEEDS_CSUM)
    if gso == 0:
        return True
    if kind == _TCPV4:
        needed = _TSO4
    elif kind == _TCPV6:
        needed = _TSO6
    elif kind == _UDP:
        needed = _UFO
    elif kind == _UDP_L4:
        needed = _USO
    else:
        return False
    if gso & _ECN:
        if kind != _TCPV4 and kind != _TCPV6:
            return False
        needed |= _TSO_ECN
    return (offloads & needed) == needed and load_u16(header + 4) != 0


def judge(header: bytes, frame: int, features: int) -> tuple[bool, bytes]:
    """:func:`admit` on a copy of `header`, for tests and tools: the verdict, and the header that a port would get."""
    import ctypes

    copy = ctypes.create_string_buffer(header, len(header))
    verdict = admit(ctypes.addressof(copy), frame, offloads_of(features))
    return bool(verdict), copy.raw

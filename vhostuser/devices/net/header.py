"""virtio_net_hdr: the one judgement that every packet passes before it reaches a port, and the one before a driver.

A driver's header lies in private memory: it was copied once, and what is judged here is what the port gets. A port's
header is asked only for offloads that the driver did not accept: a tap knows them, other ports pass on what there is.
Layout (virtio 1.2, section 5.1.6)::

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

# what a driver may ask for, or takes; a mask of our own, since the feature word does not fit a C int
_CSUM = cython.declare(cython.uint, 1)
_TSO4 = cython.declare(cython.uint, 2)
_TSO6 = cython.declare(cython.uint, 4)
_TSO_ECN = cython.declare(cython.uint, 8)
_UFO = cython.declare(cython.uint, 16)
_USO = cython.declare(cython.uint, 32)
_NOBODYS = cython.declare(cython.uint, 64)  # no such packet exists

_OFFLOADS = {
    NetFeature.CSUM: 1,
    NetFeature.HOST_TSO4: 2,
    NetFeature.HOST_TSO6: 4,
    NetFeature.HOST_ECN: 8,
    NetFeature.HOST_UFO: 16,
    NetFeature.HOST_USO: 32,
}

_ACCEPTED = {
    NetFeature.GUEST_CSUM: 1,
    NetFeature.GUEST_TSO4: 2,
    NetFeature.GUEST_TSO6: 4,
    NetFeature.GUEST_ECN: 8,
    NetFeature.GUEST_UFO: 16,
}


def offloads_of(features: int) -> int:
    """The mask for :func:`admit` that goes with acknowledged features."""
    return sum(mask for bit, mask in _OFFLOADS.items() if features & bit)


def accepted_offloads(features: int) -> int:
    """The mask for :func:`accepts` that goes with acknowledged features.

    A header does not tell UDP segments of IPv4 and IPv6 apart, so it takes both to get any.
    """
    both = NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
    return sum(mask for bit, mask in _ACCEPTED.items() if features & bit) + (_USO if features & both == both else 0)


def demand(gso: cython.int) -> cython.uint:
    """The offloads that a gso_type other than 0 takes."""
    kind: cython.int = gso & ~_ECN
    ecn: cython.uint = _TSO_ECN if gso & _ECN else 0
    if kind == _TCPV4:
        return _TSO4 | ecn
    if kind == _TCPV6:
        return _TSO6 | ecn
    if kind == _UDP and not ecn:
        return _UFO
    if kind == _UDP_L4 and not ecn:
        return _USO
    return _NOBODYS


def accepts(flags: cython.int, gso: cython.int, offloads: cython.uint) -> cython.bint:
    """Whether a driver that accepted `offloads` takes a packet with these flags and this gso_type."""
    if flags & _NEEDS_CSUM and not offloads & _CSUM:
        return False
    return gso == 0 or demand(gso) & ~offloads == 0


def admit(header: cython.ulonglong, frame: cython.ulonglong, offloads: cython.uint) -> cython.bint:
    """Whether the header at an address is right for a frame of so many bytes; clears flags that a driver may not set.

    > The driver MUST NOT set VIRTIO_NET_HDR_F_DATA_VALID (5.1.6.2.1); likewise the flags that only receiving has.
    """
    flags: cython.int = load_u8(header)
    gso: cython.int = load_u8(header + 1)
    if load_u16(header + 2) > frame:
        return False
    if flags & _NEEDS_CSUM and (not offloads & _CSUM or load_u16(header + 6) + load_u16(header + 8) + 2 > frame):
        return False
    store_u8(header, flags & _NEEDS_CSUM)
    if gso == 0:
        return True
    return demand(gso) & ~offloads == 0 and load_u16(header + 4) != 0


def judge(header: bytes, frame: int, features: int) -> tuple[bool, bytes]:
    """:func:`admit` on a copy of `header`, for tests and tools: the verdict, and the header that a port would get."""
    import ctypes

    copy = ctypes.create_string_buffer(header, len(header))
    verdict = admit(ctypes.addressof(copy), frame, offloads_of(features))
    return bool(verdict), copy.raw

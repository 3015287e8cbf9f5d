"""A tap interface as port (linux/if_tun.h).

A tap with IFF_VNET_HDR passes the driver's virtio_net_hdr through as it is, so checksums and segmentation stay undone
until hardware, or the receiver, needs them. What the kernel may leave undone towards the driver is set from what the
driver accepted (TUNSETOFFLOAD).

A tap that we make is not persistent: it goes with its descriptor, whatever becomes of us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import discard
from vhostuser.devices.net.ports.link import set_link
from vhostuser.errors import PortError

_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNGETSNDBUF = 0x800454D3
_NO_LIMIT = 2**31 - 1
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETVNETLE = 0x400454DC
_TUNSETCARRIER = 0x400454E2
_FLAGS = {"tun": 0x1, "tap": 0x2, "multi_queue": 0x100, "one_queue": 0x2000, "no_pi": 0x1000, "vnet_hdr": 0x4000}
_WANTED = ("tap", "no_pi", "vnet_hdr")
_IFNAMSIZ = 16

# TUN_F_*, by what the driver must have accepted
_OFFLOADS = {
    NetFeature.GUEST_CSUM: 0x01,
    NetFeature.GUEST_TSO4: 0x02,
    NetFeature.GUEST_TSO6: 0x04,
    NetFeature.GUEST_ECN: 0x08,
    NetFeature.GUEST_UFO: 0x10,
    NetFeature.GUEST_USO4: 0x20,
    NetFeature.GUEST_USO6: 0x40,
}
_USO = NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6 | NetFeature.HOST_USO


class Tap:
    """An open tap queue.

    Attributes:
        name: the interface's name.
        queues: how many queue pairs it serves.
        unsupported: network features that this kernel's tap cannot do.
        batching: whether the queue takes all that is written to it, as it does unless somebody limited it.
        header_size: bytes of virtio_net_hdr before each packet.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Take over the open queue `fd` of interface `name`.

        Raises:
            PortError: its flags are others than tap, no_pi, vnet_hdr. The descriptor stays the caller's then.
        """
        self.name = name
        self.queues = 1
        self.header_size = 10  # as every tap begins
        present = _queue_flags(fd, name)
        if missing := [flag for flag in _WANTED if flag not in present]:
            raise PortError(f"tap {name}: opened with the flags {', '.join(present)}; {', '.join(missing)} missing")
        # The description is the launcher's as well when it was passed to us, but a queue has one reader.
        os.set_blocking(fd, False)
        self._fd = fd
        self.unsupported = NetFeature(0) if self._set_offloads(0x7F) else _USO  # before Linux 6.2
        self._set_offloads(0)
        self.batching = self._never_full()

    def fileno(self, pair: int = 0) -> int:
        """The descriptor."""
        return self._fd

    def attach(self, pair: int, attached: bool) -> None:
        """A tap with one queue has it always."""

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: header size, what it can receive, and nothing left over from before."""
        self._set("TUNSETVNETHDRSZ", _TUNSETVNETHDRSZ, header_size)
        self.header_size = header_size
        if sys.byteorder != "little":
            self._set("TUNSETVNETLE", _TUNSETVNETLE, 1)
        offloads = sum(mask for bit, mask in _OFFLOADS.items() if features & bit)
        if not self._set_offloads(offloads if offloads & 1 else 0):
            raise PortError(f"tap {self.name}: the kernel refuses the offloads {offloads:#x}")
        self.flush()

    def flush(self) -> int:
        """Throw away what waits to be received; the number of frames. Raises PortError when the tap is gone."""
        try:
            return discard(self._fd)
        except OSError as error:
            raise PortError(f"tap {self.name}: cannot be read: {error.strerror}") from error

    def set_carrier(self, up: bool) -> None:
        """Show the host whether a driver is there."""
        self._set("TUNSETCARRIER", _TUNSETCARRIER, int(up))

    def bring_up(self) -> None:
        """Set the interface up. Raises PortError without CAP_NET_ADMIN."""
        set_link("tap", self.name, state="up")

    def set_mtu(self, mtu: int) -> None:
        """Set the interface's MTU in bytes. Raises PortError when the kernel refuses it."""
        set_link("tap", self.name, mtu=mtu)

    def close(self) -> None:
        """Close the queue; a tap that we made goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _never_full(self) -> bool:
        limit: int = struct.unpack("i", fcntl.ioctl(self._fd, _TUNGETSNDBUF, struct.pack("i", 0)))[0]
        return limit == _NO_LIMIT

    def _set(self, what: str, request: int, value: int) -> None:
        try:
            fcntl.ioctl(self._fd, request, struct.pack("i", value))
        except OSError as error:
            raise PortError(f"tap {self.name}: {what} {value}: {error.strerror}") from error

    def _set_offloads(self, offloads: int) -> bool:
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise PortError(f"tap {self.name}: TUNSETOFFLOAD {offloads:#x}: {error.strerror}") from error
            return False
        return True


def open_tap(name: str) -> Tap:
    """Attach to the tap `name`, making it if it is not there, and bring it up.

    Raises:
        PortError: no privilege, in use, or there with other flags.
    """
    if not 0 < len(name.encode()) < _IFNAMSIZ:
        raise PortError(f"tap {name!r}: an interface name has 1 to {_IFNAMSIZ - 1} bytes")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PortError(f"/dev/net/tun: {error.strerror}; load the module tun, or pass --tap fd:N") from error
    try:
        flags = sum(_FLAGS[flag] for flag in _WANTED)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack(f"{_IFNAMSIZ}sH22x", name.encode(), flags))
        except OSError as error:
            raise PortError(f"tap {name}: {_why_not(name, error)}") from error
        tap = Tap(fd, name)
        tap.bring_up()
    except BaseException:
        os.close(fd)
        raise
    return tap


def adopt_tap(fd: int) -> Tap:
    """Use a tap queue that somebody else opened, configured and brought up; this needs no privilege.

    Raises:
        PortError: it is not a tap queue, or not one with vnet_hdr and no_pi.
    """
    try:
        reply = fcntl.ioctl(fd, _TUNGETIFF, struct.pack(f"{_IFNAMSIZ}sH22x", b"", 0))
    except OSError as error:
        raise PortError(f"--tap fd:{fd}: not an attached tap queue: {error.strerror}") from error
    os.set_inheritable(fd, False)
    return Tap(fd, reply[:_IFNAMSIZ].split(b"\0")[0].decode())


def _why_not(name: str, error: OSError) -> str:
    """A sentence for a TUNSETIFF that failed."""
    present = _present_flags(name)
    match error.errno:
        case errno.EPERM:
            return "CAP_NET_ADMIN is missing; run with it, or pass an open queue with --tap fd:N"
        case errno.EBUSY:
            return "another process has it open"
        case errno.EINVAL if present is None:
            return "cannot be made, or an interface of that name exists and is no tap"
        case errno.EINVAL:
            flags = ", ".join(present or ())
            return f"exists with the flags {flags}; it must be a tap without multi_queue (with vnet_hdr)"
    return error.strerror or str(error)


def _queue_flags(fd: int, name: str) -> list[str]:
    """The flags of an attached queue.

    TUNGETIFF says no_pi of every queue, so sysfs is asked as well, where it speaks of the same interface: the queue
    may belong to another network namespace.
    """
    reply = fcntl.ioctl(fd, _TUNGETIFF, struct.pack(f"{_IFNAMSIZ}sH22x", b"", 0))
    bits = struct.unpack_from("H", reply, _IFNAMSIZ)[0]
    told = [flag for flag, bit in _FLAGS.items() if bits & bit]
    seen = _present_flags(name)
    return seen if seen is not None and {*seen, "no_pi"} == set(told) else told


def _present_flags(name: str) -> list[str] | None:
    try:
        flags = int(Path(f"/sys/class/net/{name}/tun_flags").read_text(), 16)
    except (OSError, ValueError):
        return None
    return [flag for flag, bit in _FLAGS.items() if flags & bit]

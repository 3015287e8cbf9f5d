"""A tap interface as port (linux/if_tun.h).

A tap with IFF_VNET_HDR passes the driver's virtio_net_hdr through as it is, so checksums and segmentation stay undone
until hardware, or the receiver, needs them. What the kernel may leave undone towards the driver is set from what the
driver accepted (TUNSETOFFLOAD).

A tap may have several queues (IFF_MULTI_QUEUE), one for each queue pair. Header, offloads and carrier belong to the
interface and are set through any of them. A flow comes back on the queue that its packets were written to, as the
virtio specification recommends (5.1.6.5.6); other flows are spread over the queues that are attached. So a queue is
attached while its pair receives, and no longer, or its share of the flows would end in a queue that nobody reads.

A tap that we make is not persistent: it goes with its descriptors, whatever becomes of us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import discard
from vhostuser.devices.net.ports.link import set_link
from vhostuser.errors import PortError
from vhostuser.privileges import NOTHING, Capability

TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNGETSNDBUF = 0x800454D3
NO_LIMIT = 2**31 - 1
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETQUEUE = 0x400454D9
_TUNSETVNETLE = 0x400454DC
_TUNSETCARRIER = 0x400454E2
_FLAGS = {"tun": 0x1, "tap": 0x2, "multi_queue": 0x100, "one_queue": 0x2000, "no_pi": 0x1000, "vnet_hdr": 0x4000}
_WANTED = ("tap", "no_pi", "vnet_hdr")
_MULTI_QUEUE = "multi_queue"
_ATTACH_QUEUE, _DETACH_QUEUE = 0x200, 0x400
_IFNAMSIZ = 16
IFREQ = struct.Struct(f"{_IFNAMSIZ}sH22x")

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
_GUEST_USO = NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
_USO = _GUEST_USO | NetFeature.HOST_USO
_BUSY_SECONDS = 1.0


class Tap:
    """The open queues of a tap.

    Attributes:
        name: the interface's name.
        queues: how many queue pairs it serves: one with each queue.
        unsupported: network features that this kernel's tap cannot do.
        batching: by io_uring if the queue takes all that is written to it, as it does unless somebody limited it.
        capabilities, mtu_capabilities: what setting the MTU needs, and nothing else.
        header_size: bytes of virtio_net_hdr before each packet.
    """

    capabilities = NOTHING
    mtu_capabilities = Capability.NET_ADMIN

    def __init__(self, fds: Sequence[int], name: str) -> None:
        """Take over the open queues `fds` of interface `name`. All but the first are detached until they are needed.

        Raises:
            PortError: their flags are others than tap, no_pi, vnet_hdr, and multi_queue if they are several. The
                descriptors stay the caller's then.
        """
        self.name = name
        self.header_size = 10  # as every tap begins
        self.queues = len(fds)
        wanted = (*_WANTED, _MULTI_QUEUE) if self.queues > 1 else _WANTED
        for fd in fds:
            present = _queue_flags(fd, name)
            if missing := [flag for flag in wanted if flag not in present]:
                raise PortError(f"tap {name}: opened with the flags {', '.join(present)}; {', '.join(missing)} missing")
            # The description is the launcher's as well when it was passed to us, but a queue has one reader.
            os.set_blocking(fd, False)
        self._fds = list(fds)
        self._attached = [not ask_interface(fd)[1] & _DETACH_QUEUE for fd in fds]
        for pair in range(self.queues):
            self._switch(pair, pair == 0)
        self.unsupported = NetFeature(0) if self._set_offloads(0x7F) else _USO  # before Linux 6.2
        self._set_offloads(0)
        self.batching = Batching.URING if self._never_full() else Batching.NONE

    def fileno(self, pair: int = 0) -> int:
        """The descriptor of a pair's queue. It can be written to while the queue is detached, too."""
        return self._fds[pair]

    def attach(self, pair: int, attached: bool) -> None:
        """Let the host send to a pair's queue, or no longer; the kernel throws away what a detached queue holds.

        The first queue stays: a tap with one queue cannot detach it, and a driver that uses any pair uses that one.

        Raises:
            PortError: the tap is gone.
        """
        if pair > 0:
            self._switch(pair, attached)

    def _switch(self, pair: int, attached: bool) -> None:
        if self._attached[pair] == attached:
            return
        flag = _ATTACH_QUEUE if attached else _DETACH_QUEUE
        try:
            fcntl.ioctl(self._fds[pair], _TUNSETQUEUE, IFREQ.pack(b"", flag))
        except OSError as error:
            action = "attached" if attached else "detached"
            raise PortError(f"tap {self.name}: queue {pair} cannot be {action}: {error.strerror}") from error
        self._attached[pair] = attached

    def configure(self, features: int, header_size: int) -> None:
        """Get ready for a driver: header size, what it can receive, and nothing left over from before."""
        self._set("TUNSETVNETHDRSZ", _TUNSETVNETHDRSZ, header_size)
        self.header_size = header_size
        if sys.byteorder != "little":
            self._set("TUNSETVNETLE", _TUNSETVNETLE, 1)
        if features & _GUEST_USO != _GUEST_USO:
            features &= ~int(_GUEST_USO)  # the kernel knows both or none
        offloads = sum(mask for bit, mask in _OFFLOADS.items() if features & bit)
        if not self._set_offloads(offloads if offloads & 1 else 0):
            raise PortError(f"tap {self.name}: the kernel refuses the offloads {offloads:#x}")
        self.flush()

    def flush(self) -> int:
        """Throw away what waits to be received; the number of frames. Raises PortError when the tap is gone."""
        try:
            return sum(discard(fd) for fd in self._fds)
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
        """Close the queues; a tap that we made goes with them."""
        while self._fds:
            os.close(self._fds.pop())

    def _never_full(self) -> bool:
        limit: int = struct.unpack("i", fcntl.ioctl(self._fds[0], _TUNGETSNDBUF, struct.pack("i", 0)))[0]
        return limit == NO_LIMIT

    def _set(self, what: str, request: int, value: int) -> None:
        try:
            fcntl.ioctl(self._fds[0], request, struct.pack("i", value))
        except OSError as error:
            raise PortError(f"tap {self.name}: {what} {value}: {error.strerror}") from error

    def _set_offloads(self, offloads: int) -> bool:
        try:
            fcntl.ioctl(self._fds[0], _TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise PortError(f"tap {self.name}: TUNSETOFFLOAD {offloads:#x}: {error.strerror}") from error
            return False
        return True


def open_tap(name: str, queues: int = 1) -> Tap:
    """Attach to the tap `name`, making it if it is not there, and bring it up.

    A tap that is made has multi_queue if it needs it. One that is there is attached to with one queue whether it has
    multi_queue or not.

    Raises:
        PortError: no privilege, in use, or there with other flags.
    """
    if not 0 < len(name.encode()) < _IFNAMSIZ:
        raise PortError(f"tap {name!r}: an interface name has 1 to {_IFNAMSIZ - 1} bytes")
    multi_queue = queues > 1 or _MULTI_QUEUE in (_present_flags(name) or ())
    fds: list[int] = []
    try:
        while len(fds) < queues:
            fds.append(_open_queue(name, queues, multi_queue))
            if all(_attached_queues(name) > len(fds) for _ in _moments()):
                # The kernel allows that, and would deal one guest's packets out to two.
                raise PortError(f"tap {name}: another process has queues of it open; to share it pass --tap fd:N")
        tap = Tap(fds, name)
        tap.bring_up()
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return tap


def _open_queue(name: str, queues: int, multi_queue: bool) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PortError(f"/dev/net/tun: {error.strerror}; load the module tun, or pass --tap fd:N") from error
    flags = sum(_FLAGS[flag] for flag in (*_WANTED, *([_MULTI_QUEUE] if multi_queue else ())))
    try:
        _attach(fd, IFREQ.pack(name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise PortError(f"tap {name}: {_why_not(name, queues, error)}") from error
    return fd


def adopt_tap(*fds: int) -> Tap:
    """Use tap queues that somebody else opened, configured and brought up; this needs no privilege.

    Raises:
        PortError: they are not queues of one tap, or not with vnet_hdr and no_pi, or the same one twice.
    """
    names = []
    for fd in fds:
        try:
            name, _ = ask_interface(fd)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", error)
            raise PortError(f"--tap fd:{fd}: not an attached tap queue: {reason}") from error
        names.append(name)
        os.set_inheritable(fd, False)
    if len(set(fds)) < len(fds):
        raise PortError(f"--tap: {', '.join(f'fd:{fd}' for fd in fds)}: a queue serves one pair")
    if len(set(names)) > 1:
        raise PortError(f"--tap: the queues belong to several taps: {', '.join(names)}")
    return Tap(fds, names[0])


def _attach(fd: int, request: bytes) -> None:
    """TUNSETIFF, as soon as the tap is free. Raises OSError."""
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    for _ in _moments():
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            busy = error
    raise busy


def _moments() -> Iterator[None]:
    """Looks at a tap that is in use.

    A process that was killed lets go of its tap when a worker of the kernel has taken down its io_uring; that took 20
    to 130 ms after its end.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)


def _why_not(name: str, queues: int, error: OSError) -> str:
    """A sentence for a TUNSETIFF that failed."""
    present = _present_flags(name)
    match error.errno:
        case errno.EPERM:
            return "CAP_NET_ADMIN is missing; run with it, or pass an open queue with --tap fd:N"
        case errno.EBUSY:
            return "another process has it open"
        case errno.E2BIG:
            return f"it has no room for {queues} more queues, 256 are the most"
        case errno.EINVAL if present is None:
            return "cannot be made, or an interface of that name exists and is no tap"
        case errno.EINVAL:
            flags, needed = ", ".join(present or ()), " and multi_queue" if queues > 1 else ""
            return f"exists with the flags {flags}; it must be a tap (with vnet_hdr{needed})"
    return error.strerror or str(error)


def ask_interface(fd: int) -> tuple[str, int]:
    """Name and flags of the interface that a queue is attached to. Raises OSError if there is none."""
    name, flags = IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(IFREQ.size)))
    return name.split(b"\0")[0].decode(), flags


def _queue_flags(fd: int, name: str) -> list[str]:
    """The flags of an attached queue.

    TUNGETIFF says no_pi of every queue, so sysfs is asked as well, where it speaks of the same interface: the queue
    may belong to another network namespace.
    """
    bits = ask_interface(fd)[1]
    told = [flag for flag, bit in _FLAGS.items() if bits & bit]
    seen = _present_flags(name)
    return seen if seen is not None and {*seen, "no_pi"} == set(told) else told


def _attached_queues(name: str) -> int:
    """How many queues of an interface are attached, whoever has them; 0 where sysfs does not say."""
    return len(list(Path(f"/sys/class/net/{name}/queues").glob("tx-*")))


def _present_flags(name: str) -> list[str] | None:
    try:
        flags = int(Path(f"/sys/class/net/{name}/tun_flags").read_text(), 16)
    except (OSError, ValueError):
        return None
    return [flag for flag, bit in _FLAGS.items() if flags & bit]

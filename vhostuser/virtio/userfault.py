"""Memory whose missing pages somebody else provides: a userfaultfd over mapped regions.

Must not know who provides them, or when. A thread that touches a page which is not there sleeps until it is; so does a
system call that is given such an address.

Whoever holds the descriptor has power over this process: it can register other memory of ours, and have any thread
wait for ever that touches it. It is made for front-ends that are trusted like this program.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress

from vhostuser.errors import PortError
from vhostuser.fds import OwnedFd
from vhostuser.virtio.memory import Mapping

DEVICE = "/dev/userfaultfd"
_NEW = 0xAA00  # USERFAULTFD_IOC_NEW
_API = 0xC018AA3F  # UFFDIO_API: api, features, ioctls
_REGISTER = 0xC020AA00  # UFFDIO_REGISTER: start, length, mode, ioctls
_UNREGISTER = 0x8010AA01  # UFFDIO_UNREGISTER: start, length
_API_VERSION = 0xAA
_MODE_MISSING = 1


def open_source() -> OwnedFd:
    """Open what makes userfaultfds (Linux 6.1 or later). With it open, making one takes no privilege.

    Raises:
        PortError: it is not there, or not for us.
    """
    try:
        return OwnedFd(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise PortError(f"post-copy: {DEVICE}: {error.strerror}") from error


class UserFault:
    """A userfaultfd of this process, ours and that of whoever it is passed to.

    Args:
        source: what :func:`open_source` opened; it stays the caller's.

    Raises:
        PortError: the kernel makes none.
    """

    def __init__(self, source: OwnedFd) -> None:
        self._mappings: list[Mapping] = []
        try:
            self._fd = OwnedFd(fcntl.ioctl(source.fileno(), _NEW, os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(self._fd.fileno(), _API, struct.pack("QQQ", _API_VERSION, 0, 0))
        except OSError as error:
            raise PortError(f"post-copy: userfaultfd: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor, where faults can be read, to be passed on."""
        return self._fd.fileno()

    def register(self, mapping: Mapping) -> None:
        """Have missing pages of a region waited for. Nobody may have touched it yet.

        Raises:
            PortError: the kernel cannot do that for the file behind it.
        """
        try:
            fcntl.ioctl(self._fd.fileno(), _REGISTER, struct.pack("QQQQ", *mapping.extent, _MODE_MISSING, 0))
        except OSError as error:
            raise PortError(f"post-copy: {mapping!r}: {error.strerror}") from error
        self._mappings.append(mapping)

    def close(self) -> None:
        """Wait for no page any more. Who waits goes on, with zeros where nobody provided anything.

        Closing the descriptor would not do: the one it was passed to may keep it open.
        """
        if self._fd.closed:
            return
        for mapping in self._mappings:
            if mapping.mapped:  # else its addresses may be somebody else's by now
                with suppress(OSError):
                    fcntl.ioctl(self._fd.fileno(), _UNREGISTER, struct.pack("QQ", *mapping.extent))
        self._mappings.clear()
        self._fd.close()

"""A macvtap's character device as port (``/dev/tapN``, N being the interface's index).

It is read, written and configured as a tap's queue. What differs: it belongs to an interface that is there already and
stays, whose state follows the interface below it; and the host's network takes the guest for one with the macvtap's MAC
address, so the guest should have that one (``cat /sys/class/net/NAME/address``).
"""

from __future__ import annotations

import errno
import fcntl
import os

from vhostuser.devices.net.ports.tap import IFREQ, NO_LIMIT, TUNSETIFF, Tap, ask_interface
from vhostuser.errors import PortError

_TUNSETSNDBUF = 0x400454D4
_FLAGS = 0x5002  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR


class MacvTap(Tap):
    """An open macvtap queue; its attributes are those of a :class:`Tap`."""

    def set_carrier(self, up: bool) -> None:
        """The carrier is that of the interface below."""

    def _never_full(self) -> bool:
        self._set("TUNSETSNDBUF", _TUNSETSNDBUF, NO_LIMIT)
        return True


def open_macvtap(path: str) -> MacvTap:
    """Open the macvtap whose character device is `path`.

    Raises:
        PortError: it is not there, no macvtap, in use, or no privilege.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = "another process has it open" if error.errno == errno.EBUSY else error.strerror
        raise PortError(f"--tap {path}: {reason}") from error
    try:
        try:
            name, _ = ask_interface(fd)
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), _FLAGS))  # the name is not looked at
        except OSError as error:
            raise PortError(f"--tap {path}: not the device of a macvtap interface: {error.strerror}") from error
        return MacvTap([fd], name)
    except BaseException:
        os.close(fd)
        raise

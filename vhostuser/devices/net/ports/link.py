"""What a port changes about a network interface of the host, by netlink."""

from __future__ import annotations

import errno

from vhostuser.errors import PortError


def set_link(kind: str, name: str, **change: object) -> None:
    """Change the state or the MTU of interface `name`.

    Raises:
        PortError: no privilege, no such interface, or a value that the kernel refuses.
    """
    from pyroute2 import IPRoute, NetlinkError  # a quarter of a second to import, and not always needed

    try:
        with IPRoute() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], **change)
    except (NetlinkError, OSError, IndexError) as error:
        wanted = ", ".join(f"{key} {value}" for key, value in change.items())
        reason = "CAP_NET_ADMIN is missing" if getattr(error, "code", 0) == errno.EPERM else error
        raise PortError(f"{kind} {name}: cannot set {wanted}: {reason}") from error

"""Network namespaces, what the kernel counts in them, and raw frames at a tap.

All traffic of the rig stays in namespaces of its own. A :class:`Netns` either owns a named one or stands for the
namespace that we are in already (the demo without root runs in one that ``unshare`` made).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.rig.process import RigError, run, wait_until
from vhostuser.fds import Closing

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
PACKET_IGNORE_OUTGOING = 23
SOL_PACKET = 263
CLONE_NEWNET = 0x40000000

T = TypeVar("T")

_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Netns(Closing):
    """A network namespace with its loopback up."""

    def __init__(self, name: str | None = None, *, quiet: bool = False) -> None:
        """Make a new one under a name that is unique to this process.

        `quiet`: its stack sends no packets of its own, so that every packet can be counted.
        """
        remove_stale()
        self.name: str | None = name or f"vhu-{os.getpid()}-{next(_numbers)}"
        run(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")
        if quiet:  # IPv6 looks for routers and for its own addresses as soon as an interface is up
            self.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")

    @classmethod
    def current(cls) -> Self:
        """The namespace of this process, which :meth:`close` leaves alone."""
        here = cls.__new__(cls)
        here.name = None
        here.ip("link", "set", "lo", "up")
        return here

    def argv(self, words: Sequence[str | Path]) -> list[str | Path]:
        """The command line that runs ``words`` in here; the process id stays that of the program itself."""
        return list(words) if self.name is None else ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str | Path, timeout: float = 30.0) -> str:
        """Run a command in here to its end. Raises RigError when it fails."""
        return run(self.argv(words), timeout)

    def ip(self, *words: str) -> str:
        """Run ``ip`` on this namespace."""
        return run(["ip", *(() if self.name is None else ("-n", self.name)), *words])

    def has_link(self, name: str) -> bool:
        """Whether an interface is there."""
        return any(link["ifname"] == name for link in json.loads(self.ip("-j", "link", "show")))

    def wait_for_link(self, name: str, timeout: float = 10.0) -> None:
        """Wait until an interface is there. Raises RigError."""
        wait_until(lambda: self.has_link(name), timeout, f"interface {name}")

    def add_address(self, link: str, address: str) -> None:
        """Give an interface that may still be on its way an address (with prefix length) and bring it up."""
        self.wait_for_link(link)
        self.ip("addr", "add", address, "dev", link)
        self.ip("link", "set", link, "up")

    def link(self, name: str) -> dict[str, Any]:
        """One interface as ``ip -j -s link`` shows it."""
        (link,) = json.loads(self.ip("-j", "-s", "link", "show", "dev", name))
        assert isinstance(link, dict)
        return link

    def rx_packets(self, name: str) -> int:
        """Packets that the stack received from an interface: for a tap, what its back-end wrote."""
        return int(self.link(name)["stats64"]["rx"]["packets"])

    def snmp(self, protocol: str, counter: str) -> int:
        """One counter of /proc/net/snmp, for example ``("Tcp", "InCsumErrors")``."""
        return parse_snmp(self.run("cat", "/proc/net/snmp"), protocol, counter)

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives in this namespace, whatever namespace the caller is in."""
        return self.inside(lambda: socket.socket(family, kind, protocol))

    def inside(self, make: Callable[[], T]) -> T:
        """What ``make`` makes when it is called in this namespace. Raises the OSError that it raises."""
        if self.name is None:
            return make()
        made: list[T] = []
        failed: list[OSError] = []

        def enter_and_make() -> None:
            # a thread of its own, because setns() moves the calling thread for good
            try:
                with open(f"/run/netns/{self.name}", "rb") as handle:
                    if _libc.setns(handle.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=enter_and_make)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    def packet_socket(self, link: str) -> socket.socket:
        """A raw packet socket bound to an interface: sends to it and sees all that passes it."""
        packets = self.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        packets.bind((link, ETH_P_ALL))
        return packets

    def close(self) -> None:
        """Remove the namespace and every interface in it."""
        if self.name is not None:
            run(["ip", "netns", "delete", self.name])


class TapWatcher(Closing):
    """Watches a tap in a thread and remembers the largest frame each way.

    Attributes:
        from_guest: bytes of the largest frame that came out of the guest.
        to_guest: bytes of the largest frame that went to the guest.
    """

    def __init__(self, netns: Netns, tap: str) -> None:
        self.from_guest = 0
        self.to_guest = 0
        self._packets = netns.packet_socket(tap)
        self._packets.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tap-watcher")
        self._thread.start()

    def _watch(self) -> None:
        buffer = bytearray(64)
        while not self._stop.is_set():
            try:
                # MSG_TRUNC: the true length, though only the first bytes are copied
                length, address = self._packets.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
            except TimeoutError:
                continue
            except OSError:
                return  # the tap is gone
            if address[2] == PACKET_OUTGOING:
                self.to_guest = max(self.to_guest, length)
            else:
                self.from_guest = max(self.from_guest, length)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        self._packets.close()


def remove_stale() -> None:
    """Remove the namespaces of runs that were killed before they could."""
    for name in re.findall(r"^vhu-\d+-\d+", run(["ip", "netns", "list"]), re.MULTILINE):
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            with contextlib.suppress(RigError):  # another run may be at it, too
                run(["ip", "netns", "delete", name])


def parse_snmp(text: str, protocol: str, counter: str) -> int:
    """One counter from the text of /proc/net/snmp, which has a line of names and a line of values a protocol.

    Raises:
        RigError: there is no such counter.
    """
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(f"{protocol}:")]
    if len(rows) != 2 or counter not in rows[0]:
        raise RigError(f"/proc/net/snmp has no {protocol} {counter}")
    return int(rows[1][rows[0].index(counter)])

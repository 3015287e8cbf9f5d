"""The demo: the back-end on a tap in a network namespace, a guest on the other side, and what one can see of both.

Runs as ``scripts/demo``, which makes the virtual environment first. Exit status 0 means that all of it worked.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from tests.rig import debian
from tests.rig.backend import Backend
from tests.rig.image import guest_image
from tests.rig.netns import Netns, TapWatcher
from tests.rig.process import RigError
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import Host, iperf_mbits
from tests.rig.uml import Uml
from vhostuser.frontend.client import connect
from vhostuser.frontend.guest import UDP_ECHO_PORT, BuiltinGuest
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetDriver

TAP = "vhu0"
HOST_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
PREFIX = 24
SECONDS = 3

#: An Ethernet frame without offloads: MTU plus header.
PLAIN_FRAME = 1514

DATAGRAMS = 200

console = Console()
if not console.is_terminal:
    console.width = 100


class Report:
    """The rows of the result table, and whether every one of them is as it should be."""

    def __init__(self) -> None:
        self.ok = True
        self._table = plain_table("what", "result", "", title="The guest's only network card is ours")

    def row(self, what: str, result: str, ok: bool) -> None:
        """Add one line."""
        self.ok = self.ok and ok
        self._table.add_row(what, result, "[green]ok[/]" if ok else "[red]WRONG[/]")

    def show(self) -> None:
        """Print the table."""
        console.print(self._table)


def plain_table(*columns: str, title: str) -> Table:
    """A table that has a frame on a terminal and none on a pipe."""
    table = Table(*columns, title=title, title_justify="left")
    if not console.is_terminal:
        table.box = None
    return table


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is going on, with a spinner on a terminal."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(f"{what} ...")
        yield


def show_machine(kind: str, report: Report) -> dict[str, Any]:
    """A real Linux guest: ping, TCP both ways, and what passed the tap. Returns the back-end's counters."""
    with step("Building the guest (once)"):
        debian.install(debian.GUEST)
        image = guest_image()
    with Netns() as netns, Backend(netns, tap=TAP) as backend:
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        with step(f"Booting a Linux guest in {'QEMU' if kind == 'qemu' else 'user-mode Linux'}"):
            guest = Qemu(image, [VhostUserNic(backend.socket)]) if kind == "qemu" else Uml(image, backend.socket)
        with guest:
            guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
            cards = guest.run("ls /sys/class/net").split()
            driver = guest.run("basename $(readlink -f /sys/class/net/eth0/device/driver)").strip()
            report.row("network cards in the guest", f"{' '.join(cards)} (driver {driver})", cards == ["eth0", "lo"])
            show_ping(netns, report)
            host = Host(netns, image)
            with TapWatcher(netns, TAP) as watcher:
                for way, reverse in (("guest to host", False), ("host to guest", True)):
                    with step(f"TCP, {way}, {SECONDS} s"):
                        speed = iperf_mbits(guest, host, HOST_ADDRESS, SECONDS, reverse=reverse)
                    report.row(f"TCP {way}", f"{speed:.0f} Mbit/s", speed > 0)
            for way, largest in (("guest to host", watcher.from_guest), ("host to guest", watcher.to_guest)):
                report.row(f"largest frame at the tap, {way}", f"{largest} bytes", largest > PLAIN_FRAME)
            for side, stack in (("guest", guest), ("host", netns)):
                errors = stack.snmp("Tcp", "InCsumErrors")
                report.row(f"TcpInCsumErrors, {side}", str(errors), errors == 0)
            return backend.counters()


def show_ping(netns: Netns, report: Report) -> None:
    """Ping the guest from the host."""
    with step("Ping"):
        output = netns.run("ping", "-c", "5", "-i", "0.2", GUEST_ADDRESS)
    report.row("ping", output.strip().splitlines()[-1], " 0% packet loss" in output)


def show_builtin(report: Report) -> dict[str, Any]:
    """The package's own front-end with a guest that answers ping and echoes UDP. Returns the back-end's counters."""
    debian.install(debian.NETWORK)
    netns = Netns.current()
    with Backend(netns, tap=TAP) as backend:
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        trio.run(serve_builtin, backend, partial(show_answers, netns, report))
        return backend.counters()


async def serve_builtin(backend: Backend, show: Callable[[], None]) -> None:
    """Run the built-in guest while `show` runs in a thread."""
    guest = BuiltinGuest(bytes.fromhex("525400766802"), IPv4Address(GUEST_ADDRESS))
    with GuestRam() as memory:
        async with connect(backend.socket, negotiate=False) as front_end, trio.open_nursery() as nursery:
            driver = await NetDriver.start(front_end, memory)
            nursery.start_soon(guest.run, driver)
            await trio.to_thread.run_sync(show)
            nursery.cancel_scope.cancel()
            driver.close()


def show_answers(netns: Netns, report: Report) -> None:
    """Ping the guest, and have it echo datagrams."""
    show_ping(netns, report)
    with step("UDP echo"), netns.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((GUEST_ADDRESS, UDP_ECHO_PORT))
        udp.settimeout(2)
        back = 0
        for size in range(DATAGRAMS):
            sent = os.urandom(size)
            udp.send(sent)
            back += udp.recv(65536) == sent
    report.row("UDP datagrams echoed", f"{back} of {DATAGRAMS}", back == DATAGRAMS)


def show_counters(counters: dict[str, Any]) -> None:
    """Print the back-end's own counters, the nested ones under dotted names."""

    def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, str(value)

    table = plain_table("counter", "value", title="The back-end's own counters")
    for name, value in flat(counters):
        table.add_row(name, value)
    console.print(table)


def again_in_own_namespace() -> None:
    """Run the demo again in a network namespace of its own; without root in a user namespace, as its root."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *user, "--net", sys.executable, "-m", "scripts.demo", *sys.argv[1:], "--in-namespace"]
    os.execvp(words[0], words)


@click.command()
@click.option("--guest", type=click.Choice(["qemu", "uml", "builtin"]), default="qemu", show_default=True)
@click.option("--in-namespace", is_flag=True, hidden=True)
def main(guest: str, in_namespace: bool) -> None:
    """Boot a guest whose only network card is served by this back-end, and show what passes."""
    if guest == "builtin" and not in_namespace:
        again_in_own_namespace()
    if os.geteuid() != 0:
        raise click.ClickException("needs root; --guest builtin does not")
    report = Report()
    try:
        counters = show_builtin(report) if guest == "builtin" else show_machine(guest, report)
    except RigError as error:
        report.show()
        raise click.ClickException(str(error)) from None
    report.show()
    show_counters(counters)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    main()

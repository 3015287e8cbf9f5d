"""The devices and their options: a new device is one more command here, and one more table in a file for ``serve``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import vhostuser
from vhostuser import edition
from vhostuser.cli.file import guests_of
from vhostuser.cli.options import LIMIT, MODE, OWNER, REPORT, UID, USER, Number, Parsed
from vhostuser.cli.running import Guest, run
from vhostuser.cli.tools import Programs
from vhostuser.device import Device
from vhostuser.devices.net.device import MAX_PAIRS, IoUring, NetDevice
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import Port
from vhostuser.devices.net.ports.macvtap import open_macvtap
from vhostuser.devices.net.ports.packet import Packet
from vhostuser.devices.net.ports.sockets import Loop, Null
from vhostuser.devices.net.ports.tap import adopt_tap, open_tap
from vhostuser.devices.rng import RngDevice
from vhostuser.limits import Limits
from vhostuser.privileges import User
from vhostuser.transport.access import Access
from vhostuser.virtio.features import VirtioFeature

_VERSION = f"vhostuser {vhostuser.__version__}, data path {edition.name()}"

# ---- options that every device has -----------------------------------------------------------------------------------

_USER = click.option("--user", type=USER, metavar="NAME", help="Be that user once everything is open.")
_VERBOSE = click.option("-v", "--verbose", count=True, help="Tell about sessions; twice: about each message.")
_COMMON = (
    click.option("--socket-path", metavar="PATH", help="The vhost-user socket: listen, or connect with --client."),
    click.option("--fd", type=int, metavar="N", help="An inherited vhost-user socket, listening or connected."),
    click.option("--client", is_flag=True, help="Connect to --socket-path, again and again, instead of listening."),
    click.option("--socket-mode", type=MODE, metavar="OCTAL", help="The socket's permissions, e.g. 0660."),
    click.option("--socket-owner", type=OWNER, default=":", metavar="USER:GROUP", help="Whose the socket is."),
    click.option("--peer-uid", type=UID, metavar="NAME", help="Serve front-ends of this user, nobody else's."),
    click.option("--limit", type=LIMIT, multiple=True, metavar="NAME=N", help="Change what a front-end may take."),
    click.option("--counters", type=REPORT, help="Write the counters as JSON to FILE on SIGUSR1 and at the end."),
    click.option("--timeline", type=REPORT,
                 help="Write when each thread slept, woke, sent, received, called: JSON lines, like --counters."),
    click.option("--audit-log", is_flag=True,
                 help="Debug live migration: find pages that were written and are not in the dirty log (Linux 6.7)."),
    click.option("--inband", is_flag=True,
                 help="Offer kicks and calls as messages (INBAND_NOTIFICATIONS), for simulators: slow."),
    click.option("--postcopy", is_flag=True,
                 help="Offer post-copy migration. A front-end can then stop this process: trust it like this one."),
    _USER,
    _VERBOSE,
    click.version_option(vhostuser.__version__, message=_VERSION),
)  # fmt: skip


class DeviceCommand(click.Command):
    """A command whose function gets the device's own options and returns what opens the device."""

    def guest(self, context: click.Context) -> Guest:
        """The guest that a parsed command line asks for. Raises click.UsageError."""
        own = dict(context.params)
        del own["verbose"], own["user"]
        socket_path, fd, client = (own.pop(name) for name in ("socket_path", "fd", "client"))
        access = _access(own, listening=socket_path is not None and not client)
        limits = _limits(own.pop("limit"))
        reports = own.pop("counters"), own.pop("timeline"), own.pop("audit_log")
        offers = own.pop("postcopy"), own.pop("inband")
        if (socket_path is None) == (fd is None):
            raise click.UsageError("exactly one of --socket-path and --fd is needed", context)
        if client and socket_path is None:
            raise click.UsageError("--client needs --socket-path", context)
        assert self.callback is not None
        make = context.invoke(self.callback, **own)
        return Guest(context.info_name or "", make, socket_path, fd, client, access, limits, *reports, *offers)

    def invoke(self, context: click.Context) -> None:
        """Serve it."""
        run([self.guest(context)], context.params["verbose"], context.params["user"])


def _access(options: dict[str, Any], listening: bool) -> Access:
    """Who may connect, taken out of the options."""
    mode, (uid, gid), peer = (options.pop(name) for name in ("socket_mode", "socket_owner", "peer_uid"))
    if not listening and (mode is not None or (uid, gid) != (-1, -1)):
        raise click.UsageError("--socket-mode and --socket-owner are for a socket that we make")
    return Access(mode, uid, gid, peer)


def _limits(changes: tuple[tuple[str, float], ...]) -> Limits:
    limits = Limits()
    for name, value in changes:
        limits = limits.changed(name, value)
    return limits


def _common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_COMMON):
        command = option(command)
    return command


class _NetCommand(DeviceCommand):
    """The program that management software starts, by QEMU's conventions."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Tell the capabilities if they are asked for, before any other word is looked at."""
        if "--print-capabilities" in args:
            click.echo(json.dumps({"type": "net", "features": []}))
            context.exit()
        return super().parse_args(context, args)


def _feature_change(words: str) -> tuple[int, int]:
    """``+NAME,-NAME``: the masks to add and to remove."""
    names: dict[str, int] = {**NetFeature.__members__, **VirtioFeature.__members__}
    masks = {"+": 0, "-": 0}
    for word in filter(None, words.split(",")):
        sign, name = word[0], word[1:].upper()
        if sign not in masks or name not in names:
            raise ValueError(f"{word!r}: a sign and one of {', '.join(names)}")
        masks[sign] |= names[name]
    return masks["+"], masks["-"]


_FEATURES = Parsed[tuple[int, int]]("+NAME,-NAME", tuple, _feature_change)


# ---- devices ---------------------------------------------------------------------------------------------------------


@click.group(cls=Programs, context_settings={"max_content_width": 100})
@click.version_option(vhostuser.__version__, message=_VERSION)
def main() -> None:
    """A vhost-user back-end for virtual machines, and tools for whoever tests or writes vhost-user code.

    net, rng and serve are back-ends. conform and fuzz aim at any back-end, fuzz-frontend at a front-end; trace stands
    between the two, replay plays what it recorded, decode shows messages.

    Example: vhostuser net --socket-path=/run/vm1.sock --tap vm1
    """


@main.command("net", cls=_NetCommand)
@_common_options
@click.option(
    "--tap",
    metavar="NAME|/dev/tapN|fd:N,...",
    multiple=True,
    help="The host side: a tap's name, a macvtap, or a tap's open queues, one for each queue pair.",
)
@click.option("--packet", metavar="IFACE", help="The host side: an interface, such as one end of a veth.")
@click.option("--loop", is_flag=True, help="No host side: what the guest sends comes back to it.")
@click.option("--null", is_flag=True, help="No host side: what the guest sends is gone.")
@click.option(
    "--queues",
    type=Number(1, MAX_PAIRS),
    metavar="N",
    help="Queue pairs, each with a thread of its own while it is used; 1, or as many as --tap fd:N names.",
)
@click.option("--mtu", type=Number(68, 65535), metavar="N", help="Set the port's MTU and offer it.")
@click.option("--features", type=_FEATURES, default="", help="Change the offer, e.g. -MRG_RXBUF,-HOST_UFO.")
@click.option(
    "--io-uring",
    type=click.Choice([choice.value for choice in IoUring]),
    default="auto",
    show_default=True,
    help="Packets in batches: where possible, always (or do not start), or one system call a packet.",
)
@click.option(
    "--poll-us",
    type=Number(0, 1_000_000),
    default=0,
    show_default=True,
    metavar="N",
    help="Go on looking for packets for N microseconds after the last one, then sleep.",
)
@click.option("--print-capabilities", is_flag=True, expose_value=False,
              help="Print what QEMU's conventions ask for, as JSON, and exit.")  # fmt: skip
def net(mtu: int | None, features: tuple[int, int], io_uring: str, poll_us: int, **ports: Any) -> Callable[[], Device]:
    """A network device on a tap, on another interface, or on none.

    Example: vhost-user-net --socket-path=/run/vm1.sock --tap vm1
    """
    open_port = _port(**ports)

    def make() -> Device:
        added, removed = features
        added |= 0 if mtu is None else NetFeature.MTU
        device = NetDevice(open_port(), added, removed, io_uring=IoUring(io_uring), poll_us=poll_us)
        if mtu is not None:
            try:
                device.set_mtu(mtu)
            except BaseException:
                device.close()
                raise
        return device

    return make


def _port(tap: tuple[str, ...], packet: str | None, loop: bool, null: bool, queues: int | None) -> Callable[[], Port]:
    """What opens the one port that is asked for."""
    if sum((bool(tap), packet is not None, loop, null)) != 1:
        raise click.UsageError("exactly one of --tap, --packet, --loop and --null is needed")
    if tap:
        return _tap(tap, queues)
    pairs = queues or 1
    if packet is not None:
        return lambda: Packet(packet, pairs)
    return lambda: (Loop if loop else Null)(pairs)


def _tap(words: tuple[str, ...], queues: int | None) -> Callable[[], Port]:
    """What opens the tap, or the macvtap, of ``--tap``."""
    if fds := _descriptors(words):
        if queues not in (None, len(fds)):
            raise click.UsageError(f"--queues {queues}: --tap names {len(fds)} open queues, one a pair")
        return lambda: adopt_tap(*fds)
    if words[0].startswith("/"):
        if queues not in (None, 1):
            raise click.UsageError(f"--queues {queues}: a macvtap serves one pair")
        return lambda: open_macvtap(words[0])
    return lambda: open_tap(words[0], queues or 1)


def _descriptors(taps: tuple[str, ...]) -> list[int]:
    """The numbers in ``fd:3,fd:4``, which may be several options as well; none for a tap's name."""
    if not any(tap.startswith("fd:") for tap in taps):
        if len(taps) > 1:
            raise click.UsageError(f"--tap: {len(taps)} names; a device has one tap, with --queues N for more queues")
        return []
    words = [word for tap in taps for word in tap.split(",")]
    for word in words:
        if not word.startswith("fd:") or not word.removeprefix("fd:").isdecimal():
            raise click.UsageError(f"--tap {word}: a number must follow fd:")
    if len(words) > MAX_PAIRS:
        raise click.UsageError(f"--tap: {len(words)} open queues; a device has {MAX_PAIRS} pairs at most")
    return [int(word.removeprefix("fd:")) for word in words]


@main.command("rng", cls=DeviceCommand)
@_common_options
def rng() -> Callable[[], Device]:
    """An entropy source.

    Example: vhostuser rng --socket-path=/run/rng.sock
    """
    return RngDevice


@main.command("serve")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_USER
@_VERBOSE
def serve(file: Path, user: User | None, verbose: int) -> None:
    """Serve several guests: a table [[net]] or [[rng]] in FILE for each, whose keys are the command's options.

    Example: vhostuser serve /etc/vhostuser.toml
    """
    devices = {name: command for name, command in main.commands.items() if isinstance(command, DeviceCommand)}
    run(guests_of(file, devices), verbose, user)


def net_main() -> None:
    """The program ``vhost-user-net``."""
    net.main(prog_name="vhost-user-net")

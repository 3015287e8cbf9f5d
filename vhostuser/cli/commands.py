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
from vhostuser.cli.running import Guest, run
from vhostuser.device import Device
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports import Port
from vhostuser.devices.net.ports.macvtap import open_macvtap
from vhostuser.devices.net.ports.packet import Packet
from vhostuser.devices.net.ports.sockets import Loop, Null
from vhostuser.devices.net.ports.tap import adopt_tap, open_tap
from vhostuser.devices.rng import RngDevice
from vhostuser.virtio.features import VirtioFeature

_VERSION = f"vhostuser {vhostuser.__version__}, data path {edition.name()}"

# ---- options that every device has -----------------------------------------------------------------------------------

_VERBOSE = click.option("-v", "--verbose", count=True, help="Tell about sessions; twice: about each message.")
_COMMON = (
    click.option("--socket-path", metavar="PATH", help="The vhost-user socket: listen, or connect with --client."),
    click.option("--fd", type=int, metavar="N", help="An inherited vhost-user socket, listening or connected."),
    click.option("--client", is_flag=True, help="Connect to --socket-path, again and again, instead of listening."),
    click.option("--counters", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                 help="Write the counters as JSON to FILE on SIGUSR1 and at the end."),
    _VERBOSE,
    click.version_option(vhostuser.__version__, message=_VERSION),
)  # fmt: skip


class DeviceCommand(click.Command):
    """A command whose function gets the device's own options and returns what opens the device."""

    def guest(self, context: click.Context) -> Guest:
        """The guest that a parsed command line asks for. Raises click.UsageError."""
        own = dict(context.params)
        own.pop("verbose")
        socket_path, fd, client, counters = (own.pop(name) for name in ("socket_path", "fd", "client", "counters"))
        if (socket_path is None) == (fd is None):
            raise click.UsageError("exactly one of --socket-path and --fd is needed", context)
        if client and socket_path is None:
            raise click.UsageError("--client needs --socket-path", context)
        assert self.callback is not None
        make = context.invoke(self.callback, **own)
        return Guest(context.info_name or "", make, socket_path, fd, client, counters)

    def invoke(self, context: click.Context) -> None:
        """Serve it."""
        run([self.guest(context)], context.params["verbose"])


def _common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_COMMON):
        command = option(command)
    return command


def _print_capabilities(context: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps({"type": "net", "features": []}))
        context.exit()


class _FeatureChange(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """``+NAME,-NAME``: the masks to add and to remove."""

    name = "+NAME,-NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        names: dict[str, int] = {**NetFeature.__members__, **VirtioFeature.__members__}
        masks = {"+": 0, "-": 0}
        for word in filter(None, value.split(",")):
            sign, name = word[0], word[1:].upper()
            if sign not in masks or name not in names:
                self.fail(f"{word!r}: a sign and one of {', '.join(names)}", param, ctx)
            masks[sign] |= names[name]
        return masks["+"], masks["-"]


# ---- devices ---------------------------------------------------------------------------------------------------------


@click.group(help=__doc__.splitlines()[0] if __doc__ else None, context_settings={"max_content_width": 100})
@click.version_option(vhostuser.__version__, message=_VERSION)
def main() -> None:
    """The programs of vhostuser."""


@main.command("net", cls=DeviceCommand)
@_common_options
@click.option("--tap", metavar="NAME|/dev/tapN|fd:N", help="The host side: a tap's name, a macvtap, or an open queue.")
@click.option("--packet", metavar="IFACE", help="The host side: an interface, such as one end of a veth.")
@click.option("--loop", is_flag=True, help="No host side: what the guest sends comes back to it.")
@click.option("--null", is_flag=True, help="No host side: what the guest sends is gone.")
@click.option("--mtu", type=click.IntRange(68, 65535), metavar="N", help="Set the port's MTU and offer it.")
@click.option("--features", type=_FeatureChange(), default="", help="Change the offer, e.g. -MRG_RXBUF,-HOST_UFO.")
@click.option("--print-capabilities", is_flag=True, is_eager=True, expose_value=False, callback=_print_capabilities,
              help="Print what QEMU's conventions ask for, as JSON, and exit.")  # fmt: skip
def net(mtu: int | None, features: tuple[int, int], **ports: Any) -> Callable[[], Device]:
    """A network device on a tap, on another interface, or on none.

    Example: vhost-user-net --socket-path=/run/vm1.sock --tap vm1
    """
    open_port = _port(**ports)

    def make() -> Device:
        added, removed = features
        device = NetDevice(open_port(), added | (0 if mtu is None else NetFeature.MTU), removed)
        if mtu is not None:
            try:
                device.set_mtu(mtu)
            except BaseException:
                device.close()
                raise
        return device

    return make


def _port(tap: str | None, packet: str | None, loop: bool, null: bool) -> Callable[[], Port]:
    """What opens the one port that is asked for."""
    if sum((tap is not None, packet is not None, loop, null)) != 1:
        raise click.UsageError("exactly one of --tap, --packet, --loop and --null is needed")
    if loop:
        return Loop
    if null:
        return Null
    if packet is not None:
        return lambda: Packet(packet)
    assert tap is not None
    if tap.startswith("fd:"):
        number = _descriptor(tap)
        return lambda: adopt_tap(number)
    if tap.startswith("/"):
        return lambda: open_macvtap(tap)
    return lambda: open_tap(tap)


def _descriptor(word: str) -> int:
    number = word.removeprefix("fd:")
    if not number.isdecimal():
        raise click.UsageError(f"--tap {word}: a number must follow fd:")
    return int(number)


@main.command("rng", cls=DeviceCommand)
@_common_options
def rng() -> Callable[[], Device]:
    """An entropy source.

    Example: vhostuser rng --socket-path=/run/rng.sock
    """
    return RngDevice


@main.command("serve")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_VERBOSE
def serve(file: Path, verbose: int) -> None:
    """Serve several guests: a table [[net]] or [[rng]] in FILE for each, whose keys are the command's options.

    Example: vhostuser serve /etc/vhostuser.toml
    """
    devices = {name: command for name, command in main.commands.items() if isinstance(command, DeviceCommand)}
    run(guests_of(file, devices), verbose)


def net_main() -> None:
    """The program ``vhost-user-net``."""
    net.main(prog_name="vhost-user-net")

"""The programs: ``vhostuser DEVICE`` and ``vhost-user-net``, after QEMU's conventions for back-end programs.

They stay in the foreground, end quickly and with status 0 on SIGTERM, and say in one sentence on stderr why they cannot
start. Here a device, its options and the runtime are joined; a new device is one more command below.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio

import vhostuser
from vhostuser import edition
from vhostuser.device import Device
from vhostuser.devices.net.device import MAX_PAIRS, IoUring, NetDevice
from vhostuser.devices.net.features import NetFeature
from vhostuser.devices.net.ports.tap import adopt_tap, open_tap
from vhostuser.devices.rng import RngDevice
from vhostuser.errors import VhostUserError
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import Connector, Endpoint, from_fd, listen
from vhostuser.virtio.features import VirtioFeature

log = logging.getLogger("vhostuser")

_VERSION = f"vhostuser {vhostuser.__version__}, data path {edition.name()}"

# ---- options that every device has -----------------------------------------------------------------------------------

_COMMON = (
    click.option("--socket-path", metavar="PATH", help="The vhost-user socket: listen, or connect with --client."),
    click.option("--fd", type=int, metavar="N", help="An inherited vhost-user socket, listening or connected."),
    click.option("--client", is_flag=True, help="Connect to --socket-path, again and again, instead of listening."),
    click.option("--counters", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                 help="Write the counters as JSON to FILE on SIGUSR1 and at the end."),
    click.option("-v", "--verbose", count=True, help="Tell about sessions; twice: about each message."),
    click.version_option(vhostuser.__version__, message=_VERSION),
)  # fmt: skip


def _common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_COMMON):
        command = option(command)
    return command


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


@main.command("net")
@_common_options
@click.option(
    "--tap",
    metavar="NAME|fd:N,...",
    multiple=True,
    help="The host side: a tap's name, or its open queues, one for each queue pair.",
)
@click.option(
    "--queues",
    type=click.IntRange(1, MAX_PAIRS),
    metavar="N",
    help="Queue pairs, each with a thread of its own while it is used; 1, or as many as --tap fd:N names.",
)
@click.option("--mtu", type=click.IntRange(68, 65535), metavar="N", help="Set the tap's MTU and offer it to the guest.")
@click.option("--features", type=_FeatureChange(), default="", help="Change the offer, e.g. -MRG_RXBUF,-HOST_UFO.")
@click.option("--io-uring", type=click.Choice([choice.value for choice in IoUring]), default="auto", show_default=True,
              help="Packets in batches: where possible, always (or do not start), or one system call a packet.")
@click.option("--poll-us", type=click.IntRange(0, 1_000_000), default=0, show_default=True, metavar="N",
              help="Go on looking for packets for N microseconds after the last one, then sleep.")
@click.option("--print-capabilities", is_flag=True, help="Print what QEMU's conventions ask for, as JSON, and exit.")
def net(
    tap: tuple[str, ...],
    queues: int | None,
    mtu: int | None,
    features: tuple[int, int],
    io_uring: str,
    poll_us: int,
    print_capabilities: bool,
    **common: Any,
) -> None:
    """A network device on a tap.

    Example: vhost-user-net --socket-path=/run/vm1.sock --tap vm1
    """
    if print_capabilities:
        click.echo(json.dumps({"type": "net", "features": []}))
        return
    if not tap:
        raise click.UsageError("--tap is needed: a tap's name, or fd:N for an open tap queue")
    fds = _descriptors(tap)
    if fds and queues not in (None, len(fds)):
        raise click.UsageError(f"--queues {queues}: --tap names {len(fds)} open queues, one a pair")

    def make() -> Device:
        added, removed = features
        port = adopt_tap(*fds) if fds else open_tap(tap[0], queues or 1)
        if mtu is not None:
            port.set_mtu(mtu)
            added |= NetFeature.MTU
        return NetDevice(port, added, removed, io_uring=IoUring(io_uring), poll_us=poll_us)

    _run(make, **common)


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


@main.command("rng")
@_common_options
def rng(**common: Any) -> None:
    """An entropy source.

    Example: vhostuser rng --socket-path=/run/rng.sock
    """
    _run(RngDevice, **common)


def net_main() -> None:
    """The program ``vhost-user-net``."""
    net.main(prog_name="vhost-user-net")


# ---- running one -----------------------------------------------------------------------------------------------------


def _run(
    make: Callable[[], Device],
    socket_path: str | None,
    fd: int | None,
    client: bool,
    counters: Path | None,
    verbose: int,
) -> None:
    """Serve the device that `make` opens until SIGTERM; exits with status 1 and a sentence when that cannot be."""
    if (socket_path is None) == (fd is None):
        raise click.UsageError("exactly one of --socket-path and --fd is needed")
    if client and socket_path is None:
        raise click.UsageError("--client needs --socket-path")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    log.setLevel(level)
    _check_edition()
    _allow_descriptors()
    allow_interrupts()
    try:
        trio.run(_serve, make, socket_path, fd, client, counters)
    except* VhostUserError as errors:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {_first(errors)}") from None


def _check_edition() -> None:
    if edition.compiled():
        return
    if os.environ.get("VHOSTUSER_REQUIRE_COMPILED") == "1":
        raise SystemExit(f"VHOSTUSER_REQUIRE_COMPILED is set, but the data path is {edition.name()}")
    log.warning("the data path is %s, which is several times slower than compiled", edition.name())


def _allow_descriptors() -> None:
    """Take all descriptors that we may have: a queue pair needs eleven, and shells give 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(
    make: Callable[[], Device], socket_path: str | None, fd: int | None, client: bool, counters: Path | None
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
        async with await _endpoint(socket_path, fd, client) as endpoint:
            device = make()
            server = Server(device, endpoint)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_obey, signals, nursery.cancel_scope, server, counters)
                    await server.run()
                    nursery.cancel_scope.cancel()
            finally:
                device.close()
                _write_counters(server, counters)


async def _endpoint(socket_path: str | None, fd: int | None, client: bool) -> Endpoint:
    if socket_path is None:
        assert fd is not None
        return from_fd(fd)
    if client:
        return Connector(socket_path)
    endpoint = await listen(socket_path)
    log.info("listening on %s", socket_path)
    return endpoint


async def _obey(signals: Any, scope: trio.CancelScope, server: Server, counters: Path | None) -> None:
    async for number in signals:
        if number == signal.SIGUSR1:
            _write_counters(server, counters)
        else:
            log.info("ended by %s", signal.Signals(number).name)
            scope.cancel()


def _write_counters(server: Server, path: Path | None) -> None:
    if path is None:
        return
    scratch = path.with_name(path.name + ".new")
    try:
        scratch.write_text(json.dumps(server.counters(), indent=1) + "\n")
        scratch.replace(path)
    except OSError as error:
        log.warning("--counters %s: %s", path, error.strerror)

"""What the program keeps after it has opened everything, and that all it does later works with that."""

from __future__ import annotations

import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
import trio

from tests.hostile.attack import accepted, ask, refused
from tests.hostile.victim import DEADLINE, frame_of
from tests.rig.backend import Backend
from tests.rig.netns import Netns
from tests.rig.process import Program
from vhostuser.cli.commands import DeviceCommand, main
from vhostuser.devices.net.device import rarp_request
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.limits import Limits
from vhostuser.privileges import NOTHING, Capability, User
from vhostuser.transport.access import Access
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64
from vhostuser.wire.requests import FrontendRequest as R

NOBODY = pwd.getpwnam("nobody")
MAC = bytes.fromhex("525400766801")
LATER = ProtocolFeature.REPLY_ACK | ProtocolFeature.NET_MTU | ProtocolFeature.RARP


@pytest.fixture
def netns() -> Iterator[Netns]:
    with Netns(quiet=True) as netns:
        yield netns


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def wait_for_drop(backend: Backend) -> str:
    """Wait until the program has said what it kept; that line."""
    backend.program.wait_for_output("no new privileges", 20)
    [line] = [line for line in backend.program.output.splitlines() if "no new privileges" in line]
    return line


def check_drop(backend: Backend, kept: Capability, uid: int = 0) -> None:
    """The log's sentence and the kernel's numbers say the same, of every thread."""
    assert wait_for_drop(backend).endswith(f"user {uid}, {kept} kept, no new privileges")
    for task in Path(f"/proc/{backend.program.pid}/task").iterdir():
        status = status_of(int(task.name))
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[name], 16) == kept, f"{name} of thread {task.name}"
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert set(status["Uid"].split()) == {str(uid)}


async def goes_on(backend: Backend, netns: Netns, link: str, pairs: int = 1, host_mtu: int | None = None) -> None:
    """All that front-ends ask of the host, one after another: packets out, an announcement, an MTU.

    `host_mtu`: what the link keeps, for its MTU is the host's.
    """
    with netns.packet_socket(link) as host, GuestRam() as memory, trio.fail_after(DEADLINE):
        host.settimeout(DEADLINE)
        for mtu in (1400, 1300):
            async with connect(backend.socket, negotiate=False) as front_end:
                for number, driver in enumerate(await NetDriver.start_pairs(front_end, memory, pairs)):
                    with closing(driver):
                        await driver.send(frame_of(number))
                        assert host.recv(4096) == frame_of(number)
            async with connect(backend.socket, negotiate=False) as front_end:
                await front_end.negotiate(DRIVER_FEATURES | VhostFeature.NET_MTU, LATER)
                await accepted(front_end, ask(R.SEND_RARP, U64(int.from_bytes(MAC, "little"))))
                assert host.recv(4096) == rarp_request(MAC)
                if front_end.features & VhostFeature.NET_MTU:
                    await accepted(front_end, ask(R.NET_SET_MTU, U64(mtu)))
                    assert netns.link(link)["mtu"] == (host_mtu or mtu)


@pytest.mark.proves("VIO-PRIV-1", "VIO-PRIV-2")
async def test_a_tap_keeps_what_sets_its_mtu(netns: Netns) -> None:
    with Backend(netns, options=["-v", "--mtu=1500"]) as backend:
        check_drop(backend, Capability.NET_ADMIN)
        await goes_on(backend, netns, "tap0")


@pytest.mark.proves("VIO-PRIV-2")
async def test_queues_of_a_tap_are_attached_and_detached_without_a_capability(netns: Netns) -> None:
    with Backend(netns, options=["-v", "--queues=4"]) as backend:
        check_drop(backend, NOTHING)
        await goes_on(backend, netns, "tap0", pairs=4)


@pytest.mark.proves("VIO-PRIV-1")
async def test_without_an_mtu_to_set_nothing_is_kept(netns: Netns) -> None:
    with Backend(netns, options=["-v"]) as backend:
        check_drop(backend, NOTHING)
        async with connect(backend.socket, negotiate=False) as front_end:
            await front_end.negotiate(DRIVER_FEATURES, LATER)
            await refused(front_end, ask(R.NET_SET_MTU, U64(1400)))


@pytest.mark.proves("VIO-PRIV-1")
@pytest.mark.parametrize("port", ["--loop", "--null"])
def test_a_port_that_leads_nowhere_keeps_nothing(netns: Netns, port: str) -> None:
    with Backend(netns, tap=None, options=["-v", port]) as backend:
        check_drop(backend, NOTHING)


@pytest.mark.proves("VIO-PRIV-1")
def test_an_entropy_device_keeps_nothing(netns: Netns) -> None:
    with Backend(netns, tap=None, device="rng", options=["-v"]) as backend:
        check_drop(backend, NOTHING)


@pytest.mark.proves("VIO-PRIV-2")
async def test_packet_sockets(netns: Netns) -> None:
    netns.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for end in ("near", "far"):
        netns.ip("link", "set", end, "up")
    with Backend(netns, tap=None, options=["-v", "--packet=near", "--mtu=1500"]) as backend:
        check_drop(backend, Capability.NET_RAW)
        await goes_on(backend, netns, "near", host_mtu=1500)


@pytest.mark.proves("VIO-PRIV-2")
async def test_a_macvtap(netns: Netns, tmp_path: Path) -> None:
    netns.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for words in (["far", "up"], ["near", "up"]):
        netns.ip("link", "set", *words)
    netns.ip("link", "add", "link", "near", "name", "mine", "type", "macvtap", "mode", "passthru")
    netns.ip("link", "set", "mine", "up")
    number = netns.run("sh", "-c", "cat /sys/class/net/mine/macvtap/*/dev")
    os.mknod(tmp_path / "tap", stat.S_IFCHR | 0o600, os.makedev(*map(int, number.split(":"))))
    with Backend(netns, tap=None, options=["-v", "--mtu=1500", f"--tap={tmp_path / 'tap'}"]) as backend:
        check_drop(backend, Capability.NET_ADMIN)
        await goes_on(backend, netns, "mine")


@pytest.mark.proves("VIO-PRIV-3")
async def test_another_user_serves_as_well(netns: Netns) -> None:
    """The socket is made by root, for whom it may: the front-end's user. It stays behind, in root's folder."""
    access = ["--socket-mode=0600", "--socket-owner=daemon:"]
    with Backend(netns, options=["-v", "--mtu=1500", "--user=nobody", *access]) as backend:
        check_drop(backend, Capability.NET_ADMIN, NOBODY.pw_uid)
        assert (backend.socket.stat().st_uid, stat.S_IMODE(backend.socket.stat().st_mode)) == (1, 0o600)
        assert status_of(backend.program.pid)["Groups"].split() == [str(g) for g in User.named("nobody").groups]
        assert "--counters" in backend.program.output
        await goes_on(backend, netns, "tap0")


@pytest.mark.proves("VIO-PRIV-3")
def test_a_client_of_another_users_socket_keeps_what_connects_it_again(netns: Netns) -> None:
    with Backend(netns, tap=None, client=True, options=["-v", "--loop"]) as backend:
        check_drop(backend, Capability.DAC_OVERRIDE)
    with (
        tempfile.TemporaryDirectory() as folder,
        Backend(
            netns, tap=None, client=True, socket_path=Path(folder) / "s", options=["-v", "--loop", "--user=nobody"]
        ) as backend,
    ):
        Path(folder).chmod(0o711)
        check_drop(backend, NOTHING, NOBODY.pw_uid)


def test_many_guests_keep_what_one_of_them_needs(netns: Netns, tmp_path: Path) -> None:
    for name, more in (("a", 'tap = "tap7"\nmtu = 1500\n'), ("b", "loop = true\n")):
        with (tmp_path / "guests.toml").open("a") as file:
            file.write(f'[[net]]\nsocket-path = "{tmp_path}/{name}"\nsocket-mode = "0640"\n{more}')
    argv = netns.argv([sys.executable, "-m", "vhostuser", "serve", "-v", str(tmp_path / "guests.toml")])
    program = Program(argv, tmp_path / "log")
    try:
        program.wait_for_output("CAP_NET_ADMIN kept, no new privileges", 20)
        program.wait_for_output("serving 2 guests", 20)
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o640}
    finally:
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--socket-mode=660"], "permissions are octal"),
        (["--socket-mode=08"], "permissions are octal"),
        (["--socket-mode=01777"], "permissions are octal"),
        (["--socket-owner=no-such-user"], "no-such-user: no such user"),
        (["--socket-owner=:no-such-group"], "no-such-group: no such group"),
        (["--socket-owner=4294967295"], "users and groups go up to 4294967294"),
        (["--peer-uid=no-such-user"], "no-such-user: no such user"),
        (["--user=54321"], "54321: no such user"),
        (["--client", "--socket-mode=0660"], "are for a socket that we make"),
        (
            ["--limit=packets=3"],
            "packets: no such limit; there are message-timeout, send-timeout, ",
        ),
        (["--limit==abc"], ": no such limit; there are message-timeout"),
        (["--limit=message-timeout"], "message-timeout: NAME=N is needed, N a number such as 30"),
        (["--limit=mapped-bytes=4X"], "mapped-bytes=4X: NAME=N is needed, N a number"),
        (["--limit=mapped-bytes=0"], "mapped-bytes: 0 is no number above 0"),
        (["--limit=mapped-bytes=0.5"], "0 is not above 0"),
        (["--limit=mapped-bytes=inf"], "inf is no number above 0"),
        (["--limit=send-timeout=nan"], "nan is no number above 0"),
        (["--queues=many"], "'many' is not a number from 1 to 128"),
        (["--counters=/nosuch/x"], "/nosuch: no such folder"),
        (["--timeline=/nosuch/x"], "/nosuch: no such folder"),
        (["--counters=/tmp"], "/tmp: a folder; a file is needed"),
        (["--features=+RAIN"], "'\\+RAIN': a sign and one of CSUM"),
    ],
)
def test_options_that_cannot_be(options: list[str], problem: str) -> None:
    command = main.commands["net"]
    assert isinstance(command, DeviceCommand)
    with pytest.raises(click.UsageError, match=problem):
        command.guest(command.make_context("net", ["--socket-path=x", "--loop", *options]))


def test_options_and_what_they_mean() -> None:
    command = main.commands["net"]
    assert isinstance(command, DeviceCommand)
    words = ["--socket-mode=0660", "--socket-owner=daemon:7", "--peer-uid=54321", "--limit=mapped-bytes=3G"]
    guest = command.guest(command.make_context("net", ["--socket-path=x", "--loop", *words]))
    assert guest.access == Access(0o660, 1, 7, 54321)
    assert guest.limits == Limits(mapped_bytes=3 << 30)

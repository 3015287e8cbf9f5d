"""Macvtaps: a character device of an interface that is there already."""

from __future__ import annotations

import os
import select
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.devices.bench import MODERN
from tests.devices.namespace import in_namespace
from tests.devices.segments import segment
from tests.devices.test_sockets import OFFLOADS, far_end, on_port, turns, veth
from tests.devices.test_tap import ip, seen
from tests.hostile.victim import frame_of
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.ports.macvtap import open_macvtap
from vhostuser.errors import PortError


def macvtap(folder: Path) -> str:
    """A macvtap on the near end of a veth, and a node for it that no other namespace's can be taken for."""
    veth()
    ip("link", "add", "link", "near", "name", "mine", "type", "macvtap", "mode", "passthru")
    ip("link", "set", "mine", "up")
    [place] = Path("/sys/class/net/mine/macvtap").iterdir()
    major, minor = map(int, (place / "dev").read_text().split(":"))
    path = folder / "tap"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
    return str(path)


@pytest.mark.proves("VIO-TAP-7")
@in_namespace
def test_packets_pass_a_macvtap_both_ways(tmp_path: Path) -> None:
    header, long = segment(4, ecn=False)
    with on_port(open_macvtap(macvtap(tmp_path)), OFFLOADS) as net, far_end() as far:
        for frame in (frame_of(1), frame_of(2)):
            net.transmit(bytes(12) + frame)
            turns(net)
            assert far.recv(1 << 17)[10:] == frame
        net.transmit(header.pack(12) + long)
        turns(net)
        assert far.recv(1 << 17)[10:] == long
        buffers = net.post(50_000)
        far.send(header.pack(10) + long)
        assert select.select([net.pump.port], [], [], 20)[0]  # a macvtap gets broadcasts from a kernel thread
        turns(net)
        assert net.content(buffers)[12 : net.reap_one(net.rx).written] == long


@pytest.mark.proves("VIO-TAP-7")
@in_namespace
def test_a_macvtap_stays_and_is_taken_again(tmp_path: Path) -> None:
    path = macvtap(tmp_path)
    for _ in range(2):
        with closing(open_macvtap(path)) as tap:
            assert tap.name == "mine"
            assert tap.batching is Batching.URING
            tap.configure(MODERN, 12)
            assert tap.header_size == 12
            tap.set_mtu(1400)
        assert seen("mine", "mtu") == "1400"


@pytest.mark.proves("VIO-TAP-2")
@pytest.mark.parametrize("path", ["/dev/tap-that-is-not", "/dev/null", "/etc/hostname"])
def test_paths_that_are_no_macvtap(path: str) -> None:
    with pytest.raises(PortError, match=f"--tap {path}: (No such file|not the device of a macvtap)"):
        open_macvtap(path)

"""Taps: made, attached to, adopted and refused; what the host sees of them. Needs root, and no network."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.devices.bench import MODERN, Net
from tests.devices.namespace import drop_capabilities, in_namespace
from tests.devices.segments import segment
from tests.hostile.victim import frame_of
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.features import SUPPORTED, NetFeature
from vhostuser.devices.net.ports.tap import Tap, adopt_tap, open_tap
from vhostuser.errors import PortError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.privileges import NOTHING
from vhostuser.virtio.layout import EVENT

F = NetFeature
TAP_MTU = 65521  # the most that Linux lets a tap have
TUNSETIFF, TUNGETVNETHDRSZ = 0x400454CA, 0x800454D7
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 1, 2, 0x1000, 0x100, 0x4000
SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_GTSO = 0x8946, 0x16, 0x1E


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def seen(name: str, what: str) -> str:
    """What sysfs says of an interface."""
    return Path(f"/sys/class/net/{name}/{what}").read_text().strip()


def exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def queue(name: str, flags: int) -> int:
    """Open a tap queue as a launcher would; the caller closes it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


def ethtool(name: str, command: int) -> int:
    """One of ethtool's simple questions."""
    value = bytearray(struct.pack("II", command, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        buffer = (ctypes.c_char * 8).from_buffer(value)
        request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(buffer))
        fcntl.ioctl(sock.fileno(), SIOCETHTOOL, request)
        del buffer
    return int(struct.unpack("II", value)[1])


def packet_socket(name: str) -> socket.socket:
    """The host's network stack, as seen at the interface."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((name, 0))
    sock.settimeout(20)
    return sock


# ---- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-TAP-1")
@in_namespace
def test_a_tap_is_made_brought_up_and_removed() -> None:
    with closing(open_tap("made")) as tap:
        assert tap.name == "made"
        assert int(seen("made", "tun_flags"), 16) & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) == 0x5002
        assert int(seen("made", "flags"), 16) & 1, "the interface is down"
        assert not os.get_blocking(tap.fileno())
        assert not os.get_inheritable(tap.fileno())
    assert not exists("made")
    tap.close()


@pytest.mark.parametrize("options", [[], ["vnet_hdr"]], ids=["plain", "vnet_hdr"])
@in_namespace
def test_a_tap_that_is_there_is_attached_to_and_stays(options: list[str]) -> None:
    ip("tuntap", "add", "dev", "there", "mode", "tap", *options)
    with closing(open_tap("there")):
        assert int(seen("there", "tun_flags"), 16) & IFF_VNET_HDR
    assert exists("there")
    open_tap("there").close()


@pytest.mark.proves("VIO-TAP-2")
@in_namespace
def test_a_tap_that_is_busy() -> None:
    with closing(open_tap("busy")), pytest.raises(PortError, match="tap busy: another process has it open"):
        open_tap("busy")
    assert not exists("busy")


@pytest.mark.proves("VIO-TAP-2")
@pytest.mark.parametrize("kind", ["tun", "loopback", "veth"])
@in_namespace
def test_an_interface_that_is_no_tap(kind: str) -> None:
    name = {"tun": "tunnel", "loopback": "lo", "veth": "pair0"}[kind]
    if kind == "tun":
        ip("tuntap", "add", "dev", name, "mode", "tun")
    elif kind == "veth":
        ip("link", "add", name, "type", "veth", "peer", "name", "pair1")
    with pytest.raises(PortError, match=f"tap {name}: .*(no tap|must be a tap)"):
        open_tap(name)


@pytest.mark.parametrize("name", ["", "sixteen-is-above", "fünfzehn-zeichen"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(PortError, match="an interface name has 1 to 15 bytes"):
        open_tap(name)


@pytest.mark.parametrize("name", ["with/slash", ".", "with space"])
@in_namespace
def test_names_that_the_kernel_refuses(name: str) -> None:
    with pytest.raises(PortError, match="cannot be made"):
        open_tap(name)


@pytest.mark.proves("VIO-TAP-3")
@in_namespace
def test_opening_needs_a_privilege() -> None:
    drop_capabilities()
    with pytest.raises(PortError, match=r"tap mine: CAP_NET_ADMIN is missing; .*--tap fd:N"):
        open_tap("mine")


# ---- adopting --------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-TAP-3")
@in_namespace
def test_an_open_queue_is_adopted_without_privilege() -> None:
    fd = queue("given", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    ip("link", "set", "given", "up")
    os.set_inheritable(fd, True)
    drop_capabilities()
    with closing(adopt_tap(fd)) as tap:
        assert tap.name == "given"
        assert not os.get_inheritable(fd)
        device = NetDevice(tap)
        assert seen("given", "carrier") == "0"
        device.driver_started(int(SUPPORTED) | 1 << 32)
        assert seen("given", "carrier") == "1"
        device.driver_stopped()
        with pytest.raises(PortError, match="tap given: cannot set mtu 1400: CAP_NET_ADMIN is missing"):
            device.set_mtu(1400)
        assert exists("given")
    assert not exists("given")


@pytest.mark.proves("VIO-TAP-2")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (IFF_TAP | IFF_NO_PI, "vnet_hdr missing"),
        (IFF_TAP | IFF_VNET_HDR, "no_pi missing"),
        (IFF_TAP, "no_pi, vnet_hdr missing"),
        (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, "opened with the flags tun, no_pi, vnet_hdr; tap missing"),
    ],
)
@in_namespace
def test_queues_with_other_flags(flags: int, reason: str) -> None:
    fd = queue("wrong", flags)
    try:
        with pytest.raises(PortError, match=f"tap wrong: .*{reason}"):
            adopt_tap(fd)
    finally:
        os.close(fd)


@pytest.mark.proves("VIO-TAP-2")
@pytest.mark.parametrize("kind", ["eventfd", "file", "socket", "unattached", "closed", "no number of one"])
@in_namespace
def test_descriptors_that_are_no_queues(kind: str) -> None:
    with socket.socket() as sock:
        fds = {
            "eventfd": os.eventfd(0),
            "file": os.memfd_create("file"),
            "socket": os.dup(sock.fileno()),
            "unattached": os.open("/dev/net/tun", os.O_RDWR),
        }
        fd = fds.get(kind, 1 << 20 if kind == "closed" else 1 << 40)
        try:
            with pytest.raises(PortError, match=f"--tap fd:{fd}: not an attached tap queue"):
                adopt_tap(fd)
        finally:
            for opened in fds.values():
                os.close(opened)


# ---- what a driver changes -------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-TAP-4")
@in_namespace
def test_the_carrier_follows_the_driver() -> None:
    with closing(open_tap("link")) as tap:
        device = NetDevice(tap)
        for _ in range(2):
            assert seen("link", "carrier") == "0"
            device.driver_started(1 << 32)
            assert seen("link", "carrier") == "1"
            device.driver_stopped()
        assert seen("link", "carrier") == "0"


@pytest.mark.proves("VIO-TAP-5")
@pytest.mark.parametrize(
    ("features", "checksum", "segmentation"),
    [
        pytest.param(0, 0, 0, id="nothing"),
        pytest.param(F.GUEST_CSUM, 1, 0, id="checksums"),
        pytest.param(F.GUEST_CSUM | F.GUEST_TSO4, 1, 1, id="TSO4"),
        pytest.param(F.GUEST_CSUM | F.GUEST_TSO6, 1, 1, id="TSO6"),
        pytest.param(F.GUEST_TSO4, 0, 0, id="TSO4 without checksums means nothing"),
        pytest.param(F.CSUM | F.HOST_TSO4, 0, 0, id="what the driver may send is another matter"),
        pytest.param(SUPPORTED, 1, 1, id="everything"),
    ],
)
@in_namespace
def test_offloads_are_what_the_driver_takes(features: int, checksum: int, segmentation: int) -> None:
    with closing(open_tap("offload")) as tap:
        device = NetDevice(tap)
        for word, wanted in ((features, (checksum, segmentation)), (0, (0, 0)), (features, (checksum, segmentation))):
            device.driver_started(int(word) | 1 << 32)
            assert (ethtool("offload", ETHTOOL_GTXCSUM), ethtool("offload", ETHTOOL_GTSO)) == wanted
            device.driver_stopped()


@pytest.mark.proves("VIO-NET-1")
@pytest.mark.parametrize(("features", "size"), [(0, 10), (1 << 32, 12), (F.MRG_RXBUF, 12)])
@in_namespace
def test_the_header_size_is_the_drivers(features: int, size: int) -> None:
    with closing(open_tap("header")) as tap:
        NetDevice(tap).driver_started(features)
        assert struct.unpack("i", fcntl.ioctl(tap.fileno(), TUNGETVNETHDRSZ, bytes(4))) == (size,)


@pytest.mark.proves("VIO-TAP-6")
@in_namespace
def test_what_waited_for_no_driver_is_thrown_away() -> None:
    with closing(open_tap("flush")) as tap, packet_socket("flush") as host:
        tap.configure(0, 12)
        tap.set_carrier(True)
        for i in range(20):
            host.send(frame_of(i))
        assert tap.flush() == 20
        assert tap.flush() == 0
        host.send(frame_of(1))
        tap.configure(0, 12)
        with pytest.raises(BlockingIOError):
            os.read(tap.fileno(), 100)


@in_namespace
def test_the_mtu() -> None:
    with closing(open_tap("mtu")) as tap:
        tap.set_mtu(9000)
        assert seen("mtu", "mtu") == "9000"
        with pytest.raises(PortError, match="tap mtu: cannot set mtu 67"):
            tap.set_mtu(67)
        assert seen("mtu", "mtu") == "9000"


@in_namespace
def test_an_mtu_for_a_tap_that_is_gone() -> None:
    tap = open_tap("gone")
    ip("link", "delete", "gone")
    with pytest.raises(PortError, match="tap gone: cannot set mtu"):
        tap.set_mtu(1400)
    tap.close()


# ---- packets ---------------------------------------------------------------------------------------------------------


def on_tap(ram: GuestRam, tap: Tap, features: int = 0) -> Net:
    tap.configure(features, 12)
    tap.set_carrier(True)
    return Net(ram, MODERN | features, port=tap.fileno())


@in_namespace
def test_packets_pass_a_tap_both_ways() -> None:
    with (
        GuestRam() as ram,
        closing(open_tap("pass")) as tap,
        packet_socket("pass") as host,
        closing(on_tap(ram, tap)) as net,
    ):
        for number in range(30):
            net.transmit(bytes(12) + frame_of(number), [12])
            net.pump.turn()
            assert host.recv(2048) == frame_of(number)
            buffers = net.post(1000)
            host.send(frame_of(number)[:900])
            net.pump.turn()
            frame = frame_of(number)[:900]
            assert net.reap_one(net.rx).written == 12 + len(frame)
            assert net.content(buffers)[12 : 12 + len(frame)] == frame
            net.tx.reap()


@in_namespace
def test_a_packet_to_an_interface_that_is_down_is_lost_alone() -> None:
    with GuestRam() as ram, closing(open_tap("lowered")) as tap, closing(on_tap(ram, tap)) as net:
        ip("link", "set", "lowered", "down")
        net.transmit(bytes(12) + frame_of(1))
        net.pump.turn()
        assert net.counters("tx_rejected", "tx_packets") == (1, 0)
        ip("link", "set", "lowered", "up")
        net.transmit(bytes(12) + frame_of(1))
        net.pump.turn()
        assert net.counters("tx_rejected", "tx_packets") == (1, 1)


@pytest.mark.proves("VIO-NET-9")
@pytest.mark.parametrize("direction", ["transmit", "receive"])
@in_namespace
def test_a_tap_that_is_deleted_is_an_event(direction: str) -> None:
    with GuestRam() as ram, closing(open_tap("deleted")) as tap, closing(on_tap(ram, tap)) as net:
        ip("link", "delete", "deleted")
        if direction == "transmit":
            net.transmit(bytes(12) + frame_of(1))
        else:
            net.post(2048)
        assert net.pump.turn() == EVENT
        assert net.pump.port_failed


@pytest.mark.proves("VIO-NET-2")
def test_a_device_offers_what_its_port_can_do() -> None:
    class Old:
        queues = 1
        batching = Batching.NONE
        capabilities = mtu_capabilities = NOTHING
        unsupported = F.HOST_USO | F.GUEST_USO4 | F.GUEST_USO6

        def set_carrier(self, up: bool) -> None:
            assert not up

    assert not NetDevice(Old()).features & Old.unsupported  # type: ignore[arg-type]
    assert NetDevice(Old(), remove=F.CSUM).features & (F.HOST_TSO4 | F.HOST_UFO) == 0  # type: ignore[arg-type]
    assert NetDevice(Old(), add=F.MTU).features & F.MTU  # type: ignore[arg-type]
    assert not NetDevice(Old(), add=F.CTRL_VQ).features & F.CTRL_VQ  # type: ignore[arg-type]


# ---- offloads, through a real tap ------------------------------------------------------------------------------------


@contextmanager
def switched() -> Iterator[tuple[Tap, Tap]]:
    """Two taps on a bridge: what enters one leaves the other."""
    ip("link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
    ip("link", "set", "switch", "multicast", "off")  # nor does the host ask for groups: nobody else sends a frame
    with closing(open_tap("left")) as left, closing(open_tap("right")) as right:
        for tap in (left, right):
            tap.configure(int(SUPPORTED), 12)
            tap.set_mtu(TAP_MTU)
            ip("link", "set", tap.name, "master", "switch")
            tap.set_carrier(True)
        ip("link", "set", "switch", "up")
        while not seen("left", "brport/state") == seen("right", "brport/state") == "3":  # forwarding
            pass
        tap_queues_are_active()
        yield left, right


def tap_queues_are_active() -> None:
    ip("link", "set", "switch", "up")  # whoever gets the kernel's lock now comes after the carriers' work


def passes(ram: GuestRam, left: Tap, right: Tap, header: NetHeader, frame: bytes) -> NetHeader:
    """Send a packet through both taps by a driver each; the header that it arrives with."""
    with closing(on_tap(ram, left, SUPPORTED)) as sender, closing(on_tap(ram, right, SUPPORTED)) as receiver:
        buffers = [receiver.post(8192) for _ in range(9)]
        sender.transmit(header.pack(12) + frame)
        sender.pump.turn()
        assert sender.counters("tx_packets", "tx_dropped", "tx_rejected") == (1, 0, 0)
        receiver.pump.turn()
        used = receiver.rx.reap()
        content = b"".join(receiver.content(buffer)[: one.written] for buffer, one in zip(buffers, used, strict=False))
        assert content[12:] == frame
        return NetHeader.parse(content[:12])


@pytest.mark.proves("VIO-TAP-5")
@pytest.mark.parametrize(
    ("version", "ecn"), [(4, False), (6, False), (4, True), (6, True)], ids=["TSO4", "TSO6", "TSO4+ECN", "TSO6+ECN"]
)
@in_namespace
def test_segments_pass_two_taps_whole(version: int, ecn: bool) -> None:
    header, frame = segment(version, ecn)
    with GuestRam() as ram, switched() as (left, right):
        got = passes(ram, left, right, header, frame)
        assert (got.flags, got.gso_type, got.gso_size) == (header.flags, header.gso_type, header.gso_size)


@pytest.mark.parametrize("size", [1514, 9014, 14 + TAP_MTU])
@in_namespace
def test_jumbo_frames_pass_two_taps(size: int) -> None:
    with GuestRam() as ram, switched() as (left, right):
        frame = b"\xff" * 6 + bytes.fromhex("525400000001") + b"\x88\xb5" + bytes(i & 0xFF for i in range(size - 14))
        assert passes(ram, left, right, NetHeader(), frame).gso_type == 0


@in_namespace
def test_the_largest_mtu() -> None:
    with closing(open_tap("mtu")) as tap:
        tap.set_mtu(TAP_MTU)
        with pytest.raises(PortError, match="tap mtu: cannot set mtu 65522"):
            tap.set_mtu(TAP_MTU + 1)

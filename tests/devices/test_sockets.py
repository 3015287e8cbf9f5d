"""Ports that are sockets: loop, null, and packet sockets on a veth."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from tests.devices.bench import MODERN, Net
from tests.devices.namespace import drop_capabilities, in_namespace
from tests.devices.segments import segment
from tests.devices.test_tap import ip, packet_socket, seen
from tests.hostile.victim import frame_of
from vhostuser.devices.net.batch import Batching
from vhostuser.devices.net.features import SUPPORTED
from vhostuser.devices.net.ports import Port, discard
from vhostuser.devices.net.ports.packet import Packet
from vhostuser.devices.net.ports.sockets import SO_RCVBUFFORCE, Loop, Null
from vhostuser.errors import PortError
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import NetHeader
from vhostuser.virtio.layout import EVENT, PORT_OUT, WORK

OFFLOADS = MODERN | int(SUPPORTED)
SOL_PACKET, PACKET_VNET_HDR = 263, 15


@contextmanager
def on_port(port: Port, features: int = MODERN, size: int = 64) -> Iterator[Net]:
    """A queue pair on a port that was configured for it."""
    with GuestRam() as ram, closing(port):
        port.configure(features, 12)
        port.set_carrier(True)
        port.attach(0, True)
        with closing(Net(ram, features, size, port=port.fileno(), port_header=port.header_size)) as net:
            net.pump.use(port.fileno(), port.header_size, port.batching)
            yield net


def turns(net: Net) -> int:
    """Turn until there is nothing to do; what is waited for."""
    while (todo := net.pump.turn()) == WORK:
        pass
    return todo


# ---- loop and null ---------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-PORT-1")
def test_a_loop_brings_everything_back_in_order() -> None:
    with on_port(Loop(), OFFLOADS, 256) as net:
        segment = NetHeader(1, 1, 54, 1448, 34, 16)
        for number in range(50):
            buffers = [net.post(2048) for _ in range(40)]
            net.transmit(segment.pack(12) + bytes([number]) * 65553)
            net.transmit(bytes(12) + frame_of(number))
            turns(net)
            first, *others = net.rx.reap()
            content = b"".join(net.content(buffer) for buffer in buffers)
            count = NetHeader.parse(content[:12]).num_buffers
            assert content[:10] == segment.pack(10)
            assert content[12 : 12 + 65553] == bytes([number]) * 65553
            assert net.content(buffers[count])[12 : others[count - 1].written] == frame_of(number)
            assert first.written == 2048
            turns(net)
            while net.rx.in_flight:  # buffers that no packet needed: fill them
                net.tx.reap()
                net.transmit(bytes(12 + 60))
                turns(net)
                net.rx.reap()
            net.tx.reap()


@pytest.mark.proves("VIO-PORT-1")
def test_a_full_loop_waits_for_receive_buffers_and_loses_nothing() -> None:
    with on_port(Loop(), size=256) as net:
        sent: list[bytes] = []
        todo = 0
        while not todo & PORT_OUT:
            net.tx.reap()
            while net.tx.free:
                sent.append(struct.pack("I", len(sent)) + bytes(1400))
                net.transmit(bytes(12) + sent[-1])
            todo = turns(net)
        got: list[bytes] = []
        while len(got) < len(sent):
            buffers = [net.post(2048) for _ in range(net.rx.free)]
            assert not turns(net) & EVENT
            used = net.rx.reap()
            assert used
            got += [net.content(buffer)[12:size] for buffer, (_, size) in zip(buffers, used, strict=False)]
        assert got == sent
        assert net.counters("tx_dropped", "tx_rejected", "rx_dropped") == (0, 0, 0)


def test_nobody_else_gets_into_a_loop() -> None:
    with closing(Loop()) as loop, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        with socket.socket(fileno=os.dup(loop.fileno())) as inside, pytest.raises(PermissionError):
            stranger.sendto(b"x", inside.getsockname())
        assert discard(loop.fileno()) == 0


@pytest.mark.proves("VIO-PORT-2")
def test_null_takes_everything_and_gives_nothing() -> None:
    with on_port(Null(), OFFLOADS) as net:
        net.post(2048)
        for size in [60, 1514, 65553] * 300:
            net.tx.reap()
            net.transmit(bytes(12 + size))
            assert not turns(net) & (EVENT | PORT_OUT)
        assert net.counters("tx_packets", "tx_blocked", "tx_rejected", "rx_packets") == (900, 0, 0, 0)


@pytest.mark.proves("VIO-PORT-2")
def test_null_in_batches() -> None:
    with on_port(Null(), size=256) as net:
        for _ in range(20):
            net.tx.reap()
            while net.tx.free:
                net.tx.add([net.frame])
            turns(net)
        assert net.counters("tx_packets", "tx_rejected") == (20 * 256, 0)
        assert net.counters("tx_batches")[0] > 0


@pytest.mark.proves("VIO-PORT-7")
def test_a_guest_gets_nothing_that_the_one_before_sent() -> None:
    with closing(Loop()) as loop:
        with suppress(BlockingIOError):
            while True:
                os.write(loop.fileno(), bytes(72))
        loop.configure(MODERN, 12)
        with pytest.raises(BlockingIOError):
            os.read(loop.fileno(), 72)


@pytest.mark.parametrize("kind", [Loop, Null])
def test_a_pair_of_descriptors_for_each_pair_of_queues(kind: type[Loop] | type[Null]) -> None:
    with closing(kind(3)) as port:
        assert port.queues == 3
        assert len({port.fileno(pair) for pair in range(3)}) == 3
        os.write(port.fileno(1), bytes(70))
        assert [discard(port.fileno(pair)) for pair in range(3)] == [0, int(kind is Loop), 0]


# ---- packet sockets --------------------------------------------------------------------------------------------------


def veth() -> None:
    """The interfaces `near`, which a port is on, and `far`."""
    ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for name in ("near", "far"):
        ip("link", "set", name, "up")
    while not seen("near", "operstate") == seen("far", "operstate") == "up":
        pass  # the carrier is the kernel's to notice, and until then it throws packets away
    ip("link", "set", "near", "up")  # whoever gets the kernel's lock now comes after that


def far_end() -> socket.socket:
    """The other end of the veth, where a packet has its virtio_net_hdr of 10 bytes before it, both ways."""
    sock = packet_socket("far")
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    return sock


@pytest.mark.proves("VIO-PORT-3")
@in_namespace
def test_packets_pass_a_veth_both_ways() -> None:
    veth()
    with on_port(Packet("near")) as net, far_end() as far:
        for number in range(200):
            net.transmit(bytes(12) + frame_of(number))
            buffers = net.post(2048)
            turns(net)
            assert far.recv(2048) == bytes(10) + frame_of(number)
            far.send(bytes(10) + frame_of(number))
            turns(net)
            assert net.content(buffers)[12 : net.reap_one(net.rx).written] == frame_of(number)
            net.tx.reap()
        assert net.counters("tx_packets", "rx_packets") == (200, 200)  # none of ours came back


SEGMENTS = pytest.mark.parametrize(
    ("version", "ecn"), [(4, False), (6, False), (4, True), (6, True)], ids=["TSO4", "TSO6", "TSO4+ECN", "TSO6+ECN"]
)


@pytest.mark.proves("VIO-PORT-3")
@SEGMENTS
@in_namespace
def test_long_segments_pass_a_veth_unsegmented_both_ways(version: int, ecn: bool) -> None:
    veth()
    header, frame = segment(version, ecn)
    with on_port(Packet("near"), OFFLOADS) as net, far_end() as far:
        net.transmit(header.pack(12) + frame)
        turns(net)
        got = far.recv(1 << 17)
        assert got[10:] == frame
        assert told(got) == (header.flags, header.gso_type, header.gso_size)
        buffers = [net.post(4096) for _ in range(12)]
        far.send(header.pack(10) + frame)
        turns(net)
        used = net.rx.reap()
        content = b"".join(net.content(buffer)[: entry.written] for buffer, entry in zip(buffers, used, strict=False))
        assert content[12:] == frame
        assert told(content) == (header.flags, header.gso_type, header.gso_size)


def told(packet: bytes) -> tuple[int, int, int]:
    header = NetHeader.parse(packet[:10])
    return header.flags, header.gso_type, header.gso_size


@pytest.mark.proves("VIO-NET-17", "VIO-PORT-3")
@in_namespace
def test_segments_from_a_veth_for_a_driver_without_offloads() -> None:
    veth()
    header, frame = segment(4, ecn=False)
    with on_port(Packet("near")) as net, far_end() as far:
        buffers = [net.post(4096) for _ in range(12)]
        far.send(header.pack(10) + frame)
        far.send(bytes(10) + frame_of(1))
        turns(net)
        assert net.content(buffers[0])[12 : net.reap_one(net.rx).written] == frame_of(1)
        assert net.counters("rx_refused") == (1,)


@pytest.mark.proves("VIO-NET-16", "VIO-PORT-3")
@in_namespace
def test_a_kernel_without_num_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.5 there was no PACKET_VNET_HDR_SZ; an option that no kernel has stands for it."""
    monkeypatch.setattr("vhostuser.devices.net.ports.packet._VNET_HDR_SZ", 250)
    veth()
    port = Packet("near")
    header, frame = segment(4, ecn=False)
    with on_port(port, OFFLOADS) as net, far_end() as far:
        assert port.header_size == 10
        for _ in range(5):
            net.transmit(header.pack(12) + frame)
            turns(net)
            assert far.recv(1 << 17)[10:] == frame
            buffers = [net.post(50_000)]
            far.send(header.pack(10) + frame)
            turns(net)
            assert net.content(buffers[0])[12 : net.reap_one(net.rx).written] == frame


@pytest.mark.proves("VIO-PORT-3")
@in_namespace
def test_what_the_host_sends_out_itself_is_not_the_guests() -> None:
    veth()
    with on_port(Packet("near")) as net, packet_socket("near") as host, far_end() as far:
        net.post(2048)
        host.send(frame_of(1))
        far.recv(2048)
        turns(net)
        assert net.rx.reap() == []


@pytest.mark.proves("VIO-PORT-3")
@in_namespace
def test_several_queues_share_the_flows() -> None:
    veth()
    with closing(Packet("near", 3)) as port, far_end() as far:
        port.configure(MODERN, 12)
        for pair in range(3):
            port.attach(pair, True)
        counts = spread(port, far)
        assert sum(counts) == FLOWS
        assert min(counts) > 0


@pytest.mark.proves("VIO-PORT-8")
@pytest.mark.parametrize("queues", [1, 3])
@in_namespace
def test_a_queue_gets_its_share_while_its_pair_receives(queues: int) -> None:
    veth()
    with closing(Packet("near", queues)) as port, far_end() as far:
        port.configure(MODERN, 12)
        assert sum(spread(port, far)) == 0
        for attached in [(0,), range(queues), range(1, queues), (), range(queues - 1), range(queues)]:
            for pair in range(queues):
                port.attach(pair, pair in attached)
            counts = spread(port, far)
            assert sum(counts) == (FLOWS if attached else 0)
            assert {pair for pair, count in enumerate(counts) if count} == set(attached)


@pytest.mark.proves("VIO-PORT-8")
@in_namespace
def test_a_queue_that_is_detached_sends_and_forgets_what_it_held() -> None:
    veth()
    with closing(Packet("near", 2)) as port, far_end() as far:
        port.configure(MODERN, 12)
        for _ in range(3):
            port.attach(0, True)
            far.send(bytes(10) + frame_of(1))
            port.attach(0, False)
            os.write(port.fileno(0), bytes(12) + frame_of(2))
            assert far.recv(2048) == bytes(10) + frame_of(2)
        port.attach(0, True)
        assert discard(port.fileno(0)) == 0
        assert not os.get_blocking(port.fileno(0))
        assert not os.get_inheritable(port.fileno(0))


@pytest.mark.proves("VIO-PORT-4")
@in_namespace
def test_an_interface_that_is_gone_cannot_be_attached_to() -> None:
    veth()
    with closing(Packet("near")) as port:
        ip("link", "delete", "near")
        with pytest.raises(PortError, match="packet near: queue 0 cannot be attached: no such interface"):
            port.attach(0, True)


FLOWS = 64


def spread(port: Packet, far: socket.socket) -> list[int]:
    """How many of the flows that arrive each queue gets."""
    for number in range(FLOWS):
        source = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 100, 1, 0, 64, 17, 0, bytes([10, 0, 0, number]), b"\x0a" * 4)
        far.send(bytes(22) + b"\x08\x00" + source + bytes(80))
    return [discard(port.fileno(pair)) for pair in range(port.queues)]


@pytest.mark.proves("VIO-PORT-4")
@pytest.mark.parametrize("state", ["absent", "down", "tun"])
@in_namespace
def test_interfaces_that_cannot_be_used(state: str) -> None:
    if state == "down":
        ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    elif state == "tun":
        ip("tuntap", "add", "near", "mode", "tun")
        ip("link", "set", "near", "up")
    reason = {
        "absent": "no such interface",
        "down": "the interface is down",
        "tun": "its packets have no Ethernet header",
    }[state]
    with pytest.raises(PortError, match=f"--packet near: {reason}"):
        Packet("near")


@pytest.mark.proves("VIO-PORT-4")
@in_namespace
def test_packet_sockets_need_a_privilege() -> None:
    veth()
    drop_capabilities()
    with pytest.raises(PortError, match="--packet near: CAP_NET_RAW is missing"):
        Packet("near")


@pytest.mark.proves("VIO-PORT-4", "VIO-NET-9")
@pytest.mark.parametrize("direction", ["transmit", "receive"])
@pytest.mark.parametrize("change", ["set near down", "delete near"])
@in_namespace
def test_an_interface_that_goes_away_is_an_event(direction: str, change: str) -> None:
    veth()
    with on_port(Packet("near")) as net:
        ip("link", *change.split())
        if direction == "transmit":
            net.transmit(bytes(12) + frame_of(1))
        else:
            net.post(2048)
        assert net.pump.turn() == EVENT
        assert net.pump.port_failed


@pytest.mark.proves("VIO-PORT-9")
@in_namespace
def test_the_mtu_of_an_interface_is_the_hosts() -> None:
    veth()
    ip("link", "set", "near", "mtu", "4000")
    with closing(Packet("near")) as port:
        for mtu in (68, 1500, 4000):
            port.set_mtu(mtu)
        with pytest.raises(PortError, match="packet near: an MTU of 4001 is more than the interface's 4000"):
            port.set_mtu(4001)
        assert seen("near", "mtu") == "4000"


@pytest.mark.proves("VIO-NET-8")
@pytest.mark.parametrize("batching", [Batching.NONE, Batching.DATAGRAMS])
@in_namespace
def test_a_full_packet_socket_loses_nothing_and_waits(batching: Batching) -> None:
    """A queueing discipline holds what was sent, and counts it as the socket's, until it is told to let it go."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # a veth has a queue for each processor that sends
    veth()
    hold = ["tc", "qdisc", "replace", "dev", "near", "root", "tbf", "limit", "100mb"]
    subprocess.run([*hold, "rate", "1kbit", "burst", "2000"], check=True)
    with on_port(Packet("near"), size=256) as net, far_end() as far:
        net.pump.use(net.pump.port, 12, batching)
        far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sent = 0
        todo = 0
        while not todo & PORT_OUT:
            net.tx.reap()
            while net.tx.free:
                net.transmit(bytes(12) + struct.pack("!6s6sHI", b"\xff" * 6, bytes(6), 0x88B5, sent) + bytes(1400))
                sent += 1
                if sent % 7 == 0:
                    net.transmit(bytes(20))  # too short for a frame
            todo = turns(net)
        assert net.pump.turn() == PORT_OUT
        assert select.select([], [net.pump.port], [], 0)[1] == [], "writable while it is full"
        subprocess.run([*hold, "rate", "10gbit", "burst", "10mb"], check=True)
        with packet_socket("near") as other:
            other.send(b"\xff" * 12 + b"\x88\xb6" + bytes(46))  # or it would look at its new rate in ten seconds
        while net.tx.in_flight:
            assert select.select([], [net.pump.port], [], 20)[1]
            turns(net)
            net.tx.reap()
        frames = [far.recv(2048)[10:] for _ in range(sent + 1)]
        got = [struct.unpack_from("!I", frame, 14)[0] for frame in frames if frame[12:14] == b"\x88\xb5"]
        assert got == list(range(sent))
        assert net.counters("tx_packets", "tx_dropped", "tx_rejected") == (sent, sent // 7, 0)

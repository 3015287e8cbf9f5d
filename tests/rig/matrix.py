"""DPDK's virtio-user in every mode: frames of many flows and sizes come back from it as they were.

testpmd sends by each queue what that queue received (its mode ``io``), so every frame goes through a receive ring and
the transmit ring of the same pair.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.rig.backend import Backend
from tests.rig.netns import PACKET_IGNORE_OUTGOING, SOL_PACKET, Netns
from tests.rig.process import RigError, wait_until
from tests.rig.testpmd import FRONT_END_MAC, Testpmd, virtio_user
from vhostuser.frontend.features import DriverFeature

TAP = "tap0"
PAIRS = (1, 2, 4)
FLOWS = 64
PACKETS = 1600
_IN_FLIGHT = 32  # so that nothing is dropped on the way
_PORT = 9  # the host's; the guest's are above
_PORT_OFFSET = 36  # of the guest's port in a packet towards it
_ROUNDS = 3
_ACKNOWLEDGED = {
    "packed": DriverFeature.RING_PACKED,
    "in_order": DriverFeature.IN_ORDER,
    "mrg_rxbuf": DriverFeature.MRG_RXBUF,
    "mq": DriverFeature.MQ,
}

#: Every layout, order and header that virtio-user can ask for; each has a send and a receive function of its own there.
MODES = {
    f"packed_vq={packed:d} in_order={in_order:d} mrg_rxbuf={merge:d}": {
        "packed": packed,
        "in_order": in_order,
        "mrg_rxbuf": merge,
    }
    for packed, in_order, merge in itertools.product((False, True), repeat=3)
}


def matrix() -> dict[str, Any]:
    """All modes with one, two and four queue pairs.

    Returns:
        For each, how many frames came back, and by which pairs.

    Raises:
        RigError: virtio-user did not acknowledge just what makes up the mode; a frame did not come back, or not as it
            was, or overtook another of its flow.
    """
    results: dict[str, Any] = {}
    with (
        Netns(quiet=True) as netns,
        Backend(netns, tap=TAP, options=[f"--queues={max(PAIRS)}", "-vv"]) as backend,
    ):
        for (name, mode), pairs in itertools.product(MODES.items(), PAIRS):
            results[f"{name} queues={pairs}"] = _echoes(netns, backend, mode, pairs)
    return results


def _echoes(netns: Netns, backend: Backend, mode: dict[str, bool], pairs: int) -> dict[str, Any]:
    before = [chains(backend, way, pairs) for way in range(2)]
    count = 0
    with Testpmd([virtio_user(backend.socket, queues=pairs, **mode)], queues=pairs) as front_end:
        front_end.forward("io")
        if (acknowledged := _features(backend)) != {**mode, "mq": pairs > 1}:
            raise RigError(f"virtio-user was to be {mode} with {pairs} queue pairs, and is {acknowledged}")
        wait_until(lambda: attached(netns) == pairs, 20, f"{pairs} queues of the tap")
        with netns.packet_socket(TAP) as tap:
            tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            tap.settimeout(20)
            for _ in range(_ROUNDS):
                sent = packets(1000 * pairs)
                if by_flow(echoed(tap, sent)) != by_flow(sent):
                    raise RigError(f"{mode}, {pairs} queue pairs: frames did not come back as they were")
                count += len(sent)
        gained = [
            [now - then for now, then in zip(chains(backend, way, pairs), before[way], strict=True)] for way in range(2)
        ]
    return {"frames each way": count, "chains by pair": {"received": gained[0], "transmitted": gained[1]}}


def _features(backend: Backend) -> dict[str, bool]:
    """What the front-end that is connected has acknowledged, by the log."""
    features = int(re.findall(r"SET_FEATURES value=(\w+)", backend.program.output)[-1], 0)
    return {name: bool(features & bit) for name, bit in _ACKNOWLEDGED.items()}


def attached(netns: Netns) -> int:
    """How many queues of the tap the host sends to."""
    return netns.run("ls", f"/sys/class/net/{TAP}/queues").count("tx-")


def chains(backend: Backend, way: int, pairs: int) -> list[int]:
    """How many chains each pair moved so far: received (0) or transmitted (1)."""
    counters = backend.counters()
    return [counters.get(f"vring{2 * pair + way}_chains", 0) for pair in range(pairs)]


def udp(source: int, destination: int, body: bytes) -> bytes:
    """An Ethernet frame with a datagram. Both directions of a flow differ in the order of their ports."""
    header = struct.pack("!HHHH", source, destination, 8 + len(body), 0)
    addresses = (0x0A000001, 0x0A000002) if source < destination else (0x0A000002, 0x0A000001)
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, *addresses)
    return bytes.fromhex(FRONT_END_MAC.replace(":", "")) + b"\x02\0\0\0\0\1\x08\0" + ip + header + body


def packets(first_port: int) -> list[bytes]:
    """Packets of many flows and sizes, each unlike all others. The tap remembers a flow for some seconds."""
    noise = random.Random(1)
    return [
        udp(_PORT, first_port + number % FLOWS, struct.pack("!I", number) + noise.randbytes(18 + number * 7 % 1400))
        for number in range(PACKETS)
    ]


def by_flow(frames: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Packets by their flow, in their order."""
    flows = defaultdict(list)
    for frame in frames:
        flows[frame[_PORT_OFFSET : _PORT_OFFSET + 2]].append(frame)
    return flows


def echoed(tap: socket.socket, sent: list[bytes]) -> list[bytes]:
    """Send packets to the guest, and what came back."""
    back = []
    for start in range(0, len(sent), _IN_FLIGHT):
        burst = sent[start : start + _IN_FLIGHT]
        for packet in burst:
            tap.send(packet)
        back += [tap.recv(4096) for _ in burst]
    return back

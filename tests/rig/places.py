"""Two places where a guest can be: back-ends whose taps are ports of one bridge.

The bridge, which has the host's address, stands for the network between two real hosts: like a switch it has to learn
where the guest is. The places are the same for our back-end, for DPDK's and for QEMU's own tap.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.rig.acceptance import HOST_ADDRESS, PREFIX
from tests.rig.backend import Backend
from tests.rig.netns import Netns
from tests.rig.qemu import TapNic, VhostUserNic
from tests.rig.testpmd import Testpmd, tap_port, vhost_back_end

BRIDGE = "br0"
TAPS = ("tapA", "tapB")

#: testpmd passes frames on as they are, so its taps and the guest must agree to have no offloads.
_OFFLOADS = ("csum", "gso", "guest_csum", *(f"{way}_{kind}" for way in ("guest", "host") for kind in ("tso4", "tso6")))
_WITHOUT_OFFLOADS = [f"{name}=off" for name in (*_OFFLOADS, "guest_ecn", "host_ecn", "guest_ufo", "host_ufo")]
_TAP_WITHOUT_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off", "gro", "off")


@dataclass(frozen=True)
class Plan:
    """What card a guest has, what serves it, what it sends and is sent, how it migrates.

    Attributes:
        packed: the layout of its rings.
        pairs: queue pairs, each with a processor.
        mtu: of the card and of the taps.
        rate: datagrams a second each way.
        bandwidth: bytes of memory a second, before the guest moves.
        postcopy: it moves while most of its memory is still to come; the bandwidth has to be too small for all of it.
        card: more properties of the card.
        options: more words for our back-end's command line.
    """

    packed: bool = False
    pairs: int = 1
    mtu: int = 1500
    rate: int = 1000
    bandwidth: int = 1 << 30
    postcopy: bool = False
    card: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def properties(self, *more: str) -> str:
        """The properties of the guest's card."""
        return ",".join((f"packed={'on' if self.packed else 'off'}", *self.card, *more))


class Place(NamedTuple):
    """One of the two: the card that QEMU gives a guest there, the tap behind it, the back-end if it is ours."""

    nic: VhostUserNic | TapNic
    tap: str
    backend: Backend | None = None


#: Sets up two places in a namespace that has the bridge.
MakePlaces = Callable[[Netns, Plan], AbstractContextManager[list[Place]]]


@contextmanager
def two_places(make: MakePlaces, plan: Plan) -> Iterator[tuple[Netns, list[Place]]]:
    """A quiet namespace with the bridge, and two places on it."""
    with Netns(quiet=True) as netns:
        # its address would follow its ports', and a port would be deaf for 15 seconds whenever its carrier comes back
        settings = ("address", "02:00:00:00:00:01", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        netns.ip("link", "add", BRIDGE, *settings)
        netns.add_address(BRIDGE, f"{HOST_ADDRESS}/{PREFIX}")
        with make(netns, plan) as places:
            yield netns, places


@contextmanager
def ours(netns: Netns, plan: Plan) -> Iterator[list[Place]]:
    """Two processes of our back-end."""
    words = [f"--queues={plan.pairs}", *plan.options]
    with ExitStack() as stack:
        places = []
        for tap in TAPS:
            backend = stack.enter_context(Backend(netns, tap=tap, options=words))
            _join(netns, tap, plan.mtu)
            nic = VhostUserNic(backend.socket, queues=plan.pairs, options=plan.properties())
            places.append(Place(nic, tap, backend))
        yield places


@contextmanager
def ours_like_dpdk(netns: Netns, plan: Plan) -> Iterator[list[Place]]:
    """Two processes of our back-end, with the card that DPDK's gets."""
    with ours(netns, plan) as places:
        yield [place._replace(nic=_without_offloads(place.backend.socket, plan)) for place in places if place.backend]


@contextmanager
def dpdk(netns: Netns, plan: Plan) -> Iterator[list[Place]]:
    """DPDK's back-end: one process for both, because each would take a core for itself."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhu-dpdk-")))
        sockets = [folder / tap for tap in TAPS]
        devices = []
        for number, (socket, tap) in enumerate(zip(sockets, TAPS, strict=True)):
            port = vhost_back_end(socket, queues=plan.pairs, number=number)
            devices += [f"{port},postcopy-support={int(plan.postcopy)}", tap_port(tap, number=number)]
        options = ["--forward-mode=io", "--no-flush-rx", "--auto-start"]
        stack.enter_context(Testpmd(devices, queues=plan.pairs, memory=512, netns=netns, options=options))
        for tap in TAPS:
            _join(netns, tap, plan.mtu)
            netns.run("ethtool", "-K", tap, *_TAP_WITHOUT_OFFLOADS)
        netns.run("ethtool", "-K", BRIDGE, "tx", "off")
        yield [Place(_without_offloads(socket, plan), tap) for socket, tap in zip(sockets, TAPS, strict=True)]


@contextmanager
def plain(netns: Netns, plan: Plan) -> Iterator[list[Place]]:
    """QEMU's own back-end, with one queue pair."""
    for tap in TAPS:
        netns.ip("tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
        _join(netns, tap, plan.mtu)
    yield [Place(TapNic(tap, plan.properties()), tap) for tap in TAPS]


def _join(netns: Netns, tap: str, mtu: int) -> None:
    netns.wait_for_link(tap)
    netns.ip("link", "set", tap, "mtu", str(mtu), "master", BRIDGE, "up")


def _without_offloads(socket: Path, plan: Plan) -> VhostUserNic:
    return VhostUserNic(socket, queues=plan.pairs, options=plan.properties(*_WITHOUT_OFFLOADS))

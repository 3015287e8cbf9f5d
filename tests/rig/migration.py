"""A guest that migrates back and forth between two QEMU processes under traffic both ways.

The guest's end of the traffic migrates with it, in the guest's memory: what a receiver counted before the trip it still
knows afterwards, so a datagram that comes twice, or too late, is seen whichever machine brought it.
"""

from __future__ import annotations

import itertools
import socket
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX, ping, settled
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.places import BRIDGE, MakePlaces, Place, Plan, dpdk, ours, ours_like_dpdk, two_places
from tests.rig.process import RigError, wait_until
from tests.rig.qemu import Pinned, Qemu, TapNic
from tests.rig.traffic import End, Flow, Host, Tally
from vhostuser.fds import Closing
from vhostuser.peer.footprint import Footprint

#: MiB; not a multiple of 64 pages. Without KVM, QEMU before 9.0 loses what the guest's processors write between two
#: rounds of a migration, and guests die of that, with or without a network card: where it collects dirty pages by 64,
#: it does not tell the processors' TLBs ("physmem: Fix migration dirty bitmap coherency with TCG memory access").
MEMORY = 128 + 8 / 1024
ETH_P_RARP = 0x8035
HEADERS = 28  # bytes of a packet before a datagram's payload
SMALLEST = 24  # bytes of a datagram, by the traffic program

#: What these flows bring stays in the buffers where the back-end put it until the guest has arrived: a page that the
#: back-end wrote and did not log is seen then. The guest's driver writes to the ends of small packets' buffers itself.
LATER = "to the guest, read after the trip"

WAYS = ("to the host", "to the guest", LATER)

#: Seconds, longer than any trip. Flows end when the guest has arrived.
PATIENCE = 120.0


@dataclass(frozen=True)
class Trip:
    """One migration, as QEMU tells it.

    Attributes:
        milliseconds: from begin to end.
        downtime: milliseconds for which the guest stood still.
        megabytes: of memory, transferred.
        rounds: how often the dirty pages were collected.
        audited: pages that our back-end wrote meanwhile and was found to have logged.
    """

    milliseconds: int
    downtime: int
    megabytes: float
    rounds: int
    audited: int = 0


class Traveller(Closing):
    """A guest that moves from place to place.

    Attributes:
        guest: the machine that it is on.
        at: the number of its place.
    """

    def __init__(self, image: GuestImage, netns: Netns, places: list[Place], plan: Plan) -> None:
        """Boot it at the first place. Raises RigError."""
        self.at = 0
        self._image = image
        self._netns = netns
        self._places = places
        self._plan = plan
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-trip-")
        self._roads = (Path(self._folder.name) / str(number) for number in itertools.count())
        self._left: dict[int, Footprint] = {}  # what our back-ends held after the first departure
        self._audited = [0, 0]  # pages, at each place
        self.guest = self._machine(self.at)
        try:
            self.guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
            # its kernel would keep no more than a few megabytes of datagrams for programs that do not read them
            self.guest.run(f"ip link set eth0 mtu {plan.mtu}; echo {3 * '65536 '} >/proc/sys/net/ipv4/udp_mem")
            ping(netns)
            self._memory = _Memory(self.guest)
        except BaseException:
            self.close()
            raise

    def move(self) -> Trip:
        """Move it to the other place and end the machine that it leaves.

        Raises:
            RigError: it did not get there, has forgotten something, or left something in our back-end.
        """
        road, there = next(self._roads), 1 - self.at
        destination = self._machine(there, road)
        try:
            trip = migrate(self.guest, destination, road, self._plan)
            destination.take_over(self.guest)
            self.guest.close()
        except BaseException:
            destination.close()
            raise
        self._check_left(self.at)
        audited = self._check_log(self.at)
        self.guest, self.at = destination, there
        self._memory.check()
        return replace(trip, audited=audited)

    def close(self) -> None:
        """End it. Raises CrashError as the machine does."""
        with self._folder:
            self.guest.close()

    def _machine(self, at: int, incoming: Path | None = None) -> Qemu:
        nic = self._places[at].nic
        return Qemu(
            self._image,
            [nic],
            memory=MEMORY,
            processors=self._plan.pairs,
            netns=self._netns if isinstance(nic, TapNic) else None,
            incoming=incoming,
        )

    def _check_left(self, at: int) -> None:
        """Our back-end holds after each departure what it held after the first."""
        backend = self._places[at].backend
        if backend is None:
            return
        if at in self._left:
            backend.wait_for_footprint(self._left[at])
        else:
            self._left[at] = settled(backend.footprint)

    def _check_log(self, at: int) -> int:
        """The pages that our back-end wrote while it logged, if it was told to audit that; it has missed none."""
        backend = self._places[at].backend
        if backend is None or "--audit-log" not in self._plan.options:
            return 0
        counters = backend.counters()
        audited = int(counters["log_audited_pages"]) - self._audited[at]
        self._audited[at] += audited
        if counters["log_missed_pages"] or not audited:
            raise backend.program.failure(f"the audit of the log at {self._places[at].tap}: {counters}")
        return audited


class _Memory:
    """What only a guest that lives on can know: how far a shell has counted, in a variable and in a file of a tmpfs."""

    def __init__(self, guest: Qemu) -> None:
        self._job = guest.start("sh -c 'i=0; while usleep 50000; do i=$((i + 1)); echo $i; done'")
        self._counted = 0

    def check(self) -> None:
        """Raise RigError if it did not go on from where it was."""
        counted = [int(line) for line in self._job.output.split()]
        if counted != list(range(1, len(counted) + 1)) or len(counted) <= self._counted:
            raise RigError(f"the guest had counted to {self._counted}, and now its count ends with {counted[-20:]}")
        self._counted = len(counted)


def migrate(source: Qemu, destination: Qemu, road: Path, plan: Plan) -> Trip:
    """Move a guest from one machine to another, which listens on `road`.

    Args:
        source: where it is.
        destination: where it goes.
        road: a UNIX socket.
        plan: how.

    Raises:
        RigError: QEMU gave up, or a machine ended.
    """
    for machine in (source, destination):
        machine.qmp("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": plan.postcopy}])
    source.qmp("migrate-set-parameters", max_bandwidth=plan.bandwidth, downtime_limit=300)
    source.qmp("migrate", uri=f"unix:{road}")
    if plan.postcopy:
        _wait_for_status(source, "active")
        source.qmp("migrate-start-postcopy")
    state = _wait_for_status(source, "completed")
    wait_until(lambda: destination.qmp("query-status")["status"] == "running", 20, "the guest at its destination")
    ram = state["ram"]
    return Trip(state["total-time"], state["downtime"], round(ram["transferred"] / 1e6, 1), ram["dirty-sync-count"])


def _wait_for_status(source: Qemu, status: str) -> dict[str, Any]:
    """QEMU's account of the migration once it has come to a status. Raises RigError."""

    def reached() -> dict[str, Any] | None:
        state: dict[str, Any] = source.qmp("query-migrate")
        if state.get("status") in ("failed", "cancelled"):
            raise source.program.failure(f"the guest did not get there: {state}")
        return state if state.get("status") == status else None

    state = wait_until(reached, PATIENCE, f"a migration that is {status}")
    assert state is not None
    return state


@contextmanager
def reverse_arps(netns: Netns) -> Iterator[socket.socket]:
    """A socket that receives the reverse ARP packets on the bridge."""
    with netns.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_RARP)) as packets:
        packets.bind((BRIDGE, ETH_P_RARP))
        packets.settimeout(20)
        yield packets


# ---- runs ------------------------------------------------------------------------------------------------------------


def against_dpdk(image: GuestImage, round_trips: int, packed: bool, pairs: int) -> dict[str, Any]:
    """Round trips over our back-end and over DPDK's.

    Large packets go over ours alone, because testpmd would need other buffers for them, and so does post-copy, a
    quarter as often: with DPDK's back-end QEMU waits for pages for ever here. Where a guest does not arrive over
    DPDK's, which is not the matter here, the trips before that are what is compared.

    Returns:
        Of each, what a trip took and what it lost.

    Raises:
        RigError: as :func:`trips`, over ours; or a trip lost more over our back-end than over DPDK's.
    """
    plan = Plan(packed, pairs)
    few = max(round_trips // 4, 1)
    subjects: dict[str, tuple[MakePlaces, Plan, int]] = {
        "vhostuser": (ours_like_dpdk, plan, round_trips),
        "DPDK": (dpdk, plan, round_trips),
        "vhostuser, audited, large packets": (ours, with_large_packets(audited(plan)), round_trips),
        "vhostuser, post-copy": (ours, memory_last(plan), few),
    }
    told: dict[str, Any] = {}
    lost: dict[str, float] = {}
    for name, (places, how, times) in subjects.items():
        made: list[dict[str, Any]] = []
        ended = {}
        try:
            made.extend(trips(image, places, how, 2 * times))  # those before a failure stay
        except RigError as error:
            if name != "DPDK" or not made:
                raise RigError(f"{name}: {error}; before that: {told}") from error
            ended = {"ended by": str(error)}
        told[name] = summary(made) | ended
        lost[name] = sum(trip[way]["lost"] for trip in made for way in WAYS) / len(made)
    if lost["vhostuser"] > lost["DPDK"]:
        raise RigError(f"a trip lost more datagrams than with DPDK's back-end: {told}")
    return told


def audited(plan: Plan) -> Plan:
    """The same, and our back-ends look for pages that they wrote and did not log."""
    return replace(plan, options=(*plan.options, "--audit-log"))


def memory_last(plan: Plan) -> Plan:
    """The same by post-copy."""
    return replace(plan, postcopy=True, bandwidth=10 << 20, options=(*plan.options, "--postcopy"))


def with_large_packets(plan: Plan) -> Plan:
    """The same with packets of more than a page, which wait for as long in a large ring as the memory travels.

    The guest's driver zeroes a buffer when it makes it available, and then leaves it to the back-end: without the log,
    what the back-end puts there after that page was transferred would be lost.
    """
    return replace(plan, mtu=9000, rate=plan.rate // 2, bandwidth=64 << 20, card=(*plan.card, "rx_queue_size=1024"))


def summary(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Of many trips: least, median and most of each figure, and all datagrams."""

    def spread(values: Iterable[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered[0], statistics.median(ordered), ordered[-1]]

    figures = {
        name: spread(trip[name] for trip in made) for name in ("milliseconds", "downtime", "megabytes", "rounds")
    }
    traffic = {
        way: {
            "sent": sum(trip[way]["sent"] for trip in made),
            "lost": sum(trip[way]["lost"] for trip in made),
            "lost in a trip": spread(trip[way]["lost"] for trip in made),
        }
        for way in WAYS
    }
    return {"trips": len(made)} | figures | traffic


def trips(image: GuestImage, make: MakePlaces, plan: Plan, count: int) -> Iterator[dict[str, Any]]:
    """Move a guest back and forth, `count` trips in all, each under traffic both ways.

    Yields:
        Of each trip, what QEMU told of it, and how many datagrams each way were sent and lost.

    Raises:
        RigError: a trip failed, the guest forgot something, or a datagram came damaged, twice or too late.
    """
    with two_places(make, plan) as (netns, places), Traveller(image, netns, places, plan) as traveller:
        host = Host(netns, image)
        for _ in range(count):
            yield _trip_under_traffic(traveller, host, netns, plan)


def _trip_under_traffic(traveller: Traveller, host: Host, netns: Netns, plan: Plan) -> dict[str, Any]:
    flows = _flows(traveller.guest, host, plan)
    for flow in flows[LATER]:
        flow.hold()
    trip = traveller.move()
    for flow in flows[LATER]:
        flow.go_on()
    ping(netns)
    tallies = {way: [judged(way, flow.stop()) for flow in running] for way, running in flows.items()}
    if refused := traveller.guest.snmp("Udp", "InCsumErrors"):
        raise RigError(f"the guest's kernel refused {refused} datagrams that were damaged")
    return asdict(trip) | {
        way: {"sent": sum(tally.sent for tally in some), "lost": sum(tally.lost for tally in some)}
        for way, some in tallies.items()
    }


def _flows(guest: Qemu, host: Host, plan: Plan) -> dict[str, list[Flow]]:
    """Datagrams both ways, by every queue pair."""

    def start(ends: tuple[End, End], part: int, smallest: int) -> Flow:
        size, rate = f"{smallest}-{plan.mtu - HEADERS}", plan.rate // part
        address = HOST_ADDRESS if ends[1] is host else GUEST_ADDRESS
        return Flow(*ends, address, PATIENCE, protocol="udp", size=size, rate=rate)

    processors = [Pinned(guest, pair) for pair in range(plan.pairs)]
    return {
        "to the host": [start((processor, host), plan.pairs, SMALLEST) for processor in processors],
        "to the guest": [start((host, processor), 2 * plan.pairs, SMALLEST) for processor in processors],
        LATER: [start((host, guest), 2, plan.mtu // 2)],
    }


def judged(way: str, tally: Tally) -> Tally:
    """The tally of a flow, in which nothing but loss may be wrong. Raises RigError."""
    if not tally.intact or tally.late:
        raise RigError(f"{way}: {tally}")
    return tally

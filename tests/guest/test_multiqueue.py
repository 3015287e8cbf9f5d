"""Several queue pairs: DPDK's virtio-user, the built-in front-end with all, a Linux guest that changes their number."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from tests.guest.conftest import Machine
from tests.rig import acceptance
from tests.rig.acceptance import HOST_ADDRESS, PREFIX
from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.matrix import PACKETS, TAP, attached, by_flow, chains, echoed, packets, udp
from tests.rig.netns import PACKET_IGNORE_OUTGOING, SOL_PACKET, Netns
from tests.rig.process import wait_until
from tests.rig.qemu import Pinned, Qemu, VhostUserNic
from tests.rig.testpmd import Testpmd, virtio_user
from tests.rig.traffic import Host, round_trips
from vhostuser.devices.net.device import MAX_PAIRS
from vhostuser.frontend.client import connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver

pytestmark = pytest.mark.guest

PAIRS = 4
ROUND_TRIPS = 200


@pytest.fixture(scope="module")
def backend(quiet_netns: Netns) -> Iterator[Backend]:
    with Backend(quiet_netns, tap=TAP, options=[f"--queues={PAIRS}", "-vv"]) as backend:
        yield backend


def gained(backend: Backend, way: int, before: list[int]) -> list[int]:
    """The same since `before`."""
    return [now - then for now, then in zip(chains(backend, way, PAIRS), before, strict=True)]


@pytest.mark.proves("VIO-MQ-1")
@pytest.mark.parametrize("pairs", [1, 2, PAIRS])
def test_every_byte_comes_back_by_every_pair(quiet_netns: Netns, backend: Backend, pairs: int) -> None:
    before = [chains(backend, way, PAIRS) for way in range(2)]
    sent = packets(1000 * pairs)
    with Testpmd([virtio_user(backend.socket, queues=pairs)], queues=pairs) as front_end:
        front_end.forward("io")  # what a queue receives, the same queue sends
        wait_until(lambda: attached(quiet_netns) == pairs, 20, f"{pairs} queues of the tap")
        with quiet_netns.packet_socket(TAP) as tap:
            tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            tap.settimeout(20)
            assert by_flow(echoed(tap, sent)) == by_flow(sent)
        received, transmitted = (gained(backend, way, before[way]) for way in range(2))
        assert received == transmitted
        assert sum(received) == PACKETS
        assert [count > 0 for count in received] == [pair < pairs for pair in range(PAIRS)]


@pytest.mark.parametrize("pairs", [2, PAIRS])
def test_every_frame_sent_by_every_pair_reaches_the_tap(quiet_netns: Netns, backend: Backend, pairs: int) -> None:
    before, at_tap = chains(backend, 1, PAIRS), quiet_netns.rx_packets(TAP)
    with Testpmd([virtio_user(backend.socket, queues=pairs)], queues=pairs) as front_end:
        front_end.forward("txonly", 60)
        wait_until(lambda: min(gained(backend, 1, before)[:pairs]) > 1000, 20, f"packets of {pairs} pairs")
        front_end.stop_forwarding()
        sent = front_end.stats().tx_packets
        wait_until(lambda: quiet_netns.rx_packets(TAP) - at_tap == sent, 10, f"{sent} packets at the tap")


# ---- the built-in front-end ------------------------------------------------------------------------------------------


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Programs that are started may open 1024 files, as from a shell, and raise that to what is allowed."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.proves("VIO-MQ-1", "VIO-MQ-2")
async def test_as_many_pairs_as_can_be(quiet_netns: Netns) -> None:
    """Each pair asks with a packet of its own flow, and gets the answer."""
    with ExitStack() as stack, trio.fail_after(60):
        with few_descriptors():
            backend = stack.enter_context(Backend(quiet_netns, tap="tap128", options=[f"--queues={MAX_PAIRS}"]))
        memory = stack.enter_context(GuestRam())
        async with connect(backend.socket, features=DRIVER_FEATURES, memory=memory) as front_end:
            drivers = []
            for pair in range(MAX_PAIRS):
                drivers.append(await NetDriver.open_pair(front_end, pair, size=4))
                stack.callback(drivers[-1].close)
            assert backend.footprint().tasks == 1 + MAX_PAIRS
            with quiet_netns.packet_socket("tap128") as tap:
                tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
                tap.settimeout(20)
                for pair, driver in enumerate(drivers):
                    question = udp(1000 + pair, 9, pair.to_bytes(4, "big"))
                    for _ in range(2):  # the tap has learnt the flow of the first before the second comes through
                        await driver.send(question)
                        assert tap.recv(4096) == question
                    answer = udp(9, 1000 + pair, pair.to_bytes(40, "big"))
                    tap.send(answer)
                    assert (await driver.receive()).frame == answer


# ---- a Linux guest ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(image: GuestImage) -> Iterator[Machine]:
    """A guest with a processor for each pair. It has no MSI-X, so all rings share one interrupt."""
    with (
        Netns() as netns,
        Backend(netns, tap=TAP, options=[f"--queues={PAIRS}", "-vv"]) as backend,
        Qemu(image, [VhostUserNic(backend.socket, queues=PAIRS)], processors=PAIRS) as guest,
    ):
        netns.add_address(TAP, f"{HOST_ADDRESS}/{PREFIX}")
        machine = Machine(netns, backend, Host(netns, image), guest)
        yield Machine.of(machine, guest)


@pytest.mark.proves("VIO-MQ-2")
@pytest.mark.sends("QEMU", "GET_QUEUE_NUM", "ADD_MEM_REG")
def test_answers_come_back_by_the_pair_that_asked(machine: Machine) -> None:
    assert isinstance(machine.guest, Qemu)
    acceptance.ping(machine.netns)
    assert attached(machine.netns) == PAIRS
    for processor in range(PAIRS):
        before = [chains(machine.backend, way, PAIRS) for way in range(2)]
        round_trips(Pinned(machine.guest, processor), machine.host, HOST_ADDRESS, count=ROUND_TRIPS)
        for way in range(2):
            moved = gained(machine.backend, way, before[way])
            assert moved.pop(processor) > 0.9 * ROUND_TRIPS
            assert sum(moved) < 0.1 * ROUND_TRIPS


@pytest.mark.proves("VIO-MQ-1")
def test_the_number_of_pairs_changes_under_checked_traffic(machine: Machine) -> None:
    changes = (1, 3, 2, 4)
    flows = acceptance.two_way_flows(machine.guest, machine.host, 1.5 * len(changes))
    for number in changes:
        before = chains(machine.backend, 0, PAIRS)
        machine.guest.run(f"ethtool -L eth0 combined {number}")
        wait_until(lambda number=number: attached(machine.netns) == number, 10, f"{number} queues")  # type: ignore[misc]
        wait_until(lambda before=before: sum(gained(machine.backend, 0, before)) > 10, 10, "packets")  # type: ignore[misc]
    for name, flow in flows.items():
        acceptance.judged(name, flow.finish())
    assert machine.backend.footprint().tasks == 1 + PAIRS


@pytest.mark.proves("VIO-MQ-1")
def test_a_driver_that_goes_and_comes_back_has_all_its_pairs(machine: Machine) -> None:
    driver = "/sys/bus/virtio/drivers/virtio_net"
    machine.guest.run(f"echo virtio0 >{driver}/unbind")
    wait_until(lambda: attached(machine.netns) == 1, 10, "the driver's end")
    machine.guest.run(f"echo virtio0 >{driver}/bind")
    Machine.of(machine, machine.guest)
    wait_until(lambda: attached(machine.netns) == PAIRS, 10, f"{PAIRS} queues")
    acceptance.ping(machine.netns)
    assert len(acceptance.checked_traffic(machine.guest, machine.host, 1)) == 4

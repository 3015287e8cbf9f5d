"""A Linux guest whose network card is behind QEMU's Intel IOMMU: every address that the driver gives us is an IOVA."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Bench, Machine
from tests.rig import acceptance
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import Flow, Host, round_trips

pytestmark = pytest.mark.guest

OPTIONS = ["-vv", "--features", "+ACCESS_PLATFORM"]


@pytest.mark.sends("QEMU", "IOTLB_MSG")
@pytest.mark.proves("VU-IOTLB-1", "VU-IOTLB-3", "VU-IOTLB-7", "VU-IOTLB-10", "VU-IOTLB-14")
def test_checked_traffic_behind_an_iommu(image: GuestImage) -> None:
    """The guest invalidates all translations every ten milliseconds, so rings and buffers are missed all the time."""
    with Netns() as netns, acceptance.serving_back_end(netns, options=OPTIONS) as backend:
        # a large ring, whose pages the guest takes from anywhere, and one in a few
        nic = VhostUserNic(backend.socket, iommu=True, options="rx_queue_size=1024,tx_queue_size=256")
        with Qemu(image, [nic], kernel_words="intel_iommu=on") as guest:
            machine = Machine.of(Bench(netns, backend, Host(netns, image)), guest)
            assert guest.run("cut -c 34 /sys/class/net/eth0/device/features").strip() == "1"
            acceptance.ping(netns)
            assert round_trips(machine.host, guest, acceptance.GUEST_ADDRESS, size=3000, count=10)["received"] == 10
            flows = [
                Flow(source, sink, address, 0.5)
                for source, sink, address in (
                    (guest, machine.host, acceptance.HOST_ADDRESS),
                    (machine.host, guest, acceptance.GUEST_ADDRESS),
                )
            ]
            for flow in flows:
                assert acceptance.judged("tcp", flow.finish()).received

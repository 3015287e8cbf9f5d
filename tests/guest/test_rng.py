"""The other device: a Linux guest draws random numbers from it."""

from __future__ import annotations

import pytest

from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.qemu import Qemu, VhostUserRng

pytestmark = pytest.mark.guest


def test_guest_reads_hwrng(image: GuestImage) -> None:
    with (
        Netns() as netns,
        Backend(netns, device="rng", tap=None) as backend,
        Qemu(image, [VhostUserRng(backend.socket)]) as guest,
    ):
        assert guest.run("cat /sys/class/misc/hw_random/rng_current").strip() == "virtio_rng.0"
        read = "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | od -An -v -tx1 -w64"
        blocks = guest.run(read).split("\n") + guest.run(read).split("\n")
        drawn = [block for block in blocks if block]
        assert len(drawn) == len(set(drawn)) == 8
        assert all(len(set(block.split())) > 16 for block in drawn)

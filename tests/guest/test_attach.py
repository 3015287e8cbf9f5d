"""The ways in which a front-end and the back-end meet, and the guests that meet it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.rig import acceptance
from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX
from tests.rig.backend import Backend
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.traffic import Host

pytestmark = pytest.mark.guest

RING_PACKED = 34  # the feature's bit


def serve(netns: Netns, backend: Backend, guest: Qemu) -> None:
    """Give both ends an address and see that the guest is there."""
    assert backend.tap is not None
    netns.add_address(backend.tap, f"{HOST_ADDRESS}/{PREFIX}")
    guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
    acceptance.ping(netns)


def test_legacy_guest(image: GuestImage) -> None:
    """A device of virtio 0.9: no VERSION_1, a header of 10 bytes."""
    with (
        Netns() as netns,
        Backend(netns) as backend,
        Qemu(image, [VhostUserNic(backend.socket, options="disable-modern=on,mrg_rxbuf=off")]) as guest,
    ):
        version_1 = guest.run("cut -c 33 /sys/class/net/eth0/device/features").strip()
        assert version_1 == "0"
        serve(netns, backend, guest)
        assert len(acceptance.checked_traffic(guest, Host(netns, image), 1)) == 4


def test_packed_rings(image: GuestImage) -> None:
    """They carry every byte, and go on where they were after a stop, and again from the beginning after a reset."""
    with (
        Netns() as netns,
        Backend(netns) as backend,
        Qemu(image, [VhostUserNic(backend.socket, options="packed=on")]) as guest,
    ):
        assert guest.run(f"cut -c {RING_PACKED + 1} /sys/class/net/eth0/device/features").strip() == "1"
        serve(netns, backend, guest)
        for _ in range(3):
            assert len(acceptance.checked_traffic(guest, Host(netns, image), 1)) == 4
            guest.qmp("stop")
            guest.qmp("cont")
        guest.reset()
        guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
        acceptance.ping(netns)


def test_back_end_connects_to_a_listening_front_end(image: GuestImage) -> None:
    with (
        Netns() as netns,
        Backend(netns, client=True) as backend,
        Qemu(image, [VhostUserNic(backend.socket, server=True)]) as guest,
    ):
        serve(netns, backend, guest)


@pytest.mark.sends("QEMU", "NET_SET_MTU")
def test_the_mtu_that_the_front_end_chose_reaches_the_tap_and_the_guest(image: GuestImage) -> None:
    with (
        Netns() as netns,
        Backend(netns, options=["-vv", "--mtu=1500"]) as backend,
        Qemu(image, [VhostUserNic(backend.socket, options="host_mtu=1300")]) as guest,
    ):
        serve(netns, backend, guest)
        assert "mtu 1300 " in netns.run("ip", "link", "show", "dev", "tap0")
        assert guest.run("cat /sys/class/net/eth0/mtu").strip() == "1300"


def test_inherited_listening_socket(image: GuestImage, tmp_path: Path) -> None:
    path = tmp_path / "listening.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Netns() as netns, Backend(netns, fd=listener) as backend, Qemu(image, [VhostUserNic(path)]) as guest:
            serve(netns, backend, guest)
    assert path.exists(), "who made the socket removes it"


def test_inherited_connection(image: GuestImage, tmp_path: Path) -> None:
    path = tmp_path / "front-end.sock"
    with (
        Netns() as netns,
        Qemu(image, [VhostUserNic(path, server=True)], wait=False) as guest,
        connection_to(guest, path) as connection,
        Backend(netns, fd=connection) as backend,
    ):
        connection.close()
        guest.attach()
        serve(netns, backend, guest)
        guest.close()
        assert backend.program.wait() == 0, "there is nobody else to serve"


def connection_to(guest: Qemu, path: Path) -> socket.socket:
    """A connection to a socket where QEMU is about to listen."""

    def attempt() -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            return None
        return connection

    connection = guest.program.wait_for(attempt, 20, f"QEMU to listen at {path}")
    assert connection is not None
    return connection

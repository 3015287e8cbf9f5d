"""Fixtures for tests with real peers. A missing peer is a failure, never a skip."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.rig import debian
from tests.rig.acceptance import GUEST_ADDRESS, PREFIX, serving_back_end
from tests.rig.backend import Backend
from tests.rig.image import GuestImage, guest_image
from tests.rig.netns import Netns
from tests.rig.qemu import Qemu
from tests.rig.traffic import Host
from tests.rig.uml import Uml


@dataclass(frozen=True)
class Bench:
    """A back-end on a tap with an address, before any front-end."""

    netns: Netns
    backend: Backend
    host: Host

    @property
    def tap(self) -> str:
        """The name of the tap."""
        assert self.backend.tap is not None
        return self.backend.tap


@dataclass(frozen=True)
class Machine(Bench):
    """A back-end with a guest behind it that has an address."""

    guest: Qemu | Uml

    @classmethod
    def of(cls, bench: Bench, guest: Qemu | Uml) -> Machine:
        """The guest behind a bench, configured."""
        guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
        return cls(bench.netns, bench.backend, bench.host, guest)


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The guest image; building it checks for root and for every program."""
    assert os.geteuid() == 0, "the tests with real peers need root"
    absent = debian.missing(debian.PEERS)
    assert not absent, f"not installed: {' '.join(absent)}"
    return guest_image()


@pytest.fixture(scope="module")
def quiet_netns(image: GuestImage) -> Iterator[Netns]:
    """A namespace whose stack sends no packets of its own, so that every packet can be counted."""
    with Netns(quiet=True) as netns:
        yield netns


@pytest.fixture(scope="module")
def bench(image: GuestImage) -> Iterator[Bench]:
    """A back-end for all tests of a module. It logs every message."""
    with Netns() as netns, serving_back_end(netns, options=["-vv"]) as backend:
        yield Bench(netns, backend, Host(netns, image))


@pytest.fixture(autouse=True)
def requests_are_served(request: pytest.FixtureRequest) -> Iterator[None]:
    """See that the back-end got the requests of the test's mark `sends`, now or before, and refused none of them."""
    yield
    if (mark := request.node.get_closest_marker("sends")) is None:
        return
    found = [request.getfixturevalue(name) for name in ("machine", "bench", "backend") if name in request.fixturenames]
    backend = found[0] if isinstance(found[0], Backend) else found[0].backend
    log = backend.program.log.read_text(errors="replace")
    came, not_served = (set(re.findall(rf"{sign} (\w+)", log)) for sign in ("(?m)^[^<>]*>", "refused:"))
    _, *requests = mark.args
    assert not set(requests) - came, f"not sent: {set(requests) - came}"
    assert not set(requests) & not_served

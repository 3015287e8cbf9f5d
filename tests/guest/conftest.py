"""Fixtures for tests with real peers. A missing peer is a failure, never a skip."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
def requests_are_served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See that a back-end got what the test's mark `sends` names, now or before, and refused none of it.

    That is the back-end of a fixture, or else any that the test itself had; it has to log every message.
    """
    if (mark := request.node.get_closest_marker("sends")) is None:
        yield
        return
    logs: list[str] = []
    close = Backend.close

    def close_and_remember(backend: Backend) -> dict[str, Any]:
        logs.append(backend.program.output)
        return close(backend)

    monkeypatch.setattr(Backend, "close", close_and_remember)
    yield
    found = [request.getfixturevalue(name) for name in ("machine", "bench", "backend") if name in request.fixturenames]
    if found:
        logs.append((found[0] if isinstance(found[0], Backend) else found[0].backend).program.output)
    log = "\n".join(logs)
    came, not_served = (set(re.findall(rf"{sign} (\w+)", log)) for sign in ("(?m)^[^<>]*>", "refused:"))
    if re.search("(?m)^[^<>]*> .* need_reply", log):
        came.add("REPLY_ACK")
    _, *names = mark.args
    assert not set(names) - came, f"not there: {set(names) - came}"
    assert not set(names) & not_served

"""Guest memory for every test, and no descriptor left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.devices.bench import Net
from tests.transport.conftest import no_leaked_fds
from tests.virtio.conftest import ram
from vhostuser.devices.net.batch import Batching
from vhostuser.virtio.features import VirtioFeature

__all__ = ["no_leaked_fds", "ram"]

SPLIT, PACKED = 0, VirtioFeature.RING_PACKED | VirtioFeature.IN_ORDER


@contextmanager
def making(ram: object) -> Iterator[Callable[..., Net]]:
    with ExitStack() as stack:

        def make(*args: object, **options: object) -> Net:
            net = Net(ram, *args, **options)  # type: ignore[arg-type]
            stack.callback(net.close)
            return net

        yield make


@pytest.fixture(params=[Batching.NONE, Batching.URING], ids=["calls", "batches"])
def make_split_net(
    ram: object, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Net]]:
    """Makes net pumps between rings and sockets, which are closed at the end; the arguments are :class:`Net`'s.

    Once with a system call a packet, once with batches; for tests that write a split ring's fields.
    """
    monkeypatch.setattr(Net, "batching", request.param)
    with making(ram) as make:
        yield make


@pytest.fixture(params=[SPLIT, PACKED], ids=["split", "packed"])
def every_layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net pumps have rings of this layout."""
    monkeypatch.setattr(Net, "layout", request.param)


@pytest.fixture
def make_net(every_layout: None, make_split_net: Callable[..., Net]) -> Callable[..., Net]:
    """The same for every layout."""
    return make_split_net


@pytest.fixture(params=[Batching.NONE, Batching.DATAGRAMS], ids=["calls", "datagrams"])
def make_limited(
    every_layout: None, ram: object, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Net]]:
    """The same, for ports that can be full: those are never written through io_uring."""
    monkeypatch.setattr(Net, "batching", request.param)
    with making(ram) as make:
        yield make

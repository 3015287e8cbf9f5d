"""Guest memory for every test, and no descriptor left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.devices.bench import Net
from tests.transport.conftest import no_leaked_fds
from tests.virtio.conftest import ram

__all__ = ["no_leaked_fds", "ram"]


@contextmanager
def making(ram: object) -> Iterator[Callable[..., Net]]:
    with ExitStack() as stack:

        def make(*args: object, **options: object) -> Net:
            net = Net(ram, *args, **options)  # type: ignore[arg-type]
            stack.callback(net.close)
            return net

        yield make


@pytest.fixture(params=[False, True], ids=["calls", "batches"])
def make_net(
    ram: object, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Net]]:
    """Makes net pumps between rings and sockets, which are closed at the end; the arguments are :class:`Net`'s.

    Once with a system call a packet, once with batches.
    """
    monkeypatch.setattr(Net, "batching", request.param)
    with making(ram) as make:
        yield make


@pytest.fixture
def make_unbatched(ram: object) -> Iterator[Callable[..., Net]]:
    """The same, for ports that can be full: those are never written in batches."""
    with making(ram) as make:
        yield make

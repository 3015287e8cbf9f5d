"""Guest memory for every test, and no descriptor left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.devices.bench import Net
from tests.transport.conftest import no_leaked_fds
from tests.virtio.conftest import ram

__all__ = ["no_leaked_fds", "ram"]


@pytest.fixture
def make_net(ram: object) -> Iterator[Callable[..., Net]]:
    """Makes net pumps between rings and sockets, which are closed at the end; the arguments are :class:`Net`'s."""
    with ExitStack() as stack:

        def make(*args: object, **options: object) -> Net:
            net = Net(ram, *args, **options)  # type: ignore[arg-type]
            stack.callback(net.close)
            return net

        yield make

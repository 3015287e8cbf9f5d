"""A guest's memory for every test, and the same bookkeeping of descriptors as for the transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transport.conftest import no_leaked_fds
from vhostuser.frontend.memory import GuestRam

__all__ = ["no_leaked_fds"]


@pytest.fixture
def memory() -> Iterator[GuestRam]:
    with GuestRam() as ram:
        yield ram

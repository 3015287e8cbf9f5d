"""Guest memory for every test, huge pages for those that ask, and no descriptor or mapping left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.conftest import hugepages
from tests.transport.conftest import no_leaked_fds
from vhostuser.frontend.memory import GuestRam

__all__ = ["hugepages", "no_leaked_fds"]


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam() as guest_ram:
        yield guest_ram

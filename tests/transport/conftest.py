"""Every test here leaves as many open descriptors as it found."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_fds() -> dict[str, str]:
    """Number and target of every open descriptor of this process, but for the one that lists them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
def no_leaked_fds() -> Iterator[None]:
    before = open_fds()
    yield
    after = open_fds()
    if len(after) != len(before):  # rare, and a collection takes longer than most tests
        gc.collect()
        after = open_fds()
    assert len(after) == len(before), {fd: after[fd] for fd in after.keys() - before.keys()}

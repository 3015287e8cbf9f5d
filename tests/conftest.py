"""What has to be there before any test module."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests import examples

examples.load_profile()


@pytest.fixture(autouse=True)
def no_mistakes(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A mistake of ours, which a server survives, fails the test in which it came."""
    yield
    told = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.CRITICAL]
    assert not told

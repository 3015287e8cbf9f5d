"""Every playbook has to be finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.session.playbook import Playbook, offer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def every_question_has_an_answer() -> Iterator[None]:
    Playbook.written.clear()
    yield
    for book in Playbook.written:
        book.finish()


@pytest.fixture
def book() -> Playbook:
    """A conversation that has just begun."""
    return Playbook(offer())

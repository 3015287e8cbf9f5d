"""How a check says that the back-end is wrong, or that there is nothing to check.

Must not know: how a check is run, or what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vhostuser.errors import VhostUserError


class Violation(VhostUserError):  # noqa: N818 - of the back-end's, not an error of ours
    """The back-end does not do what a check proves; the text says what was expected, what was sent and what came."""


class NotApplicable(VhostUserError):  # noqa: N818 - likewise
    """The check cannot be made, because the back-end does not offer what it is about; the text says what."""


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say in a violation's text what it is about."""
    try:
        yield
    except Violation as violation:
        raise Violation(f"{what}: {violation}") from None

"""A server on a socketpair port, and the same bookkeeping of what the process holds as for hostile front-ends."""

from __future__ import annotations

from tests.hostile.conftest import attacker, interrupts, running, victim
from vhostuser import edition

__all__ = ["attacker", "interrupts", "running", "victim"]

# A thread that waits for a page would keep the interpreter, and with it the front-end that has the page.
collect_ignore = [] if edition.compiled() else ["test_postcopy_pages.py"]

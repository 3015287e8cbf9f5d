"""A server on a socketpair port, and the same bookkeeping of what the process holds as for hostile front-ends."""

from __future__ import annotations

from tests.hostile.conftest import attacker, interrupts, running, victim

__all__ = ["attacker", "interrupts", "running", "victim"]

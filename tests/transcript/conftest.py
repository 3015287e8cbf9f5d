"""A server of ours at the other end, and the proof that nothing harmed it."""

from __future__ import annotations

from tests.hostile.conftest import interrupts, victim

__all__ = ["interrupts", "victim"]

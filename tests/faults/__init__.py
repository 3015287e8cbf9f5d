"""Naming is not proof: tests that name a statement fail when the rule is broken."""

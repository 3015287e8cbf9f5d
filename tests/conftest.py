"""What has to be there before any test module."""

from __future__ import annotations

from tests import examples

examples.load_profile()

"""Where Hypothesis keeps the examples that failed: in a folder that processes and machines may share.

``VHOSTUSER_EXAMPLES=FOLDER`` names it. Whoever runs the tests then begins each property with what any other has found
there, and goes on with examples of its own, so that many processes see more than one does. Without it the properties
that the rest of the suite builds on take the same examples each time.
"""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

FOLDER = os.environ.get("VHOSTUSER_EXAMPLES")
"""The folder, or None."""

REPEATABLE = FOLDER is None
"""Whether properties that can take the same examples each time do so. Such ones keep none, and look for none."""


def load_profile() -> None:
    """Keep examples in the folder if there is one. To be called before a test module makes settings of its own."""
    if FOLDER is not None:
        settings.register_profile("shared", database=DirectoryBasedExampleDatabase(FOLDER))
        settings.load_profile("shared")

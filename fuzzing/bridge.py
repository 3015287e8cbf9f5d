"""A property test of the suite under Atheris, by the hook that Hypothesis has for that.

    python -m fuzzing.bridge tests.wire.test_codec::test_NAME [OPTION OF LIBFUZZER...]

The test must take all its arguments from Hypothesis, none from fixtures or parameters. An example that fails is kept
where ``tests/examples.py`` keeps them: the next run of the test, by whatever process, begins with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import cast

from fuzzing.engine import fuzz
from tests import examples


def one_input_of(test: str) -> Callable[[bytes], object]:
    """The test as a harness."""
    module, _, name = test.partition("::")
    return cast("Callable[[bytes], object]", getattr(import_module(module), name).hypothesis.fuzz_one_input)


if __name__ == "__main__":
    examples.load_profile()
    fuzz(one_input_of(sys.argv.pop(1)))

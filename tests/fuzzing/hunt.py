"""A property that does not hold, and a process that looks for it; run as a program, it prints what it tried, as JSON.

    VHOSTUSER_EXAMPLES=FOLDER python -m tests.fuzzing.hunt [fuzz]

With ``fuzz`` it is handed bytes, as by a fuzzer on another machine.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from hashlib import sha512

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests import examples

examples.load_profile()
tried: list[int] = []


@settings(phases=(Phase.reuse, Phase.generate), max_examples=200)
@given(st.integers(0, 1 << 64))
def no_number_is_large(number: int) -> None:
    tried.append(number)
    assert number < 1 << 32


def fuzz() -> None:
    """Bytes until some fail."""
    for number in range(1000):
        no_number_is_large.hypothesis.fuzz_one_input(sha512(number.to_bytes(2)).digest())  # type: ignore[attr-defined]


def main() -> None:
    """Hunt."""
    with suppress(AssertionError):
        fuzz() if sys.argv[1:] else no_number_is_large()
    print(json.dumps(tried))


if __name__ == "__main__":
    main()

"""A property test as a harness."""

from __future__ import annotations

import pytest

from fuzzing.bridge import one_input_of


def test_a_property_of_the_suite_takes_any_bytes() -> None:
    one_input = one_input_of("tests.wire.test_codec::test_any_frame_decodes_or_raises_what_is_documented")
    taken = [one_input(bytes((number,)) * 100) for number in range(20)]
    assert any(taken), "no bytes were enough for an example"


def test_a_property_that_fails_is_a_finding() -> None:
    one_input = one_input_of("tests.fuzzing.hunt::no_number_is_large")
    inputs = (bytes((number,)) * 64 for number in range(256))
    with pytest.raises(AssertionError):
        list(map(one_input, inputs))

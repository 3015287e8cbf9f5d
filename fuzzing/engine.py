"""Handing a harness to Atheris, the only place that knows it: tests call the harnesses themselves, and do without."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FunctionType
from typing import NoReturn

LEFT_ALONE = ("vhostuser.frontend", "vhostuser.transcript")
"""What only lays out seeds and memory; its branches are of no interest."""


def fuzz(one_input: Callable[[bytes], object]) -> NoReturn:
    """Run a harness with the options of libFuzzer that stand on the command line. It ends the process."""
    import atheris

    for function in gc.get_objects():
        if isinstance(function, FunctionType) and _is_fuzzed(function.__module__):
            atheris.instrument_func(function)
    atheris.instrument_func(one_input)  # whose branches say how far an input came
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
    raise AssertionError("atheris.Fuzz does not return")


def _is_fuzzed(module: str | None) -> bool:
    return module is not None and module.startswith("vhostuser.") and not module.startswith(LEFT_ALONE)

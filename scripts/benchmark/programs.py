"""The benchmark's C programs, compiled once a version."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from tests.rig.image import cache_folder
from tests.rig.process import run

SOURCES = Path(__file__).parent


@functools.cache
def program(name: str) -> Path:
    """The program of ``NAME.c``. Raises RigError when there is no working compiler."""
    source = SOURCES / f"{name}.c"
    headers = sorted(SOURCES.glob("*.h"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (source, *headers))).hexdigest()[:16]
    built = cache_folder().parent / "benchmark" / f"{name}-{digest}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        scratch = built.with_name(f"{built.name}.new")
        run(["gcc", "-O2", "-Wall", "-o", scratch, source])
        scratch.rename(built)
    return built

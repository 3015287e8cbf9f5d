"""The conversations of ``protocol-spec/transcripts``: what real front-ends were recorded to say.

Must not know: the format (``transcript.file``). An installed package has its own copies of the files.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def transcripts() -> dict[str, str]:
    """The text of each transcript by its name, without the ending of a file."""
    found = (path for path in (files("vhostuser.spec") / "recorded").iterdir() if path.name.endswith(".jsonl"))
    return {path.name.removesuffix(".jsonl"): path.read_text(encoding="utf-8") for path in sorted(found, key=str)}

"""Writes what goes with each harness: seed corpus, dictionary and options, named as OSS-Fuzz expects them.

    python -m fuzzing.corpus FOLDER

The same files come out each time, to the byte.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

OPTIONS = "[libfuzzer]\ntimeout = 10\n"
"""An input that takes longer than ten seconds is a finding; most take a millisecond."""


class Harness(Protocol):
    """A module as the package's docstring describes it."""

    def one_input(self, data: bytes) -> None:
        """One run."""

    def seeds(self) -> Iterator[bytes]:
        """What to begin with."""

    def words(self) -> Mapping[str, bytes]:
        """What means something, by name."""


def names() -> list[str]:
    """The harnesses."""
    return sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))


def harness(name: str) -> Harness:
    """A harness by its name."""
    return cast("Harness", import_module(f"fuzzing.{name}"))


def pack(path: Path, inputs: Iterable[bytes]) -> None:
    """Write a corpus: each input once, named by its hash."""
    with ZipFile(path, "w", ZIP_DEFLATED) as corpus:
        for data in sorted(set(inputs)):
            corpus.writestr(ZipInfo(hashlib.sha1(data).hexdigest()), data)


def dictionary(words: Mapping[str, bytes]) -> str:
    """Words in the format of libFuzzer."""
    return "".join(f'{name}="{escaped(word)}"\n' for name, word in words.items())


def escaped(word: bytes) -> str:
    """A word's bytes in hexadecimal."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> None:
    """Write everything into the folder that the command line names."""
    folder = Path(sys.argv[1])
    for name in names():
        pack(folder / f"{name}_seed_corpus.zip", harness(name).seeds())
        (folder / f"{name}.dict").write_text(dictionary(harness(name).words()))
        (folder / f"{name}.options").write_text(OPTIONS)


if __name__ == "__main__":
    main()

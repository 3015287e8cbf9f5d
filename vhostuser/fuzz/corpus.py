"""Conversations that are worth another try, in memory and in a folder.

Must not know: why they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from vhostuser.transcript.entries import Entry, Transcript
from vhostuser.transcript.file import lines_of, load, save


class Corpus:
    """A collection of conversations.

    Args:
        folder: Where they are kept between campaigns; made if it is not there. None: nowhere.
        transcript: Makes a transcript of one.
    """

    def __init__(self, folder: Path | None, transcript: Callable[[tuple[Entry, ...]], Transcript]) -> None:
        self._folder = folder
        self._transcript = transcript
        self.conversations: list[tuple[Entry, ...]] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.conversations += self._kept()

    def _kept(self) -> Iterator[tuple[Entry, ...]]:
        """Those that are in the folder already, in an order that is the same each time.

        Raises:
            TranscriptError: one of the files is none.
        """
        assert self._folder is not None
        for path in sorted(self._folder.glob("*.jsonl")):
            yield load(path).entries

    def add(self, entries: tuple[Entry, ...]) -> None:
        """Keep one more."""
        self.conversations.append(entries)
        if self._folder is not None:
            transcript = self._transcript(entries)
            name = hashlib.sha256("\n".join(lines_of(transcript)).encode()).hexdigest()[:16]
            save(transcript, self._folder / f"{name}.jsonl")

"""The bytes of one input, read from front to back.

Atheris has a reader of its own, which takes numbers from an input's end. Recorded messages would then be no inputs, and
tests could not run without it.
"""

from __future__ import annotations

from vhostuser.wire.frames import HEADER_SIZE, Frame, Header, LentFds

FIRST_FD = 100
"""The number of a frame's first descriptor. Nobody opens or closes any: only how many there are is looked at."""


class Feed:
    """Reads an input; behind its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        """An unsigned little-endian number of so many bytes."""
        return int.from_bytes(self.some(size), "little")

    def some(self, size: int) -> bytes:
        """The next bytes, as many as there are up to `size`."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.some(len(self._data))

    def frame(self, fds: int) -> Frame:
        """A frame as it stands on the socket, with so many descriptors.

        At the end of the input its payload may be shorter than its header says.
        """
        header = Header.parse(self.some(HEADER_SIZE).ljust(HEADER_SIZE, b"\0"))
        payload = self.some(header.size)
        lent = LentFds(range(FIRST_FD, FIRST_FD + fds))
        return Frame(header.request, header.flags, payload, lent, header.size)

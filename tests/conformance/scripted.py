"""A back-end that answers GET_FEATURES and acknowledges nothing, and does one wrong thing at SET_OWNER.

``scripted.py WRONG SOCKET``: ``dies``, ``hangs``, ``keeps`` a descriptor, ``once=PATH`` dies if the file is not there
yet; ``cuts`` answers GET_FEATURES with half a word; anything else does nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

HEADER = struct.Struct("=III")
GET_FEATURES, SET_OWNER = 1, 3
VERSION_1 = 1 << 32


def converse(connection: socket.socket, wrong: str) -> None:
    """Serve one front-end until it leaves."""
    while header := connection.recv(HEADER.size):
        request, _, size = HEADER.unpack(header)
        connection.recv(size)
        if request == GET_FEATURES:
            word = VERSION_1.to_bytes(8, "little")[: 4 if wrong == "cuts" else 8]
            connection.sendall(HEADER.pack(request, 5, len(word)) + word)
        if request == SET_OWNER:
            match wrong:
                case "dies":
                    os.abort()
                case "hangs":
                    time.sleep(1000)
                case "keeps":
                    os.open("/dev/null", os.O_RDONLY)
                case str() if wrong.startswith("once=") and not (done := Path(wrong.removeprefix("once="))).exists():
                    done.touch()
                    os.abort()


def main(wrong: str, path: str) -> None:
    """Serve one front-end after the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                converse(connection, wrong)


if __name__ == "__main__":
    main(*sys.argv[1:])

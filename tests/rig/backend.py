"""The program under test: our back-end, seen from outside.

What it promises to a rig is its command line, a socket (or a descriptor, or a socket to connect to), a tap, SIGTERM to
end with status 0, and counters as JSON in a file after SIGUSR1 and at the end.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rig.netns import Netns
from tests.rig.process import Program, RigError, wait_until
from vhostuser.peer.footprint import Footprint


class Backend:
    """A running back-end.

    Attributes:
        program: its process.
        socket: where it listens or connects to; does not exist when it was given a descriptor.
        tap: the name of its tap.
    """

    def __init__(
        self,
        netns: Netns,
        *,
        tap: str | None = "tap0",
        device: str = "net",
        client: bool = False,
        fd: socket.socket | None = None,
        socket_path: Path | None = None,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        wait: bool = True,
    ) -> None:
        """Start it and, when it is to listen, wait until it does.

        Args:
            netns: where it makes its tap.
            tap: the tap's name; None for a device without one.
            device: the subcommand, ``net`` or ``rng``.
            client: it connects to the socket, where a front-end listens.
            fd: a listening or connected socket for it to inherit, in place of a path.
            socket_path: where its socket is to be, in place of a folder of its own.
            options: more words for its command line.
            prefix: words before its command line: a program that becomes it, for example ``taskset -c 0``.
            wait: False to return at once.

        Raises:
            RigError: it ended, or does not listen.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-backend-")
        self.folder = Path(self._folder.name)
        self.socket = socket_path or self.folder / "vhost-user.sock"
        self.tap = tap
        self._counters = self.folder / "counters.json"
        argv: list[str | Path] = [*prefix, sys.executable, "-m", "vhostuser", device]
        argv += [f"--fd={fd.fileno()}"] if fd else [f"--socket-path={self.socket}"]
        argv += ["--client"] if client else []
        argv += ["--tap", tap] if tap else []
        argv += ["--counters", str(self._counters), *options]
        self.program = Program(netns.argv(argv), self.folder / "backend.log", pass_fds=[fd.fileno()] if fd else [])
        try:
            if wait and not client and fd is None:
                self.program.wait_for(self._listens, 20, f"the back-end to listen on {self.socket}")
            if wait and tap:
                self.program.wait_for(lambda: netns.has_link(tap), 20, f"the back-end's tap {tap}")
        except BaseException:
            self.kill()
            raise

    def _listens(self) -> bool:
        """Whether its socket is bound and listening, without connecting: it would take us for a front-end."""
        listening = 0x10000  # __SO_ACCEPTCON of the kernel
        for line in Path(f"/proc/{self.program.pid}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) == 8 and fields[7] == str(self.socket) and int(fields[3], 16) & listening:
                return True
        return False

    def counters(self) -> dict[str, Any]:
        """Its counters, fresh. Raises RigError when it does not write them."""
        self._counters.unlink(missing_ok=True)
        self.program.send_signal(signal.SIGUSR1)
        self.program.wait_for(self._read_counters, 10, f"counters in {self._counters}")
        return self._read_counters()

    def _read_counters(self) -> dict[str, Any]:
        try:
            counters = json.loads(self._counters.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        assert isinstance(counters, dict)
        return counters

    def footprint(self) -> Footprint:
        """What it holds right now."""
        return Footprint.of(self.program.pid)

    def wait_for_footprint(self, expected: Footprint, timeout: float = 10.0) -> None:
        """Wait until it holds just that again. Raises RigError that tells the difference."""
        try:
            wait_until(lambda: self.footprint() == expected, timeout, "the back-end to let go")
        except RigError as error:
            raise RigError(f"{error}: {expected.difference(self.footprint())}") from None

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.program.kill()
        self._folder.cleanup()

    def close(self) -> dict[str, Any]:
        """End it in order and return its last counters. Raises RigError when its status is not 0."""
        status = self.program.stop()
        counters = self._read_counters()
        if status:
            raise self.program.failure("SIGTERM did not end the back-end in order")
        self._folder.cleanup()
        return counters

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            if self.program.log.exists():
                error.add_note(f"the back-end's log ends with\n{self.program.output[-2000:]}")
            self.program.stop()
            self._folder.cleanup()

"""``vhostuser trace`` between a front-end and a back-end, and ``vhostuser replay`` of what it recorded."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rig.process import Program, RigError
from vhostuser.fds import Closing

_VHOSTUSER = (sys.executable, "-m", "vhostuser")


class Trace(Closing):
    """A running trace.

    Attributes:
        program: its process.
        socket: where front-ends connect to it.
        record: the transcript that it writes.
    """

    def __init__(self, back_end: Path, *options: str) -> None:
        """Start it in front of a back-end and wait until it listens. Raises RigError."""
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-trace-")
        folder = Path(self._folder.name)
        self.socket, self.record = folder / "trace.sock", folder / "record.jsonl"
        argv = [*_VHOSTUSER, "trace", str(self.socket), str(back_end), "--record", str(self.record), *options]
        self.program = Program(argv, folder / "trace.log")
        try:
            self.program.wait_for_output("listening at", 20)
        except BaseException:
            self.close()
            raise

    def finish(self) -> str:
        """End it in order; what it printed. Raises RigError when its status is not 0."""
        self.program.send_signal(signal.SIGINT)
        if self.program.wait():
            raise self.program.failure("SIGINT did not end it in order")
        return self.program.output

    def close(self) -> None:
        """End it, and remove the transcript."""
        self.program.stop()
        self._folder.cleanup()


class StandIn(Closing):
    """A replay that stands in for a recorded back-end.

    Attributes:
        program: its process.
        socket: where it waits for front-ends.
    """

    def __init__(self, record: Path) -> None:
        """Start it and wait until it listens. Raises RigError."""
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-stand-in-")
        folder = Path(self._folder.name)
        self.socket = folder / "vhost.sock"
        argv = [*_VHOSTUSER, "replay", str(record), str(self.socket), "--as", "back-end", "--patience", "60"]
        self.program = Program(argv, folder / "replay.log")
        try:
            self.program.wait_for_output("listening at", 20)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self.program.stop()
        self._folder.cleanup()


def replay(record: Path, socket: Path, *options: str) -> str:
    """What ``vhostuser replay`` reports; it may find differences. Raises RigError when it cannot be played."""
    argv = [*_VHOSTUSER, "replay", str(record), str(socket), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode not in (0, 1):
        raise RigError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr}")
    return done.stdout

"""Started programs, each with one owner, and waiting with a limit.

A program's standard output and standard error go to a log file, so that nothing blocks on a full pipe and a failure
can be explained. A program dies with its owner: by :meth:`Program.stop`, at the latest when the thread that started it
ends (the kernel then kills it), so that an interrupted test run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

#: The kernel kills what runs behind this prefix when its parent dies.
_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

#: Behind this prefix and a folder a program is in there, and may leave a core: private anonymous memory and the headers
#: of ELF files, nothing that it shares.
_LEAVES_CORE = (
    *("sh", "-c"),
    'cd "$0" && { ulimit -S -c "$(ulimit -H -c)"; echo 0x11 >/proc/self/coredump_filter; exec "$@"; }',
)


class RigError(AssertionError):
    """A peer did not do what the rig asked of it; the text holds the end of its log."""


def wait_until(condition: Callable[[], T], timeout: float, what: str) -> T:
    """The first true value of ``condition``.

    Args:
        condition: called until what it returns is true.
        timeout: seconds.
        what: ends the sentence "waited N s for ...".

    Raises:
        RigError: the time is over.
    """
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise RigError(f"waited {timeout:g} s for {what}")
        time.sleep(0.01)
    return value


class Program:
    """A running program and its log."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        keep_stdin: bool = False,
        core_folder: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            argv: the command line.
            log: file for standard output and standard error.
            pass_fds: descriptors that it inherits under their own numbers.
            env: added to our environment.
            keep_stdin: give it a pipe as standard input that stays open; else it reads /dev/null.
            core_folder: where it runs and may leave a core (:mod:`tests.rig.crash`); else it runs where we do.
        """
        self.argv = [str(word) for word in argv]
        self.log = log
        prefix = [*_DIES_WITH_PARENT, *([*_LEAVES_CORE, str(core_folder)] if core_folder else [])]
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [*prefix, *self.argv],
                stdin=subprocess.PIPE if keep_stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                env={**os.environ, **env} if env else None,
                start_new_session=True,  # an interrupt from the keyboard is ours; we end them in order
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def ended_by(self) -> signal.Signals | None:
        """The signal that ended it, if it has ended and one did."""
        status = self._popen.poll()
        return signal.Signals(-status) if status is not None and status < 0 else None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def type_line(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self._popen.stdin is not None, "started without keep_stdin"
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()

    def failure(self, what: str) -> RigError:
        """An error that says what went wrong and shows the end of the log."""
        status = self._popen.poll()
        state = "is running" if status is None else f"ended with status {status}"
        if number := self.ended_by:
            state = f"was ended by {number.name}"
        tail = "\n".join(self.output.splitlines()[-25:])
        return RigError(f"{what}; {Path(self.argv[0]).name} {state}, its log {self.log} ends with\n{tail}")

    def wait_for(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """As :func:`wait_until`, but gives up at once when the program ends.

        Raises:
            RigError: the program ended first, or the time is over.
        """

        values: list[T] = []

        def over() -> bool:
            if value := condition():
                values.append(value)
            return bool(values) or not self.alive

        try:
            wait_until(over, timeout, what)
        except RigError as error:
            raise self.failure(str(error)) from None
        if not values:
            raise self.failure(f"waited for {what}")
        return values[0]

    def wait_for_output(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """The first match of a regular expression in the log. Raises RigError."""
        found = self.wait_for(lambda: re.search(pattern, self.output), timeout, f"/{pattern}/ in the log")
        assert found is not None
        return found

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for its end and return its status. Raises RigError after ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.failure(f"still runs after {timeout:g} s") from None

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self._popen.kill()
        self._popen.wait()
        self._close_stdin()

    def stop(self, timeout: float = 10.0) -> int:
        """End it with SIGTERM and return its status; with SIGKILL when it does not listen."""
        if self.alive:
            self._popen.terminate()
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._close_stdin()
        return self._popen.returncode

    def _close_stdin(self) -> None:
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def run(argv: Sequence[str | Path], timeout: float = 30.0) -> str:
    """Run a command to its end and return what it printed. Raises RigError when it fails."""
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{' '.join(map(str, argv))}: no end after {timeout:g} s: {error.output}") from None
    if done.returncode:
        raise RigError(f"{' '.join(map(str, argv))}: status {done.returncode}: {done.stdout.strip()}")
    return done.stdout

"""Runs commands inside a guest through the agent on its second serial port.

One request a line, one framed answer, one command at a time; what has to run beside other commands is started as a
:class:`GuestJob`, in the background of the guest.
"""

from __future__ import annotations

import base64
import itertools
import os
import select
import signal
import time

from tests.rig.process import RigError

#: The guest's tty takes lines of up to 4096 bytes.
LONGEST_LINE = 4000


class Agent:
    """The host's end of the serial port.

    Attributes:
        fd: a stream to the guest's /dev/ttyS1; owned.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._numbers = itertools.count(1)
        self._received = b""

    def wait_ready(self, timeout: float) -> None:
        """Wait until a guest that (re)boots serves commands. Raises RigError."""
        self._read_to(b"@@ready\n", time.monotonic() + timeout, "the guest's agent")

    def run(self, command: str, timeout: float = 60.0) -> str:
        """Run a shell command in the guest and return what it printed.

        Raises:
            RigError: it failed, or there was no answer in ``timeout`` seconds.
        """
        status, output = self.try_run(command, timeout)
        if status:
            raise RigError(f"in the guest: {command}: status {status}: {output.strip()}")
        return output

    def try_run(self, command: str, timeout: float = 60.0) -> tuple[int, str]:
        """As :meth:`run`, but returns the status and the output of a command that may fail."""
        ident = str(next(self._numbers)).encode()
        line = ident + b" " + base64.b64encode(command.encode()) + b"\n"
        if len(line) > LONGEST_LINE:
            raise ValueError(f"the command is {len(line)} bytes long, the guest's tty takes {LONGEST_LINE}")
        os.write(self.fd, line)
        what = f"the guest's answer to: {command}"
        deadline = time.monotonic() + timeout
        self._read_to(b"@@begin " + ident + b"\n", deadline, what)
        output = self._read_to(b"@@end " + ident + b" ", deadline, what)
        status = self._read_to(b"\n", deadline, what)
        return int(status), output.decode(errors="replace")

    def start(self, command: str) -> GuestJob:
        """Start a program in the background of the guest."""
        return GuestJob(self, command, f"/tmp/job.{next(self._numbers)}")

    def move(self, fd: int) -> None:
        """Go on over another stream: the guest is served by another machine now, and so is all that it runs."""
        os.set_blocking(fd, False)
        os.close(self.fd)
        self.fd = fd
        self._received = b""

    def close(self) -> None:
        """Let go of the serial port."""
        os.close(self.fd)

    def _read_to(self, mark: bytes, deadline: float, what: str) -> bytes:
        """What came before ``mark``; both are consumed."""
        while mark not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise RigError(f"waited in vain for {what}; the serial port gave {self._received[-300:]!r}")
            data = os.read(self.fd, 65536)
            if not data:
                raise RigError(f"the guest went away while we waited for {what}")
            # the guest's tty may still turn newlines into CR LF
            self._received += data.replace(b"\r", b"")
        before, self._received = self._received.split(mark, 1)
        return before


class GuestJob:
    """A simple command, one program, that runs in the background of a guest."""

    def __init__(self, agent: Agent, command: str, name: str) -> None:
        self._agent = agent
        self._command = command
        self._name = name
        agent.run(f"({command} & echo $! >{name}.pid; wait $!; echo $? >{name}.rc) >{name} 2>&1 </dev/null &")

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._agent.run(f"cat {self._name}")

    def wait_for_output(self, text: str, timeout: float = 10.0) -> None:
        """Wait until it has printed ``text``. Raises RigError."""
        tries = int(timeout * 50)
        self._agent.run(
            f"for i in $(seq {tries}); do grep -q '{text}' {self._name} && exit 0; usleep 20000; done; "
            f"cat {self._name}; exit 1",
            timeout + 30,
        )

    def wait(self, timeout: float = 60.0) -> str:
        """Wait for its end and return what it printed. Raises RigError when it failed."""
        tries = int(timeout * 20)
        status = self._agent.run(
            f"for i in $(seq {tries}); do [ -s {self._name}.rc ] && exec cat {self._name}.rc; usleep 50000; done; "
            "exit 1",
            timeout + 30,
        )
        output = self.output
        self._agent.run(f"rm -f {self._name} {self._name}.rc {self._name}.pid")
        if int(status):
            raise RigError(f"in the guest: {self._command}: status {status.strip()}: {output.strip()}")
        return output

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._agent.try_run(f"kill -{number.value} $(cat {self._name}.pid)")

"""Traffic between the guest and the host, with every payload byte checked (``src/traffic.c``) or counted by iperf3."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import Program, RigError

_ports = itertools.count(7001)


class Job(Protocol):
    """A command in the background of an end."""

    def wait_for_output(self, text: str, timeout: float = ...) -> object:
        """Wait until it has printed ``text``."""

    def wait(self, timeout: float = ...) -> str:
        """Wait for its end and return what it printed."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """End it."""


class End(Protocol):
    """One end of the traffic: a guest or the host."""

    def start(self, command: str) -> Job:
        """Start a shell command in the background."""


class Host:
    """The host's end: commands in the network namespace of the tap."""

    def __init__(self, netns: Netns, image: GuestImage) -> None:
        self._netns = netns
        self._path = f"{image.traffic.parent}:{os.environ['PATH']}"

    def start(self, command: str) -> HostJob:
        """Start a shell command in the background."""
        return HostJob(self._netns, self._path, command)


class HostJob:
    """A command that runs in the background of the host."""

    def __init__(self, netns: Netns, path: str, command: str) -> None:
        self._command = command
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-job-")
        log = Path(self._folder.name) / "log"
        self._program = Program(netns.argv(["sh", "-c", f"exec {command}"]), log, env={"PATH": path})

    def wait_for_output(self, text: str, timeout: float = 10.0) -> object:
        """Wait until it has printed ``text``. Raises RigError."""
        return self._program.wait_for_output(text, timeout)

    def wait(self, timeout: float = 60.0) -> str:
        """Wait for its end and return what it printed. Raises RigError when it failed."""
        status, output = self._program.wait(timeout), self._program.output
        self._folder.cleanup()
        if status:
            raise RigError(f"on the host: {self._command}: status {status}: {output.strip()}")
        return output

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._program.send_signal(number)

    def kill(self) -> None:
        """End it."""
        self._program.kill()
        self._folder.cleanup()


@dataclass(frozen=True)
class Tally:
    """What a receiver saw of the records that were sent.

    Attributes:
        sent: records.
        received: whole, undamaged records, each counted once.
        bytes: in them.
        lost: never came.
        damaged: failed their check.
        doubled: came again.
        late: came after a later one.
        seconds: from the first record to the last.
    """

    sent: int
    received: int
    bytes: int
    lost: int
    damaged: int
    doubled: int
    late: int
    seconds: float

    @property
    def intact(self) -> bool:
        """Whether what came was right; loss alone is no fault of a datagram network."""
        return self.received > 0 and not self.damaged and not self.doubled


class Flow:
    """Checked traffic one way that runs in the background until :meth:`finish`."""

    def __init__(
        self,
        source: End,
        sink: End,
        address: str,
        seconds: float,
        *,
        protocol: str = "tcp",
        size: str = "24-1400",
        rate: int = 5000,
    ) -> None:
        """Start it.

        Args:
            source: the end that sends.
            sink: the end that receives.
            address: the sink's address.
            seconds: how long it sends.
            protocol: ``tcp`` or ``udp``.
            size: bytes of a datagram, or a range.
            rate: datagrams a second.
        """
        self._seconds = seconds
        port = next(_ports)
        self._receiver = sink.start(f"traffic {protocol}-recv {port} {seconds + 60:g}")
        self._receiver.wait_for_output("ready")
        shape = f" {size} {seconds:g} {rate}" if protocol == "udp" else f" {seconds:g}"
        self._sender = source.start(f"traffic {protocol}-send {address} {port}{shape}")

    def stop(self) -> Tally:
        """End it before its time. Raises RigError as :meth:`finish` does."""
        self._sender.send_signal(signal.SIGINT)
        return self.finish()

    def hold(self) -> None:
        """Let the receiver stand still; what comes waits in its kernel, as it came, until :meth:`go_on`."""
        self._receiver.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the receiver look at what has come since :meth:`hold`."""
        self._receiver.send_signal(signal.SIGCONT)

    def finish(self) -> Tally:
        """Wait for its end. Raises RigError when the receiver did not learn of the end."""
        self._sender.wait(self._seconds + 60)
        result = last_json(self._receiver.wait(90))
        del result["complete"]  # the receiver fails without
        return Tally(**result)

    def abandon(self) -> None:
        """End the host's part of it: the guest is no more."""
        for job in (self._sender, self._receiver):
            if isinstance(job, HostJob):
                job.kill()


def last_json(output: str) -> dict[str, Any]:
    """The JSON object in the last line of what a program printed."""
    result = json.loads(output.strip().splitlines()[-1])
    assert isinstance(result, dict)
    return result


def round_trips(source: End, sink: End, address: str, *, size: int = 64, count: int = 200) -> dict[str, Any]:
    """Datagrams there and back, one in flight. Raises RigError when one does not come back whole."""
    port = next(_ports)
    echo = sink.start(f"traffic udp-echo {port}")
    try:
        echo.wait_for_output("ready")
        return last_json(source.start(f"traffic udp-ping {address} {port} {size} {count}").wait(count + 30))
    finally:
        echo.kill()


def iperf_mbits(client: End, server: End, address: str, seconds: int, *, reverse: bool = False) -> float:
    """TCP throughput as the receiver saw it.

    Args:
        client: the end that connects.
        server: the end that listens.
        address: the server's address.
        seconds: how long; iperf3 takes whole ones.
        reverse: the server sends; else the client.

    Raises:
        RigError: iperf3 failed.
    """
    port = next(_ports)
    listener = server.start(f"iperf3 --server --one-off --forceflush --port {port}")
    listener.wait_for_output("Server listening")
    words = f"iperf3 --client {address} --port {port} --time {seconds} --json {'--reverse' if reverse else ''}"
    result = json.loads(client.start(words).wait(seconds + 60))
    listener.wait(10)
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e6

"""DPDK's testpmd: a front-end without a machine (virtio-user), and a back-end to compare with (net_vhost).

testpmd polls: each one keeps a whole core busy. Its standard output is set to be written line by line, else the answer
to a command stays in a buffer until the end. It takes commands on a standard input that has to stay open.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.rig.netns import Netns
from tests.rig.process import Program, RigError
from vhostuser.fds import Closing

PROMPT = "testpmd> "
FRONT_END_MAC = "52:54:00:76:68:03"

_numbers = itertools.count()


class PortStats(NamedTuple):
    """What testpmd counted on a port."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int


class Testpmd(Closing):
    """A running testpmd.

    Attributes:
        program: its process.
    """

    __test__ = False  # the name is DPDK's, not that of a pytest class

    def __init__(
        self,
        devices: Sequence[str],
        *,
        queues: int = 1,
        memory: int = 128,
        worker: int | None = None,
        netns: Netns | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Start it and wait for its prompt; nothing is forwarded yet, unless the options say so.

        Args:
            devices: ``--vdev`` values; each becomes a port.
            queues: queues of each port, each way.
            memory: MiB.
            worker: the core that polls; commands are served on the other. By default the last core.
            netns: where it runs, which matters to a tap.
            options: more words for testpmd itself.

        Raises:
            RigError: it ended.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-testpmd-")
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise RigError("testpmd needs two cores, one to poll and one for its commands")
        worker = cores[-1] if worker is None else worker
        main = next(core for core in cores if core != worker)
        argv: list[str | Path] = [
            *("stdbuf", "-oL", "dpdk-testpmd", "--no-huge", "-m", str(memory), "--no-pci", "--no-telemetry"),
            *(f"--file-prefix=vhu-{os.getpid()}-{next(_numbers)}", "-l", f"{main},{worker}", f"--main-lcore={main}"),
            *(f"--vdev={device}" for device in devices),
            *("--", "-i", "--nb-cores=1", f"--txq={queues}", f"--rxq={queues}", "--total-num-mbufs=8192"),
            *options,
        ]
        log = Path(self._folder.name) / "testpmd.log"
        self.program = Program(netns.argv(argv) if netns else argv, log, keep_stdin=True)
        try:
            self.program.wait_for_output(PROMPT, 30)
        except BaseException:
            self.close()
            raise

    def command(self, line: str) -> str:
        """Run one of testpmd's commands and return what it printed. Raises RigError."""
        start = len(self.program.output)
        self.program.type_line(line)

        def answered() -> str | None:
            # it echoes the line after the prompt that it printed before
            text = self.program.output[start:]
            return text if PROMPT in text else None

        answer = self.program.wait_for(answered, 20, f"testpmd's answer to {line!r}")
        assert answer is not None
        return answer

    def forward(self, mode: str, frame_size: int | str | None = None) -> None:
        """Start forwarding: ``txonly`` sends, ``rxonly`` drains, ``flowgen`` both, ``io`` passes between two ports.

        Args:
            mode: testpmd's forwarding mode.
            frame_size: bytes of a generated frame without its check sequence; "A,B" in segments of A and of B.

        Raises:
            RigError: a port did not start.
        """
        self.command(f"set fwd {mode}")
        if frame_size is not None:
            self.command(f"set txpkts {frame_size}")
        answer = self.command("start")
        if "Not all ports were started" in answer:
            raise self.program.failure("testpmd could not start its ports")

    def stop_forwarding(self) -> None:
        """Stop forwarding; the ports stay up."""
        self.command("stop")

    def stats(self, port: int = 0) -> PortStats:
        """A port's counters. Raises RigError."""
        text = self.command(f"show port stats {port}")
        found = [re.search(rf"{way}-{unit}:\s+(\d+)", text) for unit in ("packets", "bytes") for way in ("RX", "TX")]
        if not all(found):
            raise RigError(f"testpmd shows no counters of port {port}: {text}")
        return PortStats(*(int(number[1]) for number in found if number))

    def close(self) -> None:
        """Stop the ports in order, as far as it still answers, and end it."""
        if self.program.alive:
            self.program.type_line("quit")
            with contextlib.suppress(RigError):  # stop() ends it all the same
                self.program.wait(10)
        self.program.stop()
        self._folder.cleanup()


def virtio_user(
    socket: Path,
    *,
    mrg_rxbuf: bool = True,
    packed: bool = False,
    in_order: bool = False,
    queues: int = 1,
    server: bool = False,
    ring: int = 256,
) -> str:
    """The ``--vdev`` value of a virtio-user front-end, with split rings by default."""
    options = [
        *("net_virtio_user0", f"path={socket}", f"queues={queues}", f"queue_size={ring}", f"mac={FRONT_END_MAC}"),
        *(f"packed_vq={int(packed)}", f"in_order={int(in_order)}", f"mrg_rxbuf={int(mrg_rxbuf)}"),
    ]
    return ",".join(options + (["server=1"] if server else []))


def vhost_back_end(socket: Path, *, queues: int = 1, client: bool = False, number: int = 0) -> str:
    """The ``--vdev`` value of DPDK's own back-end; each in one testpmd has a number."""
    return f"net_vhost{number},iface={socket},queues={queues},client={int(client)}"


def tap_port(tap: str, *, number: int = 0) -> str:
    """The ``--vdev`` value of a tap that testpmd makes; each in one testpmd has a number."""
    return f"net_tap{number},iface={tap}"

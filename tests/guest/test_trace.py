"""Real front-ends and back-ends with a trace between them: traffic works, and what was recorded can be played again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.acceptance import GUEST_ADDRESS, HOST_ADDRESS, PREFIX, ping, serving_back_end
from tests.rig.image import GuestImage
from tests.rig.netns import Netns
from tests.rig.process import wait_until
from tests.rig.qemu import Qemu, VhostUserNic
from tests.rig.testpmd import Testpmd, vhost_back_end, virtio_user
from tests.rig.trace import StandIn, Trace, replay

pytestmark = pytest.mark.guest

NOTHING = "no difference\n"
RECORDING = Path(__file__).parents[2] / "protocol-spec" / "transcripts" / "dpdk2211-virtio-user-split-both-sides.jsonl"


def altered(record: Path) -> tuple[Path, str]:
    """The same with another bit in one answer, and the name of its request."""
    lines = record.read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if '"back-end"' in line and '"GET_PROTOCOL_FEATURES"' in line)
    answer = json.loads(lines[at])
    answer["payload"] = f"{int(answer['payload'][:2], 16) ^ 1:02x}{answer['payload'][2:]}"
    lines[at] = json.dumps(answer)
    other = record.with_name("altered.jsonl")
    other.write_text("\n".join(lines) + "\n")
    return other, answer["request"]


def check_replays(record: Path, back_end: Path) -> None:
    """What was recorded is what the back-end does again, and one altered answer is the one difference."""
    assert replay(record, back_end) == NOTHING
    other, name = altered(record)
    report = replay(other, back_end)
    assert report.startswith(f"{name} (entry ")
    assert report.endswith("differences: 1\n")


def test_a_guest_behind_a_trace(image: GuestImage) -> None:
    with Netns() as netns, serving_back_end(netns) as backend, Trace(backend.socket) as trace:
        with Qemu(image, [VhostUserNic(trace.socket)]) as guest:
            guest.configure(f"{GUEST_ADDRESS}/{PREFIX}")
            ping(netns)
            assert " 0% packet loss" in guest.run(f"ping -c 3 -i 0.05 {HOST_ADDRESS}")
        output = trace.finish()
        assert "front-end qemu-system-x86_64, back-end vhostuser net" in output
        assert "! " not in output, "neither breaks a rule"
        check_replays(trace.record, backend.socket)


@pytest.fixture
def echo() -> Iterator[Path]:
    """Where DPDK's own back-end listens, which sends back what it receives."""
    with tempfile.TemporaryDirectory(prefix="vhu-echo-") as folder:
        path = Path(folder) / "vhost.sock"
        options = ["--forward-mode=io", "--auto-start"]
        with Testpmd([vhost_back_end(path)], options=options, worker=0):
            yield path


def test_dpdk_behind_a_trace_in_front_of_dpdk(image: GuestImage, echo: Path) -> None:
    with Trace(echo) as trace:
        with Testpmd([virtio_user(trace.socket)], worker=1) as front_end:
            front_end.forward("flowgen")
            wait_until(lambda: front_end.stats().rx_packets > 1000, 10, "1000 packets that came back")
            front_end.stop_forwarding()
        trace.finish()
        check_replays(trace.record, echo)


def test_dpdk_in_front_of_a_stand_in(image: GuestImage) -> None:
    """It does again what it was recorded to do, and is answered as then."""
    with StandIn(RECORDING) as back_end:
        with Testpmd([virtio_user(back_end.socket)]) as front_end:
            front_end.forward("flowgen")
            front_end.stop_forwarding()
            front_end.command("port stop 0")
            front_end.command("port start 0")
        assert back_end.program.wait() == 0, back_end.program.output
        assert back_end.program.output.endswith(NOTHING)

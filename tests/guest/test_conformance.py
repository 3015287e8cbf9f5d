"""``vhostuser conform`` against DPDK's back-end, which polls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

NET_VHOST = (
    "dpdk-testpmd --no-pci --no-huge -m 128 --no-telemetry --file-prefix=conform -l 0,1 "
    "--vdev=net_vhost0,iface={socket},queues=2 -- -i -a --nb-cores=1 --rxq=2 --txq=2 --total-num-mbufs=4096 "
    "--port-topology=loop"
)
SOME = ("framing.a_reply_*", "framing.reserved_*", "chains.a_buffer_*", "net_sending.what_*_require_*")


def test_what_dpdk_does_otherwise_is_named_and_found_again(tmp_path: Path) -> None:
    words = ["--peer=dpdk", "--keep", "--jobs=1", "--format=json", f"--save={tmp_path}", f"--spawn={NET_VHOST}"]
    command = [sys.executable, "-m", "vhostuser", "conform", *words, *(f"--only={area}" for area in SOME)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1, done
    findings = [finding for row in json.loads(done.stdout)["results"] for finding in row["findings"]]
    assert {finding["check"] for finding in findings if finding["verdict"] == "pass"} >= {
        "framing.reserved_flags_are_tolerated",
        "chains.a_buffer_in_two_regions",
    }
    failed = {finding["check"]: finding for finding in findings if finding["verdict"] == "fail"}
    assert {finding["again"] for finding in failed.values()} == {"went the same way"}, failed
    told = "copied-flags: replies have the request's flags, NEED_REPLY and reserved ones too, and REPLY added"
    assert failed["framing.a_reply_repeats_the_request"]["quirk"] == told

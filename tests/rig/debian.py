"""The Debian packages that the peers come from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping

from tests.rig.process import RigError, run

#: Network namespaces and what looks into them.
NETWORK = {
    "iproute2": "network namespaces and taps",
    "iputils-ping": "ping",
}

#: What builds the guest and drives it.
GUEST = NETWORK | {
    "busybox-static": "the guest's shell",
    "cpio": "packs the guest's initramfs",
    "ethtool": "looks at the guest's card",
    "gcc": "compiles the traffic program",
    "iperf3": "TCP throughput",
    "libc6-dev": "compiles the traffic program",
    "qemu-system-x86": "the guest's machine",
}

#: What the tests take besides.
PEERS = GUEST | {
    "dpdk-dev": "testpmd, a front-end without a machine",
    "gdb": "where a QEMU crashed",
    "librte-net-null23": "testpmd's port to nowhere",
    "librte-net-tap23": "testpmd's port on a tap",
    "librte-net-vhost23": "the back-end to compare with",
    "librte-net-virtio23": "testpmd's vhost-user front-end",
}


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if not _installed(name)]


def install(packages: Mapping[str, str]) -> None:
    """Install what is missing and say what and why.

    Args:
        packages: names, each with its purpose.

    Raises:
        RigError: we are not root, or apt failed.
    """
    names = missing(packages)
    if not names:
        return
    for name in names:
        print(f"installing {name}: {packages[name]}", flush=True)
    if os.geteuid() != 0:
        raise RigError(f"not root: please run `apt-get install {' '.join(names)}` first")
    run(["apt-get", "-qq", "update"], timeout=300)
    words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "install", "--no-install-recommends"]
    run([*words, *names], timeout=900)


def _installed(package: str) -> bool:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout == "installed"

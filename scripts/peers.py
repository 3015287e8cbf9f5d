"""The tools for any back-end, aimed at the back-ends that Debian has and at ours; and a page of what they found.

Runs as ``scripts/peers``. Each peer is held to the statements, then fuzzed from an empty corpus; the evidence goes to
``evidence/peers.json``, and `--page` writes it down for readers, so that no number there comes by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tests.rig import debian
from tests.rig.seeded import run_tool

EVIDENCE = Path("evidence/peers.json")
CONFORM_TIME = 1800.0
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass(frozen=True)
class Peer:
    """A back-end.

    Attributes:
        title: for readers.
        version: a command that prints it.
        spawn: the command that serves at {socket}.
        device: what it is, for the conformance suite.
        known: whose quirks the suite should name.
    """

    title: str
    version: tuple[str, ...]
    spawn: str
    device: str = "net"
    known: str | None = None


PEERS = {
    "qemu-storage-daemon": Peer(
        "qemu-storage-daemon (libvhost-user), vhost-user-blk",
        ("qemu-storage-daemon", "--version"),
        "qemu-storage-daemon --blockdev driver=null-co,node-name=f,size=1048576 --export "
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},writable=on",
        "blk",
        "libvhost-user",
    ),
    "dpdk": Peer(
        "DPDK net_vhost",
        ("dpdk-testpmd", "--version"),
        "dpdk-testpmd --no-huge -m 256 --no-pci --no-shconf --no-telemetry -l 0,1 "
        "--vdev=net_vhost0,iface={socket},queues=1 "
        "-- -i -a --forward-mode=io --port-topology=loop --total-num-mbufs=4096",
        known="dpdk",
    ),
    "ours": Peer(
        "vhostuser",
        (sys.executable, "-m", "vhostuser", "--version"),
        f"{sys.executable} -m vhostuser net --loop --queues=2 --socket-path={{socket}}",
    ),
}


def examine(peer: Peer, seconds: float, seeds: int, workers: int) -> dict[str, Any]:
    """Hold a peer to the statements, and fuzz it for so many seconds a seed. Raises RigError."""
    with tempfile.TemporaryDirectory(prefix="vhu-peers-") as name:
        folder = Path(name)
        quirks = [f"--peer={peer.known}"] if peer.known else []
        words = ["conform", "--format=json", f"--device={peer.device}", f"--spawn={peer.spawn}", *quirks]
        conformance = json.loads(run_tool(words, CONFORM_TIME))
        campaigns = []
        for seed in range(1, seeds + 1):
            file = folder / f"{seed}.json"
            words = ["fuzz", f"--spawn={peer.spawn}", f"--duration={seconds}", f"--seed={seed}", f"--workers={workers}"]
            run_tool([*words, f"--json={file}", f"--findings={folder / str(seed)}"], 3 * seconds + 300)
            campaigns.append(json.loads(file.read_text()))
    return {"version": _version(peer), "conformance": conformance, "campaigns": campaigns}


def _version(peer: Peer) -> str:
    done = subprocess.run(peer.version, capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found[0] if found else "unknown"


# ---- the page --------------------------------------------------------------------------------------------------------


def page(evidence: dict[str, Any]) -> str:
    """What was measured, as Markdown between two marks."""
    lines = [BEGIN, f"Measured on {evidence['when']}, at {evidence['commit']}.", ""]
    for name, told in evidence["peers"].items():
        lines += [f"## {PEERS[name].title} {told['version']}", "", *_conformance(told["conformance"]), ""]
        for campaign in told["campaigns"]:
            lines += [*_campaign(campaign), ""]
    return "\n".join([*lines, END, ""])


def _conformance(told: dict[str, Any]) -> list[str]:
    counts = Counter(row["verdict"] for row in told["results"])
    failed = [row["statement"] for row in told["results"] if row["verdict"] == "fail"]
    lines = ["Statements: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + "."]
    return lines + ([f"Failed: {', '.join(failed)}."] if failed else [])


def _campaign(told: dict[str, Any]) -> list[str]:
    head = (
        f"Fuzzed for {told['seconds']:.0f} s with seed {told['seed']}: {told['conversations']} conversations, "
        f"{len(told['not reached'])} of {len(told['reached']) * 5} places not reached."
    )
    if not told["findings"]:
        return [f"{head} Nothing was found."]
    rows = [
        f"| {one['kind']} | `{one['signature']}` | {one['messages']} | {one['confirmed']} |" for one in told["findings"]
    ]
    return [head, "", "| kind | signature | messages | confirmed |", "|---|---|---|---|", *rows]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
@click.option("--seconds", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Of fuzzing, a seed.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--page", "file", type=click.Path(dir_okay=False, path_type=Path), help="Put the results into this page.")
def main(names: tuple[str, ...], seconds: float, seeds: int, workers: int, file: Path | None) -> None:
    """Conformance and fuzzing of the peers by name, or of all."""
    debian.install(debian.PEERS)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    peers = {name: examine(PEERS[name], seconds, seeds, workers) for name in names or PEERS}
    evidence = {"when": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip(), "peers": peers}
    EVIDENCE.parent.mkdir(exist_ok=True)
    EVIDENCE.write_text(json.dumps(evidence, indent=2) + "\n")
    if file is not None:
        text = file.read_text()
        file.write_text(text[: text.index(BEGIN)] + page(evidence) + text[text.index(END) + len(END) + 1 :])


if __name__ == "__main__":
    main()

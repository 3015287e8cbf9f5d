"""This package's tools aimed at the back-ends and front-ends that Debian has, and at ours; a page of what they found.

Runs as ``scripts/peers``. Each back-end is held to the statements, then fuzzed from an empty corpus; a front-end is
fuzzed. What was found is kept in ``evidence/peers.json`` as soon as it is there, so that peers can be examined one by
one, and `--page` writes down for readers all that is kept: no number there comes by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tests.rig import debian
from tests.rig.seeded import run_tool
from vhostuser.fuzz.verdict import Trouble

EVIDENCE = Path("evidence/peers.json")
CONFORM_TIME = 1800.0
ACCEPTED = Trouble.ACCEPTED.value
LONGEST = 200  # characters of what was found, on the page
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"

_TESTPMD = "dpdk-testpmd --no-huge -m 256 --no-pci --no-shconf --no-telemetry -l 0,1"
_QEMU_CARD = (
    "-chardev socket,id=c,path={socket},reconnect=1 -netdev vhost-user,id=n,chardev=c "
    "-device virtio-net-pci,netdev=n,vectors=0"
)
# development mode: a mistake of ours ends the program, and does not only close the connection
_OURS = (
    f"{sys.executable} -X dev -m vhostuser net --loop --queues=2 --socket-path={{socket}} "
    "--mtu=1500 --inband --features=+ACCESS_PLATFORM"
)
_OUR_VERSION = (sys.executable, "-m", "vhostuser", "--version")


@dataclass(frozen=True)
class Peer:
    """A program at the other end.

    Attributes:
        title: for readers.
        version: a command that prints it.
        spawn: the command that serves at {socket}, or connects to it.
        fuzz: the tool that fuzzes it, with its options; None: not fuzzed.
        conform: options of the conformance suite; None for a front-end, which has no such suite.
    """

    title: str
    version: tuple[str, ...]
    spawn: str
    fuzz: tuple[str, ...] | None = ("fuzz",)
    conform: tuple[str, ...] | None = None


PEERS = {
    "qemu-storage-daemon": Peer(
        "qemu-storage-daemon (libvhost-user), vhost-user-blk",
        ("qemu-storage-daemon", "--version"),
        "qemu-storage-daemon --blockdev driver=null-co,node-name=f,size=1048576 --export "
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},writable=on",
        conform=("--device=blk", "--peer=libvhost-user"),
    ),
    "dpdk": Peer(
        "DPDK net_vhost",
        ("dpkg-query", "-W", "dpdk-dev"),
        f"{_TESTPMD} --vdev=net_vhost0,iface={{socket}},queues=2 "
        "-- -i -a --nb-cores=1 --rxq=2 --txq=2 --forward-mode=io --port-topology=loop --total-num-mbufs=4096",
        conform=("--peer=dpdk", "--keep", "--jobs=1"),
    ),
    "ours": Peer("vhostuser net", _OUR_VERSION, _OURS, conform=("--keep",)),
    # a front-end may stop such a back-end by a page that it does not bring, as documented: no use in fuzzing it
    "ours-postcopy": Peer(
        "vhostuser net --postcopy", _OUR_VERSION, f"{_OURS} --postcopy", fuzz=None, conform=("--keep",)
    ),
    "qemu": Peer(
        "QEMU, virtio-net-pci",
        ("qemu-system-x86_64", "--version"),
        "qemu-system-x86_64 -accel tcg -M q35 -m 64 -nodefaults -display none "
        f"-object memory-backend-memfd,id=m,size=64M,share=on -numa node,memdev=m {_QEMU_CARD}",
        fuzz=("fuzz-frontend",),
    ),
    "virtio-user": Peer(
        "DPDK virtio-user",
        ("dpkg-query", "-W", "dpdk-dev"),
        f"{_TESTPMD} --vdev=net_virtio_user0,path={{socket}},queues=1,server=1 -- -i -a --total-num-mbufs=4096",
        fuzz=("fuzz-frontend", "--connect"),
    ),
}


def conformance(peer: Peer, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Hold a back-end to the statements; each failure is played again. Raises RigError."""
    words = ["conform", "--format=json", f"--save={folder}", f"--spawn={peer.spawn}", *options]
    told: dict[str, Any] = json.loads(run_tool(words, CONFORM_TIME))
    return told


def campaign(peer: Peer, seed: int, seconds: float, workers: int, folder: Path) -> dict[str, Any]:
    """Fuzz a peer from an empty corpus. Raises RigError."""
    assert peer.fuzz is not None
    file = folder / "report.json"
    words = [*peer.fuzz, f"--spawn={peer.spawn}", f"--duration={seconds}", f"--seed={seed}", f"--workers={workers}"]
    run_tool([*words, f"--json={file}", f"--findings={folder}"], 3 * seconds + 300)
    told: dict[str, Any] = json.loads(file.read_text())
    return told


def version(peer: Peer) -> str:
    """What it calls its version."""
    done = subprocess.run(peer.version, capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found[0] if found else "unknown"


# ---- what is kept ----------------------------------------------------------------------------------------------------


def kept() -> dict[str, Any]:
    """What was found so far, by peer."""
    told: dict[str, Any] = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {}
    return told


def keep(name: str, **parts: Any) -> None:
    """Keep what was found of a peer, with the day and the commit; of campaigns each seed's."""
    evidence = kept()
    about = evidence.setdefault(name, {"campaigns": {}})
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    stamp = {"when": datetime.now(UTC).date().isoformat(), "commit": done.stdout.strip()}
    for part, told in parts.items():
        if part == "campaign":
            about["campaigns"][str(told["seed"])] = told | stamp
        else:
            about[part] = told | stamp
    about["version"] = version(PEERS[name])
    EVIDENCE.parent.mkdir(exist_ok=True)
    EVIDENCE.write_text(json.dumps(evidence, indent=1) + "\n")


# ---- the page --------------------------------------------------------------------------------------------------------


def page(evidence: dict[str, Any]) -> str:
    """What was measured, as Markdown between two marks."""
    lines = [BEGIN, ""]
    for name, peer in PEERS.items():
        if about := evidence.get(name):
            lines += [
                f"## {peer.title} {about['version']}",
                "",
                f"    {peer.spawn.replace(sys.executable, 'python3')}",
                "",
            ]
            lines += _conformance(about["conformance"]) if "conformance" in about else []
            for seed in sorted(about["campaigns"], key=int):
                lines += _campaign(about["campaigns"][seed])
    return "\n".join([*lines, END, ""])


def _conformance(told: dict[str, Any]) -> list[str]:
    totals = told["totals"]
    counts = Counter(row["verdict"] for row in told["results"])
    failed = [row for row in told["results"] if row["verdict"] == "fail"]
    head = (
        f"Conformance ({told['when']}, {told['commit']}): of {totals['seen_at_the_socket']} statements that are seen "
        f"at a socket {totals['run']} were run: {counts['pass']} passed, {counts['fail']} failed, "
        f"{counts['differs by choice']} differ by choice."
    )
    if not failed:
        return [head, ""]
    found = [finding for row in failed for finding in row["findings"] if finding["verdict"] == "fail"]
    alike = sum(finding.get("again") == "went the same way" for finding in found)
    named = sorted({finding["quirk"].partition(":")[0] for finding in found if "quirk" in finding})
    return [
        head,
        f"Of {len(found)} checks that failed {alike} went the same way when their transcripts were played again.",
        *([f"Known by name: {', '.join(named)}."] if named else []),
        "",
        "| failed | what it says | what was found |",
        "|---|---|---|",
        *(f"| {row['statement']} | {_cell(row['text'])} | {_cell(_why(row))} |" for row in failed),
        "",
    ]


def _why(row: dict[str, Any]) -> str:
    text: str = next(finding["text"] for finding in row["findings"] if finding["verdict"] == "fail")
    line = re.sub(r"\S*/vhost-user\.sock", "{socket}", text.partition("\n")[0])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _campaign(told: dict[str, Any]) -> list[str]:
    places = sum(len(cells) for cells in told["reached"].values())
    head = (
        f"Fuzzed for {told['seconds']:.0f} s with seed {told['seed']} and {told['workers']} workers "
        f"({told['when']}, {told['commit']}): {told['conversations']:,} conversations, {told['messages']:,} messages, "
        f"{len(told['not reached'])} of {places} places not reached."
    )
    shown = [one for one in told["findings"] if not one["confirmed"].startswith("0")]
    if passing := len(told["findings"]) - len(shown):
        head += f" Suspicions that did not show again, left out here: {passing}."
    if not shown:
        return [f"{head} Nothing was found.", ""]
    several = [one for one in shown if one["kind"] == ACCEPTED]
    rows = [
        f"| {one['kind']} | `{_cell(one['signature'])}` | {one['messages']} | {one['confirmed']} |"
        for one in shown
        if one not in several
    ]
    rows += _accepted(several)
    return [head, "", "| kind | signature | messages | confirmed |", "|---|---|---|---|", *rows, ""]


def _accepted(findings: list[dict[str, Any]]) -> Iterator[str]:
    """What was accepted against rules: a row for each rule, with the requests; most of them are harmless."""
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for one in findings:
        by_rule.setdefault(one["rule"], []).append(one)
    for rule, found in sorted(by_rule.items()):
        names = ", ".join(sorted(one["signature"].removesuffix(f" {rule}") for one in found))
        most, times = max(one["messages"] for one in found), min(one["confirmed"] for one in found)
        yield f"| {ACCEPTED} | {rule}: {names} | at most {most} | at least {times} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")


# ---- the command -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
@click.option("--conform/--no-conform", default=True, help="Hold back-ends to the statements first.")
@click.option(
    "--seed", "seeds", type=int, multiple=True, default=(1, 2, 3), show_default=True, help="Fuzz, once a seed."
)
@click.option("--seconds", type=click.FloatRange(min=0), default=900.0, show_default=True, help="Of fuzzing, a seed.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--page", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all that is kept here.")
def main(
    names: tuple[str, ...], conform: bool, seeds: tuple[int, ...], seconds: float, workers: int, file: Path | None
) -> None:
    """Hold the peers by name, or all, to the statements, and fuzz them; 0 seconds: do not fuzz."""
    debian.install(debian.PEERS)
    for name in names or PEERS:
        peer = PEERS[name]
        with tempfile.TemporaryDirectory(prefix="vhu-peers-") as folder:
            if conform and peer.conform is not None:
                keep(name, conformance=conformance(peer, peer.conform, Path(folder)))
            for seed in seeds if seconds and peer.fuzz is not None else ():
                keep(name, campaign=campaign(peer, seed, seconds, workers, Path(folder) / str(seed)))
    if file is not None:
        text = file.read_text()
        file.write_text(text[: text.index(BEGIN)] + page(kept()) + text[text.index(END) + len(END) + 1 :])


if __name__ == "__main__":
    main()

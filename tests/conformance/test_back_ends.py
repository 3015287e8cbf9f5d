"""Whole runs: against our own programs, where all passes, and against QEMU's, where what fails is found again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

KEEPER = Path(__file__).with_name("keeper.py")
QUICK = " ".join(f"--limit {name}-timeout=2" for name in ("first-message", "message", "send"))
NET = (
    "--device=net",
    f"--spawn={sys.executable} -m vhostuser net --loop --queues 2 --mtu 1500 --inband --postcopy {QUICK} "
    "--features +ACCESS_PLATFORM --socket-path={socket}",
)
OWN_MATTERS = (
    "--device=rng",
    f"--spawn={sys.executable} {KEEPER} {{socket}}",
    *(f"--only={pattern}" for pattern in ("own_matters.*", "payloads.*", "entropy.*", "VU-STATE-*", "VU-RING-20")),
)
STORAGE_DAEMON = (
    "--device=blk",
    "--peer=libvhost-user",
    "--patience=1",
    "--spawn=qemu-storage-daemon --blockdev driver=null-co,node-name=f,size=1048576,read-zeroes=on "
    "--export type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},writable=on",
    *(
        f"--only={pattern}"
        for pattern in ("VU-HDR-7", "negotiation.*", "replies.*", "ring_values.*", "rings.*", "table.*")
    ),
)


class Run(NamedTuple):
    """What a run came to."""

    status: int
    told: dict[str, Any]

    def named(self, verdict: str) -> set[str]:
        """The statements with a verdict."""
        return {row["statement"] for row in self.told["results"] if row["verdict"] == verdict}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """All runs, at the same time: they wait more than they work."""
    found: dict[str, Run] = {}

    async def run(name: str, words: tuple[str, ...]) -> None:
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "vhostuser", "conform", "--keep", "--format=json", f"--save={folder}", *words]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode in (0, 1), done
        found[name] = Run(done.returncode, json.loads(done.stdout))

    async def run_all() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "net", NET)
            nursery.start_soon(run, "own-matters", OWN_MATTERS)
            nursery.start_soon(run, "storage-daemon", STORAGE_DAEMON)

    trio.run(run_all)
    return found


@pytest.mark.parametrize("name", ["net", "own-matters"])
def test_ours_do_what_the_statements_say(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    wrong = [row for row in run.told["results"] if row["verdict"] in ("fail", "differs by choice")]
    assert not wrong, json.dumps(wrong, indent=1)
    assert run.status == 0
    assert run.named("pass")


def test_nine_of_ten_statements_that_are_seen_at_the_socket_are_tried_on_ours(runs: dict[str, Run]) -> None:
    totals = runs["net"].told["totals"]
    assert totals["run"] == totals["pass"] >= 0.9 * totals["seen_at_the_socket"]


def test_what_remains_is_tried_on_a_device_with_matters_of_its_own(runs: dict[str, Run]) -> None:
    """Xen's memory nobody has, and ours offers PROTOCOL_FEATURES always."""
    left = runs["net"].named("not applicable") - runs["own-matters"].named("pass")
    assert left == {"VU-PAY-7", "VU-NEG-3"}


def test_what_qemu_does_otherwise_is_named_and_found_again(runs: dict[str, Run]) -> None:
    run = runs["storage-daemon"]
    assert run.status == 1
    assert run.named("pass")
    found = {f["check"]: f for row in run.told["results"] for f in row["findings"] if f["verdict"] == "fail"}
    assert {f["again"] for f in found.values()} == {"went the same way"}, found
    told = "copied-flags: replies have the request's flags, NEED_REPLY and reserved ones too, and REPLY added"
    assert found["framing.a_reply_repeats_the_request"]["quirk"] == told

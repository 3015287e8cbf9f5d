"""The page of what was found in peers: what is kept, as readers see it."""

from __future__ import annotations

from typing import Any

from scripts.peers import BEGIN, END, PEERS, page

STAMP = {"when": "2026-01-02", "commit": "abc1234"}


def campaign(*findings: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 7,
        "seconds": 900.2,
        "workers": 2,
        "conversations": 1861,
        "messages": 20000,
        "reached": {"SET_OWNER": {"fresh": [1, 0, 0, 0], "mapped": [0, 0, 0, 0]}},
        "not reached": ["SET_OWNER mapped"],
        "findings": list(findings),
    } | STAMP


def row(statement: str, verdict: str, **finding: str) -> dict[str, Any]:
    return {
        "statement": statement,
        "text": "a | rule",
        "verdict": verdict,
        "findings": [{"verdict": verdict} | finding],
    }


def test_a_back_end_with_failures_and_findings() -> None:
    results = [
        row("VU-HDR-1", "pass"),
        row("VU-HDR-7", "fail", text="came 0xd\nmore", quirk="copied-flags: long", again="went the same way"),
        row("VU-REP-3", "fail", text="acknowledged", again="went otherwise: closed"),
    ]
    conformance = {"totals": {"seen_at_the_socket": 9, "run": 3}, "results": results} | STAMP
    found = {"kind": "crash", "signature": "SIGSEGV in vu_deinit", "messages": 2, "confirmed": "3 of 3"}
    once = {"kind": "hang", "signature": "after SET_OWNER", "messages": 40, "confirmed": "0 of 3"}
    harmless = [
        {"kind": "accepted against a rule", "signature": f"{name} VU-FD-1", "rule": "VU-FD-1"}
        | {"messages": count, "confirmed": f"{count} of 3"}
        for name, count in (("SET_OWNER", 3), ("GET_FEATURES", 2))
    ]
    campaigns = {"7": campaign(found, once, *harmless)}
    text = page({"dpdk": {"version": "22.11", "conformance": conformance, "campaigns": campaigns}})
    assert text.startswith(BEGIN)
    assert text.endswith(f"{END}\n")
    assert "## DPDK net_vhost 22.11" in text
    assert "of 9 statements that are seen at a socket 3 were run: 1 passed, 2 failed, 0 differ by choice." in text
    assert "Of 2 checks that failed 1 went the same way when their transcripts were played again." in text
    assert "Known by name: copied-flags." in text
    assert r"| VU-HDR-7 | a \| rule | came 0xd |" in text
    assert "Fuzzed for 900 s with seed 7 and 2 workers (2026-01-02, abc1234): 1,861 conversations" in text
    assert "1 of 2 places not reached." in text
    assert "| crash | `SIGSEGV in vu_deinit` | 2 | 3 of 3 |" in text
    assert "Suspicions that did not show again, left out here: 1." in text
    assert "after SET_OWNER" not in text
    assert "| accepted against a rule | VU-FD-1: GET_FEATURES, SET_OWNER | at most 3 | at least 2 of 3 |" in text


def test_nothing_found() -> None:
    text = page({"qemu": {"version": "7.2.1", "campaigns": {"7": campaign()}}})
    assert "Conformance" not in text
    assert "Nothing was found." in text


def test_only_what_is_kept_is_told() -> None:
    assert page({}) == f"{BEGIN}\n\n{END}\n"
    assert [name for name, peer in PEERS.items() if peer.conform is None] == ["qemu", "virtio-user"]

"""What is made of libFuzzer's output."""

from __future__ import annotations

from scripts.harnesses import told

DONE = """INFO: Seed: 1468477853
#61\tINITED cov: 576 ft: 1988 corp: 55/21Kb exec/s: 0 rss: 54Mb
#14955\tREDUCE cov: 638 ft: 3801 corp: 298/123Kb lim: 624 exec/s: 67 rss: 56Mb L: 31/624 MS: 1 EraseBytes-
#15000\tDONE   cov: 638 ft: 3801 corp: 298/123Kb lim: 624 exec/s: 68 rss: 56Mb
Done 15000 runs in 219 second(s)
"""
FOUND = """INFO: Seed: 2644525139
#9\tINITED cov: 526 ft: 655 corp: 4/1884b exec/s: 0 rss: 55Mb

 === Uncaught Python exception: ===
AssertionError: chains [5, 4] are forgotten
Traceback (most recent call last):
==30360== ERROR: libFuzzer: fuzz target exited
SUMMARY: libFuzzer: fuzz target exited
artifact_prefix='/tmp/'; Test unit written to /tmp/crash-6f9a
"""


def test_a_run_that_found_nothing() -> None:
    assert told(DONE) == {
        "runs": 15000,
        "seed": 1468477853,
        "coverage": 638,
        "features": 3801,
        "corpus": 298,
        "exec/s": 68,
        "rss MB": 56,
    }


def test_a_run_that_found_something() -> None:
    found = told(FOUND)
    assert "runs" not in found
    assert found["finding"] == "/tmp/crash-6f9a"
    assert found["error"] == "AssertionError: chains [5, 4] are forgotten"

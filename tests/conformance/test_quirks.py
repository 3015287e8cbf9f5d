"""What is known of peers is known of checks that there are."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from vhostuser.conformance import checks as modules
from vhostuser.conformance.check import all_checks
from vhostuser.conformance.quirks import PEERS
from vhostuser.conformance.suite import Outcome, Result


@pytest.mark.parametrize("peer", PEERS)
def test_every_pattern_means_some_check(peer: str) -> None:
    names = [check.name for check in all_checks()]
    assert modules.__name__
    for quirk in PEERS[peer]:
        for pattern in quirk.checks:
            assert any(fnmatchcase(name, pattern) for name in names), f"{quirk.name}: {pattern}"


@pytest.mark.parametrize("peer", PEERS)
def test_each_has_a_name_of_its_own(peer: str) -> None:
    names = [quirk.name for quirk in PEERS[peer]]
    assert len(set(names)) == len(names)


def test_a_quirk_explains_what_its_checks_find() -> None:
    quirk = PEERS["dpdk"][0]
    explained = {check.name for check in all_checks() if quirk.explains(Result(check, Outcome.FAIL))}
    assert explained == {"framing.a_reply_repeats_the_request"}

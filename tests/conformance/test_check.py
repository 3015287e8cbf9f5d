"""Checks say what they prove and what they need."""

from __future__ import annotations

import pytest

from vhostuser.conformance import checks as modules
from vhostuser.conformance.check import all_checks, each_layout
from vhostuser.conformance.devices import DEVICES
from vhostuser.conformance.offer import Offer
from vhostuser.conformance.probe import Probe
from vhostuser.conformance.violation import Violation, about
from vhostuser.spec.statements import statements
from vhostuser.wire.features import ProtocolFeature, VhostFeature


def test_what_is_missing_is_named() -> None:
    offer = Offer(int(VhostFeature.LOG_ALL), int(ProtocolFeature.MQ))
    assert offer.missing(VhostFeature.LOG_ALL, ProtocolFeature.MQ) == []
    needed = (VhostFeature.RING_PACKED, ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK)
    assert offer.missing(*needed) == ["RING_PACKED", "REPLY_ACK"]


def test_every_check_is_about_statements_that_are_seen_at_the_socket() -> None:
    assert modules.__name__
    at_the_socket = {name for name, statement in statements().items() if statement.at_the_socket}
    for check in all_checks():
        assert check.statements, check.name
        assert set(check.statements) <= at_the_socket, check.name
        assert set(check.devices) <= set(DEVICES), check.name


def test_every_statement_that_is_seen_at_the_socket_has_a_check() -> None:
    checked = {name for check in all_checks() for name in check.statements}
    assert not {name for name, statement in statements().items() if statement.at_the_socket} - checked


def test_a_violation_says_what_it_is_about() -> None:
    with pytest.raises(Violation, match=r"^ring 1: it is late$"), about("ring 1"):
        raise Violation("it is late")


@pytest.mark.parametrize(("offered", "layouts"), [(0, [0]), (VhostFeature.RING_PACKED, [0, 1 << 34])], ids=str)
async def test_layouts_are_tried_as_they_are_offered(offered: int, layouts: list[int]) -> None:
    tried = []

    async def function(probe: Probe, layout: int) -> None:
        tried.append(layout)

    probe = Probe.__new__(Probe)
    probe.offer = Offer(int(offered), 0)
    await each_layout(function)(probe)
    assert tried == layouts

"""Errors name the statement that was broken: one that there is, once, and wherever a peer is judged."""

from __future__ import annotations

import ast
import pickle
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser.errors import PayloadError, RemoteProtocolError, VhostUserError
from vhostuser.session.backend import VIRTIO_GATE_RULES
from vhostuser.wire.codec import decode
from vhostuser.wire.frames import VERSION, Frame
from vhostuser.wire.requests import FRONTEND_REQUESTS, Direction
from vhostuser.wire.requests import FrontendRequest as R

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vhostuser"
STATEMENTS = {row["id"] for row in tomllib.loads((ROOT / "protocol-spec" / "statements.toml").read_text())["statement"]}
IDENTIFIER = re.compile(r"(VU|VIO)-([A-Z]+-)+\d+")
JUDGEMENTS = {kind.__name__ for kind in RemoteProtocolError.__subclasses__()}


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Modules of the package, or of some of its packages, with their trees."""
    for folder in packages or ("",):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def named_rules() -> Iterator[tuple[str, str]]:
    """Every identifier of a statement that stands in the source, with its place."""
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and IDENTIFIER.fullmatch(node.value):
                yield node.value, f"{name}:{node.lineno}"


def judgements(*packages: str) -> Iterator[tuple[str, ast.Call]]:
    """Every place that makes an error which blames the peer."""
    for name, tree in sources(*packages):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in JUDGEMENTS:
                yield f"{name}:{node.lineno}", node


def test_an_error_shows_its_rule_at_its_end() -> None:
    error = PayloadError("SET_VRING_NUM: 3 is not a power of two", rule="VU-RING-12")
    assert str(error) == "SET_VRING_NUM: 3 is not a power of two [VU-RING-12]"
    assert (error.text, error.rule) == ("SET_VRING_NUM: 3 is not a power of two", "VU-RING-12")


def test_an_error_without_a_rule_is_its_text() -> None:
    error = VhostUserError("the tap is gone")
    assert (str(error), error.text, error.rule) == ("the tap is gone", "the tap is gone", None)


def test_a_rule_outlasts_pickling() -> None:
    error = pickle.loads(pickle.dumps(PayloadError("too long", rule="VU-PAY-5")))
    assert str(error) == "too long [VU-PAY-5]"


def test_an_error_that_is_raised_from_another_shows_its_rule_once() -> None:
    with pytest.raises(PayloadError) as caught:
        decode(Direction.FRONTEND, Frame(R.SET_MEM_TABLE, VERSION, bytes(40)))
    assert caught.value.rule == "VU-PAY-3"
    assert str(caught.value) == "SET_MEM_TABLE: nregions 0 is not in 1..8 [VU-PAY-3]"


def test_every_rule_that_the_source_names_is_a_statement() -> None:
    named = dict(named_rules())
    assert len(named) > 50
    assert {name: place for name, place in named.items() if name not in STATEMENTS} == {}


def test_a_rule_is_given_as_one_of_these_identifiers_or_passed_on() -> None:
    """Not as a text that only looks like one."""
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "rule" and isinstance(node.value, ast.Constant):
                assert node.value.value in STATEMENTS, f"{name}:{node.value.lineno}"


def test_codec_and_session_name_a_rule_wherever_they_blame_the_peer() -> None:
    found = list(judgements("wire", "session"))
    assert len(found) > 30
    assert [place for place, call in found if "rule" not in [keyword.arg for keyword in call.keywords]] == []


def test_every_gate_of_a_request_has_a_rule() -> None:
    gates = {spec.virtio_gate for spec in FRONTEND_REQUESTS.values() if spec.virtio_gate}
    assert gates == set(VIRTIO_GATE_RULES)

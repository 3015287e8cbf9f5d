"""The two editions' numbers: each ``.pxd`` has the C constants that its ``.py`` has as Python integers."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

from vhostuser import edition
from vhostuser.devices.net import pump, receive, transmit
from vhostuser.virtio import layout
from vhostuser.virtio.ring import COUNTERS, FAULTS
from vhostuser.virtio.timeline import NAMES

PACKAGE = Path(__file__).resolve().parent.parent / "vhostuser"


def constants_of(path: Path) -> dict[str, int]:
    """Names and numbers of every ``cdef enum`` in a ``.pxd``."""
    found: dict[str, int] = {}
    for block in re.findall(r"^cdef enum:\n((?:    .*\n|\n)+)", path.read_text(), re.MULTILINE):
        for name, value in re.findall(r"^    (\w+) = (-?\d+)$", block, re.MULTILINE):
            assert name not in found, f"{path.name}: {name} twice"
            found[name] = int(value)
    return found


def assigned_in(path: Path) -> dict[str, int]:
    """Names and numbers of a module's ``A = 1`` and ``(A, B) = range(2)``, the interpreted edition's included."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Assign):
            continue
        match node.targets[0], node.value:
            case ast.Tuple(elts=names), ast.Call(func=ast.Name(id="range"), args=bounds):
                values = range(*(ast.literal_eval(bound) for bound in bounds))
                found.update(zip((ast.unparse(name) for name in names), values, strict=True))
    return found


def test_the_shared_numbers_are_the_same_in_both_editions() -> None:
    interpreted = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, int)}
    assert interpreted == constants_of(PACKAGE / "virtio" / "layout.pxd")


@pytest.mark.parametrize("module", [pump, receive, transmit])
def test_the_net_counters_are_the_same_in_both_editions(module: ModuleType) -> None:
    source = PACKAGE / "devices" / "net" / module.__name__.rpartition(".")[2]
    compiled = constants_of(source.with_suffix(".pxd"))
    assert assigned_in(source.with_suffix(".py")) == compiled
    assert [name.lower() for name, _ in sorted(compiled.items(), key=lambda item: item[1])] == list(module.COUNTERS)
    assert sorted(compiled.values()) == list(range(len(module.COUNTERS)))


def test_the_moments_have_the_numbers_of_the_layout() -> None:
    numbers = {name: value for name, value in vars(layout).items() if name.startswith("AT_")}
    assert numbers == {f"AT_{name.upper().replace('-', '_')}": number for number, name in enumerate(NAMES)}


def test_the_ring_counters_have_the_numbers_of_the_layout() -> None:
    assert [getattr(layout, name.upper()) for name in COUNTERS] == list(range(layout.RING_COUNTERS))


def test_every_fault_has_a_sentence_and_every_sentence_a_fault() -> None:
    faults = {layout.AVAIL_INDEX, layout.HEAD_INDEX, layout.NEXT_INDEX, layout.CHAIN_LOOP}
    assert faults | {layout.BAD_INDIRECT, layout.VANISHED, layout.UNPLACED, layout.UNPOSITIONED} == set(FAULTS)


def test_each_compiled_module_has_its_declarations() -> None:
    for name in edition.MODULES:
        path = PACKAGE.parent.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file()
        assert path.with_suffix(".pxd").is_file()

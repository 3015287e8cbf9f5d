"""Every row of protocol-spec/hostile-inputs.md has its cases, so that none is forgotten."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from vhostuser.devices.net.device import NetDevice
from vhostuser.devices.net.ports.sockets import Null
from vhostuser.runtime.offer import offer_of
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.features import ProtocolFeature

TESTS = Path(__file__).resolve().parent.parent
TABLE = TESTS.parent / "protocol-spec" / "hostile-inputs.md"


class Row(NamedTuple):
    name: str
    input: str
    verdict: str
    needs: str
    layouts: str

    @property
    def counts(self) -> bool:
        """Whether what it needs is offered; a name that no feature has is an error."""
        if not self.needs:
            return True
        with closing(NetDevice(Null(2))) as device:
            offer = offer_of(device)
        if self.needs in ProtocolFeature.__members__:
            return bool(offer.protocol_features & ProtocolFeature[self.needs])
        return bool(offer.virtio_features & VIRTIO[self.needs])


VIRTIO = {**VirtioFeature.__members__, "ACCESS_PLATFORM": 1 << 33}
ROWS = [
    Row(*(cell.strip() for cell in line.split("|")[1:-1]))
    for line in TABLE.read_text().splitlines()
    if re.match(r"\| [A-Z]\d+ \|", line)
]


@cache
def cases() -> dict[str, dict[str, set[str]]]:
    """The files and the names of the cases of each row."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Constant(value=str(text)) if row := re.match(r"([FMQLISV]\d+)-", text):
                    found[row[1]][path.name].add(text)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    if row := re.match(r"test_([fmqlisv]\d+)_", name):
                        found[row[1].upper()][path.name].add(name)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row {row.name}")
def test_a_row_has_its_cases(row: Row) -> None:
    files = cases().get(row.name, {})
    assert files or not row.counts, f"{row.name}, {row.input}: no case, and {row.needs or 'nothing more'} is needed"


@pytest.mark.parametrize("row", [row for row in ROWS if row.layouts], ids=lambda row: f"row {row.name}")
def test_a_row_of_both_layouts_has_cases_of_both(row: Row) -> None:
    assert row.layouts == "both"
    files = cases()[row.name]
    packed = {case for file, names in files.items() for case in names if "packed" in file or "packed" in case}
    split = {case for file, names in files.items() if "packed" not in file for case in names if "packed" not in case}
    assert packed, f"{row.name}: no case for packed rings"
    assert split, f"{row.name}: no case for split rings"


def test_every_case_is_of_a_row() -> None:
    assert set(cases()) <= {row.name for row in ROWS}
    assert len(ROWS) == len({row.name for row in ROWS}) > 50

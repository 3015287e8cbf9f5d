"""The layers of docs/architecture.md: every module's imports, in Python and in Cython, against the table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vhostuser"
MAX_LINES = 600

LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "fds": set(),
    "limits": set(),
    "edition": set(),
    "spec": set(),
    "privileges": {"errors"},
    "wire": {"errors", "fds"},
    "virtio": {"errors", "fds"},
    "session": {"errors", "fds", "wire"},
    "transport": {"errors", "fds", "limits", "wire.frames"},
    "device": {"errors", "fds", "privileges", "virtio"},
    "devices": {"errors", "fds", "privileges", "device", "virtio"},
    "frontend": {"errors", "fds", "limits", "wire", "transport"},
    "peer": {"errors", "fds"},
    "transcript": {"errors", "fds", "limits", "wire", "session", "transport"},
    "fuzz": {"errors", "fds", "limits", "spec", "wire", "session", "transport", "transcript", "peer"},
    "conformance": {
        *("errors", "fds", "limits", "wire", "session", "transport"),
        *("transcript", "peer", "frontend", "spec"),
    },
    "runtime": {"errors", "fds", "limits", "wire", "virtio", "session", "transport", "device"},
    "cli": {
        *("", "errors", "fds", "limits", "privileges", "edition"),
        *("device", "devices", "transport", "runtime", "virtio", "wire"),
        *("conformance", "frontend", "fuzz", "peer", "session", "spec", "transcript"),
    },
    "__init__": {"edition"},
    "__main__": {"cli"},
}
"""What each package may import besides itself. A name with a dot is one module of a package; "" is ``vhostuser``."""

ONLY_IN = {
    "construct": {"wire"},
    "trio": {"transport", "device", "frontend", "peer", "transcript", "fuzz", "conformance", "runtime", "cli"},
}
"""Packages of others, and the only ones of ours that may import them. ``devices`` needs no Trio of its own."""

SOURCES = sorted(path for suffix in ("py", "pxd") for path in PACKAGE.rglob(f"*.{suffix}"))


def module_of(path: Path) -> str:
    """The name below ``vhostuser``: ``wire.codec``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Full names of what a module imports: of ``from a import b`` both ``a`` and, since it may be a module, ``a.b``."""
    if path.suffix == ".pxd":
        for match in re.finditer(r"^\s*(?:from\s+([\w.]+)\s+)?c?import\s+([\w.]+)", path.read_text(), re.MULTILINE):
            yield match[1] or match[2]
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if is_module(inner) else node.module


def is_module(name: str) -> bool:
    """Whether a full name is one of our modules or packages."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def allowed(importer: str, imported: str) -> bool:
    """Whether one module below ``vhostuser`` may import another."""
    package = importer.split(".")[0]
    if imported.split(".")[0] == package:
        return True
    return any(imported == name or (name and imported.startswith(f"{name}.")) for name in LAYERS[package])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_below_it(path: Path) -> None:
    importer = module_of(path) or "__init__"
    ours = {
        name.removeprefix("vhostuser").lstrip(".") for name in imports_of(path) if name.split(".")[0] == "vhostuser"
    }
    forbidden = sorted(name or "vhostuser" for name in ours if not allowed(importer, name))
    assert not forbidden, f"{importer} may not import {', '.join(forbidden)}"


@pytest.mark.parametrize(("package", "users"), ONLY_IN.items(), ids=ONLY_IN)
def test_packages_that_only_some_may_import(package: str, users: set[str]) -> None:
    importers = {
        module_of(path).split(".")[0]
        for path in SOURCES
        if any(name.split(".")[0] == package for name in imports_of(path))
    }
    assert importers, f"nobody imports {package}: the table is out of date"
    assert importers <= users


def test_the_table_names_every_package() -> None:
    assert {module_of(path).split(".")[0] or "__init__" for path in SOURCES} == set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_too_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines"


def test_front_ends_do_not_use_our_rings() -> None:
    """Written apart, so that one mistake cannot hide in both ends."""
    for path in (PACKAGE / "frontend").glob("*.py"):
        assert not [name for name in imports_of(path) if name.startswith("vhostuser.virtio")], path.name


def test_the_architecture_page_names_every_package() -> None:
    table = re.findall(r"^\| \d \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    named = {name.rstrip("/") for row in table for name in re.findall(r"`(\w+)/?`", row)}
    assert named == set(LAYERS) - {"__init__", "__main__"}

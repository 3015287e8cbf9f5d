"""Which edition of the data path is in use: compiled by Cython, or the same files interpreted.

``VHOSTUSER_EDITION=interpreted`` chooses the interpreted one although the compiled one is there (the tests run over
both). ``VHOSTUSER_REQUIRE_COMPILED=1`` makes it an error if the compiled one is not.
"""

import importlib.util
import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

#: The modules that are compiled where a C compiler works.
MODULES = (
    "vhostuser.virtio.memory",
    "vhostuser.virtio.ring",
    "vhostuser.virtio.split",
    "vhostuser.virtio.pump",
    "vhostuser.devices.net.header",
    "vhostuser.devices.net.pump",
)


def choose(package_path: str) -> None:
    """Prefer sources to extension modules below `package_path` if the environment asks for it."""
    if os.environ.get("VHOSTUSER_EDITION") != "interpreted":
        return
    source_only = FileFinder.path_hook((SourceFileLoader, SOURCE_SUFFIXES))

    def hook(path: str) -> FileFinder:
        if not path.startswith(package_path):
            raise ImportError(path)
        return source_only(path)  # type: ignore[return-value]

    sys.path_hooks.insert(0, hook)
    for path in list(sys.path_importer_cache):
        if path.startswith(package_path):
            del sys.path_importer_cache[path]


def interpreted_modules() -> list[str]:
    """The modules of the data path that run interpreted; none in the compiled edition."""
    specs = [importlib.util.find_spec(name) for name in MODULES]
    return [spec.name for spec in specs if spec is not None and (spec.origin or "").endswith(".py")]


def name() -> str:
    """``compiled``, ``interpreted``, or which modules are interpreted when a build went half wrong."""
    interpreted = interpreted_modules()
    if not interpreted:
        return "compiled"
    return "interpreted" if len(interpreted) == len(MODULES) else f"partly interpreted: {', '.join(interpreted)}"

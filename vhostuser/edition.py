"""Which edition of the data path is in use: compiled by Cython, or the same files interpreted.

``VHOSTUSER_EDITION=interpreted`` chooses the interpreted one although the compiled one is there (the tests run over
both). ``VHOSTUSER_REQUIRE_COMPILED=1`` makes it an error if the compiled one is not.
"""

import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, SourceFileLoader

#: The modules that are compiled where a C compiler works.
MODULES = (
    "vhostuser.virtio.memory",
    "vhostuser.virtio.dirty",
    "vhostuser.virtio.timeline",
    "vhostuser.virtio.ring",
    "vhostuser.virtio.split_record",
    "vhostuser.virtio.split",
    "vhostuser.virtio.packed_record",
    "vhostuser.virtio.packed",
    "vhostuser.virtio.pump",
    "vhostuser.devices.net.header",
    "vhostuser.devices.net.batch",
    "vhostuser.devices.net.datagrams",
    "vhostuser.devices.net.uring",
    "vhostuser.devices.net.transmit",
    "vhostuser.devices.net.receive",
    "vhostuser.devices.net.pump",
)


def choose(package_path: str) -> None:
    """Prefer sources to extension modules below `package_path` if the environment asks for it.

    Likewise where a build left only some of the extension modules: they call each other in C and need all.
    """
    built = [_extension(package_path, module) for module in MODULES]
    if os.environ.get("VHOSTUSER_EDITION") != "interpreted" and (all(built) or not any(built)):
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


def _extension(package_path: str, module: str) -> bool:
    below = module.split(".", 1)[1].replace(".", "/")
    return any(os.path.exists(f"{package_path}/{below}{suffix}") for suffix in EXTENSION_SUFFIXES)


def compiled() -> bool:
    """Whether the compiled edition is in use."""
    spec = importlib.util.find_spec(MODULES[0])
    return spec is not None and not (spec.origin or "").endswith(".py")


def name() -> str:
    """``compiled`` or ``interpreted``."""
    return "compiled" if compiled() else "interpreted"

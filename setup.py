"""Builds the compiled edition of the data path; everything else is in pyproject.toml.

The modules below are annotated Python. Where a C compiler works they become extension modules; where none does the
install succeeds all the same and the same files run interpreted. ``VHOSTUSER_REQUIRE_COMPILED=1`` makes that fatal.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILED = (
    "vhostuser.virtio.memory",
    "vhostuser.virtio.ring",
    "vhostuser.virtio.split",
    "vhostuser.virtio.pump",
    "vhostuser.devices.net.header",
    "vhostuser.devices.net.pump",
)

required = os.environ.get("VHOSTUSER_REQUIRE_COMPILED") == "1"
directives = {
    "language_level": 3,
    "boundscheck": False,  # indices are checked where guest values enter; tests run the interpreted edition, which checks all
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}
extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".py"],
        extra_compile_args=["-O2", "-g0", "-Wno-unused-function", "-Wno-sign-compare"],
        optional=not required,
    )
    for name in COMPILED
]
setup(ext_modules=cythonize(extensions, compiler_directives=directives, quiet=True))

"""Builds the compiled edition of the data path; everything else is in pyproject.toml.

The modules of ``vhostuser.edition.MODULES`` are annotated Python. Where a C compiler works they become extension
modules; where none does the install succeeds all the same and the same files run interpreted.
``VHOSTUSER_REQUIRE_COMPILED=1`` makes that fatal.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from vhostuser.edition import MODULES

required = os.environ.get("VHOSTUSER_REQUIRE_COMPILED") == "1"
directives = {
    "language_level": 3,
    "boundscheck": False,  # guest values are checked where they enter; the interpreted edition checks every index
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}
extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".py"],
        extra_compile_args=["-O2", "-g0", "-Wno-unused-function", "-Wno-sign-compare"],
    )
    for name in MODULES
]
modules = cythonize(extensions, compiler_directives=directives, quiet=True)
for module in modules:
    module.optional = not required  # cythonize makes new objects, without this attribute of the old ones
setup(ext_modules=modules)

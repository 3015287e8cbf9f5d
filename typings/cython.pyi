"""What the type checker needs of Cython's shadow module: C types read as Python's, decorators as no-ops."""

import builtins
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias, TypeVar

_F = TypeVar("_F")

compiled: Literal[False]
bint: TypeAlias = builtins.bool
char: TypeAlias = builtins.int
short: TypeAlias = builtins.int
ushort: TypeAlias = builtins.int
int: TypeAlias = builtins.int  # noqa: A001
uint: TypeAlias = builtins.int
long: TypeAlias = builtins.int
longlong: TypeAlias = builtins.int
ulonglong: TypeAlias = builtins.int
size_t: TypeAlias = builtins.int
void: TypeAlias = None
nogil: AbstractContextManager[None]

def declare(kind: Any, value: _F) -> _F: ...
def cast(kind: Any, value: _F) -> _F: ...
def cclass(kind: _F) -> _F: ...
def cfunc(function: _F) -> _F: ...
def ccall(function: _F) -> _F: ...
def inline(function: _F) -> _F: ...
def final(kind: _F) -> _F: ...
def exceptval(value: Any = ..., *, check: builtins.bool = ...) -> Callable[[_F], _F]: ...

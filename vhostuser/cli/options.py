"""Kinds of option values that are more than a word or a number, and options that several commands have."""

from __future__ import annotations

import grp
import math
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from vhostuser.devices.net.features import NetFeature
from vhostuser.limits import Limits
from vhostuser.privileges import User
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.meanings import FeatureNames

T = TypeVar("T")

_LAST_ID = 2**32 - 2  # the highest number means "leave it"
_LIMITS = {field.name.replace("_", "-"): field.name for field in fields(Limits)}
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Parsed(click.ParamType, Generic[T]):  # type: ignore[type-arg]  # generic since click 8.3 only
    """What a function makes of a word; it raises ValueError for one that it does not take.

    Args:
        name: for the help text.
        kind: the type of a value; click may bring one again.
        parse: the function.
    """

    def __init__(self, name: str, kind: type[T], parse: Callable[[str], T]) -> None:
        self.name = name
        self._kind = kind
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """The value. Raises click.BadParameter."""
        if isinstance(value, self._kind):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.FloatRange):
    """Seconds that end: click takes ``nan``, which is in no range and beyond none, and ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The value. Raises click.BadParameter."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value}: seconds are a number, and end", param, ctx)
        return seconds


class Number(click.IntRange):
    """A whole number between two others, which are told in one sentence whatever was given instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Raises click.BadParameter."""
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not a number from {self.min} to {self.max}", param, ctx)
        return number


def _number(word: str) -> int:
    if int(word) > _LAST_ID:
        raise ValueError(f"{word}: users and groups go up to {_LAST_ID}")
    return int(word)


def _uid(word: str) -> int:
    """A user's name, or any number: it may be one of a container."""
    return _number(word) if word.isdecimal() else User.named(word).uid


def _gid(word: str) -> int:
    try:
        return _number(word) if word.isdecimal() else grp.getgrnam(word).gr_gid
    except KeyError:
        raise ValueError(f"{word}: no such group") from None


def _owner(word: str) -> tuple[int, int]:
    """``USER:GROUP``, either of which may be missing; uid and gid, -1 for what is."""
    user, _, group = word.partition(":")
    return _uid(user) if user else -1, _gid(group) if group else -1


def _mode(word: str) -> int:
    """Permission bits in octal, with the zero before them: 660 might be the decimal number, as it is in TOML."""
    if not re.fullmatch("0[0-7]{1,3}", word):
        raise ValueError(f"{word!r}: permissions are octal, from 00 to 0777")
    return int(word, 8)


def _limit(word: str) -> tuple[str, float]:
    """``NAME=N``, N with K, M, G or T for powers of 1024: a name of :class:`Limits` and a value that it can have."""
    name, _, number = word.partition("=")
    if name not in _LIMITS:
        raise ValueError(f"{name}: no such limit; there are {', '.join(_LIMITS)}")
    unit = _UNITS.get(number[-1:], 1)
    try:
        amount = float(number if unit == 1 else number[:-1]) * unit
    except ValueError:
        raise ValueError(f"{word}: NAME=N is needed, N a number such as 30, or 4T (K, M, G, T)") from None
    if not 0 < amount < math.inf:
        raise ValueError(f"{name}: {number} is no number above 0")
    Limits().changed(_LIMITS[name], amount)
    return _LIMITS[name], amount


def _report(word: str) -> Path:
    """A file that is written now and then: its folder has to be there from the start."""
    path = Path(word)
    if not os.path.isdir(path.parent):
        raise ValueError(f"{path.parent}: no such folder")
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder; a file is needed")
    return path


USER = Parsed("USER", User, User.named)
UID = Parsed("USER", int, _uid)
OWNER = Parsed[tuple[int, int]]("USER:GROUP", tuple, _owner)
MODE = Parsed("OCTAL", int, _mode)
LIMIT = Parsed[tuple[str, float]]("NAME=N", tuple, _limit)
REPORT = Parsed("FILE", Path, _report)

FEATURE_NAMES: dict[str | None, FeatureNames] = {None: (VirtioFeature,), "net": (VirtioFeature, NetFeature)}
"""Names of virtio feature bits, by the device whose own are to be among them."""
DEVICE = click.option(
    "--device",
    type=click.Choice([name for name in FEATURE_NAMES if name]),
    help="Name the device's own feature bits, too.",
)

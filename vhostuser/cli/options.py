"""Kinds of option values that are more than a word or a number: users, owners, modes, limits."""

from __future__ import annotations

import grp
import re
from typing import Any

import click

from vhostuser.limits import Limits
from vhostuser.privileges import User

_LAST_ID = 2**32 - 2  # the highest number means "leave it"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _User(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A user's name or number."""

    name = "USER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        if isinstance(value, User):
            return value
        try:
            return User.named(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Uid(click.ParamType):  # type: ignore[type-arg]
    """A user's name, or any number: it may be one of a container."""

    name = "USER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return _uid(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _uid(word: str) -> int:
    return _number(word) if word.isdecimal() else User.named(word).uid


def _number(word: str) -> int:
    if int(word) > _LAST_ID:
        raise ValueError(f"{word}: users and groups go up to {_LAST_ID}")
    return int(word)


class _Owner(click.ParamType):  # type: ignore[type-arg]
    """``USER:GROUP``, either of which may be missing; uid and gid, -1 for what is."""

    name = "USER:GROUP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        user, _, group = value.partition(":")
        try:
            return _uid(user) if user else -1, _gid(group) if group else -1
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _gid(word: str) -> int:
    try:
        return _number(word) if word.isdecimal() else grp.getgrnam(word).gr_gid
    except KeyError:
        raise ValueError(f"{word}: no such group") from None


class _Mode(click.ParamType):  # type: ignore[type-arg]
    """Permission bits in octal, with the zero before them: 660 might be the decimal number, as it is in TOML."""

    name = "OCTAL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch("0[0-7]{1,3}", value):
            self.fail(f"{value!r}: permissions are octal, from 00 to 0777", param, ctx)
        return int(value, 8)


class _Limit(click.ParamType):  # type: ignore[type-arg]
    """``NAME=N``, N with K, M, G or T for powers of 1024: a name of :class:`Limits` and a value that it can have."""

    name = "NAME=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        word, _, number = value.partition("=")
        name = word.replace("-", "_")
        unit = _UNITS.get(number[-1:], 1)
        try:
            amount = float(number if unit == 1 else number[:-1]) * unit
            Limits().changed(name, amount)
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)
        return name, amount


USER, UID, OWNER, MODE, LIMIT = _User(), _Uid(), _Owner(), _Mode(), _Limit()

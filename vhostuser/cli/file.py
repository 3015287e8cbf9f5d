"""A file that describes guests, in TOML: one table for each, whose keys are the options of the device's command::

    [[net]]
    socket-path = "/run/vm1.sock"
    tap = "vm1"

    [[rng]]
    socket-path = "/run/rng.sock"
    client = true

There is no second list of options: each table becomes a command line, which the command parses and judges.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click

from vhostuser.cli.running import Guest

#: Options that are the program's rather than a guest's.
_NOT_A_GUESTS = ("verbose", "user")
#: A descriptor that was passed to us: --fd=3, --tap=fd:4,fd:5.
_DESCRIPTOR = re.compile(r"(?:--fd=|[=,]fd:)(\d+)")


class GuestCommand(Protocol):
    """A device's command."""

    params: list[click.Parameter]

    def make_context(self, info_name: str, args: list[str]) -> click.Context:
        """Parse a command line."""

    def guest(self, context: click.Context) -> Guest:
        """What a parsed command line asks for."""


def guests_of(path: Path, commands: Mapping[str, GuestCommand]) -> list[Guest]:
    """The guests of a file, in its order.

    Raises:
        click.UsageError: it is no TOML, or a table is not what a device's command takes.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise click.UsageError(f"{path}: not a TOML file (UTF-8)") from None
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: {error}") from error
    owners: dict[str, str] = {}
    guests = [
        _guest(f"{path}: [[{device}]] {number}", commands[device], table, owners)
        for device, tables in content.items()
        for number, table in enumerate(_tables(path, device, tables, commands), 1)
    ]
    if not guests:
        raise click.UsageError(f"{path}: no guest is described; one is a table {_kinds(commands)}")
    return guests


def _tables(path: Path, device: str, tables: Any, commands: Mapping[str, GuestCommand]) -> list[dict[str, Any]]:
    if device not in commands or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise click.UsageError(f"{path}: {device}: a guest is a table {_kinds(commands)}")
    return tables


def _kinds(commands: Mapping[str, GuestCommand]) -> str:
    return " or ".join(f"[[{name}]]" for name in commands)


def _guest(name: str, command: GuestCommand, table: Mapping[str, Any], owners: dict[str, str]) -> Guest:
    """The guest that a table describes; `owners` has the names of those that descriptors and paths belong to so far."""
    options = {
        option.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.expose_value and parameter.name not in _NOT_A_GUESTS
        for option in parameter.opts
    }
    try:
        words = [word for key, value in table.items() for word in _words(key, value, options)]
        own = [f"descriptor {number}" for number in _DESCRIPTOR.findall(" ".join(words))]
        guest = command.guest(command.make_context(name, words))
        if guest.socket_path is not None and not guest.client:
            own.append(f"socket-path {os.path.realpath(guest.socket_path)}")
        for what in own:
            if (owner := owners.setdefault(what, name)) != name:
                raise click.UsageError(f"{what} is that of {owner} already")
        return guest
    except click.UsageError as error:
        raise click.UsageError(f"{name}: {error.format_message()}") from error


def _words(key: str, value: Any, options: Mapping[str, click.Parameter]) -> Iterator[str]:
    """What a key and its value are on a command line."""
    option = options.get(key)
    if option is None:
        raise click.UsageError(f"{key}: no such option; there are {', '.join(options)}")
    flag = isinstance(option, click.Option) and option.is_flag
    if flag != isinstance(value, bool):
        raise click.UsageError(f"{key} = {value!r}: {'true or false' if flag else 'a value'} is needed")
    if flag:
        if value:
            yield f"--{key}"
        return
    for item in value if option.multiple and isinstance(value, list) else [value]:
        if not isinstance(item, str | int):
            raise click.UsageError(f"{key} = {value!r}: a string or a number is needed")
        if "\0" in str(item):  # as on a command line; it would end a C string, and a name be another one
            raise click.UsageError(f"{key} = {value!r}: no name has a NUL")
        yield f"--{key}={item}"

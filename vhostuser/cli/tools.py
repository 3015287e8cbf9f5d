"""The tools among the commands: each is a module of its own, imported when it is asked for.

A program that serves guests starts faster and smaller without what draws tables and makes conversations.

How a tool ends is decided here, for all of them: their statuses 0 and 1 are verdicts, and nothing else may look like
one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from vhostuser.errors import VhostUserError, first_of

TOOLS = ("conform", "decode", "fuzz", "fuzz-frontend", "replay", "trace")
"""Their names; a module here has the same, with _ for -, and in it `command`."""

BY_SIGNAL = 128
"""A signal's number and this is the status of who was ended by it, as shells have it."""


class ImpossibleError(click.ClickException):
    """What was asked for could not be done: not the same as a verdict."""

    exit_code = 2


class Tool(click.Command):
    """A tool's command.

    What it raises of ours or the system's means that it could not be done: a sentence, and status 2. A reader of its
    output that left ends it as SIGPIPE would.
    """

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        """Parse a command line, and print the help if it asks for it."""
        with _ends_in_order():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with _ends_in_order():
            return super().invoke(ctx)


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Make an end of a program of what is raised, with the status that it deserves."""
    try:
        yield
    except* KeyboardInterrupt:
        raise SystemExit(BY_SIGNAL + signal.SIGINT) from None
    except* (VhostUserError, OSError) as errors:
        error = first_of(errors)
        _forget_output()
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BY_SIGNAL + signal.SIGPIPE) from None
        raise ImpossibleError(_words_of(error)) from None


def _forget_output() -> None:
    """Let go of what cannot be written to the standard output: Python would try again, and complain, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _words_of(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


@contextmanager
def naming(option: str, path: Path) -> Iterator[None]:
    """Name the option if its file or folder cannot be had. Raises ImpossibleError."""
    try:
        yield
    except OSError as error:
        raise ImpossibleError(f"{option} {path}: {error.strerror}") from None


def make_folder(option: str, path: Path | None) -> None:
    """Make an option's folder, if it is given, and see that files can be made there. Raises ImpossibleError."""
    if path is None:
        return
    with naming(option, path):
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass


class Programs(click.Group):
    """The devices, whose commands are added as usual, and the tools."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted([*super().list_commands(ctx), *TOOLS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        if cmd_name not in TOOLS:
            return super().get_command(ctx, cmd_name)
        command = import_module(f"vhostuser.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

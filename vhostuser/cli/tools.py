"""The tools among the commands: each is a module of its own, imported when it is asked for.

A program that serves guests starts faster and smaller without what draws tables and makes conversations.
"""

from __future__ import annotations

from importlib import import_module

import click

TOOLS = ("conform", "decode", "fuzz", "fuzz-frontend", "replay", "trace")
"""Their names; a module here has the same, with _ for -, and in it `command`."""


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

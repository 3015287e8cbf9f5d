"""Where the tools print tables and colours."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """A console of Rich's that leaves it to the tool what happens when nobody reads its output any more.

    Rich itself would end the program with status 1, which is a verdict.
    """

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as any other way to print does."""
        raise BrokenPipeError

"""Runs that SIGINT and SIGTERM end in order: programs that were started end, folders go, the report stays.

Must not know: what is run.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import NoReturn

import click
import trio

from vhostuser.cli.tools import BY_SIGNAL


def run_until_signal(run: Callable[[], Awaitable[object]]) -> signal.Signals | None:
    """Run something in Trio; SIGINT and SIGTERM cancel it.

    Args:
        run: That. What it raises may come as a group.

    Returns:
        The signal that ended it; None if it came to its end.
    """
    return trio.run(_until_signal, run)


async def _until_signal(run: Callable[[], Awaitable[object]]) -> signal.Signals | None:
    came: signal.Signals | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal came
                async for number in signals:
                    came = came or signal.Signals(number)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await run()
            nursery.cancel_scope.cancel()
    return came


def end_by(came: signal.Signals) -> NoReturn:
    """End the program with the status of who was ended by that signal."""
    click.echo(f"ended by {came.name}", err=True)
    raise SystemExit(BY_SIGNAL + came)

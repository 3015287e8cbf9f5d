"""What a check is, and the register of all checks.

Must not know: how a check is run, or what becomes of its outcome.

How: a check is a coroutine function with a :class:`Probe <vhostuser.conformance.probe.Probe>`. It returns when the
back-end did what the statements say, and raises a :class:`Violation <vhostuser.conformance.violation.Violation>` when
it did not. The decorator :func:`checks` puts it into the register under the statements that it proves::

    @checks("VU-HDR-5")
    async def reserved_flags_are_tolerated(probe: Probe) -> None:
        ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from vhostuser.conformance.violation import about
from vhostuser.wire.features import VhostFeature

if TYPE_CHECKING:
    from enum import IntFlag

    from vhostuser.conformance.probe import Probe

Function = TypeVar("Function", bound=Callable[..., Awaitable[None]])


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: Its module and function, ``framing.reserved_flags_are_tolerated``.
        statements: Identifiers of what it proves.
        run: The function.
        needs: Features, virtio's and the protocol's, without which it says nothing.
        devices: Names of the devices that it is for; none: any device.
        echo: Whether it sees what a driver sent come back (:attr:`Offer.echo <vhostuser.conformance.offer.Offer>`).
        slow: Whether it waits for half a minute, so that it had better begin first.
    """

    name: str
    statements: tuple[str, ...]
    run: Callable[[Probe], Awaitable[None]]
    needs: tuple[IntFlag, ...] = ()
    devices: tuple[str, ...] = ()
    echo: bool = False
    slow: bool = False


_register: dict[str, Check] = {}


def checks(
    *statements: str,
    needs: tuple[IntFlag, ...] = (),
    devices: tuple[str, ...] = (),
    echo: bool = False,
    slow: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as a check; the arguments are as for :class:`Check`."""

    def register(function: Function) -> Function:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        assert name not in _register, name
        _register[name] = Check(name, statements, function, needs, devices, echo, slow)
        return function

    return register


def each_layout(function: Callable[[Probe, int], Awaitable[None]]) -> Callable[[Probe], Awaitable[None]]:
    """Make a check of a function that takes a layout, too, as a virtio feature: split, then packed if it is offered."""

    @wraps(function)
    async def check(probe: Probe) -> None:
        for layout in (0, int(VhostFeature.RING_PACKED)):
            if layout & ~probe.offer.virtio:
                continue
            with about("packed rings" if layout else "split rings"):
                await function(probe, layout)

    return check


def all_checks() -> tuple[Check, ...]:
    """Every check that was registered, in the order of the modules."""
    return tuple(_register.values())

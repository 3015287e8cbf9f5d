"""The life of a ring."""

from __future__ import annotations

from vhostuser.errors import FdError
from vhostuser.fds import OwnedFd
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.runtime.vring import Vring, areas
from vhostuser.session.vrings import check_packed_base
from vhostuser.transport.eventfds import check_notifier
from vhostuser.wire.features import VhostFeature
from vhostuser.wire.messages import Message, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.SET_VRING_NUM)
async def _set_vring_num(connection: Connection, message: Message) -> None:
    vring, num = _state(connection, message)
    connection.rings.check_addresses(vring.index, num, vring.addr)
    vring.num = num
    await _refresh_if_started(connection, vring)


@handles(R.SET_VRING_BASE)
async def _set_vring_base(connection: Connection, message: Message) -> None:
    vring, base = _state(connection, message)
    if vring.num and connection.session.features & VhostFeature.RING_PACKED:
        check_packed_base(vring.index, base, vring.num)
    vring.base = base


@handles(R.SET_VRING_ENABLE)
async def _set_vring_enable(connection: Connection, message: Message) -> None:
    vring, enabled = _state(connection, message)
    await enable(connection, vring, bool(enabled))


@handles(R.SET_VRING_ADDR)
async def _set_vring_addr(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, VringAddr)
    vring = connection.rings.vrings[message.payload.index]
    connection.rings.check_addresses(vring.index, vring.num, message.payload)
    before, vring.addr = vring.addr, message.payload
    if vring.live and before is not None and areas(before) == areas(vring.addr):
        await connection.rings.log_anew()  # a chain that a device works on stays where it is
    else:
        await _refresh_if_started(connection, vring)


@handles(R.SET_VRING_KICK)
async def _set_vring_kick(connection: Connection, message: Message) -> None:
    """Start a ring; one that is started gets the new descriptor and is looked at once more.

    A turn follows every call into the thread, so a kick that came before, on whatever descriptor, is not lost.
    """
    vring, fd = _notifier(connection, message)
    vring.polled = fd is None
    await _replace(connection, vring, "kick", fd)
    if not vring.live:
        try:
            await connection.rings.refresh(vring.index)
        except BaseException:
            vring.close("kick")
            raise


@handles(R.VRING_KICK)
async def _vring_kick(connection: Connection, message: Message) -> None:
    """A kick by message starts a ring, too."""
    vring, _ = _state(connection, message)
    if vring.live:
        connection.inband.kick(vring.index)
    else:
        await connection.rings.refresh(vring.index)


@handles(R.SET_VRING_CALL)
async def _set_vring_call(connection: Connection, message: Message) -> None:
    vring, fd = _notifier(connection, message)
    await _replace(connection, vring, "call", fd)


@handles(R.SET_VRING_ERR)
async def _set_vring_err(connection: Connection, message: Message) -> None:
    vring, fd = _notifier(connection, message)
    await _replace(connection, vring, "err", fd)


async def enable(connection: Connection, vring: Vring, enabled: bool = True) -> None:
    """Have a live ring's thread process it, or not; one that is not live learns it when it starts."""
    if vring.live:
        await connection.rings.in_turn(vring.index, lambda ring: setattr(ring, "enabled", enabled))


def take_notifier(connection: Connection, message: Message, whose: str = "") -> OwnedFd:
    """The descriptor of a message that brings one to signal, or to wait for.

    Raises:
        FdError: it cannot notify, or is not to be kept; `whose` ends the sentence.
    """
    fd = message.fds.take()
    try:
        check_notifier(fd.fileno())
        connection.check_foreign(fd, message.name)
    except FdError as error:
        fd.close()
        raise FdError(f"{message.name}: {error.text}{whose}", rule=error.rule) from error
    return fd


async def _replace(connection: Connection, vring: Vring, name: str, fd: OwnedFd | None) -> None:
    """Give a ring its new kick, call or err; the old one is closed when the ring's thread uses it no longer."""
    if vring.live:
        notifier = connection.inband.notifier(vring, name, fd)
        await connection.rings.in_turn(vring.index, lambda ring: getattr(ring, f"set_{name}")(notifier))
    vring.close(name)
    setattr(vring, name, fd)


def _state(connection: Connection, message: Message) -> tuple[Vring, int]:
    assert isinstance(message.payload, VringState)
    return connection.rings.vrings[message.payload.index], message.payload.num


def _notifier(connection: Connection, message: Message) -> tuple[Vring, OwnedFd | None]:
    """The vring of a KICK, CALL or ERR, and its descriptor; None: there is none, on purpose."""
    assert isinstance(message.payload, VringFd)
    if message.payload.no_fd:
        return connection.rings.vrings[message.payload.index], None
    index = message.payload.index
    return connection.rings.vrings[index], take_notifier(connection, message, f" (vring {index})")


async def _refresh_if_started(connection: Connection, vring: Vring) -> None:
    if connection.session.vrings[vring.index].started:
        await connection.rings.refresh(vring.index)

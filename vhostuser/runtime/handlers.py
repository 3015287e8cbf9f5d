"""One handler for each request of the table that the runtime supports.

A handler gets a message that the session has admitted: right size, right number of descriptors, negotiated, legal
now. It carries the request out and returns the body of the request's own reply, or None; it refuses by raising. What
it takes out of the message's descriptors is its own, the rest is closed after it. It does not touch the session's
state: that follows from the outcome.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vhostuser.errors import FdError
from vhostuser.fds import OwnedFd
from vhostuser.runtime.connection import Connection, Handler, Vring
from vhostuser.transport.eventfds import FdKind, check_notifier, kind_of
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.wire.messages import U64, MemoryTable, Message, Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FrontendRequest as R

#: Every supported request and its handler.
HANDLERS: dict[int, Handler] = {}


def _handles(*requests: R) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(requests, handler))
        return handler

    return register


# ---- negotiation: the session keeps all of it ------------------------------------------------------------------------


@_handles(R.GET_FEATURES)
async def _get_features(connection: Connection, message: Message) -> Payload:
    return U64(connection.session.offer.virtio_features)


@_handles(R.GET_PROTOCOL_FEATURES)
async def _get_protocol_features(connection: Connection, message: Message) -> Payload:
    return U64(connection.session.offer.protocol_features)


@_handles(R.GET_QUEUE_NUM)
async def _get_queue_num(connection: Connection, message: Message) -> Payload:
    """The queues as the device type counts them: for a network device pairs, with which QEMU compares its own."""
    return U64(len(connection.device.groups))


@_handles(R.SET_FEATURES, R.SET_PROTOCOL_FEATURES, R.SET_OWNER)
async def _nothing_else_to_do(connection: Connection, message: Message) -> None:
    """The session takes it over from the outcome."""


@_handles(R.RESET_OWNER)
async def _reset(connection: Connection, message: Message) -> None:
    for vring in connection.vrings:
        await connection.stop(vring.index)


@_handles(R.SET_BACKEND_REQ_FD)
async def _set_backend_req_fd(connection: Connection, message: Message) -> None:
    fd = message.fds.take()
    try:
        if (kind := kind_of(fd.fileno())) is not FdKind.SOCKET:
            raise FdError(f"SET_BACKEND_REQ_FD: a socket is needed, not a descriptor of kind {kind}")
        connection.check_foreign(fd, message.name)
    except FdError:
        fd.close()
        raise
    if connection.backend_req is not None:
        connection.backend_req.close()
    connection.backend_req = fd


@_handles(R.NET_SET_MTU)
async def _net_set_mtu(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, U64)
    connection.device.set_mtu(message.payload.value)


@_handles(R.SEND_RARP)
async def _send_rarp(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, U64)
    connection.device.announce(message.payload.value.to_bytes(8, sys.byteorder)[:6])


# ---- memory ----------------------------------------------------------------------------------------------------------


@_handles(R.SET_MEM_TABLE)
async def _set_mem_table(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, MemoryTable)
    mappings: list[Mapping] = []
    try:
        for region, fd in zip(message.payload.regions, message.fds, strict=True):
            mappings.append(
                Mapping(
                    fd.fileno(),
                    region.guest_phys_addr,
                    region.memory_size,
                    region.userspace_addr,
                    region.mmap_offset,
                )
            )
        memory = GuestMemory(mappings)
    except BaseException:
        for mapping in mappings:
            mapping.close()
        raise
    # The answer follows only when no ring reads the old table any more, so the front-end may take its memory away.
    await connection.adopt(memory)
    for vring in connection.vrings:
        if connection.session.vrings[vring.index].started and not vring.live:
            await connection.refresh(vring.index)


# ---- rings -----------------------------------------------------------------------------------------------------------


@_handles(R.SET_VRING_NUM)
async def _set_vring_num(connection: Connection, message: Message) -> None:
    vring, num = _state(connection, message)
    connection.check_addresses(vring.index, num, vring.addr)
    vring.num = num
    await _refresh_if_started(connection, vring)


@_handles(R.SET_VRING_BASE)
async def _set_vring_base(connection: Connection, message: Message) -> None:
    vring, base = _state(connection, message)
    connection.check_base(vring.index, vring.num, base)
    vring.base = base


@_handles(R.GET_VRING_BASE)
async def _get_vring_base(connection: Connection, message: Message) -> Payload:
    vring, _ = _state(connection, message)
    await connection.stop(vring.index)
    return VringState(vring.index, vring.base)


@_handles(R.SET_VRING_ENABLE)
async def _set_vring_enable(connection: Connection, message: Message) -> None:
    vring, enable = _state(connection, message)
    if vring.live:
        ring = connection.ring(vring.index)
        await connection.group(vring.index).call(lambda: setattr(ring, "enabled", bool(enable)))


@_handles(R.SET_VRING_ADDR)
async def _set_vring_addr(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, VringAddr)
    vring = connection.vrings[message.payload.index]
    connection.check_addresses(vring.index, vring.num, message.payload)
    vring.addr = message.payload
    await _refresh_if_started(connection, vring)


@_handles(R.SET_VRING_KICK)
async def _set_vring_kick(connection: Connection, message: Message) -> None:
    """Start a ring; one that is started gets the new descriptor and is looked at once more.

    A turn follows every call into the thread, so a kick that came before, on whatever descriptor, is not lost.
    """
    vring, fd = _notifier(connection, message)
    await _replace(connection, vring, "kick", fd)
    if not vring.live:
        try:
            await connection.refresh(vring.index)
        except BaseException:
            vring.close("kick")
            raise


@_handles(R.SET_VRING_CALL)
async def _set_vring_call(connection: Connection, message: Message) -> None:
    vring, fd = _notifier(connection, message)
    await _replace(connection, vring, "call", fd)


@_handles(R.SET_VRING_ERR)
async def _set_vring_err(connection: Connection, message: Message) -> None:
    vring, fd = _notifier(connection, message)
    await _replace(connection, vring, "err", fd)


async def _replace(connection: Connection, vring: Vring, name: str, fd: OwnedFd | None) -> None:
    """Give a ring its new kick, call or err; the old one is closed when the ring's thread uses it no longer."""
    if vring.live:
        set_fd = getattr(connection.ring(vring.index), f"set_{name}")
        await connection.group(vring.index).call(lambda: set_fd(-1 if fd is None else fd.fileno()))
    vring.close(name)
    setattr(vring, name, fd)


def _state(connection: Connection, message: Message) -> tuple[Vring, int]:
    assert isinstance(message.payload, VringState)
    return connection.vrings[message.payload.index], message.payload.num


def _notifier(connection: Connection, message: Message) -> tuple[Vring, OwnedFd | None]:
    """The vring of a KICK, CALL or ERR, and its descriptor; None: there is none, on purpose."""
    assert isinstance(message.payload, VringFd)
    if message.payload.no_fd:
        return connection.vrings[message.payload.index], None
    fd = message.fds.take()
    try:
        check_notifier(fd.fileno())
        connection.check_foreign(fd, message.name)
    except FdError as error:
        fd.close()
        raise FdError(f"{message.name}: {error} (vring {message.payload.index})") from error
    return connection.vrings[message.payload.index], fd


async def _refresh_if_started(connection: Connection, vring: Vring) -> None:
    if connection.session.vrings[vring.index].started:
        await connection.refresh(vring.index)

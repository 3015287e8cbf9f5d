"""What the device itself keeps: configuration space, state, shared objects and shared memory regions."""

from __future__ import annotations

from vhostuser.errors import PayloadError, StateError
from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.runtime.state_transfer import StateTransfer, check_request
from vhostuser.session.backend import Done
from vhostuser.wire.messages import U64, Config, DeviceState, Message, Payload, SharedObject, ShmemConfig
from vhostuser.wire.requests import FrontendRequest as R

_NO_FD = 0x100  # in the reply to SET_DEVICE_STATE_FD: success, and no other descriptor to use
_MIGRATION = 1  # a flag of SET_CONFIG


@handles(R.GET_CONFIG)
async def _get_config(connection: Connection, message: Message) -> Payload:
    assert isinstance(message.payload, Config)
    offset, size = message.payload.offset, len(message.payload.payload)
    space = connection.device.read_config()
    _check_range(message.name, offset, size, len(space))
    return Config(offset, message.payload.flags, space[offset : offset + size])


@handles(R.SET_CONFIG)
async def _set_config(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, Config)
    offset, flags, data = message.payload.offset, message.payload.flags, message.payload.payload
    _check_range(message.name, offset, len(data), len(connection.device.read_config()))
    if flags not in (0, _MIGRATION):
        words = f"SET_CONFIG: flags {flags:#x} are neither 0 nor {_MIGRATION} (migration)"
        raise PayloadError(words, rule="VU-CONFIG-3")
    connection.device.write_config(offset, data, flags == _MIGRATION)


def _check_range(name: str, offset: int, size: int, space: int) -> None:
    if offset + size > space:
        words = f"{name}: offset {offset} + size {size} is past the configuration space of {space} bytes"
        raise PayloadError(words, rule="VU-CONFIG-2")


@handles(R.SET_DEVICE_STATE_FD)
async def _set_device_state_fd(connection: Connection, message: Message) -> Payload:
    """Begin a transfer; one that was never asked about gives way."""
    assert isinstance(message.payload, DeviceState)
    direction = check_request(message.payload.direction, message.payload.phase)
    transfer = StateTransfer(connection.device, direction, message.fds.take())
    if connection.state_transfer is not None:
        connection.state_transfer.cancel()
    connection.state_transfer = transfer
    connection.start_soon(transfer.run)
    return U64(_NO_FD)


@handles(R.CHECK_DEVICE_STATE)
async def _check_device_state(connection: Connection, message: Message) -> Payload:
    if connection.state_transfer is None:
        raise StateError("CHECK_DEVICE_STATE: no transfer was begun", rule="VU-STATE-2")
    transfer, connection.state_transfer = connection.state_transfer, None
    await transfer.finish()
    return U64(0)


@handles(R.GET_SHARED_OBJECT)
async def _get_shared_object(connection: Connection, message: Message) -> Done:
    """Answer with the object's descriptor, or without any where there is no such object."""
    assert isinstance(message.payload, SharedObject)
    fd = connection.device.shared_object(message.payload.uuid)
    return Done(message.payload, () if fd is None else (fd,))


@handles(R.GET_SHMEM_CONFIG)
async def _get_shmem_config(connection: Connection, message: Message) -> Payload:
    regions = connection.device.shmem_regions
    return ShmemConfig(len(regions), tuple(regions.get(shmid, 0) for shmid in range(256)))

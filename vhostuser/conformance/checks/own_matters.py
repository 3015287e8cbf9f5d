"""What a device keeps itself: its configuration space, its state, shared objects and shared memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import Violation
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, Config, DeviceState, SharedObject, ShmemConfig
from vhostuser.wire.requests import BackendRequest, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.probe import Probe

B, P, R = BackendRequest, ProtocolFeature, FrontendRequest
_MIGRATION = 1  # a flag of SET_CONFIG
_SAVE, _LOAD = 0, 1
_NO_FD = 0x100
_MOST_CONFIG = 256
_PIECE = 1 << 16
_MOST_STATE = 1 << 30  # nobody's state is as large as that


# ---- configuration space ---------------------------------------------------------------------------------------------


async def _config(connection: Connection, offset: int, size: int) -> bytes:
    answer = await connection.accepted(R.GET_CONFIG, Config(offset, 0, bytes(size)))
    if not isinstance(answer.value, Config) or len(answer.value.payload) != size:
        raise Violation(f"GET_CONFIG of {size} bytes at {offset}: {answer.frame}")
    return answer.value.payload


async def _all_config(probe: Probe) -> tuple[Connection, bytes]:
    """A connection, and all of the configuration space, whose size is found by asking for more and more."""
    size = 0
    for step in (128, 64, 32, 16, 8, 4, 2, 1, 1):
        connection = await probe.negotiated(protocol=P.CONFIG | P.REPLY_ACK)
        if size + step > _MOST_CONFIG:
            continue
        try:
            await _config(connection, 0, size + step)
        except Violation:
            continue
        size += step
    connection = await probe.negotiated(protocol=P.CONFIG | P.REPLY_ACK)
    return connection, await _config(connection, 0, size)


@checks("VU-CONFIG-1", needs=(P.CONFIG,))
async def a_piece_of_the_configuration_space(probe: Probe) -> None:
    connection, space = await _all_config(probe)
    if not space:
        raise Violation("CONFIG is offered, and there is not one byte of configuration space")
    for offset in range(len(space)):
        for size in {1, min(4, len(space) - offset), len(space) - offset}:
            piece = await _config(connection, offset, size)
            if piece != space[offset : offset + size]:
                whole = space[offset : offset + size]
                raise Violation(f"GET_CONFIG of {size} bytes at {offset}: {piece.hex()}, in the whole: {whole.hex()}")


@checks("VU-CONFIG-2", needs=(P.CONFIG,))
async def what_is_past_the_end_is_refused(probe: Probe) -> None:
    _, space = await _all_config(probe)
    end = len(space)
    cases = [(end, 1), (end + 1, 1), (1, end), (0xFFFFFFFF, 1), (0xFFFFFFFF, 256)]
    if end < _MOST_CONFIG:
        cases += [(0, end + 1), (0, _MOST_CONFIG)]
    for offset, size in cases:
        connection = await probe.negotiated(protocol=P.CONFIG | P.REPLY_ACK)
        answer = await connection.refused(connection.frame(R.GET_CONFIG, Config(offset, 0, bytes(size))))
        if answer.payload:
            raise Violation(f"GET_CONFIG of {size} bytes at {offset}, of {end} that there are: {answer}")
        for flags in (0, _MIGRATION):
            frame = connection.frame(R.SET_CONFIG, Config(offset, flags, bytes(size)))
            await connection.rejected(frame)
            if connection.closed:
                break


@checks("VU-CONFIG-3", needs=(P.CONFIG, P.REPLY_ACK))
async def who_may_write_what(probe: Probe) -> None:
    connection, space = await _all_config(probe)
    for flags in (2, 3, 1 << 31):
        for offset in (0, len(space) - 1):  # the driver may write one of them at most devices
            frame = connection.frame(R.SET_CONFIG, Config(offset, flags, space[offset : offset + 1]))
            await connection.refused(frame)
    await connection.accepted(R.SET_CONFIG, Config(0, _MIGRATION, space))
    for offset, byte in enumerate(space):
        frame = connection.frame(R.SET_CONFIG, Config(offset, 0, bytes([byte ^ 0xFF])))
        try:
            await connection.refused(frame)
            expected = byte
        except Violation:  # the driver may write there
            expected = byte ^ 0xFF
        if (told := (await _config(connection, offset, 1))[0]) != expected:
            raise Violation(
                f"SET_CONFIG at {offset}, {'done' if expected != byte else 'refused'}: the byte is {told:#x}"
            )
        await connection.accepted(R.SET_CONFIG, Config(offset, _MIGRATION, bytes([byte])))
    if (after := await _config(connection, 0, len(space))) != space:
        raise Violation(f"SET_CONFIG in a migration: {after.hex()} afterwards, {space.hex()} was written")


# ---- state -----------------------------------------------------------------------------------------------------------


async def _begin(probe: Probe, connection: Connection, direction: int) -> int:
    """Begin a transfer; our end of its pipe."""
    reading, writing = probe.pipe()
    ours, theirs = (reading, writing) if direction == _SAVE else (writing, reading)
    answer = await connection.accepted(R.SET_DEVICE_STATE_FD, DeviceState(direction, 0), [theirs])
    probe.drop(theirs)
    if answer.value != U64(_NO_FD) or answer.fds:
        raise Violation(f"SET_DEVICE_STATE_FD: {answer.frame}, expected {_NO_FD:#x} and no descriptor")
    return ours


async def _save(probe: Probe, connection: Connection) -> bytes:
    """The state, read to its end."""
    ours = await _begin(probe, connection, _SAVE)
    state = b""
    with trio.move_on_after(probe.patience.answer):
        while True:
            await trio.lowlevel.wait_readable(ours)
            piece = os.read(ours, _PIECE)
            if not piece:
                return state
            state += piece
    raise Violation(f"the state, after {len(state)} bytes: neither more nor an end in {probe.patience.answer:g} s")


async def _load(probe: Probe, connection: Connection, state: bytes) -> None:
    ours = await _begin(probe, connection, _LOAD)
    if not await _write(ours, state, probe.patience.answer):
        raise Violation(f"a state of {len(state)} bytes is not read to its end")
    probe.drop(ours)


async def _write(fd: int, data: bytes, within: float) -> bool:
    """Write to a pipe; whether all of it was taken in time."""
    rest = memoryview(data)
    with trio.move_on_after(within):
        while rest:
            await trio.lowlevel.wait_writable(fd)
            try:
                rest = rest[os.write(fd, rest[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
        return True
    return False


_STATE = P.DEVICE_STATE | P.REPLY_ACK | P.MQ


@checks("VU-STATE-1", needs=(P.DEVICE_STATE,))
async def a_state_is_saved_and_loaded(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    state = await _save(probe, connection)
    await connection.accepted(R.CHECK_DEVICE_STATE)
    await _load(probe, connection, state)
    await connection.accepted(R.CHECK_DEVICE_STATE)
    if await _save(probe, connection) != state:
        raise Violation(f"a state of {len(state)} bytes was saved, loaded and saved again: it is another one")
    await connection.accepted(R.CHECK_DEVICE_STATE)


@checks("VU-STATE-2", needs=(P.DEVICE_STATE,))
async def a_state_that_is_none_is_told(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    state = await _save(probe, connection)
    await connection.accepted(R.CHECK_DEVICE_STATE)
    for garbage in (b"garbage", bytes(len(state) + 1)):
        await _load(probe, connection, garbage)
        await connection.refused(connection.frame(R.CHECK_DEVICE_STATE))
    if await _save(probe, connection) != state:
        raise Violation("a state that is none was refused, and the device is not as it was before")
    await connection.accepted(R.CHECK_DEVICE_STATE)
    await connection.refused(connection.frame(R.CHECK_DEVICE_STATE))  # there is nothing to ask about any more


@checks("VU-STATE-3", needs=(P.DEVICE_STATE,))
async def an_endless_state_is_cut(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    ours = await _begin(probe, connection, _LOAD)
    written = 0
    while await _write(ours, bytes(_PIECE), probe.patience.answer):
        written += _PIECE
        if written > _MOST_STATE:
            raise Violation(f"a state of {written} bytes is still read")
    await connection.refused(connection.frame(R.CHECK_DEVICE_STATE))


@checks("VU-STATE-3", needs=(P.DEVICE_STATE,), slow=True)
async def a_state_that_stalls_is_given_up(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    ours = await _begin(probe, connection, _LOAD)
    with trio.move_on_after(probe.patience.limit):
        while await _write(ours, b"\0", probe.patience.answer):  # noqa: ASYNC110 - a peer that is slow on purpose
            await trio.sleep(probe.patience.answer)
        await connection.talks()
        return
    raise Violation(f"a state of which a byte comes now and then is read for more than {probe.patience.limit:g} s")


@checks("VU-STATE-4", needs=(P.DEVICE_STATE,))
async def transfers_that_do_not_exist(probe: Probe) -> None:
    reading, writing = probe.pipe()
    for direction, phase in ((2, 0), (0xFFFFFFFF, 0), (_SAVE, 1), (_LOAD, 0xFFFFFFFF)):
        connection = await probe.negotiated(protocol=_STATE)
        frame = connection.frame(R.SET_DEVICE_STATE_FD, DeviceState(direction, phase), [writing])
        await connection.rejected(frame)
    for direction, fd in (
        (_SAVE, reading),
        (_LOAD, writing),
        (_LOAD, probe.eventfd()),
        (_LOAD, probe.open("/proc/self/status")),
        (_SAVE, probe.memfd(4096)),
    ):
        connection = await probe.negotiated(protocol=_STATE)
        frame = connection.frame(R.SET_DEVICE_STATE_FD, DeviceState(direction, 0), [fd])
        await connection.rejected(frame)


@checks("VU-STATE-5", needs=(P.DEVICE_STATE,))
async def a_transfer_gives_way_to_the_next(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    abandoned = await _begin(probe, connection, _LOAD)
    await _save(probe, connection)
    await connection.accepted(R.CHECK_DEVICE_STATE)
    if await _write(abandoned, b"late", probe.patience.silence):
        raise Violation("a transfer was begun and another one after it, and the first one's pipe is still read")


@checks("VU-STATE-6", needs=(P.DEVICE_STATE,))
async def the_front_ends_channel_is_used(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=_STATE)
    await _begin(probe, connection, _SAVE)
    frame = connection.frame(R.SET_DEVICE_STATE_FD, DeviceState(2, 0), [probe.pipe()[1]])
    answer = await connection.refused(frame)
    if len(answer.fds):
        raise Violation(f"{frame}: refused with {answer}, a failure has no descriptor")


@checks("VU-RING-20", needs=(P.DEVICE_STATE,))
async def no_state_moves_while_a_ring_is_started(probe: Probe) -> None:
    driver = await probe.driver(protocol=_STATE)
    connection = driver.connection
    await driver.served()
    frame = connection.frame(R.SET_DEVICE_STATE_FD, DeviceState(_SAVE, 0), [probe.pipe()[1]])
    await connection.rejected(frame)
    if connection.closed:
        return
    await driver.served()
    await driver.stop_all()
    await _save(probe, connection)
    await connection.accepted(R.CHECK_DEVICE_STATE)


# ---- shared objects and shared memory --------------------------------------------------------------------------------


@checks("VU-OBJECT-1", needs=(P.SHARED_OBJECT,))
async def an_object_that_is_not_there(probe: Probe) -> None:
    connection = await probe.negotiated(protocol=P.SHARED_OBJECT | P.REPLY_ACK)
    name = SharedObject(bytes(range(0x90, 0xA0)))
    answer = await connection.accepted(R.GET_SHARED_OBJECT, name)
    if answer.value != name or answer.fds:
        raise Violation(f"GET_SHARED_OBJECT of an object that nobody has: {answer.frame}")


@checks("VU-OBJECT-1", needs=(P.SHARED_OBJECT, P.BACKEND_REQ))
async def an_object_that_was_announced(probe: Probe) -> None:
    driver = await probe.driver(protocol=P.SHARED_OBJECT | P.BACKEND_REQ | P.REPLY_ACK | P.MQ, start=False)
    own = await probe.own_channel(driver.connection)
    await driver.start_all()
    while (message := await own.asked_in_silence()) is not None:
        await own.answer(message)
        if message.request == B.SHARED_OBJECT_ADD and isinstance(message.payload, SharedObject):
            answer = await driver.connection.accepted(R.GET_SHARED_OBJECT, message.payload)
            if answer.value != message.payload or len(answer.fds) != 1:
                raise Violation(f"{message} was announced; GET_SHARED_OBJECT: {answer.frame}")


async def _shmem(probe: Probe) -> ShmemConfig:
    connection = await probe.negotiated(protocol=P.SHMEM | P.REPLY_ACK)
    answer = await connection.accepted(R.GET_SHMEM_CONFIG)
    if not isinstance(answer.value, ShmemConfig):
        raise Violation(f"GET_SHMEM_CONFIG: {answer.frame}")
    return answer.value


@checks("VU-SHMEM-1", needs=(P.SHMEM,))
async def which_shared_memory_regions_there_are(probe: Probe) -> None:
    told = await _shmem(probe)
    there = sum(size > 0 for size in told.memory_sizes)
    if told.nregions != there:
        raise Violation(f"GET_SHMEM_CONFIG: {told.nregions} regions, and {there} of the sizes are not 0")


@checks("VU-SHMEM-4", needs=(P.SHMEM,))
async def shared_memory_regions_are_made_of_pages(probe: Probe) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    for number, size in enumerate((await _shmem(probe)).memory_sizes):
        if size % page:
            raise Violation(f"GET_SHMEM_CONFIG: region {number} has {size:#x} bytes, no multiple of {page:#x}")

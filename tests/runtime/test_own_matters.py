"""What a device keeps itself: configuration space, state, shared objects, shared memory. By a device made for it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hostile.attack import ask, borrowed, eventfd, refused, talking
from tests.hostile.test_memory_control import memfd
from tests.hostile.victim import DEADLINE
from vhostuser.device import Device, Queue
from vhostuser.errors import LocalProtocolError, NotNegotiatedError, PayloadError, VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import FrontEnd, connect
from vhostuser.frontend.memory import GuestRam
from vhostuser.frontend.split import DriverRing
from vhostuser.runtime.backend_channel import BackendChannel
from vhostuser.runtime.complaints import Complaints
from vhostuser.runtime.front_end_calls import FrontEndCalls
from vhostuser.runtime.offer import offer_of
from vhostuser.runtime.serve import Server
from vhostuser.runtime.state_transfer import STATE_TIMEOUT, StateTransfer, TransferDirection
from vhostuser.session.backend import BackendSession
from vhostuser.transport.endpoints import listen
from vhostuser.wire.codec import decode, encode_ack, encode_reply
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, Config, DeviceState, SharedObject, ShmemConfig, ShmemMap
from vhostuser.wire.requests import BACKEND_REQUESTS, BackendRequest, Direction
from vhostuser.wire.requests import FrontendRequest as R

B = BackendRequest
ALL = ProtocolFeature((1 << 24) - 1) & ~ProtocolFeature.GPA_ADDRESSES
SAVE, LOAD = TransferDirection
UUID, OTHER_UUID = bytes(range(16)), bytes(16)
NO_FD = U64(0x100)


class Keeper(Device):
    """A device with four bytes of identity that only a migration may write, four that the driver may, and a state."""

    name, groups = "keeper", ((0,),)
    has_config = shares_objects = True
    max_state = 1 << 20
    shmem_regions = {0: 0x10000, 200: 0x4000}  # noqa: RUF012 - read only

    def __init__(self) -> None:
        self.config = bytearray(b"fix!free")
        self.state = bytes(range(256)) * 1000
        self.object: int | None = None
        self.resets = 0

    def read_config(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes, migration: bool) -> None:
        if offset < 4 and not migration:
            raise PayloadError(f"SET_CONFIG: offset {offset} cannot be written, only 4 and above")
        self.config[offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets += 1

    def save(self) -> bytes:
        return self.state

    def load(self, state: bytes) -> None:
        if state[:2] != b"\0\1":
            raise PayloadError(f"the state begins with {state[:2].hex()}, not with 0001")
        self.state = state

    def shared_object(self, uuid: bytes) -> int | None:
        return self.object if uuid == UUID else None

    async def serve(self, queue: Queue) -> None:
        async for chain in queue:
            await chain.complete()


@dataclass(frozen=True)
class Served:
    """A keeper, and a front-end that has acknowledged all it offers."""

    device: Keeper
    front_end: FrontEnd

    async def transfer(self, direction: TransferDirection) -> int:
        """Begin one; our end of the pipe."""
        ours, theirs = os.pipe2(os.O_NONBLOCK) if direction is SAVE else os.pipe2(os.O_NONBLOCK)[::-1]
        with borrowed(theirs):
            assert await self.front_end.request(R.SET_DEVICE_STATE_FD, DeviceState(direction, 0), [theirs]) == NO_FD
        return ours

    async def check(self) -> None:
        """Ask whether all went well."""
        assert await self.front_end.request(R.CHECK_DEVICE_STATE) == U64(0)


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Keeper]:
    device = Keeper()
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(Server(device, endpoint).run)
        yield device
        nursery.cancel_scope.cancel()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    path = tmp_path / "keeper.sock"
    async with serving(path) as device, connect(path, negotiate=False) as front_end:
        await front_end.negotiate(0, ALL)
        yield Served(device, front_end)


# ---- configuration space ---------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-CONFIG-1")
async def test_a_piece_of_the_configuration_space(served: Served) -> None:
    for offset, size in ((0, 8), (0, 0), (3, 2), (8, 0), (7, 1)):
        asked, told = Config(offset, 0, bytes(size)), Config(offset, 0, b"fix!free"[offset : offset + size])
        assert await served.front_end.request(R.GET_CONFIG, asked) == told


@pytest.mark.proves("VU-CONFIG-2")
@pytest.mark.parametrize("request_", [R.GET_CONFIG, R.SET_CONFIG])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 9), (8, 1), (9, 0), (1, 8), (0xFFFFFFFF, 1), (0xFFFFFFFF, 256), (0, 256), (0, 257)]
)
async def test_s6_what_is_past_the_end_is_refused(served: Served, request_: R, offset: int, size: int) -> None:
    """257 bytes are more than any space has, and none of them is looked at."""
    head = b"".join(word.to_bytes(4, "little") for word in (offset, size, 0))
    await refused(served.front_end, ask(request_, head + bytes(size)))
    assert served.device.config == b"fix!free"


@pytest.mark.proves("VU-CONFIG-3")
async def test_s6_who_may_write_what(served: Served) -> None:
    """Bytes that the driver cannot change change in a migration."""
    await served.front_end.request(R.SET_CONFIG, Config(5, 0, b"RE"))
    assert served.device.config == b"fix!fREe"
    for offset, data in ((0, b"a"), (3, b"ab"), (0, b"12345678")):
        await refused(served.front_end, ask(R.SET_CONFIG, Config(offset, 0, data)))
    assert served.device.config == b"fix!fREe"
    await served.front_end.request(R.SET_CONFIG, Config(0, 1, b"12345678"))
    assert served.device.config == b"12345678"
    for flags in (2, 3, 0x80000000):
        await refused(served.front_end, ask(R.SET_CONFIG, Config(4, flags, b"ab")))


async def test_a_device_without_writable_fields_says_so() -> None:
    with pytest.raises(PayloadError, match="nothing in the configuration space of device rng can be written"):
        Named("rng").write_config(0, b"", False)


class Named(Device):
    groups = ((0,),)

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.proves("VU-OFFER-1")
@pytest.mark.parametrize(
    "request_", [R.GET_CONFIG, R.SET_CONFIG, R.SET_DEVICE_STATE_FD, R.CHECK_DEVICE_STATE, R.GET_SHARED_OBJECT,
                 R.GET_SHMEM_CONFIG]
)  # fmt: skip
async def test_a_device_that_has_none_of_it_offers_none_of_it(attacker: FrontEnd, request_: R) -> None:
    offered = await attacker.request(R.GET_PROTOCOL_FEATURES)
    assert isinstance(offered, U64)
    own = ProtocolFeature.CONFIG | ProtocolFeature.DEVICE_STATE | ProtocolFeature.SHARED_OBJECT | ProtocolFeature.SHMEM
    assert not offered.value & own
    payloads = {
        R.GET_CONFIG: Config(0, 0, b"\0"),
        R.SET_CONFIG: Config(0, 0, b"\0"),
        R.SET_DEVICE_STATE_FD: DeviceState(0, 0),
        R.GET_SHARED_OBJECT: SharedObject(UUID),
    }
    with borrowed(*os.pipe()) as (_, theirs):
        fds = [theirs] if request_ is R.SET_DEVICE_STATE_FD else []
        await refused(attacker, ask(request_, payloads.get(request_, b""), fds))


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-STATE-1", "VU-STATE-6")
async def test_the_state_moves_from_one_device_to_another(served: Served, tmp_path: Path) -> None:
    """As in a migration; more of it than a pipe holds."""
    saved = served.device.state
    with borrowed(await served.transfer(SAVE)) as (ours,):
        state = await read_all(ours)
    await served.check()
    assert state == saved
    served.device.state = b""
    with borrowed(await served.transfer(LOAD)) as (ours,):
        await write_all(ours, state)
    await served.check()
    assert served.device.state == saved


async def read_all(fd: int) -> bytes:
    data = b""
    with trio.fail_after(DEADLINE):
        while True:
            await trio.lowlevel.wait_readable(fd)
            piece = os.read(fd, 1 << 16)
            if not piece:
                return data
            data += piece


async def write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    with trio.fail_after(DEADLINE):
        while rest:
            await trio.lowlevel.wait_writable(fd)
            rest = rest[os.write(fd, rest[: 1 << 12]) :]


async def write_for_ever(fd: int) -> None:
    while True:
        await write_all(fd, bytes(1 << 12))


@pytest.mark.proves("VU-STATE-2")
@pytest.mark.parametrize("state", [b"", b"\0", b"garbage", b"\1\0" * 1000], ids=["none", "cut", "garbage", "other"])
async def test_s1_a_state_that_is_none_is_told_at_the_check(served: Served, state: bytes) -> None:
    """A truncated stream is for the device to find out, since only it knows where its state ends."""
    before = served.device.state
    with borrowed(await served.transfer(LOAD)) as (ours,):
        await write_all(ours, state)
    await refused(served.front_end, ask(R.CHECK_DEVICE_STATE))
    assert served.device.state == before
    await refused(served.front_end, ask(R.CHECK_DEVICE_STATE))


@pytest.mark.proves("VU-STATE-3")
async def test_s1_an_endless_state_is_cut_at_what_the_device_has(served: Served) -> None:
    """It is read no further, and refused; a byte less would have been the device's to judge."""
    ours = await served.transfer(LOAD)
    with borrowed(ours), trio.fail_after(DEADLINE), pytest.raises(BrokenPipeError):
        await write_for_ever(ours)
    await refused(served.front_end, ask(R.CHECK_DEVICE_STATE))


@pytest.mark.proves("VU-STATE-3")
@pytest.mark.parametrize("direction", TransferDirection)
@pytest.mark.parametrize("blocking", [False, True], ids=["O_NONBLOCK", "blocking"])
async def test_s1_a_pipe_that_stalls_is_given_up(
    direction: TransferDirection, blocking: bool, autojump_clock: MockClock
) -> None:
    """Bounded in time, whatever the flags of the open file are, which both sides share."""
    ours, theirs = os.pipe() if direction is SAVE else os.pipe()[::-1]
    fcntl.fcntl(theirs, fcntl.F_SETFL, 0 if blocking else os.O_NONBLOCK)
    with borrowed(ours):
        device = Keeper()
        transfer = StateTransfer(device, direction, OwnedFd(theirs))
        began = trio.current_time()
        await transfer.run()
        assert trio.current_time() - began == STATE_TIMEOUT
        with pytest.raises(VhostUserError, match="did not end in time"):
            await transfer.finish()


@pytest.mark.proves("VU-STATE-4")
@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0xFFFFFFFF, 0), (0, 1), (1, 0xFFFFFFFF)])
async def test_s1_directions_and_phases_that_do_not_exist(served: Served, direction: int, phase: int) -> None:
    with borrowed(*os.pipe()) as (_, theirs):
        await refused(served.front_end, ask(R.SET_DEVICE_STATE_FD, DeviceState(direction, phase), [theirs]))


@contextmanager
def file(path: str = "/etc/hostname") -> Iterator[int]:
    with borrowed(os.open(path, os.O_RDONLY)) as (fd,):
        yield fd


@contextmanager
def an_eventfd() -> Iterator[int]:
    with borrowed(eventfd()) as (fd,):
        yield fd


@contextmanager
def pipe_end(end: int) -> Iterator[int]:
    with borrowed(*os.pipe()) as ends:
        yield ends[end]


@pytest.mark.proves("VU-STATE-4")
@pytest.mark.parametrize(
    ("direction", "make"),
    [
        pytest.param(SAVE, lambda: pipe_end(0), id="a pipe's other end to save"),
        pytest.param(LOAD, lambda: pipe_end(1), id="a pipe's other end to load"),
        pytest.param(LOAD, an_eventfd, id="an eventfd"),
        pytest.param(LOAD, file, id="a file"),
        pytest.param(SAVE, memfd, id="memory"),
    ],
)
async def test_what_is_no_pipe_for_the_state(
    served: Served, direction: TransferDirection, make: Callable[[], AbstractContextManager[int]]
) -> None:
    with make() as fd:
        await refused(served.front_end, ask(R.SET_DEVICE_STATE_FD, DeviceState(direction, 0), [fd]))


@pytest.mark.proves("VU-STATE-5")
async def test_a_new_transfer_takes_the_place_of_one_that_nobody_asked_about(served: Served) -> None:
    with borrowed(await served.transfer(LOAD)) as (abandoned,):
        with borrowed(await served.transfer(SAVE)) as (ours,):
            assert await read_all(ours) == served.device.state
        await served.check()
        with pytest.raises(BrokenPipeError):
            await write_all(abandoned, b"late")


async def test_a_reader_who_leaves(served: Served) -> None:
    os.close(await served.transfer(SAVE))
    await refused(served.front_end, ask(R.CHECK_DEVICE_STATE))


async def test_a_front_end_that_leaves_in_the_middle_of_a_transfer(served: Served) -> None:
    """The fixture that counts descriptors finds none of the transfer's left."""
    with borrowed(await served.transfer(LOAD)) as (ours,):
        await served.front_end.aclose()
        with trio.fail_after(DEADLINE), pytest.raises(BrokenPipeError):
            await write_for_ever(ours)


@pytest.mark.proves("VU-RING-20")
async def test_s1_no_state_moves_while_a_ring_is_started(served: Served) -> None:
    with GuestRam() as memory, closing(DriverRing(memory, 0)) as ring, borrowed(*os.pipe()) as (_, theirs):
        await served.front_end.set_mem_table(memory)
        await served.front_end.start_ring(ring)
        request = ask(R.SET_DEVICE_STATE_FD, DeviceState(SAVE, 0), [theirs])
        await refused(served.front_end, request)
        await served.front_end.stop_ring(ring)
        await talking(served.front_end)


# ---- shared objects and shared memory --------------------------------------------------------------------------------


@pytest.mark.proves("VU-OBJECT-1")
async def test_an_object_that_the_device_shares(served: Served) -> None:
    with memfd() as fd:
        served.device.object = fd
        told, fds = await served.front_end.request_with_fds(R.GET_SHARED_OBJECT, SharedObject(UUID))
        with fds:
            assert told == SharedObject(UUID)
            assert [os.fstat(number).st_ino for number in fds.filenos()] == [os.fstat(fd).st_ino]
        told, fds = await served.front_end.request_with_fds(R.GET_SHARED_OBJECT, SharedObject(OTHER_UUID))
        assert (told, len(fds)) == (SharedObject(OTHER_UUID), 0)


@pytest.mark.proves("VU-SHMEM-1")
async def test_which_shared_memory_regions_there_are(served: Served) -> None:
    sizes = [0] * 256
    sizes[0], sizes[200] = 0x10000, 0x4000
    assert await served.front_end.request(R.GET_SHMEM_CONFIG) == ShmemConfig(2, tuple(sizes))


@pytest.mark.proves("VU-SHMEM-4")
async def test_a_region_that_is_not_made_of_pages_is_the_devices_error(served: Served) -> None:
    channel = BackendChannel(BackendSession(offer_of(served.device)), Complaints())
    with pytest.raises(ValueError, match="shared memory region 3: 0x1001 bytes are no multiple of 0x1000"):
        FrontEndCalls(channel, {0: 0x10000, 3: 0x1001})


@dataclass(frozen=True)
class Called:
    """A keeper whose ring runs, so that it may speak, and the front-end's end of its channel."""

    device: Keeper
    served: Served
    nursery: trio.Nursery

    async def answers(self, request: B, payload: object, value: int = 0, fds: int = 0) -> None:
        """Have the next request be this one, and answer it."""
        channel = self.served.front_end.backend_channel
        assert channel is not None
        with trio.fail_after(DEADLINE):
            frame = await channel.receive()
        with frame.fds:
            message = decode(Direction.BACKEND, frame)
            assert (message.request, message.payload, len(message.fds)) == (request, payload, fds)
        if request is B.SHARED_OBJECT_LOOKUP and not value:
            with memfd() as fd:
                await channel.send(encode_reply(BACKEND_REQUESTS[request], U64(0), [fd]))
        else:
            await channel.send(encode_ack(request, value))


@pytest.fixture
async def called(served: Served) -> AsyncIterator[Called]:
    with GuestRam() as memory, closing(DriverRing(memory, 0)) as ring:
        await served.front_end.set_mem_table(memory)
        await served.front_end.start_ring(ring)
        await served.front_end.open_backend_channel()
        async with trio.open_nursery() as nursery:
            yield Called(served.device, served, nursery)


@pytest.mark.proves("VU-CONFIG-4")
async def test_the_device_tells_that_its_configuration_changed(called: Called) -> None:
    assert called.device.front_end is not None
    called.nursery.start_soon(called.device.front_end.config_changed)
    await called.answers(B.CONFIG_CHANGE_MSG, None)


@pytest.mark.proves("VU-OBJECT-2")
async def test_the_device_tells_of_its_objects_and_asks_for_others(called: Called) -> None:
    calls = called.device.front_end
    assert calls is not None
    found: list[OwnedFd | None] = []

    async def ask_all() -> None:
        await calls.add_object(UUID)
        await calls.remove_object(UUID)
        found.append(await calls.lookup_object(OTHER_UUID))
        found.append(await calls.lookup_object(UUID))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_all)
        await called.answers(B.SHARED_OBJECT_ADD, SharedObject(UUID))
        await called.answers(B.SHARED_OBJECT_REMOVE, SharedObject(UUID))
        await called.answers(B.SHARED_OBJECT_LOOKUP, SharedObject(OTHER_UUID))
        await called.answers(B.SHARED_OBJECT_LOOKUP, SharedObject(UUID), value=1)
    assert found[0] is not None
    assert found[1] is None
    found[0].close()


@pytest.mark.proves("VU-SHMEM-2", "VU-SHMEM-3")
async def test_the_device_maps_files_that_do_not_overlap(called: Called) -> None:
    calls = called.device.front_end
    assert calls is not None
    first, second = ShmemMap(0, 0x1000, 0x2000, 0x3000, 1), ShmemMap(0, 0, 0x5000, 0x1000, 0)
    with memfd() as fd:

        async def map_all() -> None:
            await calls.map(0, 0x2000, 0x3000, fd, 0x1000, writable=True)
            for offset, length in ((0x2000, 0x1000), (0, 0x2001), (0x4FFF, 1), (0, 0x10000)):
                with pytest.raises(LocalProtocolError, match="overlaps what is mapped"):
                    await calls.map(0, offset, length, fd)
            await calls.map(0, 0x5000, 0x1000, fd)
            await calls.unmap(0, 0x2000)
            await calls.map(0, 0x2000, 0x3000, fd, 0x1000, writable=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(map_all)
            await called.answers(B.SHMEM_MAP, first, fds=1)
            await called.answers(B.SHMEM_MAP, second, fds=1)
            await called.answers(B.SHMEM_UNMAP, first)
            await called.answers(B.SHMEM_MAP, first, fds=1)


@pytest.mark.proves("VU-SHMEM-2")
async def test_the_device_maps_nothing_outside_a_region(called: Called) -> None:
    calls = called.device.front_end
    assert calls is not None
    for region, offset, length in ((0, 0, 0x10001), (0, 0x10000, 1), (1, 0, 1), (0, 0, 0), (200, 0x4000, 0x1000)):
        with pytest.raises(LocalProtocolError, match=f"is not inside region {region}"):
            await calls.map(region, offset, length, 0)
    for region, offset in ((0, 0), (200, 0)):
        with pytest.raises(LocalProtocolError, match="nothing is mapped"):
            await calls.unmap(region, offset)


@pytest.mark.proves("VU-SHMEM-3")
async def test_a_mapping_that_is_refused_or_reset_is_none(called: Called) -> None:
    calls = called.device.front_end
    assert calls is not None
    mapping = ShmemMap(200, 0, 0, 0x4000, 0)
    with memfd() as fd:

        async def map_again(refusals: int) -> None:
            for _ in range(refusals):
                with pytest.raises(VhostUserError, match="refused"):
                    await calls.map(200, 0, 0x4000, fd)
            await calls.map(200, 0, 0x4000, fd)

        for refusals in (1, 0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(map_again, refusals)
                for value in (*[1] * refusals, 0):
                    await called.answers(B.SHMEM_MAP, mapping, value, fds=1)
            await called.served.front_end.request(R.SET_STATUS, U64(0))
            assert called.device.resets
            with GuestRam() as memory, closing(DriverRing(memory, 0)) as ring:
                await called.served.front_end.start_ring(ring)


@pytest.mark.proves("VU-SHMEM-3")
async def test_a_reset_takes_away_what_is_being_mapped_and_unmapped(called: Called) -> None:
    """The answers come after it, or never."""
    calls, front_end = called.device.front_end, called.served.front_end
    assert isinstance(calls, FrontEndCalls)
    with memfd() as fd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.map, 200, 0, 0x4000, fd)
            await called.answers(B.SHMEM_MAP, ShmemMap(200, 0, 0, 0x4000, 0), fds=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.unmap, 200, 0)
            await wait_all_tasks_blocked()
            calls.forget()
            await called.answers(B.SHMEM_UNMAP, ShmemMap(200, 0, 0, 0x4000, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.map, 200, 0, 0x4000, fd)
            await wait_all_tasks_blocked()
            calls.forget()
            nursery.cancel_scope.cancel()
        await front_end.request(R.GET_FEATURES)


async def test_without_a_front_end_there_is_nobody_to_ask(tmp_path: Path) -> None:
    async with serving(tmp_path / "keeper.sock") as device:
        assert device.front_end is None
        async with connect(tmp_path / "keeper.sock", negotiate=False) as front_end:
            await front_end.negotiate(0, ProtocolFeature.REPLY_ACK)
            calls = device.front_end
            assert calls is not None
            with pytest.raises(NotNegotiatedError):
                await calls.config_changed()
        await wait_all_tasks_blocked()
        assert device.front_end is None

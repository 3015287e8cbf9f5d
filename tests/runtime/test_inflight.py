"""The inflight region over a real session, and what a ring does with its requests when it stops."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.hostile.victim import DEADLINE, Victim, exchange
from tests.rig.backend import Backend
from tests.rig.netns import Netns
from vhostuser.device import Chain, Device, Queue
from vhostuser.errors import VhostUserError
from vhostuser.fds import OwnedFd
from vhostuser.frontend.client import FrontEnd, InflightFile, connect
from vhostuser.frontend.conversation import RefusedError
from vhostuser.frontend.memory import SEALED, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.packed import PackedDriverRing
from vhostuser.frontend.rings import DriverQueue
from vhostuser.frontend.split import DriverRing
from vhostuser.runtime import rings
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen
from vhostuser.virtio.features import VirtioFeature
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import Inflight, VringState
from vhostuser.wire.requests import FrontendRequest as R

TRACKING = ProtocolFeature.REPLY_ACK | ProtocolFeature.INFLIGHT_SHMFD
SUSPENDING = TRACKING | ProtocolFeature.GET_VRING_BASE_INFLIGHT
CHOOSING = SUSPENDING | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
BUFFER = (0x8000, 64)
either_layout = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Holder(Device):
    """A device that keeps each request until the test lets it go."""

    name, groups = "holder", ((0,),)

    def __init__(self) -> None:
        self.sender, self.chains = trio.open_memory_channel[Chain](16)

    async def serve(self, queue: Queue) -> None:
        async for chain in queue:
            self.sender.send_nowait(chain)

    async def next(self) -> Chain:
        """The request that it has got."""
        with trio.fail_after(DEADLINE):
            return await self.chains.receive()


@asynccontextmanager
async def serving(device: Device, path: Path) -> AsyncIterator[None]:
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(Server(device, endpoint).run)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
async def holder(tmp_path: Path, interrupts: None) -> AsyncIterator[Holder]:
    device = Holder()
    async with serving(device, tmp_path / "sock"):
        yield device


@pytest.fixture
def memory() -> Iterator[GuestRam]:
    with GuestRam() as ram:
        yield ram


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@asynccontextmanager
async def front_end_of(
    path: Path, memory: GuestRam, packed: bool = False, protocol: ProtocolFeature = TRACKING
) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated and told its memory."""
    features = VirtioFeature.VERSION_1 | (VirtioFeature.RING_PACKED if packed else 0)
    with trio.fail_after(DEADLINE):
        async with connect(path, features=features, protocol_features=protocol, memory=memory) as front_end:
            yield front_end


def ring_of(memory: GuestRam, packed: bool) -> DriverQueue:
    return PackedDriverRing(memory, 0, 7) if packed else DriverRing(memory, 0, 8)


def regions_mapped() -> int:
    """How many regions that the back-end made are mapped."""
    return Path("/proc/self/maps").read_text().count("vhost-user-inflight")


async def completed(ring: DriverQueue) -> list[int]:
    """The requests that the driver is told of next."""
    with trio.fail_after(DEADLINE):
        await ring.wait_used()
    return [used.head for used in ring.reap()]


# ---- the region ------------------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-INFLIGHT-1")
@either_layout
async def test_a_region_is_made_and_brought_back(holder: Holder, path: Path, memory: GuestRam, packed: bool) -> None:
    async with front_end_of(path, memory, packed) as front_end:
        file = await front_end.get_inflight(1, 7)
        with file.fd:
            assert file.told == Inflight(256 if packed else 128, 0, 1, 7)
            assert os.fstat(file.fd.fileno()).st_size == file.told.mmap_size
            assert fcntl.fcntl(file.fd.fileno(), fcntl.F_GET_SEALS) == SEALED
            await front_end.set_inflight(file)
            await front_end.set_inflight(file)


@pytest.mark.proves("VU-INFLIGHT-2")
@pytest.mark.parametrize(
    ("num_queues", "queue_size"),
    [
        pytest.param(65535, 65535, id="I2-as-large-as-can-be"),
        pytest.param(0, 8, id="I1-no-queue"),
        pytest.param(2, 8, id="I1-more-queues-than-rings"),
        pytest.param(1, 0, id="I1-no-entry"),
        pytest.param(1, 32769, id="I1-more-entries-than-a-ring-can-have"),
    ],
)
async def test_a_region_for_what_there_is_not_is_refused(
    holder: Holder, path: Path, memory: GuestRam, num_queues: int, queue_size: int
) -> None:
    async with front_end_of(path, memory) as front_end:
        with pytest.raises(RefusedError):
            await front_end.get_inflight(num_queues, queue_size)
        with OwnedFd(os.memfd_create("region")) as fd:
            os.ftruncate(fd.fileno(), 1 << 40)
            told = Inflight(1 << 40, 0, num_queues, queue_size)
            with pytest.raises(RefusedError):
                await front_end.set_inflight(InflightFile(told, fd))


@pytest.mark.proves("VU-INFLIGHT-2")
@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Inflight(191, 0, 1, 8), id="I1-size-below-need"),
        pytest.param(Inflight(4097, 0, 1, 8), id="I1-past-the-end-of-the-file"),
        pytest.param(Inflight(192, 4096, 1, 8), id="I1-offset-at-the-end"),
        pytest.param(Inflight(192, (1 << 64) - 64, 1, 8), id="I1-a-wrap"),
        pytest.param(Inflight((1 << 64) - 1, 64, 1, 8), id="I1-a-wrap-of-both"),
        pytest.param(Inflight(192, 32, 1, 8), id="I1-offset-not-aligned"),
    ],
)
async def test_i1_a_region_that_is_not_there_is_refused(
    holder: Holder, path: Path, memory: GuestRam, told: Inflight
) -> None:
    async with front_end_of(path, memory) as front_end:
        with OwnedFd(os.memfd_create("region")) as fd:
            os.ftruncate(fd.fileno(), 4096)
            with pytest.raises(RefusedError):
                await front_end.set_inflight(InflightFile(told, fd))
            await front_end.set_inflight(InflightFile(Inflight(192, 64, 1, 8), fd))


@pytest.mark.proves("VU-INFLIGHT-2")
async def test_a_pipe_is_no_region(holder: Holder, path: Path, memory: GuestRam) -> None:
    async with front_end_of(path, memory) as front_end:
        read, write = os.pipe()
        with OwnedFd(read) as fd, OwnedFd(write), pytest.raises(RefusedError):
            await front_end.set_inflight(InflightFile(Inflight(192, 0, 1, 8), fd))


@pytest.mark.proves("VU-INFLIGHT-3")
async def test_a_region_is_not_changed_while_a_ring_is_started(holder: Holder, path: Path, memory: GuestRam) -> None:
    with ring_of(memory, packed=False) as ring:
        async with front_end_of(path, memory) as front_end:
            file = await front_end.get_inflight(1, 8)
            with file.fd:
                await front_end.start_ring(ring)
                with pytest.raises(RefusedError):
                    await front_end.get_inflight(1, 8)
                with pytest.raises(RefusedError):
                    await front_end.set_inflight(file)
                await front_end.stop_ring(ring)
                await front_end.set_inflight(file)


@pytest.mark.proves("VU-INFLIGHT-3")
async def test_a_reset_ends_the_region(holder: Holder, path: Path, memory: GuestRam) -> None:
    """What it holds is about rings that are no more."""
    async with front_end_of(path, memory) as front_end:
        (await front_end.get_inflight(1, 8)).fd.close()
        assert regions_mapped() == 1
        await front_end.request(R.RESET_OWNER)
        assert regions_mapped() == 0


@pytest.mark.proves("VU-INFLIGHT-2")
async def test_i2_a_thousand_regions_leave_one(victim: Victim) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, TRACKING)
        for _ in range(1000):
            (await front_end.get_inflight(2, 32768)).fd.close()
        assert regions_mapped() == 1


@pytest.mark.proves("VIO-INFLIGHT-6")
@either_layout
async def test_i1_a_record_that_cannot_be_keeps_its_ring_from_starting(
    holder: Holder, path: Path, memory: GuestRam, packed: bool
) -> None:
    with ring_of(memory, packed) as ring:
        async with front_end_of(path, memory, packed) as front_end:
            file = await front_end.get_inflight(1, ring.size)
            with file.fd:
                os.pwrite(file.fd.fileno(), b"\x07", 8)
                with pytest.raises(RefusedError):
                    await front_end.start_ring(ring)
                os.pwrite(file.fd.fileno(), b"\x00", 8)
                await front_end.start_ring(ring)


# ---- what stays in flight --------------------------------------------------------------------------------------------


@pytest.mark.proves("VU-VRING-BASE-1")
@either_layout
@pytest.mark.parametrize("protocol", [TRACKING, CHOOSING, SUSPENDING], ids=["tracking", "choosing", "no region"])
async def test_a_stop_waits_for_what_is_in_flight(
    holder: Holder, path: Path, memory: GuestRam, packed: bool, protocol: ProtocolFeature
) -> None:
    with ring_of(memory, packed) as ring:
        async with front_end_of(path, memory, packed, protocol) as front_end:
            if protocol is not SUSPENDING:
                (await front_end.get_inflight(1, ring.size)).fd.close()
            heads = [ring.add(writable=[BUFFER]) for _ in range(2)]
            await front_end.start_ring(ring)
            chain = await holder.next()
            stopped = trio.Event()

            async def stop() -> None:
                await front_end.stop_ring(ring)
                stopped.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not stopped.is_set()
                await chain.complete(b"done")
            # the other one was not begun, and is not by now
            assert await completed(ring) == heads[:1]
            assert holder.chains.statistics().current_buffer_used == 0
            await front_end.start_ring(ring)
            await (await holder.next()).complete()
            assert await completed(ring) == heads[1:]


@pytest.mark.proves("VU-VRING-BASE-2")
@either_layout
async def test_a_device_that_never_completes_is_not_waited_for_for_ever(
    holder: Holder, path: Path, memory: GuestRam, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "DRAIN_LIMIT", 0.05)
    with ring_of(memory, packed) as ring:
        async with front_end_of(path, memory, packed) as front_end:
            head = ring.add(writable=[BUFFER])
            await front_end.start_ring(ring)
            late = await holder.next()
            await front_end.stop_ring(ring)
            with pytest.raises(VhostUserError):
                await late.complete(b"late")
            assert not ring.reap()
            await front_end.start_ring(ring)
            await (await holder.next()).complete()
            assert await completed(ring) == [head]


@pytest.mark.proves("VU-VRING-BASE-3")
@either_layout
@pytest.mark.parametrize("protocol", [SUSPENDING, CHOOSING], ids=["by feature", "by request"])
async def test_what_stays_in_flight_goes_on_with_the_next_back_end(
    holder: Holder, path: Path, memory: GuestRam, packed: bool, protocol: ProtocolFeature
) -> None:
    with ring_of(memory, packed) as ring:
        heads = [ring.add(writable=[BUFFER]) for _ in range(3)]
        async with front_end_of(path, memory, packed, protocol) as front_end:
            file = await front_end.get_inflight(1, ring.size)
            await front_end.start_ring(ring)
            await (await holder.next()).complete()
            late = await holder.next()
            base = await front_end.stop_ring(ring, skip_drain=protocol is CHOOSING)
            assert base == (0x8001_8002 if packed else 2)
            with pytest.raises(VhostUserError):
                await late.read()
        assert await completed(ring) == heads[:1]
        with file.fd:
            async with front_end_of(path, memory, packed, protocol) as front_end:
                await front_end.set_inflight(file)
                await front_end.start_ring(ring)
                for _ in range(2):
                    await (await holder.next()).complete()
                while ring.in_flight:
                    heads = heads[len(await completed(ring)) :]


@pytest.mark.proves("VIO-INFLIGHT-1", "VIO-INFLIGHT-2")
@either_layout
async def test_a_connection_that_breaks_loses_no_request(
    holder: Holder, path: Path, memory: GuestRam, packed: bool
) -> None:
    with ring_of(memory, packed) as ring:
        file: InflightFile | None = None
        waiting: list[int] = []
        for _ in range(6):
            async with front_end_of(path, memory, packed) as front_end:
                if file is None:
                    file = await front_end.get_inflight(1, ring.size)
                await front_end.set_inflight(file)
                if isinstance(ring, DriverRing):
                    ring.base = ring.used_idx
                waiting += [ring.add(writable=[BUFFER]) for _ in range(2)]
                await front_end.start_ring(ring)
                await (await holder.next()).complete()
                seen = await completed(ring)
                assert seen == waiting[: len(seen)]
                del waiting[: len(seen)]
                await holder.next()  # it is in flight when the connection ends
        assert file is not None
        file.fd.close()
        assert len(waiting) == 6


@either_layout
async def test_packets_go_on_after_a_break(victim: Victim, memory: GuestRam, packed: bool) -> None:
    """Receive buffers that waited for packets, and whatever was sent: with the record nothing is used twice."""
    features = DRIVER_FEATURES | (VirtioFeature.RING_PACKED if packed else 0)
    with trio.fail_after(DEADLINE):
        async with await victim.connect() as front_end:
            await front_end.negotiate(features, TRACKING)
            await front_end.set_mem_table(memory)
            file = await front_end.get_inflight(2, 16)
            driver = await NetDriver.open_pair(front_end, size=16)
            victim.port.flush()
            await exchange(victim, driver, 9)
        with file.fd, closing(driver):
            async with await victim.connect() as front_end:
                await front_end.negotiate(features, TRACKING)
                await front_end.set_mem_table(memory)
                await front_end.set_inflight(file)
                for ring in (driver.rx, driver.tx):
                    if isinstance(ring, DriverRing):
                        ring.base = ring.used_idx
                    await front_end.start_ring(ring)
                await exchange(victim, driver, 9)


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.proves("VIO-INFLIGHT-1", "VIO-INFLIGHT-2")
@either_layout
async def test_an_entropy_device_that_is_killed_again_and_again(tmp_path: Path, memory: GuestRam, packed: bool) -> None:
    """Killed while it works on a full ring: each request is answered once, with as many bytes as it asked for."""
    path, served, size = tmp_path / "rng.sock", 0, 63 if packed else 64
    files: list[InflightFile] = []
    with (PackedDriverRing if packed else DriverRing)(memory, 0, size) as ring, Netns() as netns:
        for kill in range(3):
            backend = Backend(netns, tap=None, device="rng", socket_path=path)
            try:
                async with front_end_of(path, memory, packed) as front_end:
                    if not files:
                        files.append(await front_end.get_inflight(1, size))
                    await front_end.set_inflight(files[0])
                    if isinstance(ring, DriverRing):
                        ring.base = ring.used_idx
                    await front_end.start_ring(ring)
                    for _ in range(40 + 17 * kill):
                        while ring.free:
                            ring.add(writable=[BUFFER])
                        ring.kick()
                        await ring.wait_used()
                        answers = ring.reap()
                        served += len(answers)
                        assert {used.written for used in answers} == {64}
                    backend.program.kill()
            finally:
                backend.kill()
        files[0].fd.close()
    assert served >= 40 + 57 + 74


async def test_the_request_by_which_a_ring_stops_at_once_wants_its_features(
    holder: Holder, path: Path, memory: GuestRam
) -> None:
    async with front_end_of(path, memory, protocol=SUSPENDING) as front_end:
        with pytest.raises(RefusedError):
            await front_end.request(R.GET_VRING_BASE_SKIP_DRAIN, VringState(0, 0))

"""The dirty log's requests, and a migration that the front-end plays: a copy kept up by the log is the guest's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import Running, accepted, ask, borrowed, eventfd, refused
from tests.hostile.victim import DEADLINE, Victim, exchange
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.dirty import PAGE, DirtyBitmap
from vhostuser.frontend.features import DriverFeature
from vhostuser.frontend.memory import DEFAULT_LAYOUT, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.rings import DriverQueue
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, Log, VringState
from vhostuser.wire.requests import FrontendRequest

R = FrontendRequest
NO_LOG = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class RecordingRam(GuestRam):
    """Guest memory that knows what the guest itself wrote, as a hypervisor does."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty: set[int] = set()

    def write(self, guest_phys_addr: int, data: bytes) -> None:
        super().write(guest_phys_addr, data)
        self.dirty |= set(range(guest_phys_addr & -PAGE, guest_phys_addr + len(data), PAGE))

    def store_u16(self, guest_phys_addr: int, value: int) -> None:
        super().store_u16(guest_phys_addr, value)
        self.dirty.add(guest_phys_addr & -PAGE)


class Destination:
    """Another host's copy of a guest's memory, kept up page by page."""

    def __init__(self, source: RecordingRam, log: DirtyBitmap) -> None:
        self.source = source
        self.log = log
        self.copies = {region.guest_phys_addr: bytearray(region.bytes) for region in source.regions}
        source.dirty.clear()

    def sync(self) -> int:
        """Copy what was written since the last time; how many pages."""
        pages = self.log.take()
        pages |= self.source.dirty
        self.source.dirty.clear()
        for page in pages:
            begin = max(begin for begin in self.copies if begin <= page)
            self.copies[begin][page - begin : page - begin + PAGE] = self.source.read(page, PAGE)
        return len(pages)

    def differing(self) -> list[int]:
        """The pages that are not what the guest has."""
        return [
            region.guest_phys_addr + at
            for region in self.source.regions
            for at in range(0, region.memory_size, PAGE)
            if self.copies[region.guest_phys_addr][at : at + PAGE] != region.bytes[at : at + PAGE]
        ]


@pytest.fixture
def log() -> Iterator[DirtyBitmap]:
    with DirtyBitmap(max(begin + size for begin, size in DEFAULT_LAYOUT)) as bitmap:
        yield bitmap


@pytest.fixture(params=[False, True], ids=["split", "packed"])
async def migrating(
    request: pytest.FixtureRequest, victim: Victim, log: DirtyBitmap
) -> AsyncIterator[tuple[Running, Destination]]:
    """A guest whose rings run and whose log is on."""
    with RecordingRam() as memory:
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, memory, packed=request.param)) as driver:
                await front_end.set_log(log)
                await front_end.log_all(True)
                for ring in (driver.rx, driver.tx):
                    await tell_log(front_end, ring)
                yield Running(front_end, memory, driver), Destination(memory, log)


async def tell_log(front_end: FrontEnd, ring: DriverQueue, on: bool = True) -> None:
    """Have a running ring's own areas logged, or not any more, as QEMU does."""
    address = ring.used_addr if on else None
    await front_end.request(R.SET_VRING_ADDR, front_end.vring_addr(ring, address))


def mapped_logs() -> int:
    """How often a log is mapped in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:dirty-log")


async def stop(running: Running) -> None:
    for ring in (running.driver.rx, running.driver.tx):
        await running.front_end.stop_ring(ring)


@pytest.mark.proves("VU-LOG-1", "VU-LOG-11")
async def test_a_copy_that_is_kept_up_is_the_guests_memory(
    victim: Victim, migrating: tuple[Running, Destination]
) -> None:
    running, destination = migrating
    for _ in range(10):
        await exchange(victim, running.driver)
        destination.sync()
    await exchange(victim, running.driver)
    await stop(running)
    destination.sync()
    assert destination.differing() == []


@pytest.mark.proves("VU-LOG-4", "VU-LOG-12")
async def test_logging_is_switched_while_packets_flow(victim: Victim, migrating: tuple[Running, Destination]) -> None:
    running, destination = migrating
    for _ in range(3):
        await exchange(victim, running.driver)
        await running.front_end.log_all(False)
        destination.log.take()
        await exchange(victim, running.driver)
        assert destination.log.pages() == set()
        await running.front_end.log_all(True)  # the log is still where it was
        destination = Destination(destination.source, destination.log)
        await exchange(victim, running.driver)
    await stop(running)
    destination.sync()
    assert destination.differing() == []


@pytest.mark.proves("VU-LOG-13")
async def test_the_log_is_replaced_while_packets_flow(victim: Victim, migrating: tuple[Running, Destination]) -> None:
    running, destination = migrating
    for _ in range(3):
        await exchange(victim, running.driver)
        with DirtyBitmap(running.memory.top + (1 << 30), PAGE) as larger:
            assert await running.front_end.set_log(larger) == larger.message()
            destination.sync()
            await exchange(victim, running.driver)
            assert destination.log.pages() == set()
            assert larger.pages()
            await running.front_end.set_log(destination.log)
            destination.source.dirty |= larger.take()
    await stop(running)
    destination.sync()
    assert destination.differing() == []


@pytest.mark.proves("VU-LOG-3")
async def test_a_rings_own_areas_are_logged_while_f_log_is_set(
    victim: Victim, migrating: tuple[Running, Destination]
) -> None:
    running, destination = migrating
    packed = bool(running.front_end.features & DriverFeature.RING_PACKED)
    rings = (running.driver.rx, running.driver.tx)
    own = {(ring.desc_addr if packed else ring.used_addr) & -PAGE for ring in rings}
    await exchange(victim, running.driver)
    assert own <= destination.log.take()
    for ring in rings:
        await tell_log(running.front_end, ring, False)
    destination.log.take()
    await exchange(victim, running.driver)
    logged = destination.log.take()
    assert logged
    assert not own & logged


@pytest.mark.proves("VU-LOG-15")
async def test_a_packed_rings_areas_are_logged_where_they_are(victim: Victim, log: DirtyBitmap) -> None:
    with RecordingRam() as memory:
        async with await victim.connect() as front_end:
            with closing(await NetDriver.start(front_end, memory, packed=True)) as driver:
                await front_end.set_log(log)
                await front_end.log_all(True)
                ring = driver.tx
                await front_end.request(R.SET_VRING_ADDR, front_end.vring_addr(ring, 1 << 31))
                log.take()
                await exchange(victim, driver)
                logged = log.take()
                with trio.fail_after(DEADLINE):
                    while not {ring.desc_addr & -PAGE, ring.used_addr & -PAGE} <= logged:
                        await exchange(victim, driver, 1)
                        logged |= log.take()
                assert 1 << 31 not in logged


@pytest.mark.proves("VU-LOG-14")
async def test_the_log_is_forgotten_when_ownership_is_given_up(
    victim: Victim, migrating: tuple[Running, Destination]
) -> None:
    running, _ = migrating
    assert mapped_logs() == 2
    await exchange(victim, running.driver)
    await running.front_end.request(R.RESET_OWNER)
    assert mapped_logs() == 1  # the front-end's own


@pytest.mark.proves("VU-LOG-9")
async def test_the_logs_eventfd_is_signalled_and_replaced(
    victim: Victim, migrating: tuple[Running, Destination]
) -> None:
    running, destination = migrating
    with borrowed(eventfd(), eventfd()) as fds:
        for fd in fds:
            await running.front_end.request(R.SET_LOG_FD, fds=[fd])
            destination.log.take()
            await exchange(victim, running.driver)
            with trio.fail_after(DEADLINE):
                await trio.lowlevel.wait_readable(fd)
            os.eventfd_read(fd)


# ---- refusals --------------------------------------------------------------------------------------------------------


async def log_refused(front_end: FrontEnd, log: Log, fd: int) -> None:
    """Told by a code: an empty reply is how some back-ends say that they took the log."""
    with trio.fail_after(DEADLINE):
        await front_end.send_frame(ask(R.SET_LOG_BASE, log, [fd]))
        answer = await front_end.receive_frame()
        assert (answer.request, answer.payload) == (R.SET_LOG_BASE, layouts.build(U64(1))), str(answer)


@pytest.mark.proves("VU-LOG-10")
@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(0, 0, id="L1-empty"),
        pytest.param(1, 0, id="L1-one byte"),
        pytest.param(-1, 0, id="L1-a byte too small for memory"),
        pytest.param(1 << 40, 0, id="L1-longer than its file"),
        pytest.param(0x2_0000, 1 << 63, id="L1-offset beyond the file"),
        pytest.param(1 << 63, 1 << 63, id="L1-wraps"),
    ],
)
async def test_a_log_that_cannot_be_is_refused_and_the_old_one_goes_on(
    victim: Victim, migrating: tuple[Running, Destination], size: int, offset: int
) -> None:
    running, destination = migrating
    wanted = destination.log.size + size if size < 0 else size
    await log_refused(running.front_end, Log(wanted, offset), destination.log.fd.fileno())
    await exchange(victim, running.driver)
    await stop(running)
    destination.sync()
    assert destination.differing() == []


@pytest.mark.proves("VU-LOG-10")
async def test_l3_a_log_without_its_feature_is_refused(victim: Victim, log: DirtyBitmap) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, NO_LOG)
        await refused(front_end, ask(R.SET_LOG_BASE, log.message(), [log.fd.fileno()]))


@pytest.mark.proves("VU-LOG-10")
async def test_l4_a_log_eventfd_that_is_none_is_refused(attacker: FrontEnd, log: DirtyBitmap) -> None:
    await refused(attacker, ask(R.SET_LOG_FD, fds=[log.fd.fileno()]))


async def test_many_logs_leave_nothing_behind(migrating: tuple[Running, Destination]) -> None:
    running, destination = migrating
    for _ in range(100):
        await running.front_end.set_log(destination.log)


async def test_a_driver_never_sees_log_all(victim: Victim, migrating: tuple[Running, Destination]) -> None:
    running, _ = migrating
    assert running.front_end.features & VhostFeature.LOG_ALL
    await stop(running)
    for ring in (running.driver.rx, running.driver.tx):
        await running.front_end.start_ring(ring)  # a device that starts now learns what was negotiated
    assert not victim.port.features & VhostFeature.LOG_ALL
    await accepted(running.front_end, ask(R.SET_VRING_ENABLE, VringState(0, 1)))
    await accepted(running.front_end, ask(R.SET_FEATURES, U64(running.front_end.features & ~int(VhostFeature.LOG_ALL))))

"""Rows L and S of the hostile inputs, as far as a feature's own tests do not show them; Q2 and Q3 for packed rings."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.hostile.attack import REQUEST, accepted, ask, borrowed, closed, eventfd, refused, unanswered
from tests.hostile.test_packed_content import FEATURES as PACKED
from tests.hostile.victim import DEADLINE, Victim, exchange, serving, unharmed
from vhostuser.devices.net.features import NetFeature
from vhostuser.frontend.client import FrontEnd
from vhostuser.frontend.memory import USERSPACE_BASE, GuestRam
from vhostuser.frontend.net import DRIVER_FEATURES, NetDriver
from vhostuser.frontend.split import DriverRing
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, Log, VringAddr, VringState
from vhostuser.wire.requests import FrontendRequest as R

NUM = 200  # of a packed ring: no power of two
DESCRIPTORS, DRIVER, DEVICE = 0x1000, 0x2000, 0x2010
NAMES = ("descriptor", "available", "used")


@pytest.fixture
async def settable(tmp_path: Path, interrupts: None) -> AsyncIterator[FrontEnd]:
    """A front-end that may set an MTU and let itself be announced."""
    async with (
        serving(tmp_path / "mtu.sock", features=NetFeature.MTU) as victim,
        unharmed(victim),
        await victim.connect() as front_end,
    ):
        wanted = ProtocolFeature.REPLY_ACK | ProtocolFeature.NET_MTU | ProtocolFeature.RARP
        await front_end.negotiate(DRIVER_FEATURES | NetFeature.MTU, wanted)
        yield front_end


# ---- S2, S4 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [pytest.param(n, id=f"S2-mtu-{n}") for n in (0, 67, 65536, 1 << 32 | 1500, 1 << 63)])
async def test_an_mtu_that_cannot_be(settable: FrontEnd, mtu: int) -> None:
    await refused(settable, ask(R.NET_SET_MTU, U64(mtu)))
    await accepted(settable, ask(R.NET_SET_MTU, U64(1500)))


@pytest.mark.parametrize(
    "word",
    [
        pytest.param(0x0000_0168_7600_5401, id="S2-rarp-of-a-multicast-address"),
        pytest.param(0x0000_FFFF_FFFF_FFFF, id="S2-rarp-of-everybody"),
        pytest.param(0x0001_0168_7600_5452, id="S2-rarp-with-high-bytes"),
    ],
)
async def test_an_address_that_no_guest_has(settable: FrontEnd, word: int) -> None:
    await refused(settable, ask(R.SEND_RARP, U64(word)))
    await accepted(settable, ask(R.SEND_RARP, U64(0x0168_7600_5452)))


@pytest.mark.parametrize("kind", [pytest.param(name, id=f"S4-{name}") for name in ("eventfd", "pipe", "memfd", "file")])
async def test_a_channel_back_that_is_no_socket(victim: Victim, kind: str) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(0, ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ)
        with borrowed(*descriptors(kind)) as fds:
            await refused(front_end, ask(R.SET_BACKEND_REQ_FD, fds=fds[:1]))


def descriptors(kind: str) -> tuple[int, ...]:
    match kind:
        case "eventfd":
            return (eventfd(),)
        case "pipe":
            return os.pipe()
        case "memfd":
            return (os.memfd_create("no-socket"),)
    return (os.open("/proc/self/status", os.O_RDONLY),)


@pytest.mark.parametrize("status", [pytest.param(n, id=f"S3-status-{n:#x}") for n in (0x100, 1 << 32 | 1, 1 << 63)])
async def test_a_status_that_cannot_be(victim: Victim, status: int) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
        await accepted(front_end, ask(R.SET_STATUS, U64(0xB)))
        await refused(front_end, ask(R.SET_STATUS, U64(status)))
        assert await front_end.request(R.GET_STATUS) == U64(0xB)


@pytest.mark.parametrize("case", [pytest.param(None, id="S3-backwards")])
async def test_a_status_that_goes_backwards_is_followed(victim: Victim, case: None) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
        for status in (0xF, 0x3, 0x1, 0x8F, 0x40, 0):
            await accepted(front_end, ask(R.SET_STATUS, U64(status)))
            assert await front_end.request(R.GET_STATUS) == U64(status)


INBAND = ProtocolFeature.INBAND_NOTIFICATIONS


@pytest.mark.parametrize(
    "partners",
    [
        pytest.param(ProtocolFeature(0), id="S7-alone"),
        pytest.param(ProtocolFeature.REPLY_ACK, id="S7-without-a-channel-back"),
        pytest.param(ProtocolFeature.BACKEND_REQ, id="S7-without-acknowledgements"),
    ],
)
async def test_in_band_notifications_without_their_partners(attacker: FrontEnd, partners: ProtocolFeature) -> None:
    await closed(attacker, ask(R.SET_PROTOCOL_FEATURES, U64(INBAND | partners)))


# ---- L: the dirty log ------------------------------------------------------------------------------------------------

LOG_SIZE = 1 << 20  # bytes: enough for the memory of these tests


@pytest.fixture
async def logging(victim: Victim) -> AsyncIterator[tuple[FrontEnd, GuestRam]]:
    """A front-end that may log, with its memory told."""
    with GuestRam() as memory:
        async with await victim.connect() as front_end:
            wanted = ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD
            await front_end.negotiate(DRIVER_FEATURES | VhostFeature.LOG_ALL, wanted)
            await front_end.set_mem_table(memory)
            yield front_end, memory


def log_file(size: int = LOG_SIZE) -> int:
    fd = os.memfd_create("log")
    os.ftruncate(fd, size)
    return fd


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(0, 0, id="L1-of-no-size"),
        pytest.param(8, 0, id="L1-that-covers-nothing"),
        pytest.param(2 * LOG_SIZE, 0, id="L1-larger-than-its-file"),
        pytest.param(LOG_SIZE, 4096, id="L1-beyond-the-end-of-its-file"),
        pytest.param(LOG_SIZE, (1 << 64) - 4096, id="L1-that-wraps"),
        pytest.param(1 << 63, 0, id="L1-of-half-of-everything"),
    ],
)
async def test_a_log_that_cannot_be(logging: tuple[FrontEnd, GuestRam], size: int, offset: int) -> None:
    with borrowed(log_file()) as (fd,):
        await refused(logging[0], ask(R.SET_LOG_BASE, Log(size, offset), [fd]))


@pytest.mark.parametrize("at", [pytest.param(n, id=f"L2-used-ring-at-{n:#x}") for n in (1 << 40, 1 << 63, 2**64 - 4)])
async def test_a_used_ring_whose_place_in_the_log_is_far_out(
    victim: Victim, logging: tuple[FrontEnd, GuestRam], at: int
) -> None:
    front_end, memory = logging
    with borrowed(log_file()) as (fd,), trio.fail_after(DEADLINE):
        await front_end.request(R.SET_LOG_BASE, Log(LOG_SIZE, 0), [fd])
        rings = [DriverRing(memory, index, 256, event_idx=True) for index in range(2)]
        with closing(NetDriver(rings[0], rings[1], front_end.features)) as driver:
            driver.fill()
            for ring in rings:
                await front_end.start_ring(ring, log_addr=at)
            victim.port.flush()
            await exchange(victim, driver)


@pytest.mark.parametrize("fds", [pytest.param(0, id="L3-without-a-log"), pytest.param(1, id="L3-with-one")])
async def test_a_log_that_was_not_agreed_on(victim: Victim, fds: int) -> None:
    async with await victim.connect() as front_end:
        await front_end.negotiate(DRIVER_FEATURES, ProtocolFeature.REPLY_ACK)
        with borrowed(log_file()) as (fd,):
            await refused(front_end, ask(R.SET_LOG_BASE, Log(LOG_SIZE, 0), [fd] * fds))


@pytest.mark.parametrize("kind", [pytest.param(name, id=f"L4-{name}") for name in ("memfd", "file")])
async def test_a_log_notifier_that_cannot_notify(attacker: FrontEnd, kind: str) -> None:
    with borrowed(*descriptors(kind)) as fds:
        await refused(attacker, ask(R.SET_LOG_FD, fds=fds[:1]))


@pytest.mark.parametrize("blocking", [pytest.param(n, id=f"L4-full-{name}") for n, name in ((0, "blocks"), (1, "not"))])
async def test_a_log_notifier_that_is_full(victim: Victim, attacker: FrontEnd, blocking: int) -> None:
    with borrowed(eventfd(0, os.EFD_NONBLOCK * blocking)) as (fd,):
        os.eventfd_write(fd, 2**64 - 2)
        await accepted(attacker, ask(R.SET_LOG_FD, fds=[fd]))
        await unanswered(attacker, ask(R.SET_LOG_FD, flags=REQUEST))


# ---- Q2, Q3: packed rings --------------------------------------------------------------------------------------------


@pytest.fixture
async def packed(victim: Victim) -> AsyncIterator[FrontEnd]:
    """A front-end that has negotiated packed rings and told its memory."""
    with GuestRam() as memory:
        async with await victim.connect() as front_end:
            await front_end.negotiate(PACKED)
            await front_end.set_mem_table(memory)
            yield front_end


@pytest.mark.parametrize("num", [pytest.param(n, id=f"Q2-packed-num-{n}") for n in (0, 32769, 65536, 0xFFFFFFFF)])
async def test_a_size_that_no_packed_ring_has(packed: FrontEnd, num: int) -> None:
    await refused(packed, ask(R.SET_VRING_NUM, VringState(0, num)))
    await accepted(packed, ask(R.SET_VRING_NUM, VringState(0, NUM)))


@pytest.mark.parametrize("area", [pytest.param(area, id=f"Q3-packed-{area}") for area in NAMES])
@pytest.mark.parametrize("off", [1, 2, 1 << 40, (1 << 64) - 0x8000_0000_0000], ids=hex)
async def test_addresses_that_a_packed_ring_cannot_have(packed: FrontEnd, area: str, off: int) -> None:
    """Not aligned, far away, around the end of all addresses."""
    base = USERSPACE_BASE
    good = VringAddr(0, 0, base + DESCRIPTORS, base + DEVICE, base + DRIVER, 0)
    await accepted(packed, ask(R.SET_VRING_NUM, VringState(0, NUM)))
    await accepted(packed, ask(R.SET_VRING_ADDR, good))
    await refused(packed, ask(R.SET_VRING_ADDR, replace(good, **{area: (getattr(good, area) + off) % (1 << 64)})))

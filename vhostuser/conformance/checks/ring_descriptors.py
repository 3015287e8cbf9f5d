"""The kick, call and error descriptors of rings: of what kind they may be, and how they are replaced."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.wire.messages import VringFd
from vhostuser.wire.requests import FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostuser.conformance.probe import Probe

R = FrontendRequest
_FULL = 0xFFFFFFFFFFFFFFFE  # the largest value of an eventfd: one more has to wait
_ALL = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)


@checks("VU-RING-17")
async def a_kick_descriptor_is_replaced(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    new = probe.eventfd(name="new kick")
    await driver.connection.accepted(R.SET_VRING_KICK, VringFd(driver.work.index), [new])
    for _ in range(3):
        driver.give()
        probe.signal(new)
        await driver.used(1)


@checks("VU-RING-17")
async def a_call_descriptor_is_replaced(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    for _ in range(2):
        new = probe.eventfd(name="new call")
        await driver.connection.accepted(R.SET_VRING_CALL, VringFd(driver.work.index), [new])
        driver.work.ask_for_call()
        await driver.served()
        await driver.signalled(new, "the new call descriptor")


@checks("VU-RING-17")
async def an_err_descriptor_is_replaced(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    new = probe.eventfd(name="new err")
    await driver.connection.accepted(R.SET_VRING_ERR, VringFd(driver.work.index), [new])
    ring = driver.work
    ring.memory.store_u16(ring.avail_addr + 2, ring.memory.load_u16(ring.avail_addr + 2) + ring.size + 1)
    driver.kick(ring)
    await driver.signalled(new, "the new err descriptor of a ring whose avail index cannot be")


@checks("VU-RING-24")
async def descriptors_that_cannot_notify_are_refused(probe: Probe) -> None:
    driver = await probe.driver()
    connection, index = driver.connection, driver.work.index
    for fd in (probe.memfd(4096), probe.open("/dev/null", os.O_RDWR), probe.open("/")):
        for request in _ALL:
            await connection.refused(connection.frame(request, VringFd(index), [fd]))
    await driver.served()


@checks("VU-RING-24")
async def odd_call_descriptors_keep_nobody_waiting(probe: Probe) -> None:
    for fd in _odd(probe):
        driver = await probe.driver()
        await driver.served()
        for request in (R.SET_VRING_CALL, R.SET_VRING_ERR):
            await driver.connection.accepted(request, VringFd(driver.work.index), [fd])
        driver.work.ask_for_call()
        await driver.served(3)
        await driver.stop(driver.work)


@checks("VU-RING-24")
async def pipes_and_sockets_kick(probe: Probe) -> None:
    reading, writing = probe.pipe()
    ours, theirs = probe.socketpair()
    for kick, other in ((reading, writing), (theirs, ours)):
        driver = await probe.driver()
        await driver.served()
        await driver.connection.accepted(R.SET_VRING_KICK, VringFd(driver.work.index), [kick])
        for _ in range(2):
            driver.give()
            probe.poke(kick, other)
            await driver.used(1)


def _odd(probe: Probe) -> Iterator[int]:
    """Descriptors to signal, of kinds that are not usual, full, blocking, or without anybody who reads."""
    for flags in (os.EFD_NONBLOCK, 0):
        full = probe.eventfd(0, flags, "full eventfd")
        os.eventfd_write(full, _FULL)
        yield full
    reading, writing = probe.pipe()
    yield writing
    reading, writing = probe.pipe()
    probe.drop(reading)
    yield writing
    ours, theirs = probe.socketpair()
    _fill(theirs)
    yield theirs
    ours, theirs = probe.socketpair()
    probe.drop(ours)
    yield theirs


def _fill(fd: int) -> None:
    """Write to a socket until it takes no more; whoever writes next would wait."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setblocking(False)
        try:
            while True:
                sock.send(bytes(4096))
        except BlockingIOError:
            sock.setblocking(True)


@checks("VU-RING-26")
async def the_bytes_of_a_kick_have_no_meaning(probe: Probe) -> None:
    driver = await probe.driver()
    await driver.served()
    for value in (0x1234, 1 << 40, 1):
        driver.give()
        driver.give()
        probe.signal(driver.work.kick_fd.fileno(), value)
        await driver.used(2)


@checks("VU-RING-26")
async def the_bytes_of_a_call_wake_once(probe: Probe) -> None:
    driver = await probe.driver()
    ring = driver.work
    ring.ask_for_call()
    await driver.served()
    await driver.signalled(ring.call_fd.fileno(), "call")
    ring.ask_for_call()
    await driver.served()
    await driver.signalled(ring.call_fd.fileno(), "call, the second time,")

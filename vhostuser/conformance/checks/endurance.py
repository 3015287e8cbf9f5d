"""Too much and too wild: what a back-end has to stand, and how long it has to wait."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import trio

from vhostuser.conformance.check import checks
from vhostuser.conformance.connection import NEED_REPLY, REQUEST
from vhostuser.conformance.violation import Violation
from vhostuser.wire import layouts
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.connection import Connection
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.probe import Probe
    from vhostuser.frontend.rings import DriverQueue
    from vhostuser.wire.frames import Frame

R = FrontendRequest
_MANY = 12_000
_BATCH = 100
_CLIENTS = 300
_WILD_FRAMES = 400
_WILD_ROUNDS = 12
_DESCRIPTOR = struct.Struct("=QIHH")
_FLAGS = (REQUEST, REQUEST, NEED_REPLY, NEED_REPLY, 0xFFFFFFF1, 0, 5)


@checks("VIO-LIMIT-1")
async def messages_that_come_fast_are_all_answered(probe: Probe) -> None:
    connection = await probe.connect()
    question = connection.frame(R.GET_FEATURES, flags=REQUEST)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            for _ in range(_MANY // _BATCH):
                await connection.send_joined(*[question] * _BATCH)

        nursery.start_soon(ask)
        for number in range(_MANY):
            answer = await connection.hear(f"answer {number + 1} of {_MANY} to GET_FEATURES")
            if answer.request != R.GET_FEATURES:
                raise Violation(f"GET_FEATURES, {_MANY} times at once: {answer} came after {number} answers")


@checks("VIO-LIMIT-2", slow=True)
async def a_client_that_says_nothing_gives_way(probe: Probe) -> None:
    silent = await probe.connect()
    second = await probe.connect(beside=True)
    await second.send(second.frame(R.GET_FEATURES, flags=REQUEST))
    await silent.closes_in_time("a client that says nothing while another one waits")
    answer = await second.hear("the answer to who waited behind a client that said nothing")
    if answer.request != R.GET_FEATURES:
        raise Violation(f"GET_FEATURES of the client that waited: {answer} came")


@checks("VIO-LIMIT-3")
async def clients_that_come_fast_are_all_served(probe: Probe) -> None:
    for _ in range(_CLIENTS):
        connection = await probe.connect()
        await connection.talks()


@checks("VIO-HOSTILE-1")
async def wild_frames_harm_nobody(probe: Probe) -> None:
    chance = random.Random(1)
    pool = [probe.eventfd(), probe.memfd(1 << 20), probe.open("/dev/null"), *probe.pipe(), *probe.socketpair()]
    connection = await probe.connect()
    for _ in range(_WILD_FRAMES):
        if connection.closed:
            connection = await probe.connect()
        frame = _wild_frame(connection, pool, chance)
        try:
            await connection.send(frame)
            while await connection.anything() is not None:
                pass
        except Violation:
            connection.close()  # what is said to nonsense has checks of its own


def _wild_frame(connection: Connection, pool: list[int], chance: random.Random) -> Frame:
    """A request of the table or none, its payload random, of a legal size or not, with descriptors or without."""
    number = chance.choice([*FRONTEND_REQUESTS, 0, 46, 0xFFFFFFFF])
    spec = FRONTEND_REQUESTS.get(number)
    sizes = [*layouts.legal_sizes(spec.payload)] if spec else [0, 8]
    size = chance.choice(sizes) if chance.random() < 0.9 else chance.randrange(64)
    data = b"".join(chance.choice((bytes(8), chance.randbytes(8), b"\1" + bytes(7))) for _ in range(size // 8 + 1))
    fds = [chance.choice(pool) for _ in range(chance.choice((0, 0, 1, 1, 1, 2, 8)))]
    return connection.frame(number, data[:size], fds, flags=chance.choice(_FLAGS))


@checks("VIO-HOSTILE-2")
async def wild_rings_harm_nobody(probe: Probe) -> None:
    chance = random.Random(2)
    driver = await probe.driver(layout=((0, 1 << 20), (1 << 32, 1 << 20)), size=16)
    await driver.served()
    for _ in range(_WILD_ROUNDS):
        for ring in driver.rings.values():
            _spoil(driver, ring, chance)
            driver.kick(ring)
        await trio.sleep(probe.patience.silence / 10)
        await driver.connection.talks()
        await driver.stop_all()
        driver.make_rings(16)
        for ring in driver.rings.values():
            await driver.start(ring)
    await driver.served()


def _spoil(driver: Driver, ring: DriverQueue, chance: random.Random) -> None:
    """Write nonsense, and what nearly makes sense, all over a ring."""
    for index in range(ring.size):
        place = (chance.getrandbits(64), chance.randrange(1 << 20), (1 << 32) + chance.randrange(1 << 21))
        length = (chance.getrandbits(32), chance.randrange(4096))
        flags = (0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x8080)
        following = (index + 1, chance.getrandbits(16))
        data = _DESCRIPTOR.pack(*map(chance.choice, (place, length, flags, following)))
        driver.memory.write(ring.desc_addr + 16 * index, data)
    for slot in range(ring.size):
        head = chance.choice((chance.randrange(ring.size), chance.getrandbits(16)))
        driver.memory.store_u16(ring.avail_addr + 4 + 2 * slot, head)
    driver.memory.store_u16(ring.avail_addr + 2, chance.choice((1, 3, ring.size, chance.getrandbits(16))))

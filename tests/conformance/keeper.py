"""A back-end with all that a device can keep itself, and an entropy device's ring: ``keeper.py SOCKET``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import trio

from vhostuser.device import Device, Queue
from vhostuser.errors import PayloadError, VhostUserError
from vhostuser.runtime.groups import allow_interrupts
from vhostuser.runtime.serve import Server
from vhostuser.transport.endpoints import listen

UUID = bytes(range(16))
STATE = b"\0\1" + bytes(range(256)) * 300


class Keeper(Device):
    """Four bytes of identity that only a migration may write, four that the driver may; a state, an object, memory."""

    name, groups = "keeper", ((0,),)
    has_config = shares_objects = inband = True
    max_state = 1 << 20
    shmem_regions = {0: 0x10000, 200: 0x4000}  # noqa: RUF012 - read only

    def __init__(self) -> None:
        self.config = bytearray(b"fix!free")
        self.state = STATE
        self.object = os.memfd_create("object")

    def read_config(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes, migration: bool) -> None:
        if offset < 4 and not migration:
            raise PayloadError(f"SET_CONFIG: offset {offset} cannot be written, only 4 and above")
        self.config[offset : offset + len(data)] = data

    def save(self) -> bytes:
        return self.state

    def load(self, state: bytes) -> None:
        if state[:2] != b"\0\1":
            raise PayloadError(f"the state begins with {state[:2].hex()}, not with 0001")
        self.state = state

    def shared_object(self, uuid: bytes) -> int | None:
        return self.object if uuid == UUID else None

    async def serve(self, queue: Queue) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.announce_object)
            async for chain in queue:
                await chain.complete(os.urandom(chain.writable))

    async def announce_object(self) -> None:
        """Tell of the object, if there is anybody who wants to know."""
        if self.front_end is not None:
            with suppress(VhostUserError):
                await self.front_end.add_object(UUID)


async def main(path: Path) -> None:
    allow_interrupts()
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            nursery.start_soon(Server(Keeper(), endpoint).run)
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))

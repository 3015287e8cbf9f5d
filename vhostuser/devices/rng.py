"""The virtio entropy device (virtio 1.2, section 5.4): random bytes from the host's kernel, in one file."""

import os

from vhostuser.device import Device, Queue

_MOST = 64 * 1024  # bytes for one request; a driver that wants more asks again


class RngDevice(Device):
    """An entropy source with one ring, whose chains it fills."""

    name = "rng"
    groups = ((0,),)

    async def serve(self, queue: Queue) -> None:
        """Fill each chain.

        > The device MUST place one or more random bytes into the buffer, but it MAY use less than the entire buffer
        > length (5.4.6.2).
        """
        async for chain in queue:
            await chain.complete(os.urandom(min(chain.writable, _MOST)))

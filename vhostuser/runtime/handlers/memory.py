"""The front-end's memory."""

from __future__ import annotations

from vhostuser.runtime.connection import Connection
from vhostuser.runtime.handlers.registry import handles
from vhostuser.virtio.memory import GuestMemory, Mapping
from vhostuser.wire.messages import MemoryTable, Message
from vhostuser.wire.requests import FrontendRequest as R


@handles(R.SET_MEM_TABLE)
async def _set_mem_table(connection: Connection, message: Message) -> None:
    assert isinstance(message.payload, MemoryTable)
    connection.check_mapped(sum(region.memory_size for region in message.payload.regions))
    mappings: list[Mapping] = []
    try:
        for region, fd in zip(message.payload.regions, message.fds, strict=True):
            mappings.append(
                Mapping(
                    fd.fileno(),
                    region.guest_phys_addr,
                    region.memory_size,
                    region.userspace_addr,
                    region.mmap_offset,
                )
            )
        memory = GuestMemory(mappings)
    except BaseException:
        for mapping in mappings:
            mapping.close()
        raise
    # The answer follows only when no ring reads the old table any more, so the front-end may take its memory away.
    await connection.adopt(memory)
    for vring in connection.vrings:
        if connection.session.vrings[vring.index].started and not vring.live:
            await connection.refresh(vring.index)

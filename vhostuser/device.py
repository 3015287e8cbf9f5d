"""What the author of a device writes, and sees.

Must not know messages, sockets, or who runs the device. A device says which features it offers and which rings belong
together (a *queue group* has one thread), and makes the pump that turns a group's rings. Fast devices have a pump of
their own; a device in Python overrides :meth:`Device.serve` and gets its chains one by one::

    class Echo(Device):
        name, groups = "echo", ((0,),)

        async def serve(self, queue: Queue) -> None:
            async for chain in queue:
                await chain.complete(await chain.read())
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeVar

import trio

from vhostuser.errors import PayloadError
from vhostuser.fds import OwnedFd
from vhostuser.privileges import NOTHING, Capability
from vhostuser.virtio.features import SUPPORTED
from vhostuser.virtio.layout import EITHER
from vhostuser.virtio.pump import ChainPump, Pump
from vhostuser.virtio.rings import make_ring
from vhostuser.virtio.timeline import Timeline

T = TypeVar("T")
#: Runs a function in the thread that owns a group's rings, between two turns, and returns what it returns.
InTurn = Callable[[Callable[[], T]], Awaitable[T]]
#: Does the same in the thread of each group that lives, with the group's number and its pump.
InTurns = Callable[[Callable[[int, Pump], None]], Awaitable[None]]


class FrontEnd(Protocol):
    """What a device can ask of its front-end. Each waits for the answer, and for the first ring to run if none does.

    Raises:
        VhostUserError: the front-end refused, does not know such requests, or is gone.
    """

    async def config_changed(self) -> None:
        """Have the driver read the configuration space again."""

    async def add_object(self, uuid: bytes) -> None:
        """Announce that :meth:`Device.shared_object` knows this name (16 bytes) now."""

    async def remove_object(self, uuid: bytes) -> None:
        """Announce that it knows it no longer."""

    async def lookup_object(self, uuid: bytes) -> OwnedFd | None:
        """The descriptor of an object that another back-end shares; None where nobody has it."""

    async def map(
        self, region: int, offset: int, length: int, fd: int, fd_offset: int = 0, writable: bool = False
    ) -> None:
        """Map a piece of a file into one of the shared memory regions; all but the identifier in bytes."""

    async def unmap(self, region: int, offset: int) -> None:
        """Take away what was mapped at an offset, as a whole."""


class Device:
    """A virtio device without its transport.

    Attributes:
        name: for logs.
        groups: the ring indices of each queue group.
        features: the virtio feature bits offered, ring features included.
        mtu_settable: whether :meth:`set_mtu` works, so that NET_MTU may be offered.
        capabilities: what it still needs of the process after it was opened.
        announces: whether :meth:`announce` works, so that RARP may be offered.
        inband: whether INBAND_NOTIFICATIONS is offered: kicks and calls as messages, for simulators. It is slow, and
            some front-ends take it without need (user-mode Linux).
        has_config: whether the configuration space is the device's, so that CONFIG may be offered; front-ends of
            network devices keep it themselves.
        max_state: most bytes of what :meth:`save` returns; 0 where rings are all the state that there is.
        shares_objects: whether :meth:`shared_object` works, so that SHARED_OBJECT may be offered.
        shmem_regions: sizes in bytes of VIRTIO shared memory regions, by their identifiers (0 to 255).
        front_end: the front-end that is connected, or None.
        timelines: where each queue group notes its moments, if :meth:`record` was called.
    """

    name: str
    groups: tuple[tuple[int, ...], ...]
    features: int = SUPPORTED
    mtu_settable: ClassVar[bool] = False
    capabilities: Capability = NOTHING
    announces: ClassVar[bool] = False
    inband: bool = False
    has_config: bool = False
    max_state: int = 0
    shares_objects: bool = False
    shmem_regions: Mapping[int, int] = MappingProxyType({})
    front_end: FrontEnd | None = None
    timelines: Sequence[Timeline] = ()

    @property
    def num_rings(self) -> int:
        """How many rings the device has."""
        return sum(len(group) for group in self.groups)

    def pump(self, group: int, features: int) -> Pump:
        """The pump for queue group `group` under the acknowledged `features`; made when its first ring starts."""
        return ChainPump(make_ring(features, self.groups[group][0], EITHER))

    def record(self, entries: int) -> None:
        """Have each queue group that starts from now on note its moments; the last `entries` of them are kept."""
        self.timelines = tuple(Timeline(entries) for _ in self.groups)

    async def serve(self, queue: Queue) -> None:
        """Serve the chains of one ring, if the device is written in Python; cancelled when the ring's group ends."""
        raise NotImplementedError(f"device {self.name} neither has a pump of its own nor serves chains")

    def driver_started(self, features: int) -> None:
        """A driver is there: its first ring is about to start under the acknowledged `features`."""

    def ring_running(self, index: int, running: bool) -> None:
        """The host may send to a ring from now on, or no longer: the driver is there, and has it enabled."""

    def driver_stopped(self) -> None:
        """The driver is gone: its last ring has stopped."""

    def reset(self) -> None:
        """Be as new: the driver reset the device, or the front-end did. No ring runs."""

    def set_mtu(self, mtu: int) -> None:
        """Take over the front-end's MTU in bytes. Raises PortError when the host side refuses it."""
        raise NotImplementedError(f"device {self.name} has no MTU")

    def announce(self, mac: bytes) -> None:
        """Tell the host's network that the guest with this address is here. Raises PortError when it cannot be."""
        raise NotImplementedError(f"device {self.name} has no address")

    def read_config(self) -> bytes:
        """The configuration space, all of it; at most 256 bytes."""
        return b""

    def write_config(self, offset: int, data: bytes, migration: bool) -> None:
        """Write `data`, which lies inside the space; only in `migration` may it change what a driver must not.

        Raises:
            PayloadError: a field cannot be written, or not with that value.
        """
        words = f"SET_CONFIG: nothing in the configuration space of device {self.name} can be written"
        raise PayloadError(words, rule="VU-CONFIG-3")

    def save(self) -> bytes:
        """The state that has to move with the guest. All rings are stopped."""
        return b""

    def load(self, state: bytes) -> None:
        """Take over what :meth:`save` of another process returned, or of anybody: it is not to be trusted.

        Raises:
            PayloadError: it is no such state; the device is as before.
        """

    def shared_object(self, uuid: bytes) -> int | None:
        """The descriptor of an object by its name of 16 bytes; it stays the device's. None where there is none."""
        return None

    def counters(self) -> dict[str, int]:
        """Counters by name that belong to no pump."""
        return {}

    def close(self) -> None:
        """Release the host side."""


class Chain:
    """One descriptor chain: what the driver wrote, and room for what it wants to read.

    Attributes:
        readable, writable: bytes of its buffers.
    """

    def __init__(self, pump: ChainPump, in_turn: InTurn[object], completed: Callable[[], None]) -> None:
        readable, writable = pump.buffers()
        self.readable = sum(size for _, size in readable)
        self.writable = sum(size for _, size in writable)
        self._pump = pump
        self._ticket = pump.ticket
        self._in_turn = in_turn
        self._completed = completed

    async def read(self, limit: int = 1 << 20) -> bytes:
        """What the driver wrote, at most `limit` bytes: it may name one buffer many times.

        Raises:
            MemoryAccessError: the chain's ring stopped, or its memory vanished.
        """
        data = await self._in_turn(lambda: self._pump.read(self._ticket, limit))
        assert isinstance(data, bytes)
        return data

    async def complete(self, data: bytes = b"") -> None:
        """Write `data`, as much as fits, and give the chain back. Raises as :meth:`read` does."""

        def finish() -> None:
            written = self._pump.write(self._ticket, data) if data else 0
            self._pump.complete(self._ticket, written)

        try:
            await self._in_turn(finish)
        finally:
            self._completed()


class Queue:
    """The chains of one ring, as an asynchronous iterator. Complete each one before asking for the next."""

    def __init__(self, pump: ChainPump, in_turn: InTurn[object]) -> None:
        self._pump = pump
        self._in_turn = in_turn
        self._ready = trio.Event()
        self._completed = trio.Event()

    async def drain(self) -> None:
        """Hand out nothing new, and wait until what is in flight was completed."""
        await self._in_turn(self._pump.wind_down)
        while True:
            self._completed = trio.Event()
            if not await self._in_turn(self._pump.unfinished):
                return
            await self._completed.wait()

    def offer(self) -> None:
        """The thread took a chain; called in the event loop."""
        self._ready.set()

    def __aiter__(self) -> Queue:
        return self

    async def __anext__(self) -> Chain:
        await self._ready.wait()
        self._ready = trio.Event()
        return Chain(self._pump, self._in_turn, lambda: self._completed.set())

"""Conversations as a front-end has them that breaks no rule: the stem on which everything else grows.

Must not know: sockets, peers, how rules are broken (``breaking``).

How: a course is a walk. It opens a session, then goes on with things that front-ends do (tell memory, start a ring,
put chains into it, migrate, reset, come back), in an order that chance gives, each of them whole: what a request needs
to be of use has mostly been said before it. Between them comes any request of the table, with values that mean
something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from vhostuser.errors import VhostUserError
from vhostuser.fuzz import rings
from vhostuser.fuzz.model import Known, Model, State
from vhostuser.fuzz.stage import (
    CHANNEL,
    DEVICE_PART,
    DRIVER_PART,
    INFLIGHT,
    LOG,
    MEMORY_SIZE,
    ODDITIES,
    REGIONS,
    RINGS,
    SIZES,
    STATE,
    USERSPACE,
    eventfd,
    memory,
    place,
)
from vhostuser.fuzz.values import edge
from vhostuser.transcript.entries import Closed, Descriptor, Entry, Paused, Said, Side, Signalled
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import VERSION, HeaderFlags
from vhostuser.wire.messages import (
    U64,
    Config,
    CryptoSession,
    DeviceState,
    Inflight,
    Iotlb,
    Log,
    MemoryRegion,
    MemoryTable,
    Payload,
    SharedObject,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
    XenMmap,
)
from vhostuser.wire.requests import FRONTEND_REQUESTS, RequestSpec
from vhostuser.wire.requests import FrontendRequest as R

_ACTS = 10  # of a course, at most
_PLAIN = tuple(MemoryRegion(begin, MEMORY_SIZE, USERSPACE + begin, 0) for begin in REGIONS)
_XEN = tuple(replace(region, xen=XenMmap(0, 0)) for region in _PLAIN)


class Course:
    """One conversation, as chance makes it.

    Args:
        random: Chance.
        known: What the peer offers.
        rare: How seldom a request was said in a state, for the choice of the next: a weight above 0.
    """

    def __init__(self, random: Random, known: Known, rare: Callable[[int, State], float]) -> None:
        self._random = random
        self._known = known
        self._rare = rare
        self._model = Model(known)
        self._sizes: dict[int, int] = {}  # of the rings, as they were told
        self._rings = max(1, min(known.vrings, RINGS))
        # where all is acknowledged, both sides know the state
        self._asks = 1.0 if random.random() < 0.5 else 0.6

    def entries(self) -> Iterator[Entry]:
        """Everything that is done."""
        yield from self._followed(self._open())
        for _ in range(self._random.randint(1, _ACTS)):
            yield from self._followed(self._random.choices(self._acts, self._weights)[0](self))

    def _followed(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self._model.follow(entry)
            yield entry

    @property
    def _regions(self) -> tuple[MemoryRegion, ...]:
        return _XEN if ProtocolFeature.XEN_MMAP in self._model.session.protocol_features else _PLAIN

    # ---- what front-ends do ------------------------------------------------------------------------------------------

    def _open(self) -> Iterator[Entry]:
        chance, known = self._random, self._known
        if chance.random() < 0.9:
            yield self.say(R.SET_OWNER)
        yield self.say(R.GET_FEATURES)
        if known.features & VhostFeature.PROTOCOL_FEATURES and chance.random() < 0.95:
            yield self.say(R.GET_PROTOCOL_FEATURES)
            yield self.say(R.SET_PROTOCOL_FEATURES, U64(self._some(known.protocol_features, ProtocolFeature.REPLY_ACK)))
            yield from self._channel()
        if chance.random() < 0.9:
            always = VhostFeature.PROTOCOL_FEATURES * (chance.random() < 0.9) | 1 << 32
            never = VhostFeature.LOG_ALL | VhostFeature.ACCESS_PLATFORM * (chance.random() < 0.9)
            yield self.say(R.SET_FEATURES, U64(self._some(known.features, int(always)) & ~int(never)))

    def _some(self, offered: int, always: int) -> int:
        """Some of the bits of a word, or all of them; some always."""
        mask = self._random.choice((self._random.getrandbits(64), (1 << 64) - 1, 0))
        word = offered & (mask | always)
        if self._random.random() < 0.9:
            word &= ~int(ProtocolFeature.INBAND_NOTIFICATIONS) if offered == self._known.protocol_features else word
        return word

    def _channel(self) -> Iterator[Entry]:
        if ProtocolFeature.BACKEND_REQ in self._model.session.protocol_features:
            yield self.say(R.SET_BACKEND_REQ_FD, fds=(CHANNEL,))

    def _map(self) -> Iterator[Entry]:
        sealed = self._random.random() < 0.5
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self._model.session.protocol_features and self._random.random() < 0.6:
            yield self.say(R.GET_MAX_MEM_SLOTS)
            for number, region in enumerate(self._regions):
                yield self.say(R.ADD_MEM_REG, SingleRegion(region), (memory(number, sealed=sealed),))
        else:
            fds = tuple(memory(number, sealed=sealed) for number in range(len(self._regions)))
            yield self.say(R.SET_MEM_TABLE, MemoryTable(self._regions), fds)

    def _unmap(self) -> Iterator[Entry]:
        yield self.say(R.REM_MEM_REG, SingleRegion(self._random.choice(self._regions)))

    def _start(self) -> Iterator[Entry]:
        """Start some rings, in the usual order, with something in them."""
        if not self._model.mapped:
            yield from self._map()
        if not self._known.vrings:
            return
        for ring in self._random.sample(range(self._rings), self._random.randint(1, min(self._rings, 3))):
            yield from self._start_ring(ring)

    def _start_ring(self, ring: int) -> Iterator[Entry]:
        num = self._sizes[ring] = self._random.choice(SIZES)
        packed = self._model.packed
        if self._random.random() < 0.8:
            yield from rings.filled(self._random, ring, num, packed)
        yield self.say(R.SET_VRING_NUM, VringState(ring, num))
        base = self._random.choice((0, 0, 0, num // 2, edge(self._random, 16)))
        yield self.say(R.SET_VRING_BASE, VringState(ring, 0x80008000 if packed and not base else base))
        yield self.say(R.SET_VRING_ADDR, self._addr(ring))
        for request, purpose in ((R.SET_VRING_CALL, "call"), (R.SET_VRING_ERR, "err"), (R.SET_VRING_KICK, "kick")):
            yield self.say(request, VringFd(ring), (eventfd(purpose, ring),))
        if self._random.random() < 0.9:
            yield self.say(R.SET_VRING_ENABLE, VringState(ring, 1))
        yield Signalled(f"kick {ring}")

    def _addr(self, ring: int, log: bool = False) -> VringAddr:
        gpa = ProtocolFeature.GPA_ADDRESSES in self._model.session.protocol_features
        at = place(ring) + (0 if gpa else USERSPACE)
        return VringAddr(
            ring, int(log), at, at + DEVICE_PART, at + DRIVER_PART, place(ring) + DEVICE_PART if log else 0
        )

    def _work(self) -> Iterator[Entry]:
        """Give running rings something to do, and change it while they do."""
        packed = self._model.packed
        for ring, num in self._sizes.items():
            if self._random.random() < 0.7:
                yield from rings.filled(self._random, ring, num, packed)
            if self._random.random() < 0.3:
                yield rings.changed(self._random, ring, num, packed, self._random.choice((0.005, 0.02)))
            yield Signalled(f"kick {ring}")
            if ProtocolFeature.INBAND_NOTIFICATIONS in self._model.session.protocol_features:
                yield self.say(R.VRING_KICK, VringState(ring, 0))

    def _stop(self) -> Iterator[Entry]:
        for ring in list(self._sizes):
            if self._random.random() < 0.3:
                yield self.say(R.SET_VRING_ENABLE, VringState(ring, 0))
            if self._random.random() < 0.8:
                yield self.say(R.GET_VRING_BASE, VringState(ring, 0))

    def _log(self) -> Iterator[Entry]:
        """Switch the dirty log on, or off again."""
        features = self._model.session.features
        if features & VhostFeature.LOG_ALL:
            yield self.say(R.SET_FEATURES, U64(features & ~int(VhostFeature.LOG_ALL)))
            return
        yield self.say(R.SET_LOG_BASE, Log(LOG.size, 0), (LOG,))
        if self._random.random() < 0.3:
            yield self.say(R.SET_LOG_FD, fds=(eventfd("log", 0),))
        yield self.say(R.SET_FEATURES, U64(features | VhostFeature.LOG_ALL & self._known.features))
        for ring in self._sizes:
            yield self.say(R.SET_VRING_ADDR, self._addr(ring, log=True))

    def _inflight(self) -> Iterator[Entry]:
        told = Inflight(0, 0, self._rings, self._random.choice(SIZES[3:]))
        if self._random.random() < 0.5:
            yield self.say(R.GET_INFLIGHT_FD, told)
        else:
            told = Inflight(INFLIGHT.size, 0, told.num_queues, told.queue_size)
            yield self.say(R.SET_INFLIGHT_FD, told, (INFLIGHT,))

    def _move_state(self) -> Iterator[Entry]:
        way = self._random.randrange(2)
        yield self.say(R.SET_DEVICE_STATE_FD, DeviceState(way, 0), (STATE[way],))
        yield self.say(R.CHECK_DEVICE_STATE)

    def _postcopy(self) -> Iterator[Entry]:
        yield self.say(R.POSTCOPY_ADVISE)
        yield self.say(R.POSTCOPY_LISTEN)
        yield from self._map()
        yield self.say(R.POSTCOPY_END)

    def _reset(self) -> Iterator[Entry]:
        request = self._random.choice((R.RESET_DEVICE, R.RESET_OWNER, R.SET_STATUS))
        yield self.say(request, U64(0) if request is R.SET_STATUS else None)

    def _come_back(self) -> Iterator[Entry]:
        yield Closed()
        self._sizes.clear()
        yield from self._open()

    def _wait(self) -> Iterator[Entry]:
        yield Paused(self._random.choice((0.002, 0.01)))

    def _anything(self) -> Iterator[Entry]:
        """Some requests of the table, those rather that this state has seldom seen."""
        specs = list(FRONTEND_REQUESTS.values())
        for _ in range(self._random.randint(1, 6)):
            state = self._model.state
            weights = [self._rare(spec.number, state) * (1.0 if self._model.opens(spec) else 0.3) for spec in specs]
            spec = self._random.choices(specs, weights)[0]
            yield self.say(spec.number, *self._filled(spec))

    _acts: tuple[Callable[[Course], Iterator[Entry]], ...] = (
        *(_anything, _map, _unmap, _start, _work, _stop, _log),
        *(_inflight, _move_state, _postcopy, _reset, _come_back, _wait),
    )
    _weights = (6, 2, 1, 6, 4, 3, 2, 1, 1, 0.5, 1, 1, 0.5)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def say(self, request: int, payload: Payload | None = None, fds: tuple[Descriptor, ...] = ()) -> Said:
        """A message of the front-end, which may ask for an acknowledgement."""
        wants = HeaderFlags.NEED_REPLY if self._random.random() < self._asks else 0
        return Said(Side.FRONTEND, request, VERSION | wants, layouts.build(payload) if payload else b"", fds=fds)

    def _filled(self, spec: RequestSpec) -> tuple[Payload | None, tuple[Descriptor, ...]]:
        """A payload for a request, of the right kind and mostly of use, and as many descriptors as it has."""
        payload = self._payload(spec.payload)
        count = self._random.randint(spec.fds.min, min(spec.fds.max, 2))
        if isinstance(payload, MemoryTable):
            return payload, tuple(memory(number) for number in range(len(payload.regions)))
        if isinstance(payload, VringFd):
            count = 0 if payload.no_fd else 1
        fitting = (*(eventfd("spare", number) for number in range(2)), memory(0), LOG, INFLIGHT, CHANNEL, *STATE)
        return payload, tuple(self._random.choice((*fitting, *fitting, *ODDITIES)) for _ in range(count))

    def _payload(self, kind: type[Payload] | None) -> Payload | None:
        chance, ring = self._random, self._random.randrange(self._rings)
        region = chance.choice(self._regions)
        match kind:
            case None:
                return None
            case _ if kind is U64:
                return U64(chance.choice((0, 1, self._model.session.features, 1500, edge(chance, 64))))
            case _ if kind is VringState:
                return VringState(ring, chance.choice((0, 1, *SIZES, edge(chance, 32))))
            case _ if kind is VringFd:
                return VringFd(ring, chance.random() < 0.2)
            case _ if kind is VringAddr:
                return self._addr(ring, log=chance.random() < 0.3)
            case _ if kind is MemoryTable:
                return MemoryTable(self._regions[: chance.randint(1, 2)])
            case _ if kind is SingleRegion:
                return SingleRegion(region)
            case _ if kind is Log:
                return Log(LOG.size, 0)
            case _ if kind is Iotlb:
                size = chance.choice((4096, MEMORY_SIZE))
                return Iotlb(
                    region.guest_phys_addr, size, region.userspace_addr, chance.randrange(4), chance.choice((2, 3))
                )
            case _ if kind is Config:
                return Config(chance.randrange(60), chance.randrange(2), bytes(chance.choice((1, 4, 60, 256))))
            case _ if kind is Inflight:
                return Inflight(INFLIGHT.size, 0, self._rings, chance.choice(SIZES))
            case _ if kind is DeviceState:
                return DeviceState(chance.randrange(2), 0)
            case _ if kind is SharedObject:
                return SharedObject(chance.randbytes(16))
            case _ if kind is CryptoSession:
                return CryptoSession(chance.randbytes(min(layouts.legal_sizes(CryptoSession))))
        raise VhostUserError(f"{kind.__name__}: no course knows what to put into it")

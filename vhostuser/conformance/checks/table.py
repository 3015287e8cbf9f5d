"""The table of requests as a whole: what is offered is served, what is not is refused, and so are real front-ends."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks
from vhostuser.conformance.violation import NotApplicable, Violation
from vhostuser.errors import VhostUserError
from vhostuser.spec.transcripts import transcripts
from vhostuser.transcript.descriptors import Props
from vhostuser.transcript.entries import Closed, Said, Side, Transcript
from vhostuser.transcript.file import parse
from vhostuser.transcript.staging import staged
from vhostuser.wire import layouts
from vhostuser.wire.codec import decode
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.frames import LentFds
from vhostuser.wire.messages import (
    U64,
    Config,
    DeviceState,
    Inflight,
    Iotlb,
    IotlbType,
    Payload,
    SharedObject,
    SingleRegion,
    VringFd,
    VringState,
)
from vhostuser.wire.requests import FRONTEND_REQUESTS, Direction, FrontendRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.requests import RequestSpec

P, R, V = ProtocolFeature, FrontendRequest, VhostFeature
_MIB = 1 << 20
_ELSEWHERE = (R.SET_VRING_ENDIAN, R.CREATE_CRYPTO_SESSION, R.CLOSE_CRYPTO_SESSION, R.GPU_SET_SOCKET)
"""Requests of devices that have no check here."""

Asked = tuple[FrontendRequest, Payload | None, list[int]]


def _offered(probe: Probe, spec: RequestSpec) -> bool:
    gates = [gate for gate in (spec.gate, spec.virtio_gate) if gate]
    return spec.number not in _ELSEWHERE and not probe.offer.missing(*gates)


@checks("VU-NEVER-2")
async def what_is_offered_is_served(probe: Probe) -> None:
    virtio = probe.device.features | V.NET_MTU | V.LOG_ALL
    connection = await probe.negotiated(virtio, ~(P.INBAND_NOTIFICATIONS | P.XEN_MMAP | P.PAGEFAULT))
    for request, payload, fds in _course(probe):
        if _offered(probe, FRONTEND_REQUESTS[request]):
            await connection.accepted(request, payload, fds)
    if probe.offer.virtio & V.ACCESS_PLATFORM:
        connection = await probe.negotiated(probe.device.features | V.ACCESS_PLATFORM)
        await connection.accepted(R.IOTLB_MSG, Iotlb(0, 0, 0, 0, IotlbType.INVALIDATE))
    if probe.offer.protocol & P.PAGEFAULT:
        connection = await probe.negotiated(protocol=P.PAGEFAULT | P.REPLY_ACK)
        for request in (R.POSTCOPY_ADVISE, R.POSTCOPY_LISTEN, R.POSTCOPY_END):
            await connection.accepted(request)
    inband = P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK
    if not probe.offer.missing(inband):
        connection = await probe.negotiated(protocol=inband)
        await connection.accepted(R.VRING_KICK, VringState(0, 0))


def _course(probe: Probe) -> Iterator[Asked]:
    """A conversation with everything in it, in an order in which all of it is legal."""
    memory = probe.memory((0, _MIB))
    more = probe.memory((1 << 32, _MIB)).regions[0]
    single, log, own = SingleRegion(more.message()), probe.dirty_log((1 << 32) + _MIB), probe.socketpair()[1]
    region, state = probe.memfd(1 << 16, "region"), probe.pipe()[1]
    fcntl.fcntl(state, fcntl.F_SETPIPE_SZ, _MIB)  # nobody reads it
    yield from ((request, None, []) for request in (R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_QUEUE_NUM))
    yield from ((request, None, []) for request in (R.SET_OWNER, R.GET_MAX_MEM_SLOTS, R.GET_SHMEM_CONFIG))
    yield R.SET_BACKEND_REQ_FD, None, [own]
    yield R.SET_MEM_TABLE, memory.table(), memory.fds()
    yield R.ADD_MEM_REG, single, [more.fd.fileno()]
    yield R.SET_LOG_BASE, log.message(), [log.fd.fileno()]
    yield R.SET_LOG_FD, None, [probe.eventfd()]
    yield R.REM_MEM_REG, single, []
    yield R.GET_INFLIGHT_FD, Inflight(0, 0, 1, 64), []
    yield R.SET_INFLIGHT_FD, Inflight(1 << 16, 0, 1, 64), [region]
    yield R.SEND_RARP, U64(int.from_bytes(bytes.fromhex("525400123456"), "little")), []
    yield R.NET_SET_MTU, U64(1500), []
    yield R.GET_CONFIG, Config(0, 0, bytes(1)), []
    yield R.SET_CONFIG, Config(0, 1, b"f"), []
    yield R.GET_SHARED_OBJECT, SharedObject(bytes(16)), []
    yield R.SET_DEVICE_STATE_FD, DeviceState(0, 0), [state]
    yield R.CHECK_DEVICE_STATE, None, []
    yield R.SET_STATUS, U64(0xB), []
    yield R.GET_STATUS, None, []
    yield R.SET_VRING_NUM, VringState(0, 64), []
    yield R.SET_VRING_BASE, VringState(0, 0), []
    for request in (R.SET_VRING_CALL, R.SET_VRING_ERR):
        yield request, VringFd(0), [probe.eventfd()]
    yield R.SET_VRING_ENABLE, VringState(0, 0), []
    yield R.GET_VRING_BASE, VringState(0, 0), []
    yield R.GET_VRING_BASE_SKIP_DRAIN, VringState(0, 0), []
    yield from ((request, None, []) for request in (R.RESET_DEVICE, R.RESET_OWNER))


@checks("VU-NEVER-2", needs=(P.REPLY_ACK,))
async def what_is_not_offered_is_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    for spec in FRONTEND_REQUESTS.values():
        if _offered(probe, spec):
            continue
        payload = bytes(min(layouts.legal_sizes(spec.payload)))
        fds = [probe.eventfd() for _ in range(spec.fds.min)]
        await connection.refused(connection.frame(spec.number, payload, fds))


@checks("VU-PEER-1", devices=("net",))
async def what_real_front_ends_say_is_served(probe: Probe) -> None:
    played = [name for name, text in transcripts().items() if await _played(probe, parse(text, name))]
    if not played:
        raise NotApplicable("no recorded front-end acknowledges what is offered here")


async def _played(probe: Probe, transcript: Transcript) -> bool:
    """Say what a front-end said; whether what it acknowledged is offered here."""
    said = [entry for entry in transcript.entries if isinstance(entry, Said) and entry.side is Side.FRONTEND]
    if any(entry.request in (R.SET_FEATURES, R.SET_PROTOCOL_FEATURES) and _beyond(probe, entry) for entry in said):
        return False
    if dict(transcript.offer).get("vrings", 2) > 2 and probe.offer.missing(P.MQ):
        return False
    with Props() as props:
        connection = await probe.connect()
        for _, entry in staged(transcript.entries):  # old recordings do not tell how large files were
            if isinstance(entry, Closed):
                connection.close()
                connection = await probe.connect()
            elif isinstance(entry, Said) and entry.side is Side.FRONTEND:
                fds = [props.of(fd) for fd in entry.fds]
                for fd, told in zip(fds, entry.fds, strict=True):
                    probe.record.name(fd, told.name)
                message = decode(Direction.FRONTEND, entry.frame(LentFds(fds)))
                assert not isinstance(message.payload, bytes)
                try:
                    await connection.accepted(entry.request, message.payload, fds, flags=entry.flags)
                except VhostUserError as error:
                    raise Violation(f"{transcript.front_end}, {transcript.scene} {error}") from None
        connection.close()
    return True


def _beyond(probe: Probe, said: Said) -> bool:
    """Whether features are acknowledged that are not offered here."""
    offered = probe.offer.virtio if said.request == R.SET_FEATURES else probe.offer.protocol
    word = layouts.parse(U64, said.payload).value
    return bool(word & ~offered)

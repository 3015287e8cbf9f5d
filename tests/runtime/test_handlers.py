"""The table of handlers against the table of requests."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.hostile.attack import ask, borrowed, eventfd, refused
from tests.ports import PairPort
from vhostuser.device import Device
from vhostuser.devices.net.device import NetDevice
from vhostuser.errors import RemoteProtocolError
from vhostuser.fds import FdBundle
from vhostuser.frontend.client import FrontEnd
from vhostuser.runtime.handlers import HANDLERS
from vhostuser.runtime.offer import offer_of
from vhostuser.session.backend import BackendSession, Done, Offer
from vhostuser.wire import layouts
from vhostuser.wire.features import ProtocolFeature
from vhostuser.wire.messages import U64, Message, Payload, VringAddr, VringFd, VringState
from vhostuser.wire.requests import FRONTEND_REQUESTS, FrontendRequest, RequestSpec

R = FrontendRequest

UNGATED = {R.GPU_SET_SOCKET}
"""No feature says whether a back-end serves these; ours does not, and refuses them for want of a handler."""


NEVER = (R.SET_VRING_ENDIAN, R.CREATE_CRYPTO_SESSION, R.CLOSE_CRYPTO_SESSION, R.GPU_SET_SOCKET)
NEVER_OFFERED = (
    ProtocolFeature.CROSS_ENDIAN
    | ProtocolFeature.CRYPTO_SESSION
    | ProtocolFeature.HOST_NOTIFIER
    | ProtocolFeature.XEN_MMAP
)

HARMLESS: dict[type[Payload], Payload] = {
    U64: U64(0),
    VringState: VringState(0, 1),
    VringAddr: VringAddr(0, 0, 0, 0, 0, 0),
    VringFd: VringFd(0, no_fd=True),
}


@pytest.fixture
def offer() -> Offer:
    """What a network device's back-end offers."""
    port = PairPort()
    with closing(NetDevice(port)) as device, port.host:
        return offer_of(device)


def generous(offer: Offer) -> BackendSession:
    """A session in which everything that is offered was acknowledged."""
    session = BackendSession(offer)
    for request, word in (
        (R.SET_PROTOCOL_FEATURES, offer.protocol_features),
        (R.SET_FEATURES, offer.virtio_features),
    ):
        message = Message(request, FRONTEND_REQUESTS[request], U64(word), FdBundle())
        session.admit(message)
        session.answer(message, Done())
    return session


def harmless(spec: RequestSpec) -> Message:
    """A message whose values are legal wherever zeros, or an aligned ring of one descriptor, are."""
    if spec.payload is None:
        return Message(spec.number, spec, None, FdBundle())
    zeros = bytes(max(layouts.legal_sizes(spec.payload)))
    return Message(spec.number, spec, HARMLESS.get(spec.payload, zeros), FdBundle())


@pytest.mark.proves("VU-NEVER-2")
@pytest.mark.parametrize("spec", list(FRONTEND_REQUESTS.values()), ids=lambda spec: spec.name)
def test_a_request_has_a_handler_or_is_not_admitted(offer: Offer, spec: RequestSpec) -> None:
    if spec.number in HANDLERS:
        return
    if spec.number in UNGATED:
        generous(offer).admit(harmless(spec))
        return
    with pytest.raises(RemoteProtocolError, match="not offered"):
        generous(offer).admit(harmless(spec))


@pytest.mark.proves("VU-NEVER-1")
@pytest.mark.parametrize("request_", NEVER, ids=lambda request: request.name)
async def test_what_is_never_served_is_refused(attacker: FrontEnd, request_: FrontendRequest) -> None:
    """By a running back-end, to a front-end that acknowledged all that is offered."""
    message = harmless(FRONTEND_REQUESTS[request_])
    with borrowed(eventfd()) as (fd,):
        payload = b"" if message.payload is None else message.payload
        await refused(attacker, ask(request_, payload, [fd] * FRONTEND_REQUESTS[request_].fds.min))


@pytest.mark.proves("VU-NEVER-1")
def test_what_is_never_offered(offer: Offer) -> None:
    device = Device()
    device.name, device.groups, device.max_state, device.shmem_regions = "all", ((0,),), 1, {0: 1}
    device.has_config = device.shares_objects = True
    for offered in (offer, offer_of(device, postcopy=True)):
        assert not offered.protocol_features & NEVER_OFFERED


def test_every_handler_is_for_a_request_of_the_table() -> None:
    assert set(HANDLERS) <= set(FRONTEND_REQUESTS)
